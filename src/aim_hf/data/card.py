"""The dataset card of a folder of episodes: metadata for `load_dataset` and the Hub, and a description."""

from pathlib import Path
from textwrap import indent
from typing import Any

from huggingface_hub.utils import yaml_dump

from ..envs.base import CAMERAS
from ..utils.extras import extra
from ..utils.files import reading, write_text
from .shards import MEND, read_manifest, shard_paths

with extra("data"):
    import pyarrow.parquet as pq

# Columns of an episode -> their description in the card.
COLUMNS = {
    "suite, task, split, seed": "the simulator's suite (`lerobot`: imported), the task, the split (a suite's: easy, "
    "hard, or one such as camera-2), and the seed that gives the scene (of an imported episode: its number)",
    "instruction": "what the robot is told",
    "success": "whether the task was fulfilled at the end",
    "fps, num_frames": "frames a second; T + 1 frames for T actions",
    "rgb_*": "MP4 of the head, left and right wrist camera; null where a view is missing",
    "value_*": "MP4 of the value map of each camera, gray: bright where an arm makes its next contact; null where "
    "the contacts are unknown",
    "action_space": "`ee`: for each arm, left first, xyz (m), quaternion wxyz and gripper (0 closed .. 1 open) of the "
    "tool center point in the world; `qpos`: joint positions and grippers",
    "state": "measured in each frame, in the layout of an action",
    "action": "executed after each frame but the last; in recordings of `aim-hf collect` with a perturbation that "
    "teaches recovery",
    "expert_action": "what the expert wanted: the target of training",
    "intervention": "the step at which the expert sees that it missed an object: `action` holds the miss before it, "
    "`expert_action` the recovery from it on; 0 where an object lies in the wrong place from the start; null without "
    "mistake",
    "events": "contacts in order: kind (pick, place, press, push, insert), arm, first frame that shows it done, body, "
    "contact points in the body's frame (m), its pose in each frame, and the share of the points that each camera "
    "sees; null where they are unknown",
    "intrinsics_*, extrinsics_*": "of each camera in each frame: 3 x 3 in pixels, 3 x 4 world to camera (OpenCV), "
    "row by row; null without calibration",
}


RECORDED = """Scripted experts in a simulator, recorded by `aim-hf collect`; contacts come from
the simulator's physics. Only episodes that fulfil their task are kept. `manifest/` names, shard by shard, every seed
that was tried, its outcome, and the simulator: {simulators}.

No person or place appears in the data. A policy that is trained on it alone has seen nothing but this simulator."""


WITH_MAPS = """A row is an episode: the videos of up to three cameras, for each of them its *action-based spatial value
maps* (where the robot will make its next contact), states, actions, the contacts themselves and the cameras'
calibration, from which the maps can be rendered again, bit for bit."""

WITHOUT_MAPS = "A row is an episode: the videos of up to three cameras, states and actions. None has value maps."

CARD = """---
license: {license}
pretty_name: Episodes of {content}
task_categories:
- robotics
tags:
{tags}
size_categories:
- {size_category}
configs:
- config_name: default
  data_files:
{data_files}
---
# {total} episodes of {content}

{summary}

{picture}```python
from datasets import load_dataset

episode = load_dataset("<this folder or repo>", split="{split}")[0]
frames = episode["rgb_{camera}"].get_frames_in_range(0, episode["num_frames"]).data
```

**Intended**: training and studying models that act, or that predict where a robot will act. **Limits**: a model
trained on it knows these tasks, robots, cameras and wordings and no others, and must not drive a real robot without
limits on speed, force and workspace that don't depend on it.

## Columns

| column | content |
|---|---|
{columns}

Actions have {action_dim} numbers.

## Episodes

{total} episodes, {megabytes:.1f} MB.

| split | task | episodes | size of one | seeds on which the expert failed |
|---|---|---|---|---|
{table}

## How it was made

{origin}
"""


def write_card(folder: Path, origin: str = RECORDED, license: str = "apache-2.0") -> None:
    """Writes `README.md` from the footers and manifests of the shards; no video is read. It shows `preview.png` if
    that exists.

    Args:
        folder: folder of episodes.
        origin: how they were made, in Markdown; `{simulators}` is replaced by the simulator versions in the manifests.
        license: license by its name on the Hub.
    """
    rows, simulators = _contents(folder)
    has_maps = any(row["has_maps"] for row in rows)
    splits, suites = sorted({row["split"] for row in rows}), sorted({row["suite"] for row in rows})
    total = sum(row["episodes"] for row in rows)
    picture = "![Frames, and the value maps over them](preview.png)\n\n" if (folder / "preview.png").exists() else ""
    files = [{"split": _name(split), "path": f"data/{split}-*.parquet"} for split in splits]
    text = CARD.format(
        license=license,
        content=", ".join(suites) + " with value maps" * has_maps,
        tags="\n".join(["- aim", *["- value-maps"] * has_maps, "- world-action-model"]),
        summary=WITH_MAPS if has_maps else WITHOUT_MAPS,
        size_category=_size_category(total),
        data_files=indent(yaml_dump(files, sort_keys=False).rstrip(), "  "),
        total=total,
        picture=picture,
        split=_name(splits[0]),
        camera=rows[0]["camera"],
        columns="\n".join(f"| `{name}` | {text} |" for name, text in COLUMNS.items()),
        action_dim=rows[0]["action_dim"],
        megabytes=sum(row["bytes"] for row in rows) / 1e6,
        table="\n".join(
            f"| {row['split']} | {row['task']} | {row['episodes']} | {row['bytes'] / row['episodes'] / 1e3:.0f} kB | "
            f"{row['failed']} |"
            for row in rows
        ),
        origin=origin.replace("{simulators}", "; ".join(simulators) or "unknown"),
    )
    write_text(folder / "README.md", text)


def _contents(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A record of each split and task, with the first camera of its first episode and whether any has value maps, and
    the simulator versions that the manifests name."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    simulators = set()
    for path in shard_paths(folder):
        with reading(path, MEND):
            file = pq.ParquetFile(path)
            names = file.read_row_group(0, columns=["suite", "split", "task"]).to_pylist()[0]
            videos = file.read(columns=[f"{kind}_{camera}.path" for kind in ("rgb", "value") for camera in CAMERAS])
            names["camera"] = next((camera for camera in CAMERAS if videos[f"rgb_{camera}"][0].is_valid), CAMERAS[0])
        action_dim = file.schema_arrow.field("action").type.value_type.list_size
        row = rows.setdefault(
            (names["split"], names["task"]),
            names | {"action_dim": action_dim, "has_maps": False, "episodes": 0, "bytes": 0, "failed": 0},
        )
        row["has_maps"] |= any(videos[f"value_{camera}"].null_count < len(videos) for camera in CAMERAS)
        row["episodes"] += file.metadata.num_rows
        row["bytes"] += path.stat().st_size
        if (made := read_manifest(folder, path)) is not None:
            if made["simulator"]:
                simulators.add(", ".join(f"{name} {version}" for name, version in made["simulator"].items()))
            row["failed"] += sum(seed["outcome"] == "failed" for seed in made["seeds"])
    return [rows[key] for key in sorted(rows)], sorted(simulators)


def _name(split: str) -> str:
    """A split's name for `load_dataset`, which allows no dash: camera_2 for camera-2."""
    return split.replace("-", "_")


def _size_category(count: int) -> str:
    """The Hub's category of a number of rows."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M")
    return names[sum(count >= limit for limit in (1_000, 10_000, 100_000))]
