"""Records the scripted expert on the scene of a seed, as an `Episode` or a `Failure`."""

from dataclasses import dataclass

import numpy as np

from ..envs.base import CAMERAS, Environment, Observation, SeedRejected, SimulatorLost
from ..envs.poses import pack_endpose
from ..envs.seeds import scene_generator
from ..value_maps.contacts import EventDetector
from ..value_maps.render import visible_shares
from .episodes import Episode


@dataclass(frozen=True)
class Failure:
    """An episode that is discarded, and the reason. `mendable`: of the machine or the files, not of the episode."""

    seed: int
    reason: str
    mendable: bool = False


def record_episode(env: Environment, seed: int, noise: float, mistakes: float = 0.0) -> Episode | Failure:
    """Records the expert on the scene of `seed`, with positions perturbed by `noise` (m).

    `action` has the perturbation, `expert_action` does not. In a share `mistakes` of the seeds the expert misses an
    object and recovers. A Failure, too, if the simulator is lost. An `env` that doesn't render gives no pictures.
    """
    try:
        return _recorded(env, seed, noise, mistakes)
    except SeedRejected as error:
        return Failure(seed, error.reason, error.mendable)
    except SimulatorLost as lost:
        return Failure(seed, str(lost), mendable=True)


def _recorded(env: Environment, seed: int, noise: float, mistakes: float) -> Episode | Failure:
    rng, mistake_rng = (scene_generator(env.task, env.split, seed, stream) for stream in ("noise", "mistake"))
    if mistake_rng.random() >= mistakes:
        mistake_rng = None
    env.reset(seed)
    detector = EventDetector(env)
    frames = []
    env.on_physics_step.append(detector)
    try:
        for frame in env.demonstrate(noise, rng, mistake_rng=mistake_rng):
            detector.add_frame(env, frame.action)
            frames.append(frame)
    finally:
        env.on_physics_step.remove(detector)
    observations, success = [frame.observation for frame in frames], frames[-1].success

    if not success:
        return Failure(seed, "the task was not fulfilled at the end of the expert's path")
    events = detector.events()
    if not events:
        return Failure(seed, "the task was fulfilled, but none of its contact events was detected")
    intrinsics, extrinsics = (_stack(observations, key, np.float32) for key in ("intrinsic_cv", "extrinsic_cv"))
    view = observations[0]["observation"][CAMERAS[0]]
    if "depth" in view:
        for camera, depth in _stack(observations, "depth", np.float32).items():
            shares = visible_shares(events, intrinsics[camera], extrinsics[camera], depth)
            for event, share in zip(events, shares):
                event.visible[camera] = share
    return Episode(
        suite=env.suite,
        task=env.task,
        split=env.split,
        seed=seed,
        instruction=env.instruction(),
        success=success,
        fps=1 / env.control_dt,
        action_space="ee",
        rgb=_stack(observations, "rgb", np.uint8) if "rgb" in view else {},
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        state=np.stack([pack_endpose(observation) for observation in observations]).astype(np.float32),
        action=np.stack([frame.action for frame in frames[:-1]]),
        expert_action=np.stack([frame.expert_action for frame in frames[:-1]]),
        events=events,
        intervention=next((step for step, frame in enumerate(frames) if frame.intervention), None),
    )


def _stack(observations: list[Observation], key: str, dtype: type) -> dict[str, np.ndarray]:
    return {
        camera: np.stack([observation["observation"][camera][key] for observation in observations]).astype(dtype)
        for camera in CAMERAS
    }
