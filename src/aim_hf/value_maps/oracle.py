"""True value maps of a rollout, from a recording of the expert in the same scene.

`record_expert` runs the scripted expert on the scene of a seed and records its contact events, cameras and bodies. For
the first chunk, maps rendered from the recording are exact: they equal those of the dataset. Later the rollout departs
from the expert's path, and `ValueMapOracle` approximates the maps:

- The events that have happened are detected live, by the detector that labels the data. If an object is set down away
  from the expert's place, its last pick, a pick of the other arm at the same time, and the later events of this object
  are undone. A push happens when its body is where the expert pushed it.
- The current frame of the expert is the one, between the last event that has happened and the next one, in which the
  fingers were closest to their current positions. The maps of the chunk follow the expert from this frame, so that the
  next event takes over in time and a wrist camera approaches its target, as in the data. Constant maps would tell the
  arm to stand still.
- Bodies start at their current poses and move as the expert moved them from that frame on; wrist cameras are where the
  expert's were.

It depends only on the environment protocol.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..envs.base import ARMS, Camera, Environment
from ..envs.poses import quaternion_product, rotation_matrix
from .contacts import EventDetector
from .peak import SeenContact
from .render import TOGETHER, Event, project, render_value_maps, shown_events

PLACED = 0.05  # m: an object set down further than this from the expert's place counts as dropped
PUSHED = 0.01  # m: a body pushed to further than this from the expert's place still has to be pushed
TIE = 2e-4  # m: of frames of the expert whose distances differ by less than this, the earliest is used


@dataclass(frozen=True)
class ExpertRun:
    """The expert's recording of one scene, over num_frames = T + 1 frames for T actions.

    success: whether the task was fulfilled at the end; experts fail on a few scenes.
    bodies: names of the picked, placed, pressed, pushed or inserted body of each event.
    fingers: (num_frames, number of fingers, 3), positions of the fingers.
    intrinsics, extrinsics: camera -> (num_frames, 3, 3) and (num_frames, 3, 4), float32 as in the data.
    sizes: camera -> (height, width).
    """

    success: bool
    events: list[Event]
    bodies: list[str]
    fingers: np.ndarray
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]

    @property
    def num_frames(self) -> int:
        return len(self.fingers)

    def contacts(self, frame: int) -> dict[str, list[SeenContact]]:
        """The contacts that a frame's map shows, as seen by each camera: the mean of each event's points, if it is in
        view. `frame` is clipped to the last frame."""
        frame = min(frame, self.num_frames - 1)
        shown = shown_events(self.events, self.num_frames)[:, frame]
        seen: dict[str, list[SeenContact]] = {camera: [] for camera in self.sizes}
        for index in np.flatnonzero(shown):
            event = self.events[index]
            pose = event.body_pose[frame].astype(np.float64)
            middle = rotation_matrix(pose[3:]) @ event.points.mean(axis=0) + pose[:3]
            for camera, (height, width) in self.sizes.items():
                matrices = self.intrinsics[camera][frame], self.extrinsics[camera][frame]
                ((u, v),), _ = project(middle[None], *matrices)
                if 0 <= u < width and 0 <= v < height:
                    seen[camera].append(SeenContact((float(u), float(v)), middle, *matrices))
        return seen


def record_expert(env: Environment, seed: int) -> ExpertRun:
    """Runs the expert on the scene of `seed`. The environment stays in the final state of this run."""
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
        bodies=[detector.names[made.body] for made in detector.made],
        fingers=np.array(fingers),
        intrinsics=_stacked(cameras, "intrinsics"),
        extrinsics=_stacked(cameras, "extrinsics"),
        sizes={name: (camera.height, camera.width) for name, camera in cameras[0].items()},
    )


class ValueMapOracle:
    """Follows a rollout on the scene of an [`ExpertRun`] and renders the true maps of its chunks.

    oracle = ValueMapOracle(env, run)     # after env.reset(seed)
    oracle.value_maps([2, 4, 6, 8])       # at the frames of the next chunk
    oracle.before_step(grippers)          # before each env.step
    oracle.close()                        # before the next episode
    """

    def __init__(self, env: Environment, run: ExpertRun) -> None:
        self.env, self.run = env, run
        self.happened: list[int] = []  # indices into `run.events`, in the order of the rollout
        self._detector = EventDetector(env)
        self._followed = 0  # number of the detector's events that `_follow` has processed
        env.on_physics_step.append(self._detector)

    def before_step(self, grippers: tuple[float, float]) -> None:
        """Announces the next action by its left and right gripper, 0 closed .. 1 open."""
        self._detector.before_step(self.env, grippers)

    def value_maps(self, steps: list[int]) -> dict[str, np.ndarray]:
        """The maps of the frames `steps` control steps ahead: camera -> (len(steps), height, width) uint8."""
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
            # Events of a one-frame episode, all still to happen.
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
        """Updates `happened` by the detector's events since the last call."""
        found, made, expected = self._detector.events(), self._detector.made, self.run.events
        for event, contact in zip(found[self._followed :], made[self._followed :], strict=True):
            body = self._detector.names[contact.body]
            same = [i for i, other in enumerate(expected) if self.run.bodies[i] == body and _same(event, other)]
            if event.kind == "push":  # by one push or several, however many the expert took
                same = [i for i in range(1 + max(same, default=-1)) if _same_kind(event, expected[i])]
            fresh = [i for i in same if i not in self.happened]
            self.happened += fresh if event.kind == "push" else fresh[:1]
            if event.kind == "place" and not same:
                self._undo(body)
        self._followed = len(found)

    def _undo(self, body: str) -> None:
        """Takes from `happened` the last pick of a body, and its events at about the same time and later."""
        events = {index: self.run.events[index] for index in self.happened if self.run.bodies[index] == body}
        picks = [event.frame for event in events.values() if event.kind == "pick"]
        since = max(picks, default=np.inf) - TOGETHER
        self.happened = [i for i in self.happened if i not in events or events[i].frame < since]

    def _expert_frame(self, remaining: list[Event]) -> int:
        """The frame of the expert that matches the current state, see the module's docstring."""
        stop = min((event.frame for event in remaining), default=self.run.num_frames)
        past = (self.run.events[index].frame for index in self.happened)
        start = max((frame for frame in past if frame < stop), default=0)
        distance = np.linalg.norm(self.run.fingers[start:stop] - _fingers(self.env), axis=-1).mean(axis=-1)
        return start + int(np.flatnonzero(distance <= distance.min() + TIE)[0])


def _same_kind(event: Event, expected: Event) -> bool:
    return (event.kind, event.arm, event.body_name) == (expected.kind, expected.arm, expected.body_name)


def _same(event: Event, expected: Event) -> bool:
    """Whether a detected event is this event of the expert."""
    if not _same_kind(event, expected):
        return False
    if event.kind == "push":
        at, place = (of.body_pose[min(of.frame, len(of.body_pose) - 1), :3] for of in (event, expected))
        return np.linalg.norm(at - place) < PUSHED
    distance = np.linalg.norm(event.points.mean(axis=0) - expected.points.mean(axis=0))
    return event.kind != "place" or distance < PLACED


def _moved_on(pose: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Poses (num_frames, 7) of a body that starts at `pose` (7,) and moves as `path` (num_frames, 7) does."""
    path = path.astype(np.float64)
    moved = np.empty_like(path)
    moved[:, :3] = pose[:3] + path[:, :3] - path[0, :3]
    turn = quaternion_product(path[:, 3:], path[0, 3:] * [1, -1, -1, -1])
    moved[:, 3:] = quaternion_product(turn, pose[3:])
    return moved


def _fingers(env: Environment) -> np.ndarray:
    """Positions of all fingers, (number of fingers, 3)."""
    bodies = env.bodies()
    return np.array([bodies[finger].pose[:3] for arm in ARMS for finger in env.fingers()[arm]])


def _stacked(cameras: list[dict[str, Camera]], field: str) -> dict[str, np.ndarray]:
    return {
        name: np.array([getattr(frame[name], field) for frame in cameras], dtype=np.float32) for name in cameras[0]
    }
