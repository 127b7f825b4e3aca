"""Records the scripted expert: an environment and a seed in, an `Episode` or the reason of a failure out."""

from dataclasses import dataclass

import numpy as np

from ..envs.base import ARMS, Environment, Observation
from .contacts import EventDetector
from .episodes import CAMERAS, Episode

CORRELATION_STEPS = 4  # the perturbation wanders over about this many control steps
QUIET_STEPS = 2  # no perturbation this close to a key step ...
FADE_STEPS = 3  # ... and all of it this much further away


@dataclass(frozen=True)
class Failure:
    """An episode that is not worth keeping, and why."""

    seed: int
    reason: str


def record_episode(
    env: Environment, seed: int, noise: float, rng: np.random.Generator, instructions: str = "seen"
) -> Episode | Failure:
    """Run the expert on the scene of `seed` and record it.

    What is executed is the expert's path plus a smooth random offset of each tool's position, of `noise` m standard
    deviation; what is labelled is the path itself. So a policy learns to come back to the path.
    """
    observation = env.reset(seed)
    path = env.expert()
    expert_action = np.asarray(path.actions, dtype=np.float32)
    action = expert_action.copy()
    offset = perturbation(len(action), path.key_steps, noise, rng)
    action[:, 0:3] += offset[:, 0]
    action[:, 8:11] += offset[:, 1]

    detector = EventDetector(env)
    env.on_physics_step.append(detector)
    try:
        observations, success = [observation], False
        for step_action in action:
            detector.add_frame(env, step_action)
            result = env.step(step_action)
            observations.append(result.observation)
            success = result.success
        detector.add_frame(env, None)
    finally:
        env.on_physics_step.remove(detector)

    if not success:
        return Failure(seed, "the task was not fulfilled at the end of the expert's path")
    events = detector.events()
    if not events:
        return Failure(seed, "the task was fulfilled, but no pick, place or press was seen")
    return Episode(
        suite=env.suite,
        task=env.task,
        split=env.split,
        seed=seed,
        instruction=env.instruction(instructions),
        success=success,
        fps=1 / env.control_dt,
        rgb=_stack(observations, "rgb", np.uint8),
        intrinsics=_stack(observations, "intrinsic_cv", np.float32),
        extrinsics=_stack(observations, "extrinsic_cv", np.float32),
        state=np.stack([measured_state(observation) for observation in observations]),
        action=action,
        expert_action=expert_action,
        events=events,
    )


def measured_state(observation: Observation) -> np.ndarray:
    """The measured pose and gripper of both arms in the layout of an `ee` action: (16,) float32."""
    pose = observation["endpose"]
    parts = [part for arm in ARMS for part in (pose[f"{arm}_endpose"], [pose[f"{arm}_gripper"]])]
    return np.concatenate(parts).astype(np.float32)


def perturbation(num_steps: int, key_steps: list[int], noise: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth zero-mean offset of both arms' positions, `noise` m standard deviation: (num_steps, 2, 3) float32.

    White noise under a Gaussian window of `CORRELATION_STEPS`; none at the start and around each key step.
    """
    reach = 3 * CORRELATION_STEPS
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / CORRELATION_STEPS) ** 2)
    window /= np.linalg.norm(window)  # keeps the variance
    white = rng.normal(scale=noise, size=(num_steps + 2 * reach, 2, 3))
    smooth = np.apply_along_axis(np.convolve, 0, white, window, mode="valid")
    distance = np.abs(np.arange(num_steps)[:, None] - np.array([-QUIET_STEPS, *key_steps])).min(axis=1)
    fade = np.clip((distance - QUIET_STEPS) / FADE_STEPS, 0, 1)
    return (smooth * fade[:, None, None]).astype(np.float32)


def _stack(observations: list[Observation], key: str, dtype: type) -> dict[str, np.ndarray]:
    return {
        camera: np.stack([observation["observation"][camera][key] for observation in observations]).astype(dtype)
        for camera in CAMERAS
    }
