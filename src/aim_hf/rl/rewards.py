"""Rewards of eq. (12), r = lambda_d * M(P(p)) + lambda_s * r_success.

A reward function is a callable that takes the [`Outcome`]s of a group. For each outcome it returns one number, or one
number per chunk, (num_chunks,). The weights, lambda, are `reward_weights` of the trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..envs.base import CAMERAS
from ..rollout.vector_env import Progress
from ..value_maps.contacts import MadeContact
from ..value_maps.render import project
from .advantages import Rewards

HIGH = 0.5  # share of a map's peak above which a pixel belongs to the map's high region


@dataclass(frozen=True)
class Outcome:
    """One episode of C chunks with F frames each, the input of reward functions.

    success: whether the task was solved. steps: number of control steps.
    targets: (C, F, 2, 3), commanded positions of the left and right end effector at each frame, in world coordinates.
    contacts: the contact events that happened, in control steps since the reset.
    actions_per_frame: control steps from one frame to the next.
    value_maps: camera -> predicted value maps (C, F, H, W) in [0, 1].
    intrinsics, extrinsics: camera -> (C, F, 3, 3) and (C, F, 3, 4), of the observed frames.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    steps: int
    targets: np.ndarray
    contacts: list[MadeContact]
    actions_per_frame: int
    value_maps: dict[str, np.ndarray]
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]

    @classmethod
    def of_chunks(
        cls, chunks: Sequence[Progress], value_maps: Sequence[dict[str, np.ndarray]], **fields: int | str
    ) -> "Outcome":
        """From the progress and the value maps, camera -> (F, H, W), of each chunk; fields: the other fields."""

        def calibration(camera: str, name: str) -> np.ndarray:
            return np.array([[seen["observation"][camera][name] for seen in chunk.observations] for chunk in chunks])

        return cls(
            success=chunks[-1].success,
            steps=chunks[-1].steps,
            targets=np.stack([chunk.targets for chunk in chunks]),
            contacts=[contact for chunk in chunks for contact in chunk.contacts],
            value_maps={camera: np.stack([maps[camera] for maps in value_maps]) for camera in CAMERAS},
            intrinsics={camera: calibration(camera, "intrinsic_cv") for camera in CAMERAS},
            extrinsics={camera: calibration(camera, "extrinsic_cv") for camera in CAMERAS},
            **fields,
        )

    def landings(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Value map at the landing point of each chunk and end effector, and that map's peak, (C, 2) each.

        An end effector lands at the frame with its lowest target. The map is read at the target's projection; NaN if
        the camera doesn't see it.
        """
        pixels, _ = project(self.targets, self.intrinsics[camera], self.extrinsics[camera])
        readings = bilinear(self.value_maps[camera][:, :, None], pixels)  # (C, F, 2)
        peaks = self.value_maps[camera].max(axis=(2, 3))[:, :, None].repeat(2, axis=2)
        frame = self.targets[..., 2].argmin(axis=1)[:, None]
        at_landing = [np.take_along_axis(values, frame, axis=1)[:, 0] for values in (readings, peaks)]
        return at_landing[0], at_landing[1]


RewardFunction = Callable[[list[Outcome]], Sequence[float | np.ndarray]]


def bilinear(pictures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of pictures (..., height, width) at places (..., 2); leading dimensions broadcast.

    A place is (u, v) in pixels, right and down: the center of pixel (row, column) is (column + 0.5, row + 0.5). Places
    outside of the picture are NaN.
    """
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


def check_cameras(cameras: Sequence[str]) -> None:
    """Raises ValueError for an unknown camera or none."""
    unknown = set(cameras) - set(CAMERAS)
    if unknown or not cameras:
        raise ValueError(f"cameras are {list(cameras)}; expected some of {', '.join(CAMERAS)}.")


def success_reward(outcomes: list[Outcome]) -> list[float]:
    """1 for an episode that solved its task, else 0."""
    return [float(outcome.success) for outcome in outcomes]


def value_map_reward(outcomes: list[Outcome], cameras: Sequence[str] = ("head_camera",)) -> list[np.ndarray]:
    """Predicted value map at the landing point of each chunk.

    A reward of every frame would favor moving along the camera ray through the peak, and arriving earlier than in the
    imagined frames. A map shows the next contact of either arm, so the better arm counts. The reward is the mean over
    cameras that see an end effector land; 0 if none does.
    """
    check_cameras(cameras)
    rewards = []
    for outcome in outcomes:
        # The better arm, (cameras, C); NaN if neither arm is seen.
        best = np.stack([np.fmax.reduce(outcome.landings(camera)[0], axis=-1) for camera in cameras])
        seen = ~np.isnan(best)
        rewards.append(np.where(seen, best, 0).sum(axis=0) / seen.sum(axis=0).clip(min=1))
    return rewards


def value_hits(outcome: Outcome) -> tuple[int, int]:
    """Number of chunks where an end effector lands in the high region of the head camera's map, and number of chunks
    whose map has a high region at landing."""
    readings, peaks = outcome.landings("head_camera")
    shown = peaks >= HIGH
    hit = shown & (np.nan_to_num(readings) >= HIGH * peaks)
    return int(hit.any(axis=1).sum()), int(shown.any(axis=1).sum())


def reward_name(function: RewardFunction) -> str:
    """Name of a reward function or `functools.partial`, for metrics and messages."""
    return getattr(function, "__name__", None) or getattr(function, "func", function).__name__


def evaluate_rewards(functions: Sequence[RewardFunction], outcomes: list[Outcome]) -> Rewards:
    """Rewards of each function for each episode: a scalar, or one number per chunk.

    Raises:
        ValueError: for a wrong number or shape of rewards.
        FloatingPointError: for a reward that is not finite.
    """
    rewards = []
    for function in functions:
        given = [torch.as_tensor(reward, dtype=torch.float64) for reward in function(outcomes)]
        name = reward_name(function)
        if len(given) != len(outcomes):
            raise ValueError(f"{name} gave {len(given)} rewards for {len(outcomes)} episodes.")
        for outcome, reward in zip(outcomes, given):
            chunks = len(outcome.targets)
            if reward.shape not in ((), (chunks,)):
                raise ValueError(
                    f"{name} gave a reward of shape {tuple(reward.shape)} to an episode of {chunks} chunks; expected "
                    "a number, or one for each chunk."
                )
            if not torch.isfinite(reward).all():
                raise FloatingPointError(
                    f"the reward {name} is {reward.tolist()} for {outcome.task}, seed {outcome.seed}."
                )
        if len({reward.ndim for reward in given}) > 1:
            raise ValueError(
                f"{name} gave a number for some episodes and one for each chunk for others; expected one kind for all."
            )
        rewards.append(given)
    return rewards
