"""The true value maps of a rollout: what the expert's own recording of the scene says about where to act next.

`record_expert` runs the scripted expert on the scene of a seed and notes its contact events, cameras and bodies. Of a
first chunk that recording is the truth itself, pixel by pixel what the dataset would hold. Later a rollout leaves the
expert's path, and `ValueMapOracle` approximates:

- Which events have happened is found live, by the detector that labels the data. An object that is set down elsewhere
  than the expert did takes its pick back.
- The expert's moment that the rollout is in is the one, between the last event that has happened and the next one, in
  which all fingers were closest to where they are now. The chunk's maps follow the expert from there: so an event
  that is due within the chunk gives way to the next one on time, and a hand's camera comes to its target, as in the
  data. A map that stood still would tell the hand to stand still.
- Bodies are where they are now, moved on as the expert moved them from that moment; hands' cameras are where the
  expert's were.

It depends on the environment protocol alone.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..envs.base import ARMS, Camera, Environment
from ..envs.poses import quaternion_product, rotation_matrix
from .contacts import EventDetector
from .peak import SeenContact
from .render import Event, project, render_value_maps, shown_events

PLACED = 0.05  # m: what is set down further than this from where the expert put it was dropped
TIE = 2e-4  # m: of the expert's moments that are this equally close the earliest counts


@dataclass(frozen=True)
class ExpertRun:
    """The expert's recording of one scene, over num_frames = T + 1 frames for T actions.

    success: whether the task was fulfilled at the end; experts fail on a few scenes.
    fingers: (num_frames, number of fingers, 3), the fingers' positions: where the hands are, and how far open.
    intrinsics, extrinsics: camera -> (num_frames, 3, 3) and (num_frames, 3, 4), float32 as in the data.
    sizes: camera -> (height, width).
    """

    success: bool
    events: list[Event]
    fingers: np.ndarray
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]

    @property
    def num_frames(self) -> int:
        return len(self.fingers)

    def contacts(self, frame: int) -> dict[str, list[SeenContact]]:
        """Where each camera sees the contacts that a frame's map shows: the middle of each event's points; none for
        what lies out of view. Frames after the last are the last."""
        frame = min(frame, self.num_frames - 1)
        shown = shown_events(self.events, self.num_frames)[:, frame]
        seen: dict[str, list[SeenContact]] = {camera: [] for camera in self.sizes}
        for event in (event for event, is_shown in zip(self.events, shown, strict=True) if is_shown):
            pose = event.body_pose[frame].astype(np.float64)
            middle = rotation_matrix(pose[3:]) @ event.points.mean(axis=0) + pose[:3]
            for camera, (height, width) in self.sizes.items():
                matrices = self.intrinsics[camera][frame], self.extrinsics[camera][frame]
                ((u, v),), _ = project(middle[None], *matrices)
                if 0 <= u < width and 0 <= v < height:
                    seen[camera].append(SeenContact((float(u), float(v)), middle, *matrices))
        return seen


def record_expert(env: Environment, seed: int) -> ExpertRun:
    """Runs the expert on the scene of `seed`; the environment is left in the state that this ends in."""
    env.reset(seed)
    detector = EventDetector(env)
    cameras, fingers, success = [], [], False
    env.on_physics_step.append(detector)
    try:
        for frame in env.demonstrate(observe=False):
            detector.add_frame(env, frame.action)
            cameras.append(env.cameras())
            fingers.append(_fingers(env))
            success = frame.success
    finally:
        env.on_physics_step.remove(detector)
    return ExpertRun(
        success=success,
        events=detector.events(),
        fingers=np.array(fingers),
        intrinsics=_stacked(cameras, "intrinsics"),
        extrinsics=_stacked(cameras, "extrinsics"),
        sizes={name: (camera.height, camera.width) for name, camera in cameras[0].items()},
    )


class ValueMapOracle:
    """Follows a rollout on the scene of an [`ExpertRun`] and renders the true maps of its chunks.

    oracle = ValueMapOracle(env, run)     # after env.reset(seed)
    oracle.value_maps([2, 4, 6, 8])       # of the coming chunk's frames
    oracle.before_step(grippers)          # before each env.step
    oracle.close()                        # before the next episode
    """

    def __init__(self, env: Environment, run: ExpertRun) -> None:
        self.env, self.run = env, run
        self.happened: list[int] = []  # indices into `run.events`, in the order of the rollout
        self._detector = EventDetector(env)
        self._followed = 0  # events of the detector that have been followed so far
        env.on_physics_step.append(self._detector)

    def before_step(self, grippers: tuple[float, float]) -> None:
        """Tells what the next action wants of the left and the right gripper, 0 closed .. 1 open."""
        action = np.zeros(16)
        action[[7, 15]] = grippers
        self._detector.add_frame(self.env, action)

    def value_maps(self, steps: list[int]) -> dict[str, np.ndarray]:
        """The maps of the frames that lie `steps` control steps ahead: camera -> (len(steps), height, width) uint8."""
        self._follow()
        run = self.run
        remaining = [event for index, event in enumerate(run.events) if index not in self.happened]
        now = self._expert_frame(remaining)
        poses = {body.name: body.pose for body in self.env.bodies().values()}
        paths = [_moved_on(poses[event.body_name], event.body_pose[now:]) for event in remaining]
        upcoming = [replace(event, frame=event.frame - now) for event in remaining]
        shown = shown_events(upcoming, run.num_frames - now)
        maps: dict[str, list[np.ndarray]] = {camera: [] for camera in run.sizes}
        for ahead in np.minimum(steps, run.num_frames - 1 - now):
            # A recording of one frame, in which all that is to be shown is about to happen.
            events = [
                replace(upcoming[index], frame=0, body_pose=paths[index][ahead : ahead + 1])
                for index in np.flatnonzero(shown[:, ahead])
            ]
            frame = slice(now + ahead, now + ahead + 1)
            for camera, (height, width) in run.sizes.items():
                matrices = run.intrinsics[camera][frame], run.extrinsics[camera][frame]
                maps[camera].append(render_value_maps(events, *matrices, height, width)[0, ..., 0])
        return {camera: np.stack(frames) for camera, frames in maps.items()}

    def close(self) -> None:
        self.env.on_physics_step.remove(self._detector)

    def _follow(self) -> None:
        """Notes which of the expert's events have happened since the last call."""
        found, expected = self._detector.events(), self.run.events
        for event in found[self._followed :]:
            index = next(
                (i for i, other in enumerate(expected) if i not in self.happened and _same(event, other)), None
            )
            if index is not None:
                self.happened.append(index)
            elif event.kind == "place":
                picks = [i for i in self.happened if (expected[i].kind, expected[i].arm) == ("pick", event.arm)]
                self.happened = [i for i in self.happened if i not in picks[-1:]]
        self._followed = len(found)

    def _expert_frame(self, remaining: list[Event]) -> int:
        """The expert's frame that the rollout is in now."""
        stop = min((event.frame for event in remaining), default=self.run.num_frames)
        start = max((f for f in (self.run.events[i].frame for i in self.happened) if f < stop), default=0)
        distance = np.linalg.norm(self.run.fingers[start:stop] - _fingers(self.env), axis=-1).mean(axis=-1)
        return start + int(np.flatnonzero(distance <= distance.min() + TIE)[0])


def _same(event: Event, expected: Event) -> bool:
    if (event.kind, event.arm, event.body_name) != (expected.kind, expected.arm, expected.body_name):
        return False
    distance = np.linalg.norm(event.points.mean(axis=0) - expected.points.mean(axis=0))
    return event.kind != "place" or distance < PLACED


def _moved_on(pose: np.ndarray, path: np.ndarray) -> np.ndarray:
    """A body that is at `pose` (7,), moved as on `path` (num_frames, 7) from its first pose on: (num_frames, 7)."""
    path = path.astype(np.float64)
    moved = np.empty_like(path)
    moved[:, :3] = pose[:3] + path[:, :3] - path[0, :3]
    turn = quaternion_product(path[:, 3:], path[0, 3:] * [1, -1, -1, -1])
    moved[:, 3:] = quaternion_product(turn, pose[3:])
    return moved


def _fingers(env: Environment) -> np.ndarray:
    bodies = env.bodies()
    return np.array([bodies[finger].pose[:3] for arm in ARMS for finger in env.fingers()[arm]])


def _stacked(cameras: list[dict[str, Camera]], field: str) -> dict[str, np.ndarray]:
    return {name: np.array([getattr(c[name], field) for c in cameras], dtype=np.float32) for name in cameras[0]}
