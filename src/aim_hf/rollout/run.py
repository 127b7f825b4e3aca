"""Closed-loop rollouts: runs a batch of episodes of one task until the last of them has ended.

Rows start together and share every call of the model. In each chunk the policy predicts, each row's environment
executes, and the observations are returned to the policy. For a row that has ended, the last observation repeats.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..envs.base import SeedRejected
from ..value_maps.peak import value_peak_error
from .policies import Policy
from .storyboard import Storyboard
from .vector_env import Chunks, Start, VectorEnvironment, WorkerLost

MAX_TRIES = 2
ValueMaps = Literal["predicted", "true"]


@dataclass
class EpisodeResult:
    """The outcome of one episode.

    simulator: versions and commits of the simulator. expert_success: whether the scripted expert succeeds.
    steps: control steps until success or the end.
    peak_error: camera -> distance between the peak of the first chunk's last value map and the true contact, as a
        fraction of the canvas's width; None if the contact is out of view. The whole is None if the policy predicts no
        maps. If the policy acts on true maps, these are measured, and the error is that of the codec.
    peak_error_cm: the same in centimeters, on the horizontal plane through the contact.
    storyboard: the pictures of a filmed episode.
    """

    task: str
    seed: int
    instruction: str
    simulator: dict[str, str]
    expert_success: bool
    success: bool = False
    steps: int = 0
    peak_error: dict[str, float | None] | None = None
    peak_error_cm: dict[str, float | None] | None = None
    storyboard: Storyboard | None = None


def run_episodes(
    policy: Policy,
    environments: VectorEnvironment,
    task: str,
    seeds: list[int],
    instructions: str = "seen",
    value_maps: ValueMaps = "predicted",
    filmed: Collection[int] = (),
) -> list[EpisodeResult | SeedRejected]:
    """Runs the episodes of `seeds` together. For a seed that the suite rejects, the result is the SeedRejected.

    Args:
        instructions: "seen" or "unseen" instruction templates.
        value_maps: "true": the policy acts on the oracle's maps instead of its own.
        filmed: seeds of the episodes whose pictures are kept.

    Raises:
        RuntimeError: if a worker is lost twice in the same episode, which is named, or an environment fails.
    """
    lost: Counter[int] = Counter()
    while True:
        try:
            return _run(policy, environments, task, seeds, instructions, value_maps, filmed)
        except WorkerLost as error:
            lost[error.seed] += 1
            if lost[error.seed] == MAX_TRIES:
                raise RuntimeError(
                    f"{error} of {task} ({environments.suite}, {environments.split}), {MAX_TRIES} times: look at that "
                    "scene by itself, or at the memory that is left."
                ) from error


def _run(
    policy: Policy,
    environments: VectorEnvironment,
    task: str,
    seeds: list[int],
    instructions: str,
    value_maps: ValueMaps,
    filmed: Collection[int],
) -> list[EpisodeResult | SeedRejected]:
    chunks = Chunks(policy.actions_per_chunk, policy.actions_per_frame)
    every = environments.reset(task, seeds, instructions, chunks, true_value_maps=value_maps == "true")
    # Rows of the policy are the scenes that weren't rejected; `places` are their rows in `environments`.
    places = [place for place, start in enumerate(every) if start is not None]
    results: list[EpisodeResult | SeedRejected] = [environments.lost.get(place) for place in range(len(seeds))]
    if not places:
        return results
    starts = [every[place] for place in places]
    policy.start([start.instruction for start in starts], [seeds[place] for place in places])
    rows = [
        _new_result(environments, task, seeds[place], start, seeds[place] in filmed)
        for place, start in zip(places, starts)
    ]
    observations = [[start.observation] for start in starts]
    maps = [start.value_maps for start in starts]
    running, executed = list(range(len(rows))), None
    while running:
        is_filmed = any(rows[row].storyboard for row in running)
        prediction = policy.predict(
            observations,
            executed,
            _stacked(maps) if value_maps == "true" else None,
            "all" if is_filmed else "value_maps" if executed is None else "none",
        )
        if executed is None and prediction.value_maps is not None:
            for row, (result, start) in enumerate(zip(rows, starts, strict=True)):
                _measure_peaks(result, policy, prediction.value_maps, row, start)
        executed = prediction.actions
        progress = environments.step({places[row]: executed[row] for row in running}, policy.action_mode)
        for row in running:
            result, latest = rows[row], progress[places[row]]
            if result.storyboard:
                result.storyboard.add_chunk(prediction, row, latest.observations, latest.steps - result.steps)
                result.storyboard.success = latest.success
            result.success, result.steps = latest.success, latest.steps
            observations[row], maps[row] = latest.observations, latest.value_maps
        for row in set(range(len(rows))) - set(running):
            observations[row] = [observations[row][-1]] * len(chunks.moments)
        running = [row for row in running if not progress[places[row]].done]
    for place, result in zip(places, rows):
        results[place] = result
    return results


def _new_result(environments: VectorEnvironment, task: str, seed: int, start: Start, filmed: bool) -> EpisodeResult:
    result = EpisodeResult(task, seed, start.instruction, start.simulator, start.expert_success)
    if filmed:
        result.storyboard = new_storyboard(task, environments.split, seed, start, start.instruction)
    return result


def new_storyboard(task: str, split: str, seed: int, start: Start, instruction: str) -> Storyboard:
    """A storyboard for an episode that has just been reset, with this instruction."""
    return Storyboard(
        title=f"{task} ({split}, seed {seed})",
        instruction=instruction,
        start=start.observation,
        control_dt=start.control_dt,
        step_limit=start.step_limit,
    )


def _measure_peaks(result: EpisodeResult, policy: Policy, maps: dict[str, np.ndarray], row: int, start: Start) -> None:
    errors = {
        camera: value_peak_error(clips[row, -1], start.contacts[camera], policy.pixel_size[camera])
        for camera, clips in maps.items()
    }
    result.peak_error = {camera: error and error[0] for camera, error in errors.items()}
    result.peak_error_cm = {camera: error and error[1] for camera, error in errors.items()}


def _stacked(maps: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks the rows' maps, camera -> (F, H, W) uint8 each, to camera -> (B, F, H, W) in [0, 1]."""
    return {camera: np.stack([row[camera] for row in maps]) / 255 for camera in maps[0]}
