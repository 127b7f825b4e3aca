"""Episodes on disk: plain `load_dataset` reads them, and damage is named."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from fixtures_episodes import NUM_FRAMES, make_episode
from test_video import psnr

from aim_hf.data.episodes import FEATURES, Episode, load_episodes, shard_path, write_card, write_shard
from aim_hf.data.video import decode_video, encode_video
from aim_hf.envs.base import CAMERAS


@pytest.fixture
def folder(tmp_path):
    """Two shards: seeds 0 and 1, easy; seed 2, hard."""
    folder = tmp_path / "episodes"
    for split, seeds in (("easy", (0, 1)), ("hard", (2,))):
        episodes = [make_episode(seed, split=split) for seed in seeds]
        path = shard_path(folder, split, "click_bell", 0)
        write_shard(path, [episode.to_row() for episode in episodes], [{"seed": seed} for seed in seeds])
    write_card(folder)
    return folder


def test_plain_load_dataset_reads_the_folder_with_its_videos(folder):
    splits = load_dataset(str(folder))
    assert {name: split.num_rows for name, split in splits.items()} == {"easy": 2, "hard": 1}
    assert splits["easy"].features == FEATURES
    for row, seed in zip(splits["easy"], (0, 1), strict=True):
        original = make_episode(seed)
        assert row["seed"] == seed and row["num_frames"] == NUM_FRAMES and row["fps"] == 12.5
        for camera in CAMERAS:
            decoder = row[f"rgb_{camera}"]
            assert decoder.metadata.num_frames == NUM_FRAMES and decoder.metadata.average_fps == pytest.approx(12.5)
            assert psnr(decode_video(decoder), original.rgb[camera]) > 38


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


def test_a_failed_write_leaves_nothing_behind(folder, monkeypatch):
    def full_disk(self, path):
        path.write_bytes(b"PAR1 and then nothing")
        raise OSError("No space left on device")

    monkeypatch.setattr(Dataset, "to_parquet", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_shard(shard_path(folder, "easy", "click_bell", 1), [make_episode(7).to_row()], [{"seed": 7}])
    assert len(list((folder / "data").iterdir())) == 2
    assert len(load_episodes(folder)) == 3


# Bad input


def test_nan_is_refused_before_it_is_written():
    episode = make_episode()
    episode.action[2, 3] = np.nan
    with pytest.raises(ValueError, match="click_bell seed 0: action holds NaN"):
        episode.to_row()


def test_an_empty_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data/.*collect.py"):
        load_episodes(tmp_path)
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"text": ["hello"]}).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet.*suite is missing.*text is unknown.*collect.py"):
        load_episodes(tmp_path)


def test_a_truncated_shard_is_named(folder):
    path = shard_path(folder, "easy", "click_bell", 0)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="easy-click_bell-00000.parquet is no whole Parquet file.*delete it"):
        load_episodes(folder)


def change(folder, **columns) -> None:
    """Overwrite columns of the first row of the easy shard."""
    path = shard_path(folder, "easy", "click_bell", 0)
    rows = pq.read_table(path).to_pylist()
    rows[0] |= {name: change(rows[0]) for name, change in columns.items()}
    Dataset.from_list(rows, features=FEATURES).to_parquet(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rgb_left_camera": lambda row: None}, "row 0: rgb_left_camera holds no video"),
        ({"rgb_left_camera": lambda row: {"bytes": b"junk", "path": None}}, "row 0: rgb_left_camera is damaged"),
        ({"num_frames": lambda row: 8}, "row 0: state has 7 entries, expected 8"),
        ({"action": lambda row: row["action"][:-1]}, "row 0: action has 5 entries, expected 6"),
        ({"expert_action": lambda row: [[np.nan] * 16] * 6}, "row 0: expert_action holds NaN"),
        ({"instruction": lambda row: " "}, "row 0: the instruction is empty"),
        ({"events": lambda row: [row["events"][0] | {"frame": 7}]}, "row 0: event at frame 7"),
        (
            {"events": lambda row: [row["events"][0] | {"body_pose": [[0.0] * 7]}]},
            "body_pose of the pick on block has 1",
        ),
        ({"seed": lambda row: 1}, "episode .*'easy', 1.* is in .*easy-click_bell-00000.parquet too"),
    ],
)
def test_a_bad_row_is_named(folder, columns, message):
    change(folder, **columns)
    with pytest.raises(ValueError, match=f"easy-click_bell-00000.parquet.*{message}"):
        load_episodes(folder)


def test_a_video_of_another_length_is_named(folder):
    short = encode_video(make_episode().rgb["head_camera"][:4], 12.5)
    change(folder, rgb_head_camera=lambda row: {"bytes": short, "path": None})
    with pytest.raises(ValueError, match="row 0: rgb_head_camera has 4 frames, expected num_frames = 7"):
        load_episodes(folder)
