"""The JSON file that maps columns and cameras of a LeRobot dataset to AIM's.

    {
      "cameras": {"head_camera": "observation.images.top", "right_camera": "observation.images.wrist"},
      "action_space": "qpos"
    }

is enough for a robot whose `observation.state` and `action` are joint positions. docs/own_robot.md explains the rest.

- Columns can be sliced: `action`, `action[7]`, `action[0:3]`.
- Action space `ee` has two arms. For a robot with one arm, the other arm rests at the origin with an open gripper: its
  numbers are constant, so there is nothing to learn about them.
- A closing gripper is a pick, and its next opening a place, at the position of the tool center point in the world.
  Teleoperation gives no other information about contacts.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from ...envs.base import ARMS, CAMERAS
from ...envs.poses import rotation_matrix
from ...model.actions import ACTION_SPACES
from ...utils.checks import check_choice, naming
from ...utils.files import read_json
from ...value_maps.render import Event
from .source import LeRobotSource, finite

FAR = 1.0  # of a gripper's range: numbers that lie further outside are of another unit
LARGEST_ANGLE = 4 * np.pi  # rad: larger angles are degrees
# Targets span about what states span, and differences from step to step far less.
LEAST_SPAN = 0.3
RESTING_ARM = np.array([0, 0, 0, 1, 0, 0, 0, 1], dtype=np.float32)  # xyz, quaternion wxyz, gripper


@dataclass(frozen=True)
class Columns:
    """A column or a slice of it: `name`, `name[i]` or `name[i:j]`."""

    name: str
    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Columns":
        match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)(?::(\d+))?\])?", text)
        if match is None:
            raise ValueError(f"{text!r} names no column; expected name, name[i] or name[i:j], such as action[0:3]")
        name, first, last = match.groups()
        if first is None:
            return cls(name)
        return cls(name, int(first), int(first) + 1 if last is None else int(last))

    def __str__(self) -> str:
        return self.name if self.first is None else f"{self.name}[{self.first}:{self.last}]"

    def width(self, source: LeRobotSource) -> int:
        """The number of values in a frame.

        Raises:
            ValueError: if the dataset has no such column, or the slice is out of range.
        """
        width = source.width(self.name)
        if self.first is None:
            return width
        if not self.first < self.last <= width:
            raise ValueError(f"{self} is out of range: {self.name} has {width} numbers")
        return self.last - self.first

    def of(self, frames: dict[str, np.ndarray]) -> np.ndarray:
        """These columns of all frames. Raises ValueError for NaN among them; the rest of the column may hold it."""
        return finite(str(self), frames[self.name][:, self.first : self.last])


@dataclass(frozen=True)
class Pose:
    """Columns of the pose of a tool center point. `rotation` and `gripper` may be missing if unused."""

    xyz: Columns
    rotation: Columns | None = None
    gripper: Columns | None = None

    def columns(self) -> list[tuple[Columns, int]]:
        """The columns that are given, each with its expected width (0: as the rotation's convention says)."""
        expected = ((self.xyz, 3), (self.rotation, 0), (self.gripper, 1))
        return [(columns, width) for columns, width in expected if columns is not None]


@dataclass(frozen=True)
class Arm:
    """An arm of the robot.

    state, action: measured and commanded pose (absolute, in the same frame).
    convention: of rotations: `wxyz` or `xyzw` (unit quaternions), `rpy` (roll, pitch, yaw about the fixed x, y and z
        axes, rad) or `rotation_vector` (axis times angle, rad).
    gripper_closed, gripper_open: values of a closed and of an open gripper, in states and actions alike.
    """

    state: Pose
    action: Pose | None = None
    convention: str = "wxyz"
    gripper_closed: float = 0.0
    gripper_open: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera.

    intrinsics: fx, fy, cx, cy in pixels, as from OpenCV's calibration. size: (height, width) of the pictures used for
        the calibration.
    extrinsics: 4 x 4, world to camera (OpenCV axes), of a fixed camera.
    hand_eye: 4 x 4, camera to tool, of a camera on the arm `arm`; instead of `extrinsics`.
    """

    intrinsics: list[float]
    size: list[int]
    extrinsics: list[list[float]] | None = None
    hand_eye: list[list[float]] | None = None
    arm: str | None = None


@dataclass(frozen=True)
class Contacts:
    """Thresholds for a closed and an open gripper (0 closed .. 1 open). With two thresholds, noise makes no event."""

    closed: float = 0.3
    open: float = 0.6


@dataclass(frozen=True)
class Robot:
    """The mapping of a dataset's columns and cameras.

    cameras: AIM camera -> LeRobot camera; one to three of head_camera, left_camera, right_camera.
    action_space: `qpos` (absolute joint positions and grippers) or `ee`, see [`AIMProcessor`].
    state, action: only with `qpos`: the columns of a state and of an action, of equal width.
    arms: "left" and/or "right"; required for `ee`, contacts and cameras on an arm.
    calibration: AIM camera -> its calibration.
    contacts: thresholds of the contact events, from which value maps are rendered.
    instruction: replaces the dataset's instructions.
    """

    cameras: dict[str, str]
    action_space: str
    state: list[Columns] = dataclasses.field(default_factory=lambda: [Columns("observation.state")])
    action: list[Columns] = dataclasses.field(default_factory=lambda: [Columns("action")])
    arms: dict[str, Arm] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Calibration] = dataclasses.field(default_factory=dict)
    contacts: Contacts | None = None
    instruction: str | None = None

    @classmethod
    def load(cls, path: Path) -> "Robot":
        """Reads a JSON file.

        Raises:
            UnreadableFile: if it is missing or no JSON.
            ValueError: for a wrong field; names the file, the field, its value and the expectation.
        """
        content = read_json(path, "mend it; docs/own_robot.md says what it may hold")
        with naming(path):
            robot = _read(cls, content, "")
            robot.check()
        return robot

    def check(self) -> None:
        """Checks the fields without a dataset. Raises ValueError."""
        if not self.cameras:
            raise ValueError(f"cameras is empty; expected one to three of {', '.join(CAMERAS)}")
        for name, mapping, known in (
            ("cameras", self.cameras, CAMERAS),
            ("calibration", self.calibration, tuple(self.cameras)),
            ("arms", self.arms, ARMS),
        ):
            unknown = sorted(set(mapping) - set(known))
            if unknown:
                raise ValueError(f"{name} has {', '.join(unknown)}; expected some of {', '.join(known)}")
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError(
                f"instruction is {self.instruction!r}; expected a sentence, or leave it out to use the dataset's tasks"
            )
        check_choice("action_space", self.action_space, ACTION_SPACES)
        if not self.state or not self.action:
            raise ValueError(
                "state or action is an empty list; expected columns, such as observation.state and action"
            )
        if self.action_space == "ee" and not self.arms:
            raise ValueError("action space ee needs arms: which columns are the xyz, rotation and gripper of each")
        for side, arm in self.arms.items():
            check_choice(f"convention of the {side} arm", arm.convention, CONVENTIONS)
            if arm.gripper_closed == arm.gripper_open:
                raise ValueError(f"gripper_closed and gripper_open of the {side} arm are both {arm.gripper_open}")
            poses = {"state": arm.state, "action": arm.action}
            for name, pose in poses.items() if self.action_space == "ee" else ():
                if pose is None or pose.rotation is None or pose.gripper is None:
                    raise ValueError(
                        f"{name} of the {side} arm must have xyz, rotation and gripper in action space ee"
                    )
        for camera, calibration in self.calibration.items():
            self._check_calibration(camera, calibration)
        if self.contacts is not None:
            if not self.calibration:
                raise ValueError("contacts make value maps, which need calibration of at least one camera")
            if not any(arm.state.gripper for arm in self.arms.values()):
                raise ValueError("contacts need an arm whose state has a gripper")
            if not 0 <= self.contacts.closed < self.contacts.open <= 1:
                raise ValueError(
                    f"contacts: closed is {self.contacts.closed} and open {self.contacts.open}; expected "
                    "0 <= closed < open <= 1, of a gripper that is 0 when closed and 1 when open"
                )

    def _check_calibration(self, camera: str, calibration: Calibration) -> None:
        where = f"calibration of {camera}"
        lengths = (len(calibration.intrinsics), len(calibration.size))
        if lengths != (4, 2) or min(*calibration.size, *calibration.intrinsics[:2]) <= 0:
            raise ValueError(
                f"{where}: expected intrinsics [fx, fy, cx, cy] and size [height, width] in pixels, focal lengths and "
                "size above 0"
            )
        if (calibration.extrinsics is None) == (calibration.hand_eye is None):
            raise ValueError(f"{where}: give extrinsics (a camera that stands still) or hand_eye (one on an arm)")
        rows = calibration.hand_eye if calibration.extrinsics is None else calibration.extrinsics
        matrix = np.array(rows) if [len(row) for row in rows] == [4] * 4 else np.zeros((4, 4))
        rotation = matrix[:3, :3]
        is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
        if not is_rotation or not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise ValueError(
                f"{where}: expected a 4 x 4 matrix of a rotation and, in the last column, a translation, whose last "
                f"row is 0, 0, 0, 1; got {rows}"
            )
        if calibration.hand_eye is not None:
            arm = self.arms.get(calibration.arm)
            if arm is None or arm.state.rotation is None:
                raise ValueError(f"{where}: hand_eye needs `arm`, one of arms whose state has xyz and rotation")

    def check_source(self, source: LeRobotSource) -> None:
        """Refuses a dataset without the columns and cameras that are named here.

        Raises:
            ValueError: names what is missing, and what the dataset has.
        """
        for key in self.cameras.values():
            source.picture_size(key)
        if self.action_space == "qpos":
            state, action = (sum(part.width(source) for part in parts) for parts in (self.state, self.action))
            if state != action:
                raise ValueError(
                    f"state has {state} numbers ({', '.join(map(str, self.state))}) and action {action} "
                    f"({', '.join(map(str, self.action))}); expected the same numbers of both, choose them with [i:j]"
                )
        for arm in self.arms.values():
            for pose in (arm.state, arm.action):
                for columns, expected in pose.columns() if pose else ():
                    expected = expected or (4 if arm.convention in ("wxyz", "xyzw") else 3)
                    if columns.width(source) != expected:
                        raise ValueError(f"{columns} has {columns.width(source)} numbers; expected {expected}")

    def columns(self) -> list[str]:
        """The names of the columns to read."""
        poses = [pose for arm in self.arms.values() for pose in (arm.state, arm.action) if pose is not None]
        parts = [columns for pose in poses for columns, _ in pose.columns()]
        if self.action_space == "qpos":
            parts += [*self.state, *self.action]
        return sorted({part.name for part in parts})

    # Numbers of an episode, from its columns (num_frames, width) each

    def states_and_actions(self, frames: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """State and action, (num_frames, D) float32 each, in AIM's layout.

        Raises:
            ValueError: if a quaternion is not of unit length, angles are in degrees, or a gripper is far outside its
                range.
        """
        if self.action_space == "qpos":
            parts = (self.state, self.action)
            return tuple(np.concatenate([part.of(frames) for part in columns], axis=1) for columns in parts)
        length = len(next(iter(frames.values())))
        rest = np.tile(RESTING_ARM, (length, 1))
        state = [self._ee(self.arms[side], "state", frames) if side in self.arms else rest for side in ARMS]
        action = [self._ee(self.arms[side], "action", frames) if side in self.arms else rest for side in ARMS]
        return np.concatenate(state, axis=1), np.concatenate(action, axis=1)

    def _ee(self, arm: Arm, name: str, frames: dict[str, np.ndarray]) -> np.ndarray:
        pose = getattr(arm, name)
        parts = (pose.xyz.of(frames), self._quaternions(arm, pose, frames), _gripper(arm, pose, frames)[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _quaternions(self, arm: Arm, pose: Pose, frames: dict[str, np.ndarray]) -> np.ndarray:
        with naming(pose.rotation):
            return continuous(CONVENTIONS[arm.convention](pose.rotation.of(frames).astype(np.float64)))

    def cameras_of(
        self, frames: dict[str, np.ndarray], sizes: dict[str, tuple[int, int]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Intrinsics (num_frames, 3, 3) and extrinsics (num_frames, 3, 4) of the calibrated cameras.

        `sizes`: camera -> (height, width) of the pictures."""
        length = len(next(iter(frames.values())))
        intrinsics, extrinsics = {}, {}
        for camera, calibration in self.calibration.items():
            fx, fy, cx, cy = calibration.intrinsics
            down, right = (now / then for now, then in zip(sizes[camera], calibration.size))
            # OpenCV has the center of the first pixel at 0, AIM at 0.5.
            matrix = [[fx * right, 0, (cx + 0.5) * right], [0, fy * down, (cy + 0.5) * down], [0, 0, 1]]
            intrinsics[camera] = np.tile(np.float32(matrix), (length, 1, 1))
            if calibration.extrinsics is not None:
                pose = np.tile(np.array(calibration.extrinsics), (length, 1, 1))
            else:
                tool = self._tool_pose(self.arms[calibration.arm], frames)
                pose = np.linalg.inv(tool @ np.array(calibration.hand_eye))
            extrinsics[camera] = pose[:, :3].astype(np.float32)
        return intrinsics, extrinsics

    def _tool_pose(self, arm: Arm, frames: dict[str, np.ndarray]) -> np.ndarray:
        """The transform from tool to world, (num_frames, 4, 4)."""
        xyz = arm.state.xyz.of(frames)
        pose = np.tile(np.eye(4), (len(xyz), 1, 1))
        pose[:, :3, :3] = rotation_matrix(self._quaternions(arm, arm.state, frames))
        pose[:, :3, 3] = xyz
        return pose

    def events(self, frames: dict[str, np.ndarray]) -> list[Event] | None:
        """Picks and places of the grippers in time order; None without `contacts`."""
        if self.contacts is None:
            return None
        events = []
        for side, arm in self.arms.items():
            if arm.state.gripper is None:
                continue
            xyz = arm.state.xyz.of(frames).astype(np.float32)
            world = np.tile(np.float32([0, 0, 0, 1, 0, 0, 0]), (len(xyz), 1))
            for frame, kind in closings_and_openings(_gripper(arm, arm.state, frames), self.contacts):
                events.append(Event(kind, side, frame, "world", xyz[frame : frame + 1], world))
        return sorted(events, key=lambda event: event.frame)


def _gripper(arm: Arm, pose: Pose, frames: dict[str, np.ndarray]) -> np.ndarray:
    """The opening of a gripper, (num_frames,), 0 closed .. 1 open. Raises ValueError for numbers of another unit."""
    raw = pose.gripper.of(frames)[:, 0].astype(np.float64)
    opening = (raw - arm.gripper_closed) / (arm.gripper_open - arm.gripper_closed)
    frame = int(np.abs(opening - 0.5).argmax())
    if not -FAR <= opening[frame] <= 1 + FAR:
        raise ValueError(
            f"{pose.gripper}: the gripper of frame {frame} is {raw[frame]:g}; expected about {arm.gripper_closed:g}, "
            f"closed, to {arm.gripper_open:g}, open, in states and actions. Check the column and its unit"
        )
    return np.clip(opening, 0, 1)


def check_absolute(name: str, action_span: np.ndarray, state_span: np.ndarray) -> None:
    """Raises ValueError if the actions of a dataset are differences from step to step: if they span far less than the
    states, (D,) each. Numbers that are never commanded to move tell nothing."""
    moving = (state_span > 1e-3) & (action_span > 1e-6)
    share = float(np.median(action_span[moving] / state_span[moving])) if moving.any() else 1.0
    if share < LEAST_SPAN:
        raise ValueError(
            f"the actions of {name} span {share:.0%} of what its states span, so they seem to be differences from "
            "step to step; AIM acts absolutely. Store the targets themselves as actions, in the unit of the states."
        )


def closings_and_openings(gripper: np.ndarray, contacts: Contacts) -> list[tuple[int, str]]:
    """(frame, "pick") when an open gripper has closed, and (frame, "place") when it has opened again."""
    found: list[tuple[int, str]] = []
    is_open, holds = gripper[0] > contacts.closed, False
    for frame, value in enumerate(gripper):
        if is_open and value <= contacts.closed:
            is_open, holds = False, True
            found.append((frame, "pick"))
        elif not is_open and value >= contacts.open:
            is_open = True
            if holds:
                found.append((frame, "place"))
            holds = False
    return found


# Rotations, (N, 4) or (N, 3) float64, as unit quaternions wxyz


def _wxyz(quaternion: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(quaternion, axis=1)
    worst = int(np.abs(norm - 1).argmax())
    if abs(norm[worst] - 1) > 0.01:
        raise ValueError(
            f"the quaternion of frame {worst} is {np.round(quaternion[worst], 3).tolist()}, of length "
            f"{norm[worst]:.3g}; expected length 1. Check the columns"
        )
    return quaternion / norm[:, None]


def _xyzw(quaternion: np.ndarray) -> np.ndarray:
    return _wxyz(np.roll(quaternion, 1, axis=1))


def _radians(numbers: np.ndarray) -> np.ndarray:
    """`numbers` (N, 3). Raises ValueError for degrees."""
    worst = int(np.abs(numbers).max(axis=1).argmax())
    if np.abs(numbers[worst]).max() > LARGEST_ANGLE:
        raise ValueError(
            f"the angles of frame {worst} are {np.round(numbers[worst], 3).tolist()}; expected rad, at most "
            f"{LARGEST_ANGLE:.3g}. Check the columns, and convert degrees"
        )
    return numbers


def _rpy(angles: np.ndarray) -> np.ndarray:
    angles = _radians(angles)
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles / 2).T, np.sin(angles / 2).T
    parts = (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )
    return np.stack(parts, axis=1)


def _rotation_vector(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(_radians(vector), axis=1, keepdims=True)
    # The factor is sin(angle / 2) / angle, which is 1/2 for angle 0.
    return np.concatenate([np.cos(angle / 2), vector * np.sinc(angle / 2 / np.pi) / 2], axis=1)


def continuous(quaternions: np.ndarray) -> np.ndarray:
    """The same rotations (N, 4), each as q or -q, whichever is nearer to the one before. Changes of the sign, as of
    noisy angles about 180 degrees, would count as motion in `check_absolute`."""
    turned = (quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0
    signs = np.where(np.cumsum([False, *turned]) % 2, -1, 1)
    return quaternions * signs[:, None]


CONVENTIONS = {"wxyz": _wxyz, "xyzw": _xyzw, "rpy": _rpy, "rotation_vector": _rotation_vector}


# JSON -> dataclasses


def _read(kind: Any, value: Any, where: str) -> Any:
    """Converts a JSON value to the type of the annotation `kind`. `where`: path of the field, for errors.

    Raises:
        ValueError: for a field that is unknown, missing or of another type.
    """
    if get_origin(kind) is UnionType:
        (kind,) = (member for member in get_args(kind) if member is not type(None))
        return None if value is None else _read(kind, value, where)
    label = where or "the file"
    if kind is Columns:
        if not isinstance(value, str):
            raise ValueError(f"{label} is {value!r}; expected the name of a column")
        return Columns.parse(value)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict):
            raise ValueError(f"{label} is {value!r}; expected an object with {', '.join(hints)}")
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(f"{label} has unknown {', '.join(unknown)}; expected some of {', '.join(hints)}")
        required = [
            field.name
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in required if name not in value]
        if missing:
            raise ValueError(f"{label} has no {', '.join(missing)}")
        prefix = f"{where}." if where else ""
        return kind(**{name: _read(hints[name], item, prefix + name) for name, item in value.items()})
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _read(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        return [_read(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ValueError(f"{label} is {value!r}; expected {expected}")
