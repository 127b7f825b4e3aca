"""The LeRobot bridge: our export comes back whole, and what the real `lerobot` wrote is read as it was meant.

`fixtures/lerobot_v3` and `fixtures/lerobot_v21` were written by lerobot 0.4.4 and 0.3.3 (`fixtures/make_lerobot.py`,
whose formulas say what is in them). `scripts/check_lerobot.py` reads an export with the real lerobot.
"""

import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, Dataset, Features, load_dataset
from torchcodec.decoders import VideoDecoder

from aim_hf.commands import run
from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode
from aim_hf.data.lerobot import export, format
from aim_hf.data.lerobot.clips import ClipJoiner, cut_clip
from aim_hf.data.lerobot.export import export_lerobot, rows_of
from aim_hf.data.lerobot.format import OURS
from aim_hf.data.lerobot.importer import (
    check_episodes,
    every_frame,
    import_episodes,
    imported_row,
    plan,
)
from aim_hf.data.lerobot.robot import CONVENTIONS, Contacts, Robot, closings_and_openings
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import load_episodes, read_rows, shard_paths
from aim_hf.data.video import decode_video, encode_video
from aim_hf.envs.base import CAMERAS
from aim_hf.envs.poses import rotation_matrix
from aim_hf.utils.files import UnreadableFile

from ..hub_server import Repo
from .fixtures import make_lerobot as made
from .fixtures_episodes import SIZES, make_episode, write_shard
from .test_video import psnr

ROOT = Path(__file__).parents[2]
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


# Clips


def clip(frames: int, seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    return encode_video(blocks.repeat(16, axis=1).repeat(16, axis=2), 12.5)


def test_clips_strung_together_are_themselves_again_when_cut_out(tmp_path):
    clips, rate = [clip(37, 0), clip(5, 1), clip(1, 2), clip(20, 3)], Fraction(25, 2)
    with closing(ClipJoiner(tmp_path / "joined.mp4", rate)) as joiner:
        for part in clips:
            assert joiner.fits(part)
            joiner.add(part)
        assert joiner.frames == 63
        assert not joiner.fits(encode_video(np.zeros((3, 32, 48, 3), np.uint8), 12.5)), "another size"
    # As lerobot opens it: frames are found by their time.
    decoder = VideoDecoder(str(tmp_path / "joined.mp4"), seek_mode="approximate")
    assert decoder.metadata.average_fps == 12.5
    first = 0
    for part in clips:
        frames = decode_video(part)
        found = decoder.get_frames_at(list(range(first, first + len(frames))))
        np.testing.assert_allclose(found.pts_seconds, np.arange(first, first + len(frames)) / 12.5, atol=1e-6)
        cut = cut_clip(tmp_path / "joined.mp4", first, len(frames), rate)
        assert np.array_equal(decode_video(cut), frames) and len(cut) < 1.1 * len(part) + 200
        first += len(frames)
    assert cut_clip(tmp_path / "joined.mp4", 3, 10, rate) is None, "it begins with no key frame"
    with pytest.raises(ValueError, match="has 3 pictures where frames 60 to 65 .* expected 6"):
        cut_clip(tmp_path / "joined.mp4", 60, 6, rate)


# Out, and in again


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Three episodes of two splits, and their export, in video files of two episodes at most."""
    folder = tmp_path_factory.mktemp("lerobot")
    for split, seeds in (("easy", (0, 4)), ("hard", (2,))):
        episodes = [make_episode(seed, split=split) for seed in seeds]
        episodes[0].intervention = 3
        write_shard(folder / "episodes", episodes, split)
    with pytest.MonkeyPatch.context() as patch:
        largest = max(len(row["rgb_head_camera"]["bytes"]) for row in rows_of(folder / "episodes"))
        patch.setattr(export, "VIDEO_FILE_MB", 2.5 * largest / 2**20)
        patch.setattr(export, "RECORDS_IN_GROUP", 2)
        export_lerobot(rows_of(folder / "episodes"), folder / "export", "you/blocks")
    return folder


def test_an_export_comes_back_whole(exported, tmp_path):
    """Every number and every pixel."""
    assert import_episodes(LeRobotSource(exported / "export"), None, tmp_path / "back") == (3, {})
    pairs = list(zip(rows_of(exported / "episodes"), rows_of(tmp_path / "back"), strict=True))
    assert len(pairs) == 3
    for before, after in pairs:
        assert before.keys() == after.keys()
        for name in before:
            if name.startswith(("rgb_", "value_")):
                assert np.array_equal(decode_video(before[name]["bytes"]), decode_video(after[name]["bytes"])), name
            else:
                assert before[name] == after[name], name
    assert load_dataset(str(tmp_path / "back"))["easy"].num_rows == 2


def test_a_split_with_a_dash_comes_back_under_its_name(tmp_path):
    write_shard(tmp_path / "episodes", [make_episode(3, split="camera-2")], "camera-2")
    export_lerobot(rows_of(tmp_path / "episodes"), tmp_path / "export", "you/blocks")
    import_episodes(LeRobotSource(tmp_path / "export"), None, tmp_path / "back")
    assert [path.name for path in (tmp_path / "back" / "data").iterdir()] == ["camera-2-click_bell-00000.parquet"]
    assert load_dataset(str(tmp_path / "back"))["camera_2"]["split"] == ["camera-2"]


def test_a_split_that_names_another_folder_is_refused(exported, tmp_path):
    shutil.copytree(exported / "export", tmp_path / "export")
    path = tmp_path / "export" / OURS
    rows = pq.read_table(path)
    rows = rows.set_column(rows.column_names.index("split"), "split", pa.array(["easy", "easy", "../hard"]))
    pq.write_table(rows, path, row_group_size=1)
    with pytest.raises(ValueError, match=r"episode 2: its split in meta/aim.parquet is '../hard'; expected letters"):
        import_episodes(LeRobotSource(tmp_path / "export"), None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_tasks_of_one_file_name_and_suites_of_one_task_lose_no_episode(tmp_path):
    """Episodes of one seed, which are pieces of one name while a shard is made."""
    kinds = [("robotwin", "a b"), ("tabletop", "a b"), ("tabletop", "a_b")]
    for index, (suite, task) in enumerate(kinds):
        write_shard(tmp_path / "episodes", [replace(make_episode(0, task), suite=suite)], index=index)
    export_lerobot(rows_of(tmp_path / "episodes"), tmp_path / "export", "you/blocks")
    assert import_episodes(LeRobotSource(tmp_path / "export"), None, tmp_path / "back") == (3, {})
    back = [path.name for path in sorted((tmp_path / "back" / "data").iterdir())]
    assert back == [f"easy-a_b-0000{index}.parquet" for index in range(3)]
    assert [(row["suite"], row["task"]) for row in rows_of(tmp_path / "back")] == kinds


def test_an_episode_that_is_in_an_export_twice_is_named(tmp_path):
    write_shard(tmp_path / "episodes", [make_episode(4)])
    rows = [*rows_of(tmp_path / "episodes")] * 2
    export_lerobot(rows, tmp_path / "export", "you/blocks")
    with pytest.raises(ValueError, match="episodes 0 and 1 are both tabletop click_bell easy seed 4; leave one"):
        import_episodes(LeRobotSource(tmp_path / "export"), None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_split_that_is_named_twice_is_exported_once(exported):
    assert [row["seed"] for row in rows_of(exported / "episodes", ["hard", "easy", "hard"])] == [2, 0, 4]


def test_an_export_from_before_interventions_has_none(exported, tmp_path):
    shutil.copytree(exported / "export", tmp_path / "export")
    path = tmp_path / "export" / OURS
    pq.write_table(pq.read_table(path).drop_columns("intervention"), path, row_group_size=1)
    assert imported_row(LeRobotSource(tmp_path / "export"), None, 0, "")["intervention"] is None


def test_the_export_is_laid_out_as_lerobot_wants_it(exported):
    folder = exported / "export"
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 12.5 and info["total_frames"] == 21
    assert info["splits"] == {"easy": "0:2", "hard": "2:3"}
    assert info["features"]["observation.images.value_left_camera"]["shape"] == [*SIZES["left_camera"], 3]
    assert len(list(folder.glob("videos/observation.images.head_camera/chunk-000/*.mp4"))) == 2
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.head_camera"
    assert [episode[f"{key}/file_index"] for episode in episodes] == [0, 0, 1]
    assert [episode[f"{key}/from_timestamp"] for episode in episodes] == [0, 7 / 12.5, 0]
    # The card lets plain `datasets` read the table; the last action is repeated.
    table = load_dataset(str(folder), split="train")
    assert table["index"][:] == list(range(21)) and table[6]["action"] == table[5]["action"]
    assert table[3]["timestamp"] == pytest.approx(3 / 12.5) and table[3]["task_index"] == 0
    actions = np.concatenate([make_episode(seed).action[[*range(6), 5]] for seed in (0, 4, 2)]).astype(np.float64)
    stats = json.loads((folder / "meta" / "stats.json").read_text())["action"]
    np.testing.assert_allclose(stats["mean"], actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["std"], actions.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["max"], actions.max(axis=0), atol=1e-6)
    assert stats["count"] == [21] and np.shape(stats["q99"]) == (16,)


def test_a_number_is_named_after_its_arm_and_its_part():
    assert format.number_names("robotwin", "qpos", 14)[5:9] == [
        "left_joint_5",
        "left_gripper",
        "right_joint_0",
        "right_joint_1",
    ]
    assert format.number_names("robotwin", "qpos", 16)[::-8] == ["right_gripper", "left_gripper"]
    assert format.number_names("tabletop", "ee", 16)[::-8] == ["right_gripper", "left_gripper"]
    assert format.number_names(format.IMPORTED, "qpos", 3) == ["joint_0", "joint_1", "joint_2"]
    assert format.number_names(format.IMPORTED, "ee", 16)[0] == "left_x"


def test_value_maps_that_were_left_out_are_rendered_again(exported, tmp_path):
    export_lerobot(rows_of(exported / "episodes"), tmp_path / "export", "you/blocks", value_maps=False)
    source = LeRobotSource(tmp_path / "export")
    assert source.cameras == [f"observation.images.{camera}" for camera in CAMERAS]
    row = imported_row(source, None, 0, "")
    original = next(rows_of(exported / "episodes"))
    assert row["value_left_camera"]["bytes"] == original["value_left_camera"]["bytes"]


def test_the_experts_actions_can_be_those_to_imitate(exported, tmp_path):
    rows = [
        dict(row, expert_action=[[number + 1 for number in step] for step in row["action"]])
        for row in rows_of(exported / "episodes")
    ]
    export_lerobot(rows, tmp_path / "export", "you/blocks", expert_actions=True)
    table = load_dataset(str(tmp_path / "export"), split="train")
    assert table["action"][:] == table["expert_action"][:]
    np.testing.assert_allclose(table["action"][0], rows[0]["expert_action"][0], atol=1e-6)
    np.testing.assert_allclose(table["action"][0], np.add(rows[0]["action"][0], 1), atol=1e-6)
    assert "the executed one was left out" in (tmp_path / "export" / "README.md").read_text()
    assert "`action`\nwhat was executed" in (exported / "export" / "README.md").read_text()


def test_an_export_has_the_license_of_its_episodes(exported, tmp_path, capsys):
    folder = shutil.copytree(exported / "episodes", tmp_path / "episodes")
    told = []
    for name, license in (("without a card", None), ("named", "cc-by-nc-4.0")):
        if license is not None:
            write_card(folder, license=license)
        run(["export-lerobot", str(folder), "--output_dir", str(tmp_path / name)])
        told.append((tmp_path / name / "README.md").read_text().splitlines()[1])
    assert told == ["license: unknown", "license: cc-by-nc-4.0"]
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(SystemExit):
        run(["export-lerobot", str(folder), "--output_dir", str(tmp_path / "damaged")])
    assert "README.md: its metadata can't be read" in capsys.readouterr().err
    assert not (tmp_path / "damaged").exists()


def test_an_export_is_whole_or_not_there(exported, tmp_path):
    def broken():
        yield from list(rows_of(exported / "episodes"))[:2]
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        export_lerobot(broken(), tmp_path / "export", "you/blocks")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="is there already"):
        export_lerobot(rows_of(exported / "episodes"), exported / "export", "you/blocks")
    with pytest.raises(ValueError, match="has no split test; it has easy, hard"):
        list(rows_of(exported / "episodes", ["test"]))


def test_episodes_that_lerobot_cannot_hold_together_are_named(exported, tmp_path):
    rows = list(rows_of(exported / "episodes"))
    rows[1] |= {"rgb_left_camera": None, "value_left_camera": None}
    with pytest.raises(ValueError, match="click_bell seed 4: videos = .*export the two kinds apart"):
        export_lerobot(rows, tmp_path / "export", "you/blocks")


# Datasets that the real lerobot wrote


@pytest.mark.parametrize("name", VERSIONS)
def test_joints_and_one_camera(name, tmp_path):
    source = LeRobotSource(FIXTURES / name)
    described = robot(JOINTS, tmp_path)
    described.check_source(source)
    for number, length in enumerate(made.LENGTHS):
        row = imported_row(source, described, number, "train")
        episode = Episode.from_row(row)
        time = np.arange(length)
        assert episode.action_space == "qpos" and episode.seed == number and episode.split == "train"
        assert episode.instruction == made.TASKS[number] and episode.fps == made.FPS
        assert episode.success == (number != 1)
        np.testing.assert_array_equal(episode.state, made.joints(number, time))
        np.testing.assert_array_equal(episode.action, made.joints(number, time + 1)[:-1])
        assert list(episode.rgb) == ["head_camera"] and episode.events is None
        assert episode.value_maps("head_camera") is None
        pictures = np.stack([made.picture(made.TOP, number, frame) for frame in time])
        assert psnr(episode.rgb["head_camera"], pictures) > 25
        for frame in range(length - 1):  # a neighbour's picture is further off
            errors = [np.abs(episode.rgb["head_camera"][frame] - picture.astype(float)).mean() for picture in pictures]
            assert np.argmin(errors) == frame


@pytest.mark.parametrize("name", VERSIONS)
def test_one_arm_with_a_camera_of_pictures_and_value_maps(name, tmp_path):
    row = imported_row(LeRobotSource(FIXTURES / name), robot(TOOL, tmp_path), 2, "train")
    episode, time = Episode.from_row(row), np.arange(14)
    tool = made.tool(2, time)
    np.testing.assert_array_equal(episode.state[:, :8], np.tile([0, 0, 0, 1, 0, 0, 0, 1], (14, 1)))
    np.testing.assert_array_equal(episode.state[:, 8:11], tool[:, :3])
    np.testing.assert_allclose(episode.state[:, [12, 13, 14, 11]], tool[:, 3:7], atol=1e-6)
    np.testing.assert_allclose(episode.action[:, 15], made.tool(2, time + 1)[:-1, 7] / made.OPEN, atol=1e-6)
    wrist = np.stack([made.picture(made.WRIST, 2, frame) for frame in time])
    assert psnr(episode.rgb["right_camera"], wrist) > 35
    assert [(event.kind, event.arm, event.frame) for event in episode.events] == [
        ("pick", "right", made.GRASP),
        ("place", "right", made.RELEASE),
    ]
    # Calibrated at half the size; OpenCV's pixel centres are ours less a half.
    np.testing.assert_allclose(episode.intrinsics["head_camera"][0], [[200, 0, 48], [0, 200, 32], [0, 0, 1]])
    maps = decode_video(row["value_head_camera"]["bytes"])
    assert row["value_right_camera"] is None and maps.shape == (14, *made.TOP, 3)
    for frame, event in ((0, made.GRASP), (made.GRASP + 1, made.RELEASE)):
        x, y, z = tool[event, :3]
        u, v = 48 + 200 * x / (0.8 - z), 32 - 200 * y / (0.8 - z)
        row_of_peak, column_of_peak = np.unravel_index(maps[frame, ..., 0].argmax(), made.TOP)
        assert abs(column_of_peak + 0.5 - u) <= 1.5 and abs(row_of_peak + 0.5 - v) <= 1.5
    assert maps[made.RELEASE + 1 :].max() < 8


def test_a_camera_on_the_arm_moves_with_it(tmp_path):
    hand_eye = np.eye(4)
    hand_eye[:3, 3] = 0, 0, -0.1  # behind the tool along its axis
    calibration = {"intrinsics": [40, 40, 16, 12], "size": [24, 32], "hand_eye": hand_eye.tolist(), "arm": "right"}
    described = robot(TOOL | {"calibration": {"right_camera": calibration}}, tmp_path)
    source = LeRobotSource(FIXTURES / "lerobot_v3")
    episode = Episode.from_row(imported_row(source, described, 0, "train"))
    tool = made.tool(0, np.arange(12))
    seen = np.einsum("nij,nj->ni", episode.extrinsics["right_camera"], np.c_[tool[:, :3], np.ones(12)])
    np.testing.assert_allclose(seen, np.tile([0, 0, 0.1], (12, 1)), atol=1e-5)
    assert decode_video(imported_row(source, described, 0, "train")["value_right_camera"]["bytes"]).max() > 200


def test_an_import_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    folder, source = tmp_path / "episodes", LeRobotSource(FIXTURES / "lerobot_v21")
    arguments = (source, config(JOINTS, tmp_path), folder, source.choose(skip=[1]))
    copied = []

    def clip(self, episode, *args, clip=LeRobotSource.clip, **options):
        if len(copied) == 1:
            raise KeyboardInterrupt
        copied.append(episode)
        return clip(self, episode, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LeRobotSource, "clip", clip)
        import_episodes(*arguments)
    assert copied == [0] and not list(folder.glob("data/*"))
    (piece,) = folder.glob(".unfinished/*/*.parquet")
    before = pq.read_table(piece)

    assert import_episodes(*arguments) == (2, {})
    (path,) = shard_paths(folder)
    assert path.name == "train-lerobot_v21-00000.parquet" and not list(folder.glob(".unfinished/*"))
    assert [row["seed"] for row in read_rows(path)] == [0, 2]
    assert pq.ParquetFile(path).read_row_group(0).equals(before)
    assert load_episodes(folder).features["action"].feature.length == 7
    card = (folder / "README.md").read_text()
    assert "split: train" in card and "2 of the 3 episodes of the LeRobot dataset `lerobot_v21`" in card
    assert [shard.episodes for shard in plan(source, False, 2, source.episodes)] == [[(0, 0), (1, 1)], [(2, 2)]]


@pytest.mark.parametrize("name", VERSIONS)
def test_only_what_is_chosen_is_fetched_from_the_hub(name, hub, tmp_path, monkeypatch):
    """Of v2.1 the chosen episodes' files, of v3.0 those that hold them; all of the commit whose metadata were read."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = FIXTURES / name
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repo = hub.repos["datasets", "you/blocks"] = Repo(private=False)
    first = repo.commit("main", files | {"videos/observation.images.other/a.mp4": b"unused"})
    source = LeRobotSource.open("you/blocks", "main")
    repo.commit("main", {"README.md": b"all is gone"})

    def present() -> set[str]:
        return {str(p.relative_to(source.folder)) for p in source.folder.rglob("*") if p.is_file()}

    metadata = {path for path in files if path.startswith("meta/")}
    assert (source.name, source.repo_id, source.revision) == ("blocks", "you/blocks", first) and present() == metadata
    chosen = source.choose(["1:3"], ["put the red block left"])
    count, _ = import_episodes(source, config(JOINTS, tmp_path), tmp_path / "out", chosen)
    assert count == 1 and [row["seed"] for row in read_rows(shard_paths(tmp_path / "out")[0])] == [2]
    assert json.loads((tmp_path / "out" / "made_from.json").read_text())["revision"] == first
    held = {path for path in files if path.startswith(("data/", "videos/")) and ("file-" in path or "000002" in path)}
    assert present() == metadata | held and len(held) == 2
    source.fetch(source.episodes, ["observation.images.top"])
    assert present() == set(files)

    with pytest.raises(
        ValueError, match="you/blocks is no folder, and as a dataset of the Hub at old it can't be read"
    ):
        LeRobotSource.open("you/blocks", "old")
    with pytest.raises(ValueError, match="is a folder, so there is no revision main"):
        LeRobotSource.open(str(folder), "main")


def test_an_episode_that_begins_with_no_key_frame_is_encoded_again(tmp_path):
    """As in a dataset whose episodes were cut out of one recording."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    pictures = [made.picture(made.TOP, number, f) for number, n in enumerate(made.LENGTHS) for f in range(n)]
    (video,) = folder.glob("videos/**/*.mp4")
    video.write_bytes(encode_video(np.stack(pictures), made.FPS))
    source = LeRobotSource(folder)
    for number, first in ((0, 0), (1, 12), (2, 21)):
        row = imported_row(source, robot(JOINTS, tmp_path), number, "train")
        frames = decode_video(row["rgb_head_camera"]["bytes"])
        assert psnr(frames, np.stack(pictures[first : first + made.LENGTHS[number]])) > 35


# Rotations and grippers


def test_rotation_conventions_agree():
    rng = np.random.default_rng(0)
    wxyz = rng.normal(size=(20, 4))
    wxyz /= np.linalg.norm(wxyz, axis=1, keepdims=True) * np.sign(wxyz[:, :1])
    expected = rotation_matrix(wxyz)
    angle = 2 * np.arccos(wxyz[:, :1])
    vector = angle * wxyz[:, 1:] / np.sin(angle / 2)
    pitch = -np.arcsin(expected[:, 2, 0])
    roll = np.arctan2(expected[:, 2, 1], expected[:, 2, 2])
    yaw = np.arctan2(expected[:, 1, 0], expected[:, 0, 0])
    given = {
        "wxyz": wxyz,
        "xyzw": wxyz[:, [1, 2, 3, 0]],
        "rpy": np.stack([roll, pitch, yaw], axis=1),
        "rotation_vector": vector,
    }
    assert given.keys() == CONVENTIONS.keys()
    for name, rotation in given.items():
        np.testing.assert_allclose(rotation_matrix(CONVENTIONS[name](rotation)), expected, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(CONVENTIONS["rotation_vector"](np.zeros((1, 3))), [[1, 0, 0, 0]])


def test_a_noisy_gripper_makes_one_event_each_way():
    thresholds = Contacts(closed=0.3, open=0.6)
    noisy = np.array([1, 0.9, 0.4, 0.2, 0.35, 0.25, 0.5, 0.7, 0.5, 0.65])
    assert closings_and_openings(noisy, thresholds) == [(3, "pick"), (7, "place")]
    assert closings_and_openings(np.array([0, 0.1, 1, 1]), thresholds) == [], "nothing was held"


# Bad input

MOVED = np.eye(4) + np.outer([0.1, 0.2, 0.3, 0], [0, 0, 0, 1])


def calibrated(extrinsics: list) -> dict:
    return {"head_camera": {"intrinsics": [4, 4, 2, 2], "size": [4, 4], "extrinsics": extrinsics}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"top": "observation.images.top"}}, "cameras has top; expected some of head_camera"),
        ({"cameras": {}}, "cameras is empty"),
        ({"action_space": "joints"}, "action_space is 'joints'; expected one of ee, qpos"),
        ({"arms": {}}, "action space ee needs arms"),
        ({"arms": {"right": ARM | {"convention": "zyx"}}}, "convention of the right arm is 'zyx'"),
        ({"arms": {"right": ARM | {"gripper_open": 0}}}, "gripper_closed and gripper_open of the right arm are both"),
        ({"arms": {"right": {"state": ARM["state"]}}}, "action of the right arm must have xyz"),
        ({"calibration": {}}, "contacts make value maps, which need calibration"),
        ({"contacts": {"closed": 0.7}}, "contacts: closed is 0.7 and open 0.6"),
        ({"contacts": {"threshold": 0.7}}, "contacts has unknown threshold; expected some of closed, open"),
        ({"speed": 3}, "the file has unknown speed"),
        ({"instruction": ""}, "instruction is ''; expected a sentence, or leave it out to use the dataset's tasks"),
        ({"instruction": " \n"}, r"instruction is ' \\n'; expected a sentence, or leave it out"),
        ({"state": "observation.state"}, "state is 'observation.state'; expected list"),
        ({"state": ["a[1"]}, r"'a\[1' names no column"),
        ({"state": [], "action": []}, "state or action is an empty list; expected columns"),
        ({"calibration": calibrated([[1, 0], [0]])}, r"calibration of head_camera: .* 4 x 4 .*; got \[\[1.0, 0.0\], "),
        ({"calibration": calibrated([])}, "calibration of head_camera: expected a 4 x 4 matrix"),
        ({"calibration": calibrated((2 * np.eye(4)).tolist())}, "calibration of head_camera: .* of a rotation"),
        ({"calibration": calibrated(MOVED.T.tolist())}, "calibration of head_camera: .* last row is 0, 0, 0, 1; got"),
    ],
)
def test_a_wrong_config_says_where(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"robot.json: {message}"):
        robot(TOOL | changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cameras": {"head_camera": "observation.images.front"}},
            "has no camera observation.images.front; it has observation.images.top, observation.images.wrist",
        ),
        ({"action": ["action[0:9]"]}, r"action\[0:9\] is out of range: action has 7 numbers"),
        ({"action": ["actions"]}, "has no column actions of numbers; it has observation.state, action"),
        ({"action": ["action[0:6]"]}, r"state has 7 numbers .* and action 6"),
        ({"arms": {"left": {"state": {"xyz": "observation.tool"}}}}, "observation.tool has 8 numbers; expected 3"),
    ],
)
def test_a_config_that_does_not_fit_the_dataset_says_what_there_is(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        robot(JOINTS | changes, tmp_path).check_source(LeRobotSource(FIXTURES / "lerobot_v3"))


@pytest.mark.parametrize("size", ["0", "-1"])
def test_shards_of_no_episode_are_refused_before_the_folder_is_claimed(tmp_path, capsys, size):
    output = tmp_path / "episodes"
    command = ["import-lerobot", FIXTURES / "lerobot_v3", "--config", config(JOINTS, tmp_path), "--output_dir", output]
    with pytest.raises(SystemExit) as ended:
        run([*map(str, command), "--shard_size", size])
    told = f"shard_size is {size}; expected a whole number, at least 1."
    assert ended.value.code == 2 and capsys.readouterr().err == f"aim-hf import-lerobot: --{told}\n"
    with pytest.raises(ValueError, match=f"^{told}"):
        import_episodes(LeRobotSource(FIXTURES / "lerobot_v3"), config(JOINTS, tmp_path), output, shard_size=int(size))
    assert not output.exists()


@pytest.fixture(params=VERSIONS)
def damaged(request, tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


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


def test_another_version_is_refused(damaged, tmp_path):
    change_info(damaged, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version v1.6; expected one of v2.0, v2.1, v3.0"):
        LeRobotSource(damaged)
    with pytest.raises(FileNotFoundError, match="has no meta/info.json"):
        LeRobotSource(tmp_path)
    with pytest.raises(ValueError, match="give a config that says .* It has .* observation.images.wrist"):
        import_episodes(LeRobotSource(FIXTURES / "lerobot_v3"), None, tmp_path / "out")


BROKEN = {
    "no video": (lambda f: first_video(f).unlink(), ".mp4 is missing; download or record it again"),
    "no video at all": (lambda f: first_video(f).write_bytes(b"no"), ".mp4 can't be read .it is no video file"),
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
        "action.tool holds NaN .* at frame 4",
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
        "info.json: data_path is '{chunk}.parquet', expected a path whose placeholders are among",
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


def test_broken_episodes_are_left_out_with_their_reasons_when_asked(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    change_column(folder, "action", lambda old: [np.nan, *old[1:]])
    sorted(folder.glob("videos/**/*.mp4"))[2].unlink()
    source, output = LeRobotSource(folder), tmp_path / "out"
    with pytest.raises(
        ValueError, match="2 of 3 episodes are broken(?s:.)*episode 0: action(?s:.)*episode 2: .*missing"
    ):
        import_episodes(source, config(JOINTS, tmp_path), output)
    count, broken = import_episodes(source, config(JOINTS, tmp_path), output, skip_broken=True)
    assert count == 1 and list(broken) == [0, 2]
    (path,) = shard_paths(output)
    assert [row["seed"] for row in read_rows(path)] == [1]
    manifest = json.loads((output / "manifest" / f"{path.stem}.json").read_text())
    assert manifest["skipped"] == {str(number): reason for number, reason in broken.items()}
    assert "1 of the 3 episodes" in (output / "README.md").read_text()
    change_record(folder, length=9)
    with pytest.raises(ValueError, match="2 of 2 episodes are broken"):
        import_episodes(source, config(JOINTS, tmp_path), tmp_path / "none", [0, 2], skip_broken=True)


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


# Which episodes, and at which rate


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


def test_a_task_index_has_one_meaning(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    path = folder / "meta" / "tasks.jsonl"
    path.write_text(path.read_text().rstrip() + '\n{"task_index": 0, "task": "other words"}\n')
    with pytest.raises(UnreadableFile, match=r"task_index 0 is both .* and 'other words'"):
        LeRobotSource(folder)


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


@pytest.mark.parametrize("name", VERSIONS)
def test_another_control_rate_keeps_the_last_action_before_each_frame(name, tmp_path):
    source, described = LeRobotSource(FIXTURES / name), robot(TOOL, tmp_path)
    assert [every_frame(source, fps) for fps in (None, 10, 5, 10 / 3, 3.3333)] == [1, 1, 2, 3, 3]
    for fps in (20, 7, 0, -5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="has 10 frames a second, of which .* expected one of 10, 5, 3.33"):
            every_frame(source, fps)
    row = imported_row(source, described, 2, "train", every=3)
    episode, kept = Episode.from_row(row), np.arange(0, 14, 3)  # frame 13 is left over
    assert episode.fps == pytest.approx(10 / 3) and episode.num_frames == 5
    np.testing.assert_array_equal(episode.state[:, 8:11], made.tool(2, kept)[:, :3])
    np.testing.assert_array_equal(episode.action[:, 8:11], made.tool(2, kept[1:])[:, :3])
    pictures = np.stack([made.picture(made.TOP, 2, frame) for frame in kept])
    assert psnr(episode.rgb["head_camera"], pictures) > 25
    assert psnr(episode.rgb["right_camera"], np.stack([made.picture(made.WRIST, 2, f) for f in kept])) > 35
    assert [event.frame for event in episode.events] == [1, 3]  # frames 3 and 7 of the source
    assert decode_video(row["value_head_camera"]["bytes"]).shape == (5, *made.TOP, 3)


def test_an_export_is_thinned_whole(exported):
    source = LeRobotSource(exported / "export")
    row, thin = imported_row(source, None, 0, ""), imported_row(source, None, 0, "", every=2)
    assert thin["fps"] == 6.25 and thin["num_frames"] == 4
    for name in ("state", "intrinsics_head_camera", "extrinsics_left_camera"):
        np.testing.assert_array_equal(thin[name], row[name][::2])
    np.testing.assert_array_equal(thin["expert_action"], row["expert_action"][1::2])
    assert (row["intervention"], thin["intervention"]) == (3, 2)
    assert [event["frame"] for event in thin["events"]] == [1, 3]
    assert thin["events"][0]["body_pose"] == row["events"][0]["body_pose"][::2]
    maps, stored = (decode_video(of["value_head_camera"]["bytes"]) for of in (row, thin))
    assert psnr(stored[:3], maps[:6:2]) > 35
    # The place, which the source shows until frame 5, is in frame 3 of the thinned episode, the source's frame 6.
    assert stored[3].max() > 200 and maps[6].max() < 20
    assert psnr(stored, Episode.from_row(thin).value_maps("head_camera")) > 35
    with pytest.raises(
        ValueError, match="episode 0: it has 7 frames, of which every 7th is kept; expected at least 2"
    ):
        imported_row(source, None, 0, "", every=7)


def test_episodes_of_another_make_are_refused(tmp_path):
    """Whatever decides about the episodes, in a folder that is finished or not."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))
    source, path, output = LeRobotSource(folder), config(JOINTS, tmp_path), tmp_path / "out"
    import_episodes(source, path, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert import_episodes(source, path, output) == (3, {})
    (tmp_path / "other").mkdir()
    swapped = config(JOINTS | {"action": ["action[3:7]", "action[0:3]"]}, tmp_path / "other")
    for arguments, options, name in (
        ((swapped, output), {}, "robot"),
        ((path, output), {"episodes": [0, 1]}, "episodes '0:3' there, '0:2' now"),
        ((path, output), {"fps": 5.0}, "fps 10.0 there, 5.0 now"),
        ((path, output), {"shard_size": 2}, "shard_size 50 there, 2 now"),
    ):
        with pytest.raises(FileExistsError, match=f"was made from something else: .*{name}"):
            import_episodes(source, *arguments, **options)
    change_column(folder, "action", lambda old: [*old[:6], 0.5])
    with pytest.raises(FileExistsError, match="was made from something else: content"):
        import_episodes(source, path, output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("size", [(4, 6), (1, 1)])
def test_statistics_of_pictures_are_those_of_their_pixels(size):
    frames = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    frames[..., 2] //= 100  # a channel of few levels
    pixels = frames.reshape(-1, 3) / 255
    found = export._picture_statistics(frames)
    expected = {name: getattr(pixels, name)(axis=0) for name in ("min", "max", "mean", "std")}
    expected |= {name: np.quantile(pixels, share, axis=0) for name, share in export.QUANTILES.items()}
    assert found.keys() == expected.keys() | {"count"} and found["count"] == [5]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.reshape(3, 1, 1), rtol=0, atol=1e-12, err_msg=name)
