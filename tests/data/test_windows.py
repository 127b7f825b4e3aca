"""Windows of raw episodes: the frames that whole decoding gives, without whole decoding."""

import numpy as np
import pytest
import torch
from datasets import load_dataset
from fixtures_episodes import NUM_FRAMES, make_episode, write_shard
from torch.utils.data import DataLoader

from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode
from aim_hf.data.shards import load_episodes
from aim_hf.data.windows import EpisodeWindows, StreamedWindows, Window
from aim_hf.envs.base import CAMERAS

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


def test_workers_give_the_same_windows(folder):
    windows = EpisodeWindows(folder, Window(3, cameras=("head_camera",), value_maps=None))
    windows[0]  # an open file must not travel to the workers
    alone = [windows[item]["rgb"]["head_camera"] for item in range(len(windows))]
    loader = DataLoader(windows, batch_size=2, num_workers=2, multiprocessing_context="spawn")
    together = torch.cat([batch["rgb"]["head_camera"] for batch in loader])
    assert torch.equal(together, torch.stack(alone))


def test_streamed_windows_are_random_and_reproducible(folder, episodes):
    rows = load_dataset(str(folder), split="easy", streaming=True)
    windows = list(StreamedWindows(rows, WINDOW, windows_per_episode=4))
    assert [window["seed"] for window in windows] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({window["start"] for window in windows}) > 1
    for window in windows:
        check(window, episodes[window["seed"]])
    again = StreamedWindows(rows, WINDOW, windows_per_episode=4)
    assert [w["start"] for w in again] == [w["start"] for w in windows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 1}, "num_frames=1"),
        ({"num_frames": 3, "cameras": ("front_camera",)}, "front_camera.*expected some of"),
        ({"num_frames": 3, "value_maps": "guessed"}, "value_maps='guessed'"),
    ],
)
def test_bad_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Window(**arguments)


def test_windows_longer_than_every_episode_are_refused(folder):
    with pytest.raises(ValueError, match="no episode of .* has 11 frames"):
        EpisodeWindows(folder, Window(11))
