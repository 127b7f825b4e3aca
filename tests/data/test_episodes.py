"""Episodes on disk: plain `load_dataset` reads them, and damage is named."""

import gc
import json
import re
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from aim_hf.commands.preview import main as preview
from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode, decode_column, episode_features
from aim_hf.data.lerobot.export import export_lerobot, rows_of
from aim_hf.data.preview import _moments, contact_sheet, write_preview
from aim_hf.data.shards import ShardWriter, load_episodes, read_rows, shard_paths
from aim_hf.data.validation import validate
from aim_hf.data.video import decode_video, encode_video
from aim_hf.envs.base import CAMERAS
from aim_hf.utils.files import UnreadableFile

from .fixtures_episodes import NUM_FRAMES, PROVENANCE, make_episode, write_shard
from .test_video import psnr


@pytest.fixture
def folder(tmp_path):
    """Two shards: seeds 0 and 1, easy; seed 2, hard."""
    folder = tmp_path / "episodes"
    for split, seeds in (("easy", (0, 1)), ("hard", (2,))):
        write_shard(folder, [make_episode(seed, split=split) for seed in seeds], split)
    write_card(folder)
    return folder


def test_plain_load_dataset_reads_the_folder_with_its_videos(folder):
    splits = load_dataset(str(folder))
    assert {name: split.num_rows for name, split in splits.items()} == {"easy": 2, "hard": 1}
    assert splits["easy"].features == episode_features()
    for row, seed in zip(splits["easy"], (0, 1), strict=True):
        original = make_episode(seed)
        assert row["seed"] == seed and row["num_frames"] == NUM_FRAMES and row["fps"] == 12.5
        for camera in CAMERAS:
            decoder = row[f"rgb_{camera}"]
            assert decoder.metadata.num_frames == NUM_FRAMES and decoder.metadata.average_fps == pytest.approx(12.5)
            assert psnr(decode_video(decoder), original.rgb[camera]) > 38


def test_the_cards_example_reads_a_camera_that_the_episodes_have(tmp_path):
    """A robot with a wrist camera alone has no pictures of the head camera, which the example asked for."""
    episode = make_episode()
    for part in (episode.rgb, episode.intrinsics, episode.extrinsics):
        del part["head_camera"]
    write_shard(tmp_path, [episode])
    write_card(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(example.replace("<this folder or repo>", str(tmp_path)), names)
    assert names["frames"].shape[0] == NUM_FRAMES


def test_a_card_names_value_maps_if_an_episode_has_them(tmp_path):
    with_maps, without = make_episode(seed=1), replace(make_episode(seed=0), events=None, recorded_value_maps={})
    for episodes, has_maps in (([without], False), ([without, with_maps], True)):
        write_shard(tmp_path, episodes)
        write_card(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert [text in card for text in ("with value maps\n", "- value-maps\n", "None has value maps")] == [
            has_maps,
            has_maps,
            not has_maps,
        ]


@pytest.mark.parametrize("split", ["2024", "no"])
def test_a_split_is_loaded_by_its_name_whatever_yaml_takes_it_for(tmp_path, split):
    write_shard(tmp_path, [make_episode(split=split)], split)
    write_card(tmp_path)
    assert load_dataset(str(tmp_path))[split]["split"] == [split]


@pytest.mark.parametrize("name", ["runs[v2]", "runs*", "two words", "épisodes"])
def test_a_folder_may_have_any_name(tmp_path, name):
    """`datasets` takes the names of files for patterns: of `runs*` it read the neighbours, too."""
    for seed, folder in enumerate((name, "runs2")):
        path = write_shard(tmp_path / folder, [make_episode(seed)])
        path.with_name(f"._{path.name}").write_bytes(b"of macOS")
    assert load_episodes(tmp_path / name)["seed"] == [0]


def test_value_map_video_peaks_where_the_map_does(folder):
    row, original = load_episodes(folder)[0], make_episode(0)
    for camera in CAMERAS:
        decoded, rendered = decode_video(row[f"value_{camera}"]), original.value_maps(camera)
        assert np.abs(decoded.astype(int) - rendered).max() < 25
        assert decoded[6].max() < 8, "black after the place"
        for frame in range(6):
            at = np.unravel_index(decoded[frame, ..., 0].argmax(), decoded.shape[1:3])
            assert rendered[frame, ..., 0][at] >= 250


def test_stored_events_and_cameras_render_the_very_same_maps(folder):
    for row, seed in zip(load_episodes(folder), (0, 1, 2), strict=True):
        stored, original = Episode.from_row(row), make_episode(seed)
        for camera in CAMERAS:
            assert np.array_equal(stored.value_maps(camera), original.value_maps(camera))


def test_row_keeps_every_number(folder):
    stored, original = Episode.from_row(load_episodes(folder)[1]), make_episode(1)
    for name in ("suite", "task", "split", "seed", "instruction", "success", "fps", "num_frames"):
        assert getattr(stored, name) == getattr(original, name)
    for name in ("state", "action", "expert_action"):
        assert np.array_equal(getattr(stored, name), getattr(original, name))
    for camera in CAMERAS:
        assert np.array_equal(stored.intrinsics[camera], original.intrinsics[camera])
        assert np.array_equal(stored.extrinsics[camera], original.extrinsics[camera])
    for event, expected in zip(stored.events, original.events, strict=True):
        assert (event.kind, event.arm, event.frame, event.body_name) == (
            expected.kind,
            expected.arm,
            expected.frame,
            expected.body_name,
        )
        assert np.array_equal(event.points, expected.points)
        assert np.array_equal(event.body_pose, expected.body_pose)


def test_an_episode_of_what_little_is_known_keeps_just_that(tmp_path):
    """One camera without calibration, no contacts, the seven numbers of one arm."""
    episode = make_episode()
    episode.rgb = {"head_camera": episode.rgb["head_camera"]}
    episode.intrinsics, episode.extrinsics, episode.events, episode.action_space = {}, {}, None, "qpos"
    episode.state, episode.action, episode.expert_action = (
        x[:, :7] for x in (episode.state, episode.action, episode.expert_action)
    )
    path = write_shard(tmp_path, [episode])
    (row,) = read_rows(path)
    assert row["rgb_left_camera"] is None and row["value_head_camera"] is None and row["events"] is None
    stored = Episode.from_row(load_episodes(tmp_path)[0])
    assert list(stored.rgb) == ["head_camera"] and stored.events is None and stored.value_maps("head_camera") is None
    assert np.array_equal(stored.action, episode.action) and stored.action_space == "qpos"


def test_value_maps_of_unknown_contacts_are_those_that_were_recorded(tmp_path):
    episode = make_episode()
    maps = {camera: episode.value_maps(camera) for camera in CAMERAS}
    episode.events, episode.recorded_value_maps = None, maps
    stored = Episode.from_row(load_episodes(write_shard(tmp_path, [episode]).parents[1])[0])
    for camera in CAMERAS:
        assert np.abs(stored.value_maps(camera).astype(int) - maps[camera]).max() < 25


# Writing


def test_a_recorded_value_map_of_a_camera_without_calibration_is_kept(tmp_path):
    episode = make_episode()
    maps = episode.value_maps("left_camera")
    del episode.intrinsics["left_camera"], episode.extrinsics["left_camera"]
    episode.recorded_value_maps = {"left_camera": maps}
    write_shard(tmp_path, [episode])
    write_card(tmp_path)
    (row,) = load_episodes(tmp_path)
    back = Episode.from_row(row)
    assert list(back.recorded_value_maps) == ["left_camera"]
    assert np.abs(back.value_maps("left_camera").astype(int) - maps).max() < 48 and maps.max() > 200
    report = validate(tmp_path, 1, 0)
    assert report.problems == [] and report.rendered == 1


def test_an_episode_with_pictures_of_another_size_is_named():
    cameras = {"head_camera": {"size": [64, 96], "slot": [0, 0, 64, 96]}}
    processor = SimpleNamespace(cameras=cameras, pack_canvas=lambda views: views["head_camera"])
    episode = make_episode(4)
    canvas, _ = episode.canvases(processor, np.arange(2))
    assert np.array_equal(canvas, episode.rgb["head_camera"][:2])
    episode.rgb["head_camera"] = episode.rgb["head_camera"][:, ::2, ::2]
    with pytest.raises(
        ValueError, match=r"click_bell seed 4: pictures of head_camera are \(32, 48\) .* \(64, 96\), the"
    ):
        episode.canvases(processor, np.arange(2))


def test_a_shard_goes_on_where_its_writer_was_killed(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = write_shard(whole, [make_episode(seed) for seed in (0, 2, 3)])
    first = ShardWriter(pieces, "easy", "click_bell", 0)
    first.add(make_episode(2).to_row())
    first.reject(1, "the block fell")
    again = ShardWriter(pieces, "easy", "click_bell", 0)
    assert again.tried == {1: "the block fell", 2: None} and again.num_episodes == 1 and not again.is_done(3)
    again.add(make_episode(3).to_row())
    again.add(make_episode(0).to_row())
    again.finish(PROVENANCE)
    assert again.path.read_bytes() == expected.read_bytes(), "ordered by seed, whatever the order of recording"
    manifest = json.loads(again.manifest.read_text())
    assert manifest["seeds"][1] == {"seed": 1, "outcome": "failed", "reason": "the block fell"}
    assert again.is_done(3) and not list(pieces.glob(".unfinished/*"))


def test_a_preview_of_tasks_that_are_not_there_is_refused(folder, tmp_path):
    """Also where others of them are."""
    sheet = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match=f"--tasks has lift_pod; {folder} holds click_bell"):
        preview([str(folder), "--output_file", str(sheet), "--tasks", "click_bell", "lift_pod"])
    assert not sheet.exists()
    preview([str(folder), "--output_file", str(sheet), "--tasks", "click_bell"])
    assert sheet.is_file()
    row = make_episode().to_row() | {f"rgb_{camera}": None for camera in CAMERAS}
    with pytest.raises(ValueError, match="click_bell seed 0: no camera has a video; record this episode again"):
        contact_sheet(row, 4)


@pytest.mark.parametrize(
    ("events", "expected"),
    [(None, [0, 3, 6]), ([4], [0, 4, 6]), ([3, 4], [0, 3, 4]), ([4, 4], [0, 4, 6]), ([1, 2, 4, 5], [1, 2, 4])],
)
def test_a_contact_sheet_shows_each_event(events, expected):
    row = {"num_frames": 7, "events": events and [{"frame": frame} for frame in events]}
    assert _moments(row, 3) == expected


@contextmanager
def full_disk():
    """The kernel refuses to make a file longer than 2 kB, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing_that_was_written(folder, tmp_path, monkeypatch):
    printed = []  # of errors in deleting what is still open
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(str(error.exc_value)))
    write_preview(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    row, writer = make_episode(7).to_row(), ShardWriter(folder, "easy", "click_bell", 1)
    for write, name in (
        (lambda: writer.add(row), "000000000007.parquet"),
        (lambda: write_card(folder), "README.md"),
        (lambda: write_preview(folder), "preview.png"),
        (lambda: export_lerobot([row], tmp_path / "export", "you/blocks"), "export"),
    ):
        with full_disk():
            with pytest.raises(OSError, match=f"{name} could not be written .*Make room"):
                write()
            gc.collect()
    assert printed == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(load_episodes(folder)) == 3 and [path.name for path in tmp_path.iterdir()] == ["episodes"]


def test_a_folder_that_cannot_be_made_is_named(folder, tmp_path):
    writer = ShardWriter(folder / "README.md", "easy", "click_bell", 1)
    with pytest.raises(
        OSError, match="README.md/.*parquet could not be written .*choose a folder that can be written"
    ):
        writer.add(make_episode(7).to_row())


# Bad input


def test_nan_is_refused_before_it_is_written():
    episode = make_episode()
    episode.action[2, 3] = np.nan
    with pytest.raises(ValueError, match="click_bell seed 0: action holds NaN"):
        episode.to_row()


def test_an_empty_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data/.*aim-hf collect"):
        load_episodes(tmp_path)
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"text": ["hello"]}).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet.*suite is missing.*text is unknown.*aim-hf collect"):
        load_episodes(tmp_path)


def test_a_folder_that_is_named_like_a_variable_is_not_taken_for_another(tmp_path, monkeypatch):
    for name, seed in (("$PERSON", 0), ("anna", 5)):
        write_shard(tmp_path / name, [make_episode(seed)])
    assert load_episodes(tmp_path / "$PERSON")["seed"][:] == [0]
    monkeypatch.setenv("PERSON", "anna")  # whose episodes were read, in silence
    with pytest.raises(ValueError, match=r"\$PERSON/data/easy-click_bell-00000.parquet: `datasets` takes"):
        load_episodes(tmp_path / "$PERSON")


def test_a_truncated_shard_is_named(folder):
    path = folder / "data" / "easy-click_bell-00000.parquet"
    path.write_bytes(path.read_bytes()[:-2000])
    message = "easy-click_bell-00000.parquet can't be read .*; delete it and run the command that made it again"
    for read in (
        lambda: load_episodes(folder),
        lambda: list(read_rows(path)),
        lambda: ShardWriter(folder, "easy", "click_bell", 0).is_done(2),
        lambda: write_card(folder),
        lambda: write_preview(folder),
        lambda: list(rows_of(folder)),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_shard_that_is_damaged_inside_or_empty_is_named(folder):
    """`datasets` copies a folder into its cache, with errors that name no file."""
    path = folder / "data" / "easy-click_bell-00000.parquet"
    content, metadata = path.read_bytes(), pq.read_metadata(path).row_group(1)
    names = [metadata.column(number).path_in_schema for number in range(metadata.num_columns)]
    begin = metadata.column(names.index("rgb_head_camera.bytes")).data_page_offset
    path.write_bytes(content[:begin] + bytes(400) + content[begin + 400 :])
    with pytest.raises(UnreadableFile, match="easy-click_bell-00000.parquet can't be read .*; delete it and run"):
        load_episodes(folder)
    path.write_bytes(content)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="easy-click_bell-00000.parquet holds no episode; delete it and run"):
        load_episodes(folder)


@pytest.mark.parametrize("name", ["suite", "task", "split", "seed", "instruction", "fps", "action_space"])
def test_an_episode_without_a_description_is_named(folder, name):
    path = folder / "data" / "easy-click_bell-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1][name] = None
    Dataset.from_list(rows, features=episode_features()).to_parquet(path)
    message = f"easy-click_bell-00000.parquet: {name} is missing in an episode; delete it and run"
    with pytest.raises(ValueError, match=message):
        load_episodes(folder)
    assert re.search(message, validate(folder, 0, 0).problems[0])


def test_a_full_cache_is_told(folder):
    with (
        full_disk(),
        pytest.raises(OSError, match="could not be copied into the cache of datasets, .*Make room there"),
    ):
        load_episodes(folder)
    assert len(load_episodes(folder)) == 3


def test_a_cache_that_cannot_be_made_is_told(folder, tmp_path, monkeypatch):
    """As below a home folder that can't be written."""
    (tmp_path / "home").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    with pytest.raises(
        OSError, match=r"copied into the cache of datasets, .*/home/datasets \(.*choose another folder"
    ):
        load_episodes(folder)


def test_a_shard_from_before_interventions_is_read_beside_new_ones(folder):
    path = folder / "data" / "easy-click_bell-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns("intervention"), path, row_group_size=1)
    assert load_episodes(folder)["intervention"][:] == [None, None, None]
    rows = list(read_rows(path))
    assert len(rows) == 2 and Episode.from_row(rows[0]).intervention is None


def change(folder, **columns) -> Path:
    """Overwrite columns of the first row of the easy shard."""
    path = folder / "data" / "easy-click_bell-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] |= {name: change(rows[0]) for name, change in columns.items()}
    Dataset.from_list(rows, features=episode_features()).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({f"rgb_{camera}": lambda row: None for camera in CAMERAS}, "no camera has a video"),
        ({"rgb_left_camera": lambda row: None}, "value_left_camera has no rgb_left_camera"),
        ({"value_left_camera": lambda row: None}, "value_left_camera holds no video"),
        ({"rgb_left_camera": lambda row: {"bytes": b"junk", "path": None}}, "rgb_left_camera can't be read"),
        ({"num_frames": lambda row: 8}, "state has 7 entries, expected 8"),
        ({"num_frames": lambda row: 1}, "num_frames is 1, expected at least 2"),
        ({"task": lambda row: None, "state": lambda row: None}, "task, state is missing"),
        ({"fps": lambda row: np.nan}, "fps is nan and action_space 'ee'; expected a positive rate"),
        ({"action_space": lambda row: "joints"}, "fps is 12.5 and action_space 'joints'; expected .* one of ee, qpos"),
        ({"events": lambda row: [row["events"][0] | {"points": None}]}, "an event has no points"),
        ({"action": lambda row: row["action"][:-1]}, "action has 5 entries, expected 6"),
        ({"expert_action": lambda row: [[np.nan] * 16] * 6}, "expert_action holds NaN"),
        ({"action": lambda row: [[3e38] * 16] * 6}, r"action holds 3e\+38 in magnitude; expected at most 1e\+06"),
        ({"state": lambda row: [None, *row["state"][1:]]}, "state holds NaN, infinity or nothing; record this"),
        ({"events": lambda row: [None, *row["events"]]}, "an event has no kind, arm, frame, body_name, points, body"),
        ({"intrinsics_left_camera": lambda row: None}, "left_camera has only one of intrinsics"),
        ({"instruction": lambda row: " "}, "the instruction is empty"),
        ({"intervention": lambda row: -1}, r"intervention is -1; expected a step in 0\.\.6"),
        ({"intervention": lambda row: 7}, r"intervention is 7; expected a step in 0\.\.6"),
        ({"events": lambda row: [row["events"][0] | {"frame": 7}]}, "event at frame 7"),
        (
            {"events": lambda row: [row["events"][0] | {"body_pose": [[0.0] * 7]}]},
            "body_pose of the pick on block has 1",
        ),
        (
            {"value_head_camera": lambda row: row["value_left_camera"]},
            r"value_head_camera is \[32, 48\] .height, width., expected \[64, 96\] as its RGB; record this",
        ),
        (
            {"events": lambda row: [row["events"][0] | {"frame": None}]},
            "an event has no frame",
        ),
    ],
)
def test_a_bad_row_is_named(folder, columns, message):
    path = change(folder, **columns)
    with pytest.raises(ValueError, match=f"easy-click_bell-00000.parquet, row 0: {message}"):
        list(read_rows(path))
    with pytest.raises(ValueError, match=f" seed 0: {message}"):
        contact_sheet(pq.read_table(path).to_pylist()[0], 4)


def test_a_video_of_another_length_is_named(folder):
    short = encode_video(make_episode().rgb["head_camera"][:4], 12.5)
    path = change(folder, rgb_head_camera=lambda row: {"bytes": short, "path": None})
    message = "rgb_head_camera has 4 frames, expected num_frames = 7"
    with pytest.raises(ValueError, match=f"row 0: {message}"):
        list(read_rows(path))
    with pytest.raises(ValueError, match=f"click_bell seed 0: {message}"):
        Episode.from_row(load_episodes(folder)[0])


def test_an_episode_that_is_there_twice_is_named(folder):
    change(folder, seed=lambda row: 1)
    with pytest.raises(ValueError, match="episode .*'easy', 1.* is in .*easy-click_bell-00000.parquet too"):
        load_episodes(folder)


def test_episodes_out_of_order_are_named(folder):
    change(folder, seed=lambda row: 5)
    with pytest.raises(ValueError, match="episode .*'easy', 5.* comes before .*'easy', 1"):
        load_episodes(folder)


def test_actions_of_two_sizes_in_one_folder_are_refused(folder):
    episode = make_episode(9)
    episode.state, episode.action, episode.expert_action = (
        x[:, :7] for x in (episode.state, episode.action, episode.expert_action)
    )
    write_shard(folder, [episode], index=1)
    with pytest.raises(ValueError, match="mixes actions of 16 numbers .* and actions of 7 numbers"):
        load_episodes(folder)


def test_control_rates_of_two_kinds_in_one_folder_are_refused(folder):
    slow = make_episode(9)
    slow.fps = 5.0
    write_shard(folder, [slow], index=1)
    with pytest.raises(ValueError, match=r"mixes .* 12.5 frames a second \(easy.* and .* of 5 frames .*00001"):
        load_episodes(folder)


def test_action_spaces_of_two_kinds_in_one_folder_are_refused(folder):
    """Seven joints and a gripper for each arm are as many numbers as the poses of two tools."""
    write_shard(folder, [replace(make_episode(9), action_space="qpos")], index=1)
    with pytest.raises(ValueError, match=r"mixes actions of space ee \(easy.* and actions of space qpos .*00001"):
        load_episodes(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"simulator": {}}', '{"simulator": {}, "seeds": [{"seed": 1}]}'])
def test_a_damaged_manifest_is_named(folder, content):
    path = folder / "manifest" / "easy-click_bell-00000.json"
    path.write_text(content)
    message = f"{path.name} can't be read .*; delete it and its shard"
    with pytest.raises(ValueError, match=message):
        write_card(folder)
    assert re.search(message, validate(folder, 0, 0).problems[0])


def test_a_damaged_piece_is_named_and_the_others_are_kept(tmp_path):
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    for seed in (0, 1):
        writer.add(make_episode(seed).to_row())
    piece = next(tmp_path.glob(".unfinished/*/*1.parquet"))
    piece.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{piece.name} can't be read .*; delete it and run the command"):
        writer.finish(PROVENANCE)
    assert ShardWriter(tmp_path, "easy", "click_bell", 0).tried.keys() == {0, 1} and not writer.path.exists()


def test_a_shard_with_more_than_is_wanted_is_kept(folder):
    assert [ShardWriter(folder, "easy", "click_bell", 0).is_done(wanted) for wanted in (1, 2, 3)] == [
        True,
        True,
        False,
    ]


def test_a_damaged_picture_is_named(folder):
    """The header is whole, the pictures aren't."""
    row = next(read_rows(shard_paths(folder)[0]))
    video = bytearray(row["rgb_head_camera"]["bytes"])
    start = video.index(b"mdat") + 4
    video[start : start + 400] = bytes(400)
    row["rgb_head_camera"] = {"bytes": bytes(video), "path": None}
    for read in (
        Episode.from_row,
        lambda row: contact_sheet(row, 4),
        lambda row: export_lerobot([row], folder / "export", "you/blocks"),
    ):
        with pytest.raises(ValueError, match="click_bell seed 0: rgb_head_camera can't be read .*can't be decoded"):
            read(row)


@pytest.mark.parametrize("column", ["rgb_head_camera", "rgb_left_camera", "value_head_camera"])
@pytest.mark.parametrize("content", [b"junk", b""])
def test_bytes_of_no_video_are_named_by_whoever_decodes_them(folder, column, content):
    """`datasets` would decode a whole row on access, with an error that names nothing."""
    change(folder, **{column: lambda row: {"bytes": content, "path": None}})
    row = load_episodes(folder)[0]
    readers = [lambda row: decode_column(row, column), lambda row: contact_sheet(row, 4)]
    readers += [Episode.from_row] if column.startswith("rgb_") else []
    for read in readers:
        message = f"^click_bell seed 0: {column} can't be read .*got {len(content)} bytes .*; record this episode"
        with pytest.raises(ValueError, match=message):
            read(row)
