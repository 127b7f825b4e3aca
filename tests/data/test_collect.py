"""Collection: the same folder from any number of processes, and after any kill."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import load_dataset
from tqdm import tqdm

from aim_hf.commands import collect
from aim_hf.data import collection
from aim_hf.data.card import write_card
from aim_hf.data.episodes import Episode
from aim_hf.data.recorder import Failure, record_episode
from aim_hf.data.shards import load_episodes, read_rows
from aim_hf.data.video import decode_video
from aim_hf.envs import make_environment
from aim_hf.envs.base import CAMERAS
from aim_hf.envs.demonstration import play_path
from aim_hf.envs.seeds import SEED_RANGES
from aim_hf.utils import files

COLLECT = ("-m", "aim_hf", "collect")
ARGUMENTS = ["--tasks", "click_bell", "--episodes", "6", "--shard_size", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, python):
    """What one process makes without interruption."""
    folder = tmp_path_factory.mktemp("collected")
    subprocess.run([python, *COLLECT, *ARGUMENTS, "--output", folder], check=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_plain_load_dataset_reads_what_was_collected(folder):
    dataset = load_dataset(str(folder), split="easy")
    assert len(dataset) == 6
    for row in dataset:
        assert row["success"] and row["task"] == "click_bell" and row["seed"] in SEED_RANGES["train"]
        assert [event["kind"] for event in row["events"]] == ["press"]
        for camera in CAMERAS:
            assert row[f"rgb_{camera}"].metadata.num_frames == row["num_frames"]
            assert row[f"value_{camera}"].metadata.num_frames == row["num_frames"]
        assert len(row["action"]) == len(row["expert_action"]) == row["num_frames"] - 1
        moved = np.abs(np.array(row["action"]) - row["expert_action"])
        assert 0 < moved.max() < 0.05 and not moved[:, [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]].any()


def test_a_perturbed_split_is_loaded_by_its_name(tmp_path):
    """A name for `load_dataset` has no dash. What the expert does is recorded without delay."""
    rows = {}
    for split in ("easy", "delay-2"):
        (shard,) = plan(episodes=1, splits=[split])
        env = make_environment("tabletop", "click_bell", split, depth=True)
        collection.collect_shard(env, shard, shard.writer(tmp_path), 0.0, 0.0, tqdm(disable=True))
        write_card(tmp_path)
        (rows[split],) = load_dataset(str(tmp_path), split=split.replace("-", "_"))
    assert rows["delay-2"]["split"] == "delay-2" and rows["delay-2"]["success"]
    assert rows["delay-2"]["action"] == rows["easy"]["action"] and rows["delay-2"]["state"] == rows["easy"]["state"]


def test_the_map_lies_on_the_bell_in_the_picture(folder):
    """The bell is red under a yellow button; nothing else on the easy table is saturated but the fingertips."""
    for row in load_dataset(str(folder), split="easy"):
        picture = decode_video(row["rgb_head_camera"], [0])[0].astype(int)
        value = decode_video(row["value_head_camera"], [0])[0, ..., 0].astype(float)
        bell = (picture[..., 0] - picture[..., 2] > 100) & (picture[..., 0] > 120)
        rows, columns = np.nonzero(bell)
        at = np.unravel_index(value.argmax(), value.shape)
        assert np.hypot(at[0] - rows.mean(), at[1] - columns.mean()) < 5


def test_stored_events_render_the_recorded_maps_again(folder):
    env = make_environment("tabletop", "click_bell")
    row = load_episodes(folder)[0]
    again = record_episode(env, row["seed"], 0.01)
    stored = Episode.from_row(row)
    for camera in CAMERAS:
        assert np.array_equal(again.value_maps(camera), stored.value_maps(camera))
    assert np.array_equal(again.state, stored.state) and np.array_equal(again.action, stored.action)
    env.close()


def test_two_processes_make_the_same_folder(folder, tmp_path, python):
    launch = [python, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0"]  # other tests launch at the same time
    subprocess.run([*launch, *COLLECT, *ARGUMENTS, "--output", tmp_path], check=True)
    assert contents(tmp_path) == contents(folder)


def test_folders_of_two_jobs_are_put_together(folder, tmp_path, python):
    """The same command then records nothing, and writes the card and the picture of the whole."""
    for others in ("*-00002.*", "*-0000[01].*"):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(others))
    for name in ("README.md", "preview.png"):
        (tmp_path / name).write_bytes(b"of a part")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/*")}
    subprocess.run([python, *COLLECT, *ARGUMENTS, "--output", tmp_path], check=True)
    assert contents(tmp_path) == contents(folder)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/*")}


def test_a_run_killed_at_random_moments_loses_nothing_but_the_episode_in_flight(folder, tmp_path, python):
    command = [python, Path(__file__).with_name("kill_collect.py"), folder, tmp_path, *ARGUMENTS]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    assert int(answer.split()[0]) >= 8


def test_manifest_accounts_for_every_seed_tried(folder):
    manifests = [json.loads(path.read_text()) for path in sorted(folder.glob("manifest/*"))]
    seeds = [seed for manifest in manifests for seed in manifest["seeds"]]
    recorded = [seed["seed"] for seed in seeds if seed["outcome"] == "recorded"]
    assert recorded == [row["seed"] for row in load_episodes(folder).select_columns("seed")]
    assert len({seed["seed"] for seed in seeds}) == len(seeds)
    assert all(manifest["simulator"]["sapien"] and manifest["simulator"]["aim_hf"] for manifest in manifests)


def plan(episodes, **options):
    defaults = {"suite": "tabletop", "tasks": ["click_bell"], "splits": ["easy"], "shard_size": 10, "start_seed": 100}
    return collection.plan(argparse.Namespace(episodes=episodes, seeds_per_episode=2, **defaults | options))


def test_shards_never_share_a_seed():
    shards = plan(episodes=25)
    assert [shard.episodes for shard in shards] == [10, 10, 5]
    seeds = [seed for shard in shards for seed in shard.seeds]
    assert len(set(seeds)) == len(seeds) and min(seeds) == 100
    longer = plan(episodes=40)
    assert longer[:2] == shards[:2] and longer[2].seeds == shards[2].seeds


def test_a_task_that_is_named_twice_is_recorded_once():
    """By two processes, the same files would be written at once."""
    assert plan(5, tasks=["lift_pot", "click_bell", "lift_pot"], splits=["hard", "hard"]) == plan(
        5, tasks=["lift_pot", "click_bell"], splits=["hard"]
    )


def test_a_collection_of_robotwin_goes_on_with_its_robot_alone(tmp_path, monkeypatch):
    """Which variables choose, and a new shell may lack them: episodes of two robots came into one folder."""

    def claim(suite="robotwin", **variables):
        for name in ("EMBODIMENT", "SHADER", "PLANNER"):
            monkeypatch.setenv(f"ROBOTWIN_{name}", variables.get(name, ""))
        options = ["--suite", suite, "--episodes", "1", "--output_dir", str(tmp_path)]
        files.claim(tmp_path / suite, collection.made_from(collect.parse(options)), "data/*.parquet")

    robots = "franka-panda franka-panda 0.6"
    claim(EMBODIMENT=robots, PLANNER="curobo")
    claim(EMBODIMENT=robots.replace(" ", "  "), SHADER="rt")
    for variables, told in (
        ({}, f"embodiment '{robots}' there, None now. Give the same"),
        ({"EMBODIMENT": "piper piper 0.6"}, f"embodiment '{robots}' there, 'piper piper 0.6' now"),
        ({"EMBODIMENT": robots, "SHADER": "trivial"}, "shader None there, 'trivial' now"),
        ({"EMBODIMENT": robots, "PLANNER": "cpu"}, "planner None there, 'cpu' now"),
    ):
        with pytest.raises(FileExistsError, match=f"made from something else: {told}"):
            claim(**variables)
    claim("tabletop")
    claim("tabletop", EMBODIMENT=robots)  # it has no say there


def test_what_an_error_says_to_delete_is_all_that_is_taken_up(tmp_path):
    """Episodes of a stopped collection came into one with other noise, whose manifest told only the other noise."""
    command = ["--tasks", "click_bell", "--episodes", "2", "--output_dir", str(tmp_path)]
    files.claim(tmp_path, collection.made_from(collect.parse(command)))
    (shard,) = plan(episodes=2, start_seed=0)
    env = make_environment("tabletop", "click_bell", depth=True)
    shard.writer(tmp_path).add(record_episode(env, shard.seeds[0], 0.01).to_row())
    env.close()
    remedy = "delete made_from.json and data/\\*.parquet and .unfinished and README.md there"
    with pytest.raises(FileExistsError, match=f"noise 0.01 there, 0.05 now. .*{remedy}"):
        collect.main([*command, "--noise", "0.05"])
    (tmp_path / "made_from.json").unlink()
    with pytest.raises(FileExistsError, match=".unfinished exists, but not .*made_from.json"):
        collect.main([*command, "--noise", "0.05"])
    shutil.rmtree(tmp_path / ".unfinished")
    collect.main([*command, "--noise", "0.05"])
    (path,) = tmp_path.glob("data/*.parquet")
    moved = [np.abs(np.subtract(row["action"], row["expert_action"])).max() for row in read_rows(path)]
    assert len(moved) == 2 and min(moved) > 0.05


class Lazy:
    """A tabletop environment whose expert does nothing on odd seeds."""

    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, seed):
        self.seed = seed
        return self._env.reset(seed)

    def expert(self):
        path = self._env.expert()
        return type(path)(path.actions[:3], [2]) if self.seed % 2 else path

    def demonstrate(self, noise, rng, mistake_rng):
        return play_path(self, self.expert(), noise, rng, observe=True)


def test_without_any_episode_the_reason_is_told(tmp_path, monkeypatch):
    env = SimpleNamespace(task="click_bell", split="easy", close=lambda: None)
    monkeypatch.setattr("aim_hf.envs.next_environment", lambda *arguments, **options: env)
    monkeypatch.setattr(collection, "record_episode", lambda env, seed, *noise: Failure(seed, "it slipped"))
    arguments = ["--suite", "tabletop", "--tasks", "click_bell", "--episodes", "1", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="click_bell: only 0 of 1 episodes from the .*: it slipped"):
        collect.main(arguments)


def test_failures_are_reported_and_never_stored(tmp_path):
    env = Lazy(make_environment("tabletop", "click_bell"))
    failure = record_episode(env, 1, 0.0)
    assert isinstance(failure, Failure) and "not fulfilled" in failure.reason
    assert env.on_physics_step == [], "the detector is gone"
    with collection.tqdm(disable=True) as progress:
        (shard,) = plan(episodes=2, shard_size=2, start_seed=0)
        writer = shard.writer(tmp_path)
        collection.collect_shard(env, shard, writer, 0.0, 0.0, progress)
        assert [row["seed"] for row in read_rows(writer.path)] == [0, 2]
        assert list(writer.tried) == [0, 1, 2] and "not fulfilled" in writer.tried[1]
        short = collection.Shard("click_bell", "hard", 0, 2, [0, 1, 3])
        with pytest.raises(collection.SeedsExhausted, match="only 1 of 2 episodes from the 3 seeds 0..3"):
            collection.collect_shard(env, short, short.writer(tmp_path), 0.0, 0.0, progress)
    env.close()
