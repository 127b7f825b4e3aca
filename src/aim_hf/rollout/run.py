"""Closed-loop rollouts: runs a batch of episodes of one task until the last of them has ended.

Rows start together and share every call of the model. In each chunk the policy predicts, each row's environment
executes, and the observations are returned to the policy. Rows that have ended leave the batch, so the policy computes
nothing for them.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..envs import interface
from ..envs.base import ActionMode, Interface, Observation, SeedRejected
from ..utils.extras import SimulatorFailed
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
    steps: control steps until success or the end. plans: how often the policy planned.
    peak_error: camera -> distance between the peak of the first chunk's last value map and the true contact, as a
        fraction of the canvas's width; None if the contact is out of view. `peak_error` is None if the policy predicts
        no maps. If the policy acts on true maps, these are measured, and the error is the codec's.
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
    plans: int = 0
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
) -> Iterator[EpisodeResult | SeedRejected]:
    """Runs the episodes of `seeds` together, and yields each result when its episode has ended. For a seed that the
    suite rejects, the result is the SeedRejected.

    Args:
        instructions: "seen" or "unseen" instruction templates.
        value_maps: "true": the policy acts on the oracle's maps instead of its own.
        filmed: seeds of the episodes whose pictures are kept.

    Raises:
        ValueError: for actions of another width than the suite's, and NaN among them.
        SimulatorFailed: if a worker is lost twice in the same episode, which it names.
        RuntimeError: if an environment fails.
    """
    lost: Counter[int] = Counter()
    missing = list(seeds)
    while missing:
        try:
            for result in _run(policy, environments, task, missing, instructions, value_maps, filmed):
                missing = [seed for seed in missing if seed != result.seed]
                yield result
        except WorkerLost as error:
            lost[error.seed] += 1
            if lost[error.seed] == MAX_TRIES:
                raise SimulatorFailed(
                    f"{error} of {task} ({environments.suite}, {environments.split}), {MAX_TRIES} times: run that "
                    "scene by itself, or look at the free memory."
                ) from error


@dataclass
class _Row:
    """An episode in progress.

    place: its row in the environments. observations, value_maps: for the next prediction.
    """

    place: int
    start: Start
    result: EpisodeResult
    observations: list[Observation]
    value_maps: dict[str, np.ndarray] | None
    done: bool = False


def _run(
    policy: Policy,
    environments: VectorEnvironment,
    task: str,
    seeds: list[int],
    instructions: str,
    value_maps: ValueMaps,
    filmed: Collection[int],
) -> Iterator[EpisodeResult | SeedRejected]:
    chunks = Chunks(policy.actions_per_chunk, policy.actions_per_frame)
    starts = environments.reset(task, seeds, instructions, chunks, true_value_maps=value_maps == "true")
    rejected = list(environments.lost.values())
    rows = []
    for place, (start, seed) in enumerate(zip(starts, seeds, strict=True)):
        if start is not None:
            result = EpisodeResult(task, seed, start.instruction, start.simulator, start.expert_success)
            if seed in filmed:
                mode = policy.action_mode
                result.storyboard = new_storyboard(task, environments.split, seed, start, start.instruction, mode)
            rows.append(_Row(place, start, result, [start.observation], start.value_maps))
    yield from rejected
    if rows:
        policy.start([row.start.instruction for row in rows], [row.result.seed for row in rows])
    width = interface(environments.suite, environments.split).action_dims.get(policy.action_mode)
    executed = None
    while rows:
        prediction = policy.predict(
            [row.observations for row in rows],
            executed,
            _stacked([row.value_maps for row in rows], policy.interface) if value_maps == "true" else None,
            "all" if any(row.result.storyboard for row in rows) else "value_maps" if executed is None else "none",
        )
        _check_actions(prediction.actions, width, environments.suite, policy.action_mode)
        if executed is None and prediction.value_maps is not None:
            for index, row in enumerate(rows):
                _measure_peaks(row.result, policy, prediction.value_maps, index, row.start)
        executed = prediction.actions
        progress = environments.step({row.place: executed[i] for i, row in enumerate(rows)}, policy.action_mode)
        for index, row in enumerate(rows):
            result, latest = row.result, progress[row.place]
            if result.storyboard:
                result.storyboard.add_chunk(prediction, index, latest.observations, latest.steps - result.steps)
                result.storyboard.success = latest.success
            result.success, result.steps = latest.success, latest.steps
            result.plans += prediction.planned is None or bool(prediction.planned[index])
            row.observations, row.value_maps, row.done = latest.observations, latest.value_maps, latest.done
        yield from (row.result for row in rows if row.done)
        running = [index for index, row in enumerate(rows) if not row.done]
        if 0 < len(running) < len(rows):
            policy.keep(running)
            executed = executed[running]
        rows = [rows[index] for index in running]


def _check_actions(actions: np.ndarray, width: int | None, suite: str, mode: ActionMode) -> None:
    """Raises ValueError for a policy's actions that no environment of the suite takes, before a worker gets them."""
    if actions.ndim != 3 or width not in (None, actions.shape[2]):
        raise ValueError(
            f"the policy's actions have shape {actions.shape}; suite {suite!r} expects (episodes, actions, "
            f"{width or 'numbers'}) in mode {mode!r}. Give a policy of this robot."
        )
    if not np.isfinite(actions).all():
        raise ValueError("the policy's actions have NaN or infinite numbers; look at its weights and its inputs.")


def new_storyboard(
    task: str, split: str, seed: int, start: Start, instruction: str, action_mode: ActionMode
) -> Storyboard:
    """A storyboard for an episode that has just been reset, with this instruction."""
    title = f"{task} ({split}, seed {seed})"
    return Storyboard(title, instruction, start.observation, start.control_dt, start.step_limit, action_mode)


def _measure_peaks(
    result: EpisodeResult, policy: Policy, maps: dict[str, np.ndarray], index: int, start: Start
) -> None:
    errors = {
        camera: value_peak_error(clips[index, -1], start.contacts[camera], policy.pixel_size[camera])
        for camera, clips in maps.items()
    }
    result.peak_error = {camera: error and error[0] for camera, error in errors.items()}
    result.peak_error_cm = {camera: error and error[1] for camera, error in errors.items()}


def _stacked(maps: list[dict[str, np.ndarray]], interface: Interface) -> dict[str, np.ndarray]:
    """Stacks the rows' maps, camera -> (F, H, W) uint8 each, to camera -> (B, F, H, W) in [0, 1], of the cameras that
    the policy looks at."""
    return {camera: np.stack([row[camera] for row in maps]) / 255 for camera in interface.picture_sizes}
