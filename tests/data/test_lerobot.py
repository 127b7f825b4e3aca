"""The LeRobot bridge: our export comes back whole, and what the real `lerobot` wrote is read as it was meant.

`fixtures/lerobot_v3` and `fixtures/lerobot_v21` were written by lerobot 0.4.4 and 0.3.3 (`fixtures/make_lerobot.py`,
whose formulas say what is in them). `scripts/check_lerobot.py` reads an export with the real lerobot.
"""

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from fixtures_episodes import SIZES, make_episode, write_shard
from test_video import psnr
from torchcodec.decoders import VideoDecoder

from aim_hf import commands
from aim_hf.data.episodes import Episode
from aim_hf.data.lerobot import export
from aim_hf.data.lerobot.clips import ClipJoiner, cut_clip
from aim_hf.data.lerobot.export import export_lerobot, rows_of
from aim_hf.data.lerobot.importer import imported_row, plan, restored_row
from aim_hf.data.lerobot.robot import CONVENTIONS, Contacts, Robot, closings_and_openings
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import load_episodes, read_rows, shard_paths
from aim_hf.data.value_maps import rotation_matrix
from aim_hf.data.video import decode_video, encode_video
from aim_hf.envs.base import CAMERAS

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
import make_lerobot as made  # noqa: E402

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


def robot(config: dict, tmp_path: Path) -> Robot:
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(config))
    return Robot.load(path)


@pytest.fixture
def run():
    """Runs a subcommand of `aim-hf` in this process."""
    return lambda command, *args: commands.run([command, *map(str, args)])


# Clips


def clip(frames: int, seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    return encode_video(blocks.repeat(16, axis=1).repeat(16, axis=2), 12.5)


def test_clips_strung_together_are_themselves_again_when_cut_out(tmp_path):
    clips, rate = [clip(37, 0), clip(5, 1), clip(1, 2), clip(20, 3)], Fraction(25, 2)
    with ClipJoiner(tmp_path / "joined.mp4", rate) as joiner:
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
        write_shard(folder / "episodes", [make_episode(seed, split=split) for seed in seeds], split)
    with pytest.MonkeyPatch.context() as patch:
        largest = max(len(row["rgb_head_camera"]["bytes"]) for row in rows_of(folder / "episodes"))
        patch.setattr(export, "VIDEO_FILE_MB", 2.5 * largest / 2**20)
        patch.setattr(export, "RECORDS_IN_GROUP", 2)
        export_lerobot(rows_of(folder / "episodes"), folder / "export", "you/blocks")
    return folder


def test_an_export_comes_back_whole(exported, tmp_path, run):
    """Every number and every pixel."""
    run("import-lerobot", exported / "export", "--output", tmp_path / "back")
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


def test_value_maps_that_were_left_out_are_rendered_again(exported, tmp_path):
    export_lerobot(rows_of(exported / "episodes"), tmp_path / "export", "you/blocks", value_maps=False)
    source = LeRobotSource(tmp_path / "export")
    assert source.cameras == [f"observation.images.{camera}" for camera in CAMERAS]
    row = restored_row(source, 0)
    original = next(rows_of(exported / "episodes"))
    assert row["value_left_camera"]["bytes"] == original["value_left_camera"]["bytes"]


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


def test_an_import_goes_on_where_it_was_killed(tmp_path, run, monkeypatch):
    config, folder = tmp_path / "robot.json", tmp_path / "episodes"
    config.write_text(json.dumps(JOINTS))
    arguments = ("import-lerobot", FIXTURES / "lerobot_v21", "--config", config, "--output", folder)
    copied = []

    def clip(self, episode, key, clip=LeRobotSource.clip):
        if len(copied) == 1:
            raise KeyboardInterrupt
        copied.append(episode)
        return clip(self, episode, key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LeRobotSource, "clip", clip)
        run(*arguments, "--skip", 1)
    assert copied == [0] and not list(folder.glob("data/*"))
    (piece,) = folder.glob(".unfinished/*/*.parquet")
    before = pq.read_table(piece)

    run(*arguments, "--skip", 1)
    (path,) = shard_paths(folder)
    assert path.name == "train-lerobot_v21-00000.parquet" and not list(folder.glob(".unfinished/*"))
    assert [row["seed"] for row in read_rows(path)] == [0, 2]
    assert pq.ParquetFile(path).read_row_group(0).equals(before)
    assert load_episodes(folder).features["action"].feature.length == 7
    card = (folder / "README.md").read_text()
    assert "split: train" in card and "LeRobot dataset `lerobot_v21`" in card
    source = LeRobotSource(FIXTURES / "lerobot_v21")
    assert [shard.episodes for shard in plan(source, False, 2, set())] == [[(0, 0), (1, 1)], [(2, 2)]]


def test_only_what_is_needed_is_fetched_from_the_hub(tmp_path, monkeypatch):
    """`snapshot_download` is asked for the tables and the chosen camera."""
    asked = {}

    def fetch(repo, **options):
        asked.update(options, repo=repo)
        return str(FIXTURES / "lerobot_v3")

    monkeypatch.setattr("aim_hf.data.lerobot.source.snapshot_download", fetch)
    assert LeRobotSource.open("you/blocks", ["observation.images.top"]).name == "blocks"
    assert asked["repo"] == "you/blocks" and asked["repo_type"] == "dataset"
    assert asked["allow_patterns"] == ["meta/*", "data/*", "videos/*observation.images.top/*"]


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
        ({"state": "observation.state"}, "state is 'observation.state'; expected list"),
        ({"state": ["a[1"]}, r"'a\[1' names no column"),
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
        ({"action": ["actions"]}, "has no column actions; it has observation.state, action"),
        ({"action": ["action[0:6]"]}, r"state has 7 numbers .* and action 6"),
        ({"arms": {"left": {"state": {"xyz": "observation.tool"}}}}, "observation.tool has 8 numbers; expected 3"),
    ],
)
def test_a_config_that_does_not_fit_the_dataset_says_what_there_is(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        robot(JOINTS | changes, tmp_path).check_source(LeRobotSource(FIXTURES / "lerobot_v3"))


@pytest.fixture(params=VERSIONS)
def damaged(request, tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


def change_info(folder: Path, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_column(folder: Path, name: str, value, row: int = 4):
    """Overwrites a number of the first episode's table."""
    path = sorted(folder.glob("data/*/*.parquet"))[0]
    table = pq.read_table(path)
    values = table[name].to_pylist()
    values[row] = value(values[row])
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)


def first_row(folder: Path, tmp_path: Path, config: dict = JOINTS) -> dict:
    return imported_row(LeRobotSource(folder), robot(config, tmp_path), 0, "train")


def test_another_version_is_refused(damaged, tmp_path, run, capsys):
    change_info(damaged, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version v1.6; expected v2.1 or v3.0"):
        LeRobotSource(damaged)
    with pytest.raises(FileNotFoundError, match="has no meta/info.json"):
        LeRobotSource(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run("import-lerobot", FIXTURES / "lerobot_v3", "--output_dir", tmp_path / "out")
    told = capsys.readouterr().err
    assert "say with --config" in told and "observation.images.wrist" in told and told.count("\n") == 1


def test_a_missing_video_is_named(damaged, tmp_path):
    (video,) = sorted(damaged.glob("videos/**/*.mp4"))[:1]
    video.unlink()
    with pytest.raises(FileNotFoundError, match=f"{video.name} is missing"):
        first_row(damaged, tmp_path)


def test_a_damaged_video_is_named(damaged, tmp_path):
    (video,) = sorted(damaged.glob("videos/**/*.mp4"))[:1]
    video.write_bytes(b"no video")
    with pytest.raises(ValueError, match=f"{video.name} is no video file"):
        first_row(damaged, tmp_path)


def test_a_video_that_is_too_short_is_named(damaged, tmp_path):
    (video,) = sorted(damaged.glob("videos/**/*.mp4"))[:1]
    video.write_bytes(encode_video(np.zeros((5, *made.TOP, 3), np.uint8), made.FPS))
    with pytest.raises(ValueError, match="5 pictures where frames 0 to 11 .* expected 12"):
        first_row(damaged, tmp_path)


def test_missing_frames_are_counted(damaged, tmp_path):
    path = sorted(damaged.glob("data/*/*.parquet"))[0]
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match="episode 0 has 11 frames, expected 12"):
        first_row(damaged, tmp_path)


def test_numbers_that_are_none_are_named(damaged, tmp_path):
    change_column(damaged, "action", lambda old: [np.nan, *old[1:]])
    with pytest.raises(ValueError, match="episode 0: action holds NaN or infinity at frame 4"):
        first_row(damaged, tmp_path)


def test_frames_at_other_times_are_named(damaged, tmp_path):
    change_column(damaged, "timestamp", lambda old: old + 0.3)
    with pytest.raises(ValueError, match="frame 4 is at 0.7 s, but at 10 frames a second it should be at 0.4 s"):
        first_row(damaged, tmp_path)


def test_a_quaternion_that_is_none_is_named(damaged, tmp_path):
    change_column(damaged, "observation.tool", lambda old: [*old[:3], 0, 0, 0, 2, old[7]])
    message = r"episode 0: observation.tool\[3:7\]: the quaternion of frame 4 is .* of length 2; expected length 1"
    with pytest.raises(ValueError, match=message):
        first_row(damaged, tmp_path, TOOL)


def test_a_task_that_changes_is_named(damaged, tmp_path):
    change_column(damaged, "task_index", lambda old: 1 - old)
    with pytest.raises(ValueError, match="episode 0: its task changes .* expected one an episode"):
        first_row(damaged, tmp_path)
    assert first_row(damaged, tmp_path, JOINTS | {"instruction": "go"})["instruction"] == "go"
