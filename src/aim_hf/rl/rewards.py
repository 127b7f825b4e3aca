"""Rewards of eq. (12), r = lambda_d * M(P(p)) + lambda_s * r_success.

A reward function is a plain callable: it gets the [`Outcome`]s of a group, and returns for each either one number, or
a number for each of its chunks, (num_chunks,). The weights, lambda, are `reward_weights` of the trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..envs.base import CAMERAS
from ..value_maps.render import project

HIGH = 0.5  # of a map's peak: what counts as its high region


@dataclass(frozen=True)
class Outcome:
    """One episode, as rewards see it: C chunks of F frames each.

    success: whether the task was fulfilled. steps: control steps that it took.
    targets: (C, F, 2, 3), where the executed actions wanted the left and the right tool at each frame, in the world.
    value_maps: camera -> (C, F, H, W) in [0, 1], as they were predicted.
    intrinsics, extrinsics: camera -> (C, F, 3, 3) and (C, F, 3, 4), as they turned out.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    steps: int
    targets: np.ndarray
    value_maps: dict[str, np.ndarray]
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]

    def landings(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Where each chunk lands with each tool, the frame at which it wants it lowest: what the camera's map reads at
        the projected target, NaN where the camera doesn't see it, and that map's peak, (C, 2) each."""
        pixels, _ = project(self.targets, self.intrinsics[camera], self.extrinsics[camera])
        readings = bilinear(self.value_maps[camera][:, :, None], pixels)  # (C, F, 2)
        peaks = self.value_maps[camera].max(axis=(2, 3))[:, :, None].repeat(2, axis=2)
        frame = self.targets[..., 2].argmin(axis=1)[:, None]
        at_landing = [np.take_along_axis(values, frame, axis=1)[:, 0] for values in (readings, peaks)]
        return at_landing[0], at_landing[1]


RewardFunction = Callable[[list[Outcome]], Sequence[float | np.ndarray]]


def bilinear(pictures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Pictures (..., height, width) at places (..., 2), u right and v down in pixels: pixel (row, column) has its
    middle at (column + 0.5, row + 0.5). NaN outside; leading dimensions broadcast."""
    height, width = pictures.shape[-2:]
    pictures = np.broadcast_to(pictures, (*places.shape[:-1], height, width))
    inside = ((places >= 0) & (places <= (width, height))).all(axis=-1)
    x, y = np.moveaxis(np.clip(np.where(inside[..., None], places, 0) - 0.5, 0, (width - 1, height - 1)), -1, 0)
    column, row = x.astype(int).clip(max=width - 2), y.astype(int).clip(max=height - 2)
    x, y = x - column, y - row
    leading = np.ogrid[tuple(slice(n) for n in x.shape)]

    def corner(down: int, right: int) -> np.ndarray:
        return pictures[(*leading, row + down, column + right)]

    above = (1 - x) * corner(0, 0) + x * corner(0, 1)
    below = (1 - x) * corner(1, 0) + x * corner(1, 1)
    return np.where(inside, (1 - y) * above + y * below, np.nan)


def success_reward(outcomes: list[Outcome]) -> list[float]:
    """1 for an episode that fulfilled its task, 0 for another."""
    return [float(outcome.success) for outcome in outcomes]


def value_map_reward(outcomes: list[Outcome], cameras: Sequence[str] = ("head_camera",)) -> list[np.ndarray]:
    """Of each chunk: the predicted value map, read where the chunk lands.

    Read at every frame, it would pay to fly along the camera's ray to the peak, and to arrive before the imagined
    frame does. A map shows the next contact of whichever arm makes one, so that of the two arms the better counts.
    Cameras are averaged where they see a tool; a chunk that none sees land counts 0.
    """
    unknown = set(cameras) - set(CAMERAS)
    if unknown or not cameras:
        raise ValueError(f"cameras are {list(cameras)}; expected some of {', '.join(CAMERAS)}.")
    rewards = []
    for outcome in outcomes:
        best = np.stack([_best_arm(outcome.landings(camera)[0]) for camera in cameras])  # (cameras, C)
        seen = ~np.isnan(best)
        rewards.append(np.where(seen, best, 0).sum(axis=0) / seen.sum(axis=0).clip(min=1))
    return rewards


def value_hits(outcome: Outcome, camera: str = "head_camera") -> tuple[int, int]:
    """How many chunks land in the high region of a map with either tool, and how many chunks there are whose map shows
    one as they land."""
    readings, peaks = outcome.landings(camera)
    shown = peaks >= HIGH
    hit = shown & (np.nan_to_num(readings) >= HIGH * peaks)
    return int(hit.any(axis=1).sum()), int(shown.any(axis=1).sum())


def _best_arm(readings: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...), NaN where both are."""
    best = np.nan_to_num(readings, nan=-1).max(axis=-1)
    return np.where(best < 0, np.nan, best)
