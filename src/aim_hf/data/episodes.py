"""An episode, and the dataset row that stores it with its videos.

An imported episode may lack pictures of a camera, calibration of a camera, or contact events. They are left absent;
value maps that can't be rendered without them are masked in training.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..envs.base import CAMERAS
from ..model.actions import ACTION_SPACES, EE_ACTION_DIM
from ..model.processing_aim import AIMProcessor
from ..utils.extras import extra
from ..utils.files import reading
from ..value_maps.render import Event, render_value_maps
from .video import decode_video, encode_video, read_header

with extra("data"):
    from datasets import Features, List, Value, Video

DESCRIPTION = ("suite", "task", "split", "seed", "instruction", "success", "fps", "action_space")
VECTORS = ("state", "action", "expert_action")
LARGEST = 1e6  # no unit of a robot's numbers comes near: one wild number would set the range that all are scaled by
EVENT = ("kind", "arm", "frame", "body_name", "points", "body_pose")


def _vectors(length: int) -> List:
    """A column of float32 vectors of `length`, one for each frame or step."""
    return List(List(Value("float32"), length=length))


def episode_features(action_dim: int = EE_ACTION_DIM) -> Features:
    """The columns of a dataset with actions of size `action_dim`.

    `intrinsics_*` (9 numbers a frame) and `extrinsics_*` (12) are null for a camera without calibration, `rgb_*` for a
    missing view, `value_*` without value map, `events` if the contacts are unknown, and `intervention` without a
    mistake; files of aim-hf 0.1 lack this last column.
    """
    return Features(
        {
            "suite": Value("string"),
            "task": Value("string"),
            "split": Value("string"),
            "seed": Value("int64"),
            "instruction": Value("string"),
            "success": Value("bool"),
            "fps": Value("float32"),
            "num_frames": Value("int32"),
            **{f"rgb_{camera}": Video() for camera in CAMERAS},
            **{f"value_{camera}": Video() for camera in CAMERAS},
            "action_space": Value("string"),
            "state": _vectors(action_dim),
            "action": _vectors(action_dim),
            "expert_action": _vectors(action_dim),
            "intervention": Value("int32"),
            "events": List(
                {
                    "kind": Value("string"),
                    "arm": Value("string"),
                    "frame": Value("int32"),
                    "body_name": Value("string"),
                    "points": _vectors(3),
                    "body_pose": _vectors(7),
                    **{f"visible_{camera}": List(Value("float32")) for camera in CAMERAS},
                }
            ),
            **{f"intrinsics_{camera}": _vectors(9) for camera in CAMERAS},
            **{f"extrinsics_{camera}": _vectors(12) for camera in CAMERAS},
        }
    )


VIDEO_COLUMNS = [name for name, feature in episode_features().items() if isinstance(feature, Video)]


@dataclass
class Episode:
    """Observations and actions from a reset to the end: T actions of size D and num_frames = T + 1 frames.

    action_space: `ee` or `qpos`, see [`AIMProcessor`].
    rgb: camera -> (num_frames, height, width, 3) uint8, of the cameras with pictures.
    intrinsics, extrinsics: camera -> (num_frames, 3, 3) and (num_frames, 3, 4) world to camera (OpenCV), float32, of
        calibrated cameras.
    state (num_frames, D) float32: measured state in the layout of an action.
    action (T, D) float32: executed actions. expert_action (T, D): the expert's actions, the target of training.
    events: contacts in time order; None if they are unknown.
    intervention: the step from which `expert_action` recovers from a mistake that `action` makes before it; 0 if
        the mistake came before the episode, None without a mistake.
    recorded_value_maps: camera -> (num_frames, height, width, 3) uint8, of an episode with unknown contacts, or of a
        camera without calibration.
    """

    suite: str
    task: str
    split: str
    seed: int
    instruction: str
    success: bool
    fps: float
    action_space: str
    rgb: dict[str, np.ndarray]
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    expert_action: np.ndarray
    events: list[Event] | None
    intervention: int | None = None
    recorded_value_maps: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        return len(self.state)

    def value_maps(self, camera: str) -> np.ndarray | None:
        """The value maps of one camera (num_frames, height, width, 3) uint8, rendered from the events or else as
        recorded. None without either."""
        if self.events is None or camera not in self.intrinsics or camera not in self.rgb:
            return self.recorded_value_maps.get(camera)
        height, width = self.rgb[camera].shape[1:3]
        return render_value_maps(self.events, self.intrinsics[camera], self.extrinsics[camera], height, width)

    def canvases(self, processor: AIMProcessor, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RGB and value maps of the given frames on the processor's canvas, (len(frames), height, width, 3) uint8
        each. Missing views and maps are black.

        Raises:
            ValueError: for pictures of another size than the processor's.
        """

        def packed(of: Callable[[str], np.ndarray | None]) -> np.ndarray:
            views = {}
            for name, camera in processor.cameras.items():
                pictures = of(name)
                black = np.zeros((len(frames), *camera["size"], 3), dtype=np.uint8)
                if pictures is not None and pictures.shape[1:] != black.shape[1:]:
                    raise ValueError(
                        f"{self.task} seed {self.seed}: pictures of {name} are {pictures.shape[1:3]} (height, width), "
                        f"expected {black.shape[1:3]}, the processor's; keep episodes of other sizes in a folder of "
                        "their own"
                    )
                views[name] = black if pictures is None else pictures[frames]
            return processor.pack_canvas(views)

        return packed(self.rgb.get), packed(self.value_maps)

    def to_row(self) -> dict[str, Any]:
        """The row of `episode_features` that stores this episode; videos are encoded.

        Raises:
            ValueError: if the episode's parts don't fit together or hold NaN.
        """

        def video(frames: np.ndarray | None, gray: bool = False) -> dict[str, Any] | None:
            return None if frames is None else {"bytes": encode_video(frames, self.fps, gray), "path": None}

        def matrices(of: dict[str, np.ndarray], camera: str) -> np.ndarray | None:
            return of[camera].reshape(len(of[camera]), -1) if camera in of else None

        row = {name: getattr(self, name) for name in (*DESCRIPTION, *VECTORS)}
        row["num_frames"] = self.num_frames
        row["intervention"] = self.intervention
        row["events"] = None if self.events is None else [_event_to_row(event) for event in self.events]
        for camera in CAMERAS:
            row[f"intrinsics_{camera}"] = matrices(self.intrinsics, camera)
            row[f"extrinsics_{camera}"] = matrices(self.extrinsics, camera)
        check_row(row, f"{self.task} seed {self.seed}")
        for camera in CAMERAS:
            row[f"rgb_{camera}"] = video(self.rgb.get(camera))
            row[f"value_{camera}"] = video(self.value_maps(camera), gray=True)
        return {name: row[name] for name in episode_features(self.state.shape[1])}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Episode":
        """The episode of a dataset row. RGB videos are decoded; value maps are decoded only where they can't be
        rendered, for want of events or calibration.

        Raises:
            ValueError: if the row's parts don't fit together, naming the episode and the column.
        """
        where = f"{row['task']} seed {row['seed']}"
        check_row(row, where)

        def matrices(kind: str, *shape: int) -> dict[str, np.ndarray]:
            values = {camera: row[f"{kind}_{camera}"] for camera in CAMERAS}
            return {c: np.asarray(v, dtype=np.float32).reshape(-1, *shape) for c, v in values.items() if v is not None}

        def videos(kind: str, cameras: Iterable[str] = CAMERAS) -> dict[str, np.ndarray]:
            return {
                camera: decode_column(row, name) for camera in cameras if row[name := f"{kind}_{camera}"] is not None
            }

        events = row["events"]
        unknown = [camera for camera in CAMERAS if events is None or row[f"intrinsics_{camera}"] is None]
        return cls(
            **{name: row[name] for name in DESCRIPTION},
            rgb=videos("rgb"),
            intrinsics=matrices("intrinsics", 3, 3),
            extrinsics=matrices("extrinsics", 3, 4),
            **{name: np.asarray(row[name], dtype=np.float32) for name in VECTORS},
            events=None if events is None else [event_from_row(event) for event in events],
            intervention=row.get("intervention"),
            recorded_value_maps=videos("value", unknown),
        )


def _event_to_row(event: Event) -> dict[str, Any]:
    row = asdict(event)
    visible = row.pop("visible")
    return row | {f"visible_{camera}": visible.get(camera) for camera in CAMERAS}


def event_from_row(row: dict[str, Any]) -> Event:
    """An event from the column `events` of a row."""
    visible = {camera: row[f"visible_{camera}"] for camera in CAMERAS}
    return Event(
        **{name: row[name] for name in EVENT[:4]},
        points=np.asarray(row["points"], dtype=np.float32),
        body_pose=np.asarray(row["body_pose"], dtype=np.float32),
        visible={c: np.asarray(share, dtype=np.float32) for c, share in visible.items() if share is not None},
    )


def decode_column(row: dict[str, Any], name: str, frames: list[int] | None = None) -> np.ndarray:
    """The given frames (default: all) of the video column `name` of a row.

    Raises:
        ValueError: if the video is damaged or hasn't `num_frames` frames; names the episode and the column.
    """
    where = f"{row['task']} seed {row['seed']}: {name}"
    with reading(where, "record this episode again, or leave it out"):
        pictures = decode_video(row[name], frames)
    if frames is None and len(pictures) != row["num_frames"]:
        raise ValueError(f"{where} has {len(pictures)} frames, expected num_frames = {row['num_frames']}")
    return pictures


def check_row(row: dict[str, Any], where: str) -> None:
    """Refuses a row whose columns are inconsistent.

    Raises:
        ValueError: naming `where`, the column, what it holds and what was expected.
    """
    if missing := [name for name in (*DESCRIPTION, "num_frames", *VECTORS) if row[name] is None]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing; record this episode again")
    frames = row["num_frames"]
    if frames < 2:
        raise ValueError(f"{where}: num_frames is {frames}, expected at least 2: an action leads from one to the next")
    if not 0 < row["fps"] < np.inf or row["action_space"] not in ACTION_SPACES:
        raise ValueError(
            f"{where}: fps is {row['fps']} and action_space {row['action_space']!r}; expected a positive rate and one "
            f"of {', '.join(ACTION_SPACES)}"
        )
    if (step := row.get("intervention")) is not None and not 0 <= step < frames:
        raise ValueError(
            f"{where}: intervention is {step}; expected a step in 0..{frames - 1}, or null without a mistake"
        )
    columns = [("state", row["state"], frames)]
    columns += [(name, row[name], frames - 1) for name in ("action", "expert_action")]
    for camera in CAMERAS:
        intrinsics, extrinsics = (f"{kind}_{camera}" for kind in ("intrinsics", "extrinsics"))
        if (row[intrinsics] is None) != (row[extrinsics] is None):
            raise ValueError(f"{where}: {camera} has only one of {intrinsics} and {extrinsics}; give both or neither")
        columns += [(name, row[name], frames) for name in (intrinsics, extrinsics) if row[name] is not None]
    for event in row["events"] or ():
        if missing := [key for key in EVENT if event is None or event[key] is None]:
            raise ValueError(f"{where}: an event has no {', '.join(missing)}; record this episode again")
        name = f"the {event['kind']} on {event['body_name']}"
        columns.append((f"body_pose of {name}", event["body_pose"], frames))
        columns.append((f"points of {name}", event["points"], len(event["points"])))
        columns += [
            (f"visible_{camera} of {name}", event[f"visible_{camera}"], frames)
            for camera in CAMERAS
            if event[f"visible_{camera}"] is not None
        ]
        if not 0 <= event["frame"] < frames or len(event["points"]) == 0:
            raise ValueError(
                f"{where}: event at frame {event['frame']} with {len(event['points'])} contact points; "
                f"expected a frame in 0..{frames - 1} and at least one point"
            )
    for name, values, length in columns:
        if len(values) != length:
            raise ValueError(f"{where}: {name} has {len(values)} entries, expected {length} (num_frames {frames})")
        numbers = None if any(value is None for value in values) else np.asarray(values, dtype=np.float32)
        if numbers is None or not np.isfinite(numbers).all():
            raise ValueError(f"{where}: {name} holds NaN, infinity or nothing; record this episode again")
        if (largest := np.abs(numbers).max(initial=0)) > LARGEST:
            raise ValueError(
                f"{where}: {name} holds {largest:.3g} in magnitude; expected at most {LARGEST:g}. Check its source, "
                "and leave this episode out"
            )
    if not row["instruction"].strip():
        raise ValueError(f"{where}: the instruction is empty")


def check_videos(row: dict[str, Any], where: str) -> None:
    """Refuses a row that lacks a video, or whose videos haven't `num_frames` frames by their headers.

    At least one camera must have pictures. A camera with a value map must have pictures. A camera with pictures and
    calibration must have a value map if the events are known. Value maps have the size of their RGB.

    Raises:
        ValueError: naming `where`, the column and both lengths or sizes.
    """
    if all(row[f"rgb_{camera}"] is None for camera in CAMERAS):
        raise ValueError(f"{where}: no camera has a video; record this episode again")
    for camera in CAMERAS:
        has_rgb, has_value = (row[f"{kind}_{camera}"] is not None for kind in ("rgb", "value"))
        if has_value and not has_rgb:
            raise ValueError(f"{where}: value_{camera} has no rgb_{camera} beside it; record this episode again")
        if has_rgb and not has_value and row["events"] is not None and row[f"intrinsics_{camera}"] is not None:
            raise ValueError(f"{where}: value_{camera} holds no video; record this episode again")
    sizes: dict[str, list[int]] = {}
    for name in VIDEO_COLUMNS:  # RGB before value maps
        if row[name] is None:
            continue
        with reading(f"{where}: {name}", "record this episode again"):
            count, *size = read_header(row[name]["bytes"] or b"")
        if count != row["num_frames"]:
            raise ValueError(f"{where}: {name} has {count} frames, expected num_frames = {row['num_frames']}")
        if size != (expected := sizes.setdefault(name.partition("_")[2], size)):
            raise ValueError(
                f"{where}: {name} is {size} (height, width), expected {expected} as its RGB; record this episode again"
            )
