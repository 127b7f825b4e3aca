"""An export comes back whole. `scripts/check_lerobot.py` reads an export with the real lerobot."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from torchcodec.decoders import VideoDecoder

from aim_hf.commands import run
from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode
from aim_hf.data.lerobot import export, format
from aim_hf.data.lerobot.clips import ClipJoiner, cut_clip
from aim_hf.data.lerobot.export import export_lerobot, rows_of
from aim_hf.data.lerobot.format import OURS
from aim_hf.data.lerobot.importer import import_episodes, imported_row
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import write_rows
from aim_hf.data.validation import validate
from aim_hf.data.video import decode_video, encode_video
from aim_hf.data.windows import EpisodeWindows, Window
from aim_hf.envs.base import CAMERAS

from ..fixtures_episodes import SIZES, make_episode, write_shard
from ..test_video import psnr


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


def test_folders_may_be_named_by_the_time(exported, tmp_path, monkeypatch):
    """FFmpeg and pyarrow take such names for URLs where paths are relative."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported / "export", "run-10:30")
    run(["import-lerobot", "run-10:30", "--output_dir", "run-10:31"])
    run(["export-lerobot", "run-10:31", "--output_dir", "run-10:32"])
    assert EpisodeWindows("run-10:31", Window(num_frames=3))[0]["start"] == 0


def test_a_command_needs_no_stderr(exported, tmp_path, monkeypatch):
    """Python has none where it was closed, and progress bars ended in an error that nobody saw."""
    monkeypatch.setattr("sys.stderr", None)
    run(["export-lerobot", str(exported / "episodes"), "--output_dir", str(tmp_path / "export")])
    assert LeRobotSource(tmp_path / "export").num_episodes == 3


def test_an_import_of_an_export_is_valid(exported, tmp_path):
    """Its manifests don't tell how the episodes were simulated, which is no problem of theirs."""
    import_episodes(LeRobotSource(exported / "export"), None, tmp_path / "back")
    assert validate(tmp_path / "back", render=3, simulate=3).problems == []


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


def test_only_the_chosen_splits_of_a_file_are_exported(tmp_path):
    """As after `concatenate_datasets(...).to_parquet(...)`: the whole file counted as of its first episode's split."""
    rows = [make_episode(seed, split=split).to_row() for split, seed in (("easy", 0), ("hard", 1), ("hard", 2))]
    write_rows(tmp_path / "data" / "all.parquet", rows, 16)
    for splits, seeds in ((["easy"], [0]), (["hard"], [1, 2]), (["hard", "easy"], [1, 2, 0]), (None, [0, 1, 2])):
        assert [row["seed"] for row in rows_of(tmp_path, splits)] == seeds


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
    assert "README.md can't be read (" in capsys.readouterr().err
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


def test_an_export_is_thinned_whole(exported):
    source = LeRobotSource(exported / "export")
    row, thin = imported_row(source, None, 0, ""), imported_row(source, None, 0, "", every=2)
    assert thin["fps"] == 6.25 and thin["num_frames"] == 4
    for name in ("state", "intrinsics_head_camera", "extrinsics_left_camera"):
        np.testing.assert_array_equal(thin[name], row[name][::2])
    np.testing.assert_array_equal(thin["expert_action"], row["expert_action"][1::2])
    # Action 3 is the first of the recovery, and the thinned episode's action 1 is action 3.
    assert (row["intervention"], thin["intervention"]) == (3, 1)
    assert imported_row(source, None, 0, "", every=5)["intervention"] == 0  # no kept action comes before it
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
