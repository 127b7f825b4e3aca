"""Windows of raw episodes: the frames that whole decoding gives, without whole decoding."""

import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader

from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode, episode_features
from aim_hf.data.shards import load_episodes
from aim_hf.data.windows import EpisodeWindows, StreamedWindows, Window
from aim_hf.envs.base import CAMERAS

from .fixtures_episodes import NUM_FRAMES, make_episode, write_shard

WINDOW = Window(num_frames=3, frame_stride=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three episodes in two shards; the last has neither a left camera nor contacts."""
    folder = tmp_path_factory.mktemp("episodes")
    write_shard(folder, [make_episode(0), make_episode(1)])
    partial = make_episode(2)
    partial.events = None
    for of in (partial.rgb, partial.intrinsics, partial.extrinsics):
        del of["left_camera"]
    write_shard(folder, [partial], index=1)
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def episodes(folder, tmp_path_factory):
    return [Episode.from_row(row) for row in load_episodes(folder)]


def check(window: dict, episode: Episode) -> None:
    start, frames = window["start"], slice(window["start"], window["start"] + 5, 2)
    assert list(window["rgb"]) == list(episode.rgb)
    for camera, pictures in window["rgb"].items():
        assert np.array_equal(pictures, episode.rgb[camera][frames])
    has_maps = [] if episode.events is None else list(episode.rgb)
    assert list(window["value"]) == has_maps
    for camera in has_maps:
        assert np.array_equal(window["value"][camera], episode.value_maps(camera)[frames, ..., 0])
    assert np.array_equal(window["state"], episode.state[start : start + 5])
    assert np.array_equal(window["action"], episode.action[start : start + 4])
    assert np.array_equal(window["expert_action"], episode.expert_action[start : start + 4])
    assert window["instruction"] == episode.instruction and window["seed"] == episode.seed


def test_each_window_is_what_the_whole_episode_holds_there(folder, episodes):
    windows = EpisodeWindows(folder, WINDOW)
    per_episode = NUM_FRAMES - 4
    assert len(windows) == 3 * per_episode
    for item in range(len(windows)):
        window = windows[item]
        assert window["start"] == item % per_episode
        check(window, episodes[item // per_episode])
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_folder_of_more_shards_than_a_process_may_open_is_read(folder, episodes, monkeypatch):
    windows = EpisodeWindows(folder, WINDOW)
    first, last = windows[0], windows[len(windows) - 1]
    close = pq.ParquetFile.close
    closed = []
    monkeypatch.setattr("aim_hf.data.windows.OPEN_FILES", 1)
    monkeypatch.setattr(pq.ParquetFile, "close", lambda file, *force: closed.append(file) or close(file, *force))
    windows = EpisodeWindows(folder, WINDOW)
    for _ in range(2):
        assert torch.equal(windows[0]["action"], first["action"])
        assert torch.equal(windows[len(windows) - 1]["action"], last["action"])
    assert len(windows._files) == 1 and len(closed) == 3


def test_row_groups_of_several_episodes_give_the_same_windows(folder, episodes, tmp_path):
    """As after `Dataset.push_to_hub`, which writes row groups of its own."""
    other = shutil.copytree(folder, tmp_path / "folder")
    for path in other.glob("data/*.parquet"):
        pq.write_table(pq.read_table(path), path)
    windows, per_episode = EpisodeWindows(other, WINDOW), NUM_FRAMES - 4
    assert len(windows) == 3 * per_episode
    for item in range(len(windows)):
        check(windows[item], episodes[item // per_episode])
    standing = EpisodeWindows(other, Window(9, cameras=("head_camera",)))[1]
    assert np.array_equal(standing["state"][-2:], episodes[1].state[[-1, -1]]) and standing["seed"] == 1


def test_decoded_maps_are_near_the_rendered_ones(folder):
    rendered = EpisodeWindows(folder, WINDOW)[0]["value"]
    decoded = EpisodeWindows(folder, Window(3, 2, value_maps="decoded"))[0]["value"]
    for camera in CAMERAS:
        assert np.abs(rendered[camera].numpy().astype(int) - decoded[camera].numpy()).max() < 25


def test_only_what_is_asked_for_is_read(folder):
    window = Window(3, cameras=("right_camera",), value_maps=None)
    assert not any("head" in name or "value" in name or name == "events" for name in window.columns)
    item = EpisodeWindows(folder, window)[0]
    assert list(item["rgb"]) == ["right_camera"] and item["value"] == {}


def test_windows_travel_to_workers(folder):
    windows = EpisodeWindows(folder, WINDOW)
    windows[0]  # an open file must not travel with them
    travelled = pickle.loads(pickle.dumps(windows))
    assert not travelled._files and windows._files
    assert torch.equal(travelled[4]["rgb"]["head_camera"], windows[4]["rgb"]["head_camera"])


def test_streamed_windows_are_random_and_reproducible(folder, episodes):
    rows = load_dataset(str(folder), split="easy", streaming=True)
    windows = list(StreamedWindows(rows, WINDOW, windows_per_episode=4))
    assert [window["seed"] for window in windows] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({window["start"] for window in windows}) > 1
    for window in windows:
        check(window, episodes[window["seed"]])
    again = StreamedWindows(rows, WINDOW, windows_per_episode=4)
    assert [w["start"] for w in again] == [w["start"] for w in windows]


PICTURES = Window(num_frames=3, frame_stride=2, cameras=("head_camera",), value_maps=None)


def starts(windows, **options) -> list[list[tuple[int, int]]]:
    """The windows that each of three passes of a loader gave."""
    loader = DataLoader(windows, batch_size=None, **options)
    return [sorted((window["seed"], window["start"]) for window in loader) for _ in range(3)]


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("streamed", {"num_workers": 2}),
        ("streamed", {"num_workers": 2, "persistent_workers": True}),
        ("listed", {"num_workers": 2}),
        ("streamed", {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}),
    ],
    ids=str,
)
def test_each_pass_has_new_windows_with_any_workers(folder, source, options):
    rows = load_dataset(str(folder), split="easy", streaming=True)
    if source == "listed":
        rows = [load_episodes(folder)[index] for index in range(3)]
    windows = StreamedWindows(rows, PICTURES, windows_per_episode=8)
    alone = starts(windows)
    assert alone[0] != alone[1] != alone[2] != alone[0]
    windows.set_epoch(0)
    assert starts(windows, **options) == alone
    windows.set_epoch(1)
    assert starts(windows)[0] == alone[1]


@pytest.mark.parametrize("workers", [(0, 2, 1), (2, 1, 2)], ids=str)
def test_all_workers_take_the_same_pass_after_passes_of_fewer(folder, workers):
    """In another pass than the rest, a worker would take other shards of shuffled rows: some twice, and some never."""
    windows = StreamedWindows(load_dataset(str(folder), split="easy", streaming=True), PICTURES, windows_per_episode=8)
    alone = starts(windows)
    windows.set_epoch(0)
    for expected, number in zip(alone, workers, strict=True):
        drawn = DataLoader(windows, batch_size=None, num_workers=number)
        assert sorted((window["seed"], window["start"]) for window in drawn) == expected


def test_episodes_of_one_seed_and_several_tasks_have_windows_of_their_own(folder):
    row = load_episodes(folder)[0]
    rows = [row, row | {"task": "lift_pot"}]
    windows = StreamedWindows(rows, PICTURES, windows_per_episode=16)
    drawn = [window["start"] for window in windows]
    assert drawn[:16] != drawn[16:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 1}, "num_frames is 1; expected a whole number, at least 2"),
        ({"num_frames": 4.0}, "num_frames is 4.0; expected a whole number"),
        ({"num_frames": 3, "frame_stride": 0}, "frame_stride is 0; expected a whole number, at least 1"),
        ({"num_frames": 3, "cameras": ("front_camera",)}, "front_camera.*expected some of"),
        ({"num_frames": 3, "value_maps": "guessed"}, "value_maps is 'guessed'"),
    ],
)
def test_bad_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Window(**arguments)


@pytest.mark.parametrize(("name", "value"), [("windows_per_episode", 0), ("windows_per_episode", 1.5), ("seed", -1)])
def test_a_stream_of_no_windows_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number, at least"):
        StreamedWindows([], Window(3), **{name: value})


def test_rows_that_are_empty_after_a_pass_are_refused():
    with pytest.raises(ValueError, match="rows are list_iterator, which is empty after one pass"):
        StreamedWindows(iter([]), Window(3))


def test_an_episode_shorter_than_a_window_stands_still_at_its_end(folder, episodes):
    window = Window(NUM_FRAMES + 2, cameras=("head_camera",))
    windows = EpisodeWindows(folder, window)
    streamed = list(StreamedWindows(load_dataset(str(folder), split="easy", streaming=True), window))
    assert len(windows) == len(streamed) == 3
    for episode, *items in zip(episodes, [windows[item] for item in range(3)], streamed):
        for item in items:
            assert item["start"] == 0
            for name, values in (("state", episode.state), ("action", episode.action)):
                assert np.array_equal(item[name], np.concatenate([values, values[-1:], values[-1:]]))
            pictures = episode.rgb["head_camera"]
            assert np.array_equal(item["rgb"]["head_camera"], np.concatenate([pictures, pictures[-1:], pictures[-1:]]))


@pytest.mark.parametrize("content", [b"junk", b""])
def test_bytes_of_no_video_in_a_stream_are_named(tmp_path, content):
    path = write_shard(tmp_path, [make_episode(seed) for seed in (0, 1)])
    write_card(tmp_path)
    rows = pq.read_table(path).to_pylist()
    rows[1]["rgb_left_camera"] = {"bytes": content, "path": None}
    Dataset.from_list(rows, features=episode_features()).to_parquet(path)
    windows = StreamedWindows(load_dataset(str(tmp_path), split="easy", streaming=True), WINDOW)
    with pytest.raises(ValueError, match="^click_bell seed 1: rgb_left_camera can't be read .*; record this episode"):
        list(windows)


def test_an_episode_without_actions_is_named(episodes):
    row = episodes[0].to_row()
    row |= {"state": row["state"][:1], "action": [], "expert_action": []}
    with pytest.raises(ValueError, match="click_bell seed 0: no window starts at frame 0; the episode has 0 actions"):
        WINDOW.cut(row, 0)
