"""Datasets that the real lerobot wrote are read as they were meant."""

import io
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import huggingface_hub.constants
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aim_hf.commands import run
from aim_hf.data.episodes import Episode
from aim_hf.data.lerobot.importer import check_episodes, every_frame, import_episodes, imported_row, plan
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import load_episodes, read_rows, shard_paths
from aim_hf.data.video import decode_video, encode_video

from ...hub_server import Repo
from ..fixtures import make_lerobot as made
from ..fixtures_lerobot import (
    FIXTURES,
    JOINTS,
    TOOL,
    VERSIONS,
    change_column,
    change_record,
    config,
    robot,
    with_column,
)
from ..test_video import psnr


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

    record = folder / "made_from.json"
    made_from = record.read_bytes()
    record.unlink()
    with pytest.raises(FileExistsError, match=".unfinished exists, but not .*made_from.json"):
        import_episodes(*arguments, shard_size=1)
    record.write_bytes(made_from)
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


@pytest.mark.parametrize("every", [1, 3])
def test_frames_behind_a_missing_picture_are_those_of_their_times(tmp_path, every):
    """Where the pictures have to be decoded, too: their places in the file are one less than their numbers."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    (video,) = folder.glob("videos/**/*.mp4")
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=made.FPS, options={"g": "250", "crf": "10"})
        stream.height, stream.width = made.TOP
        pictures = [made.picture(made.TOP, number, f) for number, n in enumerate(made.LENGTHS) for f in range(n)]
        for number, picture in enumerate(pictures):
            if number != 5:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, made.FPS)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source = LeRobotSource(folder)
    assert list(check_episodes(source, robot(JOINTS, tmp_path), source.episodes)) == [0]
    row = imported_row(source, robot(JOINTS, tmp_path), 1, "train", every)
    frames = decode_video(row["rgb_head_camera"]["bytes"])
    expected = np.stack(pictures[12:21:every])
    assert len(frames) == len(expected) and min(map(psnr, frames, expected)) > 28


def test_a_camera_of_depths_is_named_before_anything_is_written(tmp_path):
    """Numbers of 16 bits in a picture that is said to have three channels would be cut at 255."""
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    file = io.BytesIO()
    Image.fromarray(np.full(made.WRIST, 1200, np.uint16)).save(file, "PNG")
    change_column(folder, "observation.images.wrist", lambda old: {"bytes": file.getvalue(), "path": "4.png"})
    source = LeRobotSource(folder)
    broken = check_episodes(source, robot(TOOL, tmp_path), source.episodes)
    assert list(broken) == [0] and "wrist of frame 4 can't be read (its pixels have mode I;16, as d" in broken[0]


def test_a_dataset_is_not_imported_into_its_own_folder(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "lerobot_v3", tmp_path / "lerobot_v3"))
    (folder / "README.md").write_text("LeRobot's card")
    (tmp_path / "link").symlink_to(folder)
    files = sorted(folder.rglob("*"))
    for output in (folder, tmp_path / "link"):
        with pytest.raises(ValueError, match=f"{output} is the dataset's own folder, .*; choose another one"):
            import_episodes(LeRobotSource(folder), config(JOINTS, tmp_path), output)
    assert sorted(folder.rglob("*")) == files and (folder / "README.md").read_text() == "LeRobot's card"


def test_a_page_of_the_users_own_is_not_replaced_by_the_card(tmp_path):
    (tmp_path / "README.md").write_text("about my project")
    source, described = LeRobotSource(FIXTURES / "lerobot_v3"), config(JOINTS, tmp_path)
    with pytest.raises(FileExistsError, match="README.md exists, but not .*made_from.json.* Choose another output"):
        import_episodes(source, described, tmp_path)
    assert (tmp_path / "README.md").read_text() == "about my project" and not (tmp_path / "data").exists()
    (tmp_path / "README.md").unlink()
    for _ in range(2):  # its own card is replaced
        import_episodes(source, described, tmp_path)
        assert "3 of the 3 episodes" in (tmp_path / "README.md").read_text()


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


@pytest.mark.parametrize("license", ["", "mit: yes", "mit\ntags: []"])
def test_a_license_that_would_damage_the_card_is_refused(tmp_path, license):
    output = tmp_path / "episodes"
    with pytest.raises(ValueError, match="^license is .*; expected its name on the Hub, such as cc-by-4.0$"):
        import_episodes(LeRobotSource(FIXTURES / "lerobot_v3"), config(JOINTS, tmp_path), output, license=license)
    assert not output.exists()


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


@pytest.mark.parametrize("name", VERSIONS)
def test_actions_that_are_differences_are_refused_before_anything_is_written(name, tmp_path):
    """They were imported as targets, near which the robot would stay."""
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        targets, states = (np.array(table[column].to_pylist()) for column in ("action", "observation.state"))
        pq.write_table(with_column(table, "action", (targets - states).tolist()), path)
    with pytest.raises(ValueError, match=f"the actions of {name} span .*% of what its states span.*AIM acts absol"):
        import_episodes(LeRobotSource(folder), config(JOINTS, tmp_path), tmp_path / "episodes")
    assert not (tmp_path / "episodes").exists()


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
