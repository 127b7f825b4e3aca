"""Damage to a LeRobot dataset is named, layouts of all versions are read, and episodes are chosen."""

import json
import re
import shutil
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, Dataset, Features

from aim_hf.data.lerobot.clips import ClipJoiner
from aim_hf.data.lerobot.importer import check_episodes, import_episodes, imported_row
from aim_hf.data.lerobot.robot import Robot
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import load_episodes, read_rows, shard_paths
from aim_hf.data.video import encode_video
from aim_hf.utils.files import UnreadableFile

from ..fixtures import make_lerobot as made
from ..fixtures_lerobot import (
    FIXTURES,
    JOINTS,
    TOOL,
    VERSIONS,
    change_column,
    change_info,
    change_lines,
    change_record,
    change_table,
    config,
    robot,
    with_column,
)


@pytest.fixture(params=VERSIONS)
def damaged(request, tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


def first_video(folder: Path) -> Path:
    return sorted(folder.glob("videos/**/*.mp4"))[0]


def write_video(folder: Path, frames: int, size: tuple[int, int] = made.TOP):
    first_video(folder).write_bytes(encode_video(np.zeros((frames, *size, 3), np.uint8), made.FPS))


def cut_video(folder: Path):
    """As a download that was broken off: the index is there, the last picture isn't."""
    video = first_video(folder)
    clips = [encode_video(np.random.default_rng(0).integers(0, 256, (sum(made.LENGTHS), *made.TOP, 3), np.uint8), 10)]
    with closing(ClipJoiner(video, Fraction(made.FPS))) as joiner:
        joiner.add(clips[0])
    video.write_bytes(video.read_bytes()[:2000])


def change_tasks(folder: Path, words: str):
    """Overwrites the words of task 0."""
    if folder.name == "lerobot_v21":
        change_lines(folder, "tasks.jsonl", lambda records: [records[0] | {"task": words}, *records[1:]])
        return
    path = folder / "meta" / "tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(with_column(table, "__index_level_0__", [words, *table["__index_level_0__"].to_pylist()[1:]]), path)


def test_another_version_is_refused(damaged, tmp_path):
    change_info(damaged, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version v1.6; expected one of v2.0, v2.1, v3.0"):
        LeRobotSource(damaged)
    with pytest.raises(FileNotFoundError, match="has no meta/info.json"):
        LeRobotSource(tmp_path)
    with pytest.raises(ValueError, match="give a config that maps .* It has .* observation.images.wrist"):
        import_episodes(LeRobotSource(FIXTURES / "lerobot_v3"), None, tmp_path / "out")


BROKEN = {
    "no video": (lambda f: first_video(f).unlink(), ".mp4 is missing; download or record it again"),
    "no video at all": (lambda f: first_video(f).write_bytes(b"no"), ".mp4 can't be read .*Invalid data found"),
    "short video": (lambda f: write_video(f, 5), "it has 5 pictures where frames 0 to 11 .* expected 12"),
    "cut video": (cut_video, "the picture of frame 0 is cut off"),
    "other size": (lambda f: write_video(f, 40, (32, 48)), r"pictures of \(32, 48\) .*, expected \(64, 96\)"),
    "no table": (lambda f: sorted(f.glob("data/*/*"))[0].unlink(), "parquet is missing; download"),
    "no Parquet": (lambda f: sorted(f.glob("data/*/*"))[0].write_bytes(b"PAR1"), "parquet can't be read"),
    "frames": (lambda f: change_table(f, lambda table: table.slice(1)), "has 11 frames of it, expected 12"),
    "no column": (
        lambda f: change_table(f, lambda table: table.drop(["action.tool"])),
        "it has no column action.tool",
    ),
    "no index": (lambda f: change_table(f, lambda t: t.drop(["episode_index"])), "it has no column episode_index"),
    "words": (
        lambda f: change_table(f, lambda t: with_column(t, "action.tool", ["left"] * len(t), pa.string())),
        "action.tool holds string .*expected numbers",
    ),
    "words for numbers": (
        lambda f: change_table(f, lambda t: with_column(t, "episode_index", ["a"] * len(t), pa.string())),
        "parquet can't be read",
    ),
    "another width": (
        lambda f: change_column(f, "action.tool", lambda old: old[:5], kind=pa.list_(pa.float32())),
        "action.tool holds lists of 8 and 5 numbers, expected 8",
    ),
    "null": (
        lambda f: change_column(f, "action.tool", lambda old: [None, *old[1:]]),
        "action.tool holds float and 1 times nothing",
    ),
    "NaN": (
        lambda f: change_column(f, "action.tool", lambda old: [np.nan, *old[1:]]),
        r"action.tool\[0:3\] holds NaN .* at frame 4",
    ),
    "another time": (
        lambda f: change_column(f, "timestamp", lambda old: old + 0.3),
        "frame 4 is at 0.7 s, but at 10 frames a second it should be at 0.4 s",
    ),
    "no time": (lambda f: change_column(f, "timestamp", lambda old: np.nan), "timestamp holds NaN"),
    "quaternion": (
        lambda f: change_column(f, "observation.tool", lambda old: [*old[:3], 0, 0, 0, 2, old[7]]),
        r"observation.tool\[3:7\]: the quaternion of frame 4 is .* of length 2; expected length 1",
    ),
    "unit of the gripper": (  # commanded as -1 to 1, and measured in meters
        lambda f: change_column(f, "action.tool", lambda old: [*old[:7], -1.0]),
        r"action.tool\[7:8\]: the gripper of frame 4 is -1; expected about 0, closed, to 0.08, open, in states and a",
    ),
    "no picture": (
        lambda f: change_column(f, "observation.images.wrist", lambda old: {"bytes": None, "path": "4.png"}),
        "wrist of frame 4 is .*4.png.*, expected a picture's bytes inside the table",
    ),
    "damaged picture": (
        lambda f: change_column(f, "observation.images.wrist", lambda old: {"bytes": b"PNG", "path": "4.png"}),
        "wrist of frame 4 can't be read",
    ),
    "two tasks": (lambda f: change_column(f, "task_index", lambda old: 1 - old), "its task changes .* expected one"),
    "unknown task": (
        lambda f: change_table(
            f, lambda t: with_column(t, "task_index", [99 if e == 0 else 0 for e in t["episode_index"].to_pylist()])
        ),
        "its task_index is 99, but the dataset's tasks are .*block left.*; add it",
    ),
    "no words": (
        lambda f: change_tasks(f, " "),
        "its task_index is 0, but the dataset's tasks are .0: ' ',.*; add it",
    ),
    "another task": (
        lambda f: change_record(f, tasks=["Open the drawer."]),
        r"its task_index means '.*block left.*', but its metadata say \['Open the drawer.'\]; correct one",
    ),
    "one frame": (lambda f: change_record(f, length=1), "it has 1 frames, expected at least 2"),
    "no frame": (lambda f: change_record(f, length=0), "it has 0 frames, expected at least 2"),
    "endless": (lambda f: change_record(f, length=10**14), "has 12 frames of it, expected 100000000000000"),
    "no length": (lambda f: change_record(f, length=None), "length in its metadata is None, expected a number"),
    "placeholders": (
        lambda f: change_info(f, data_path="{chunk}.parquet"),
        "info.json can't be read .has no 'chunk'.; expected a path whose placeholders are among",
    ),
    "attributes": (
        lambda f: change_info(f, data_path="{chunk_index.value}.parquet"),
        "data_path .{chunk_index.value}.parquet. in .*info.json can't be read .*; expected a path whose",
    ),
    "no path": (lambda f: change_info(f, video_path=None), "info.json: video_path is None, expected a path"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_wrong_with_an_episode_is_told_before_anything_is_written(damaged, tmp_path, fault):
    """By the check of all of them, by the import, and by reading that one episode."""
    damage, message = BROKEN[fault]
    damage(damaged)
    source, path = LeRobotSource(damaged), config(TOOL, tmp_path)
    broken = check_episodes(source, Robot.load(path), source.episodes)
    assert re.search(message, broken[0]), broken
    with pytest.raises(ValueError, match=f"of 3 episodes are broken; (?s:.)*episode 0: .*{message}"):
        import_episodes(source, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"{damaged.name}, episode 0: .*{message}"):
        imported_row(source, Robot.load(path), 0, "train")


def test_half_a_character_is_told_before_anything_is_written(tmp_path):
    """JSON can hold it, Parquet can't: it was an error of the codec, after the folder was claimed."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    change_tasks(folder, "pick \ud83d up")
    change_lines(folder, "episodes.jsonl", lambda records: [record | {"tasks": []} for record in records])
    with pytest.raises(ValueError, match=r"episode 0: its task_index is 0, but .*'pick \\ud83d up'.*; add it to them"):
        import_episodes(LeRobotSource(folder), config(JOINTS, tmp_path), tmp_path / "episodes")
    assert not (tmp_path / "episodes").exists()


def test_the_instruction_of_the_config_needs_no_task(damaged, tmp_path):
    change_column(damaged, "task_index", lambda old: 99)
    row = imported_row(LeRobotSource(damaged), robot(JOINTS | {"instruction": "go"}, tmp_path), 0, "train")
    assert row["instruction"] == "go"


DAMAGED = {
    "info": (lambda f: (f / "meta/info.json").write_text("{"), "info.json can't be read"),
    "features": (lambda f: change_info(f, features=None), "info.json: features is None, expected an object"),
    "no fps": (lambda f: change_info(f, fps=None), "info.json: fps is None, expected a number"),
    "NaN fps": (lambda f: change_info(f, fps=float("nan")), "info.json: fps is nan, expected a positive number"),
    "zero fps": (lambda f: change_info(f, fps=0), "info.json: fps is 0, expected a positive number"),
    "splits": (lambda f: change_info(f, splits={"train": "all"}), "split train is 'all', expected a range"),
    "null splits": (lambda f: change_info(f, splits=None), "info.json: splits is None, expected an object of ranges"),
    "total": (
        lambda f: change_info(f, total_episodes=4),
        "lists 3 episodes, but total_episodes in meta/info.json is 4",
    ),
    "twice": (lambda f: change_record(f, episode_index=1), "row 1 .* has episode_index 1, expected a number that no"),
    "no number": (lambda f: change_record(f, episode_index=None), "row 0 .* has episode_index None"),
    "no tasks": (lambda f: next(f.glob("meta/tasks.*")).unlink(), "meta/tasks.* is missing; download"),
    "damaged tasks": (lambda f: next(f.glob("meta/tasks.*")).write_bytes(b"tasks"), "meta/tasks.* can't be read"),
    "odd fps": (lambda f: change_info(f, fps=1e-9), "info.json: fps is 1e-09, expected a positive number"),
    "damaged episodes": (
        lambda f: [*f.glob("meta/episodes/*/*"), *f.glob("meta/episodes.jsonl")][0].write_text('{"a'),
        "can't be read .*; download or record it again",
    ),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damage_to_what_describes_the_episodes_is_named(damaged, fault):
    damage, message = DAMAGED[fault]
    damage(damaged)
    with pytest.raises(ValueError, match=message):
        LeRobotSource(damaged)


def test_columns_that_nobody_asks_for_may_be_anything(damaged, tmp_path):
    def add(table: pa.Table) -> pa.Table:
        table = table.append_column("words", pa.array([{"said": ["go", None]}] * len(table)))
        return table.append_column("mask", pa.array([b"\0"] * len(table)))

    change_table(damaged, add)
    info = json.loads((damaged / "meta" / "info.json").read_text())
    extra = {"words": {"dtype": "language"}, "mask": {"dtype": "bits", "shape": [None]}, "odd": None}
    change_info(damaged, features=info["features"] | extra)
    source = LeRobotSource(damaged)
    assert check_episodes(source, robot(TOOL, tmp_path), source.episodes) == {}
    with pytest.raises(ValueError, match="has no column words of numbers; it has observation.state"):
        robot(JOINTS | {"action": ["words"]}, tmp_path).check_source(source)


def test_numbers_that_nobody_asks_for_may_be_nan(damaged, tmp_path):
    """Such as the speed of a gripper that measures none, behind the joints in one column."""
    parts = {"state": ["observation.state[0:6]"], "action": ["action[0:6]"]}
    whole, some = robot(JOINTS, tmp_path), robot(JOINTS | parts, tmp_path)
    change_column(damaged, "observation.state", lambda old: [*old[:6], np.nan])
    source = LeRobotSource(damaged)
    assert imported_row(source, some, 0, "train")["state"].shape == (12, 6)
    with pytest.raises(ValueError, match="observation.state holds NaN or infinity at frame 4; repair it"):
        imported_row(source, whole, 0, "train")


def test_matrices_as_datasets_stores_them_are_numbers(tmp_path):
    """`Array2D` is an extension type of Arrow's."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    path = next(folder.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    numbers = np.arange(6.0 * len(table)).reshape(-1, 2, 3)
    features = Features({"wrench": Array2D((2, 3), "float32")})
    matrices = Dataset.from_dict({"wrench": list(numbers)}, features=features).data.table
    pq.write_table(table.append_column(matrices.field(0), matrices["wrench"].combine_chunks()), path)
    info = json.loads((folder / "meta" / "info.json").read_text())
    change_info(folder, features=info["features"] | {"wrench": {"dtype": "float32", "shape": [2, 3]}})
    read = LeRobotSource(folder).frames(1, ["wrench"])["wrench"]
    np.testing.assert_array_equal(read, numbers.reshape(-1, 6)[12:21])


def test_v2_0_and_deleted_episodes_are_read(tmp_path):
    """v2.0 has one file of statistics, which nobody needs. Episodes keep their numbers."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    (folder / "meta" / "episodes_stats.jsonl").unlink()
    change_info(folder, codebase_version="v2.0", total_episodes=2)
    words = "把积木\u2028🧱"  # a separator of lines, but not of objects
    change_lines(folder, "episodes.jsonl", lambda records: [records[n] | {"tasks": [words]} for n in (0, 2)])
    (folder / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": words}, ensure_ascii=False))
    for path in folder.glob("**/episode_000001.*"):
        path.unlink()
    source = LeRobotSource(folder)
    assert source.version == "v2.0" and source.episodes == [0, 2]
    assert import_episodes(source, config(JOINTS, tmp_path), tmp_path / "out") == (2, {})
    rows = list(read_rows(shard_paths(tmp_path / "out")[0]))
    assert [row["seed"] for row in rows] == [0, 2]
    assert rows[1]["instruction"] == words
    np.testing.assert_array_equal(rows[1]["state"], made.joints(2, np.arange(14)))


def test_tasks_of_both_layouts_are_read(tmp_path):
    """The words are an index without a name, or one called `task`."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    path = folder / "meta" / "tasks.parquet"
    before, table = LeRobotSource(folder).tasks, pq.read_table(path)
    assert before == {0: made.TASKS[0], 1: made.TASKS[1]} and table.column_names == ["task_index", "__index_level_0__"]
    pq.write_table(table.rename_columns(["task_index", "task"]), path)
    assert LeRobotSource(folder).tasks == before
    pq.write_table(table.rename_columns(["task_index", "words"]), path)
    with pytest.raises(UnreadableFile, match="it has no __index_level_0__, but task_index, words"):
        LeRobotSource(folder)


def test_hidden_files_and_columns_that_are_asked_for_twice_do_no_harm(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    (path,) = folder.glob("meta/episodes/*/*.parquet")
    (path.parent / f"._{path.name}").write_bytes(b"of macOS")
    frames = LeRobotSource(folder).frames(1, ["timestamp", "frame_index", "frame_index"])
    assert frames["frame_index"][:, 0].tolist() == list(range(len(frames["frame_index"])))
    np.testing.assert_allclose(frames["timestamp"][:, 0], np.arange(len(frames["timestamp"])) / 10, atol=1e-5)


def test_a_task_index_may_be_in_a_list(tmp_path):
    """As `meta/info.json` describes it, with shape [1]."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    expected = [LeRobotSource(folder).instruction(episode) for episode in range(3)]
    lists = pa.list_(pa.int64())
    change_table(folder, lambda t: with_column(t, "task_index", [[n] for n in t["task_index"].to_pylist()], lists))
    assert [LeRobotSource(folder).instruction(episode) for episode in range(3)] == expected


def test_a_task_index_has_one_meaning(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    path = folder / "meta" / "tasks.jsonl"
    path.write_text(path.read_text().rstrip() + '\n{"task_index": 0, "task": "other words"}\n')
    with pytest.raises(UnreadableFile, match=r"task_index 0 is both .* and 'other words'"):
        LeRobotSource(folder)


@pytest.mark.parametrize("read", [LeRobotSource.open, load_episodes])
def test_an_empty_path_is_not_the_current_folder(read):
    with pytest.raises(ValueError, match="^the dataset is ''; expected a path. Give '.' for the current folder.$"):
        read("")


def test_episodes_are_chosen_by_number_and_by_task():
    source = LeRobotSource(FIXTURES / "lerobot_v3")
    left, right = made.TASKS[:2]
    assert source.choose() == [0, 1, 2]
    assert source.choose(["0", "2"]) == source.choose(tasks=[left]) == source.choose(skip=[1]) == [0, 2]
    assert source.choose(["1:9"]) == source.choose(["1:"]) == [1, 2]
    assert source.choose([":2"], [left, right], [0]) == [1]
    for arguments, message in (
        ((["3"],), "has no episode 3; expected numbers or ranges such as 0:50, of its episodes 0:3"),
        ((["first"],), "has no episode first"),
        ((None, ["jump"]), "has no task 'jump'; it has .'put the red block left', 'put the red block right'"),
        ((None, None, [7, 8]), "has no episode 7:9 to skip"),
        ((["1"], [left]), "no episode is left of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            source.choose(*arguments)
