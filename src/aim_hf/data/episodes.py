"""Episodes on disk: a row an episode, in Parquet shards that plain `datasets.load_dataset(folder)` reads.

    folder/README.md                            a dataset card whose YAML names the splits
    folder/data/easy-click_bell-00000.parquet   episodes, videos embedded
    folder/manifest/easy-click_bell-00000.jsonl a line per seed tried: recorded or failed, and why

A shard is written to a hidden temporary name and renamed, so that a file with a shard's name is whole.
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, Video, load_dataset

from ..envs.base import CAMERAS
from .value_maps import Event, render_value_maps
from .video import count_frames, decode_video, encode_video

ACTION_DIM = 16  # left xyz, quaternion wxyz, gripper; right likewise


def _vectors(length: int) -> List:
    """A column of vectors of `length` float32, one for each frame or step."""
    return List(List(Value("float32"), length=length))


FEATURES = Features(
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
        "state": _vectors(ACTION_DIM),
        "action": _vectors(ACTION_DIM),
        "expert_action": _vectors(ACTION_DIM),
        "events": List(
            {
                "kind": Value("string"),
                "arm": Value("string"),
                "frame": Value("int32"),
                "body_name": Value("string"),
                "points": _vectors(3),
                "body_pose": _vectors(7),
            }
        ),
        **{f"intrinsics_{camera}": _vectors(9) for camera in CAMERAS},
        **{f"extrinsics_{camera}": _vectors(12) for camera in CAMERAS},
    }
)
VIDEO_COLUMNS = [name for name, feature in FEATURES.items() if isinstance(feature, Video)]
DESCRIPTION = ("suite", "task", "split", "seed", "instruction", "success", "fps")


@dataclass
class Episode:
    """What was seen and done between a reset and the end: T actions and num_frames = T + 1 frames.

    rgb: per camera (num_frames, height, width, 3) uint8.
    intrinsics, extrinsics: per camera (num_frames, 3, 3) and (num_frames, 3, 4) world to camera (OpenCV), float32.
    state (num_frames, 16) float32: measured pose of both arms in the layout of an `ee` action.
    action (T, 16) float32: what was executed. expert_action (T, 16): what the expert wanted, the target of training.
    """

    suite: str
    task: str
    split: str
    seed: int
    instruction: str
    success: bool
    fps: float
    rgb: dict[str, np.ndarray]
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    expert_action: np.ndarray
    events: list[Event]

    @property
    def num_frames(self) -> int:
        return len(self.state)

    def value_maps(self, camera: str) -> np.ndarray:
        """The maps of one camera, rendered from the events: (num_frames, height, width, 3) uint8."""
        height, width = self.rgb[camera].shape[1:3]
        return render_value_maps(self.events, self.intrinsics[camera], self.extrinsics[camera], height, width)

    def to_row(self) -> dict:
        """The row of `FEATURES` that stores this episode; videos are encoded.

        Raises:
            ValueError: if the episode's parts don't fit together or hold NaN.
        """
        frames = self.num_frames
        row = {name: getattr(self, name) for name in (*DESCRIPTION, "state", "action", "expert_action")}
        row |= {"num_frames": frames, "events": [asdict(event) for event in self.events]}
        for camera in CAMERAS:
            row[f"intrinsics_{camera}"] = self.intrinsics[camera].reshape(frames, 9)
            row[f"extrinsics_{camera}"] = self.extrinsics[camera].reshape(frames, 12)
            row[f"rgb_{camera}"] = {"bytes": encode_video(self.rgb[camera], self.fps), "path": None}
            row[f"value_{camera}"] = {"bytes": encode_video(self.value_maps(camera), self.fps), "path": None}
        check_row(row, f"{self.task} seed {self.seed}")
        return {name: row[name] for name in FEATURES}

    @classmethod
    def from_row(cls, row: dict) -> "Episode":
        """The episode of a dataset's row: RGB decoded from its videos, value maps to be rendered from its events."""

        def array(name: str, *shape: int) -> np.ndarray:
            return np.asarray(row[name], dtype=np.float32).reshape(-1, *shape)

        events = [
            Event(
                **{name: event[name] for name in ("kind", "arm", "frame", "body_name")},
                points=np.asarray(event["points"], dtype=np.float32),
                body_pose=np.asarray(event["body_pose"], dtype=np.float32),
            )
            for event in row["events"]
        ]
        return cls(
            **{name: row[name] for name in DESCRIPTION},
            rgb={camera: decode_video(row[f"rgb_{camera}"]) for camera in CAMERAS},
            intrinsics={camera: array(f"intrinsics_{camera}", 3, 3) for camera in CAMERAS},
            extrinsics={camera: array(f"extrinsics_{camera}", 3, 4) for camera in CAMERAS},
            **{name: array(name, ACTION_DIM) for name in ("state", "action", "expert_action")},
            events=events,
        )


def check_row(row: dict, where: str) -> None:
    """Refuse a row whose parts don't fit together.

    Raises:
        ValueError: naming `where`, the column, what it holds and what was expected.
    """
    frames = row["num_frames"]
    lengths = {"state": frames, "action": frames - 1, "expert_action": frames - 1}
    for camera in CAMERAS:
        lengths |= {f"intrinsics_{camera}": frames, f"extrinsics_{camera}": frames}
    columns = [(name, row[name], length) for name, length in lengths.items()]
    for event in row["events"]:
        name = f"the {event['kind']} on {event['body_name']}"
        columns.append((f"body_pose of {name}", event["body_pose"], frames))
        columns.append((f"points of {name}", event["points"], len(event["points"])))
        if not 0 <= event["frame"] < frames or len(event["points"]) == 0:
            raise ValueError(
                f"{where}: event at frame {event['frame']} with {len(event['points'])} contact points; "
                f"expected a frame in 0..{frames - 1} and at least one point"
            )
    for name, values, length in columns:
        if len(values) != length:
            raise ValueError(f"{where}: {name} has {len(values)} entries, expected {length} (num_frames {frames})")
        if not np.isfinite(np.asarray(values, dtype=np.float32)).all():
            raise ValueError(f"{where}: {name} holds NaN or infinity; record this episode again")
    if not row["instruction"].strip():
        raise ValueError(f"{where}: the instruction is empty")


def check_videos(row: dict, where: str) -> None:
    """Refuse a row that lacks a video or has one of another length than `num_frames`, by the videos' headers.

    Raises:
        ValueError: naming `where`, the column and both lengths.
    """
    for name in VIDEO_COLUMNS:
        if row[name] is None or not row[name]["bytes"]:
            raise ValueError(f"{where}: {name} holds no video; record this episode again")
        try:
            count = count_frames(row[name]["bytes"])
        except ValueError as error:
            raise ValueError(f"{where}: {name} is damaged ({error}); record this episode again") from error
        if count != row["num_frames"]:
            raise ValueError(f"{where}: {name} has {count} frames, expected num_frames = {row['num_frames']}")


def shard_path(folder: Path, split: str, task: str, index: int) -> Path:
    return folder / "data" / f"{split}-{task}-{index:05d}.parquet"


def write_shard(path: Path, episodes: list[dict], seeds: list[dict]) -> None:
    """Write rows of `FEATURES` to the shard `path`, and what became of each seed tried to its manifest. The shard is
    renamed into place last: where it is, both are whole."""
    manifest = path.parents[1] / "manifest" / f"{path.stem}.jsonl"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(manifest, "".join(json.dumps(seed) + "\n" for seed in seeds))
    temporary = path.with_name(f".{path.name}.part")
    try:
        Dataset.from_list(episodes, features=FEATURES).to_parquet(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of writers that were killed; no writer may be at work."""
    for place in (folder, folder / "data", folder / "manifest"):
        for path in place.glob(".*.*"):
            if path.suffix[1:].isdigit():  # the writer's process id
                path.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_card(folder: Path) -> None:
    """Write the dataset card: YAML that names each split's shards for `load_dataset`, and a table of what is there."""
    counts, suites = Counter(), set()
    for path in sorted(folder.glob("data/*.parquet")):
        table = pq.read_table(path, columns=["suite", "task", "split"])
        counts.update(zip(table["split"].to_pylist(), table["task"].to_pylist(), strict=True))
        suites.update(table["suite"].to_pylist())
    splits = sorted({split for split, _ in counts})
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    table = "\n".join(f"| {split} | {task} | {count} |" for (split, task), count in sorted(counts.items()))
    replace_text(
        folder / "README.md",
        f"""---
task_categories:
- robotics
tags:
- aim
- value-maps
configs:
- config_name: default
  data_files:
{files}
---
# Episodes of the {", ".join(sorted(suites))} suite with value maps

A row is an episode: the videos of three cameras (`rgb_*`) and their action-based spatial value maps (`value_*`), the
measured state of each frame, the executed and the expert's action of each step, contact events, and the cameras'
intrinsics and extrinsics in each frame. Written by `dataset_scripts/collect.py` of aim-hf.

```python
from datasets import load_dataset
episode = load_dataset("<this folder or repo>", split="{splits[0] if splits else "easy"}")[0]
frames = episode["rgb_head_camera"].get_frames_in_range(0, episode["num_frames"]).data
```

| split | task | episodes |
|---|---|---|
{table}
""",
    )


def load_episodes(source: str | Path) -> Dataset:
    """All episodes of a folder written by `dataset_scripts/collect.py`, or of a repo on the Hub, as one Dataset with
    `FEATURES`, whatever their split (a column). A folder is validated first.

    Raises:
        FileNotFoundError: if the folder holds no shard.
        ValueError: if a shard is damaged, half-written or foreign, or an episode is there twice: names the file, what
            was expected, and the mend.
    """
    folder = Path(source)
    if not folder.exists() and str(source).count("/") == 1:
        splits = load_dataset(str(source))
        dataset = load_dataset(str(source), split="+".join(splits))
        check_schema(dataset.features.arrow_schema, str(source))
        return dataset
    paths = sorted(folder.glob("data/*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no data/*.parquet; expected a folder made by dataset_scripts/collect.py, or a repo id"
        )
    seen: dict[tuple, Path] = {}
    for path in paths:
        for row in read_shard(path):
            key = (row["suite"], row["task"], row["split"], row["seed"])
            if key in seen:
                raise ValueError(f"{path}: episode {key} is in {seen[key]} too; delete one of the two shards")
            seen[key] = path
    return load_dataset("parquet", data_files=[str(path) for path in paths], split="train")


def read_shard(path: Path) -> list[dict]:
    """The rows of one shard with videos as bytes, all checked.

    Raises:
        ValueError: naming the file, what was expected, and the mend.
    """
    mend = "delete it and run dataset_scripts/collect.py again, which makes missing shards"
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); {mend}") from error
    check_schema(table.schema, str(path))
    rows = table.to_pylist()
    for index, row in enumerate(rows):
        where = f"{path}, row {index}"
        check_row(row, where)
        check_videos(row, where)
    return rows


def check_schema(schema: pa.Schema, where: str) -> None:
    """Refuse columns other than those of `FEATURES`.

    Raises:
        ValueError: naming `where` and each column that is missing, unknown or of another type.
    """
    expected = {field.name: field.type for field in FEATURES.arrow_schema}
    found = {field.name: field.type for field in schema}
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} is {found[name]}, expected {type_}"
        for name, type_ in expected.items()
        if name in found and found[name] != type_
    ]
    if wrong:
        raise ValueError(
            f"{where} is no shard of AIM episodes: {'; '.join(wrong)}. Make it with dataset_scripts/collect.py"
        )
