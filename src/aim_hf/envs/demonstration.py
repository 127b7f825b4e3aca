"""Plays an expert's path step by step, with smooth perturbations from which a policy learns to recover."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..utils.checks import check_kind, check_number
from .base import Environment, ExpertFrame, ExpertPath

CORRELATION = 0.32  # s, correlation length of the perturbation
QUIET = 0.16  # s before and after a key step without perturbation
FADE = 0.24  # s beyond these over which the perturbation rises to its full size


def play_path(
    env: Environment, path: ExpertPath, noise: float, rng: np.random.Generator | None, observe: bool
) -> Iterator[ExpertFrame]:
    """`Environment.demonstrate` for an expert with a precomputed path.

    The executed actions are the path plus a smooth random offset of each end effector's position, with a standard
    deviation of `noise` (m), and the offset of the path's mistake. The expert's actions are the path itself.

    Raises ValueError for negative noise, noise without `rng`, or an `rng` that is no numpy Generator.
    """
    if check_number("noise", noise, 0) and rng is None:
        raise ValueError(f"noise is {noise} without rng; give a numpy.random.Generator, by which it is drawn.")
    if rng is not None:
        check_kind("rng", rng, np.random.Generator)
    expert_actions = np.asarray(path.actions, dtype=np.float32)
    actions = expert_actions.copy()
    if noise > 0:
        offset = perturbation(len(actions), path.key_steps, noise, rng, env.control_dt)
        actions[:, 0:3] += offset[:, 0]
        actions[:, 8:11] += offset[:, 1]
    mistake = path.mistake
    if mistake is not None:
        actions += mistake.offset.astype(np.float32)
    first = mistake.intervention if mistake is not None and mistake.hidden else 0
    observation, success = env.observe() if observe and not first else None, False
    for step, (action, expert_action) in enumerate(zip(actions, expert_actions)):
        intervention = mistake is not None and step == mistake.intervention
        if step >= first:
            yield ExpertFrame(observation, action, expert_action, success, intervention)
        result = env.step(action, observe=observe and step + 1 >= first)
        observation, success = result.observation, result.success
    yield ExpertFrame(observation, None, None, success)


def perturbation(
    num_steps: int, key_steps: list[int], noise: float, rng: np.random.Generator, control_dt: float
) -> np.ndarray:
    """Smooth zero-mean offsets of both arms' positions, standard deviation `noise` (m): (num_steps, 2, 3) float32.

    White noise smoothed by a Gaussian of `CORRELATION`. It is 0 at the start and around each key step. `control_dt`:
    seconds a control step.
    """
    correlation, quiet, fade_steps = (round(seconds / control_dt) for seconds in (CORRELATION, QUIET, FADE))
    reach = 3 * correlation
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / correlation) ** 2)
    window /= np.linalg.norm(window)  # keeps the variance
    white = rng.normal(scale=noise, size=(num_steps + 2 * reach, 2, 3))
    smooth = np.apply_along_axis(np.convolve, 0, white, window, mode="valid")
    distance = np.abs(np.arange(num_steps)[:, None] - np.array([-quiet, *key_steps])).min(axis=1)
    fade = np.clip((distance - quiet) / fade_steps, 0, 1)
    return (smooth * fade[:, None, None]).astype(np.float32)
