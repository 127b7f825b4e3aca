"""Configs of robots for the datasets that the real lerobot wrote, and changes to those datasets.

`fixtures/lerobot_v3` and `fixtures/lerobot_v21` were written by lerobot 0.4.4 and 0.3.3 (`fixtures/make_lerobot.py`,
whose formulas say what is in them).
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aim_hf.data.lerobot.robot import Robot

from .fixtures import make_lerobot as made

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ["lerobot_v3", "lerobot_v21"]
DOWN = [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0.8], [0, 0, 0, 1]]  # a camera above that looks down
POSE = {"xyz": "[0:3]", "rotation": "[3:7]", "gripper": "[7]"}
ARM = {
    "state": {name: f"observation.tool{part}" for name, part in POSE.items()},
    "action": {name: f"action.tool{part}" for name, part in POSE.items()},
    "convention": "xyzw",
    "gripper_closed": 0.0,
    "gripper_open": made.OPEN,
}
JOINTS = {"cameras": {"head_camera": "observation.images.top"}, "action_space": "qpos"}
TOOL = {
    "cameras": {"head_camera": "observation.images.top", "right_camera": "observation.images.wrist"},
    "action_space": "ee",
    "arms": {"right": ARM},
    "calibration": {"head_camera": {"intrinsics": [100, 100, 23.5, 15.5], "size": [32, 48], "extrinsics": DOWN}},
    "contacts": {},
}


def config(content: dict, tmp_path: Path) -> Path:
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(content))
    return path


def robot(content: dict, tmp_path: Path) -> Robot:
    return Robot.load(config(content, tmp_path))


def change_info(folder: Path, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_table(folder: Path, change):
    """Rewrites the table that holds the first episode."""
    path = sorted(folder.glob("data/*/*.parquet"))[0]
    pq.write_table(change(pq.read_table(path)), path)


def with_column(table: pa.Table, name: str, values: list, kind: pa.DataType | None = None) -> pa.Table:
    column = pa.array(values, kind or table.schema.field(name).type)
    return table.set_column(table.schema.get_field_index(name), name, column)


def change_column(folder: Path, name: str, value, row: int = 4, kind: pa.DataType | None = None):
    """Overwrites a number of the first episode, and the type of its column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value(values[row])
        return with_column(table, name, values, kind)

    change_table(folder, change)


def change_lines(folder: Path, name: str, change):
    """Rewrites the objects of a file of v2.x."""
    path = folder / "meta" / name
    records = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_record(folder: Path, **fields):
    """Overwrites what the metadata say of the first episode."""
    if folder.name == "lerobot_v21":
        change_lines(folder, "episodes.jsonl", lambda records: [records[0] | fields, *records[1:]])
        return
    (path,) = folder.glob("meta/episodes/*/*.parquet")
    records = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([records[0] | fields, *records[1:]]), path)
