"""Annotation without RoboTwin: what is refused before a simulator is asked for, and what is left in the folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from aim_hf.commands import run
from aim_hf.data import annotation
from aim_hf.data.annotation import annotate, annotated_episode
from aim_hf.data.recorder import Failure
from aim_hf.data.recordings import Recordings
from aim_hf.data.validation import validate

from ..envs.fixtures_robotwin import write_checkout
from .fixtures_episodes import make_episode, write_shard


@pytest.mark.parametrize("size", [0, -1])
def test_shards_of_no_episode_are_refused_before_the_folder_is_claimed(tmp_path, size):
    with pytest.raises(ValueError, match=f"^shard_size is {size}; expected a whole number, at least 1"):
        annotate([], tmp_path / "out", size)
    assert not list(tmp_path.iterdir())


def test_a_folder_isnt_claimed_for_a_simulator_that_cant_start(tmp_path, monkeypatch):
    """With the right shader, it was refused then as made with another."""
    root, python = write_checkout(tmp_path)
    for name, value in {"ROOT": root, "PYTHON": python, "SHADER": "fog"}.items():
        monkeypatch.setenv(f"ROBOTWIN_{name}", str(value))
    recorded = tmp_path / "click_bell" / "demo_clean"
    recorded.mkdir(parents=True)
    (recorded / "seed.txt").write_text("0")
    for command in (["annotate-robotwin", str(recorded)], ["collect", "--suite", "robotwin", "--episodes", "1"]):
        with pytest.raises(SystemExit) as ended:
            run([*command, "--output_dir", str(tmp_path / "out")])
        assert ended.value.code == 2 and not (tmp_path / "out").exists()


@pytest.fixture
def recordings(monkeypatch):
    """Recordings of the seeds 0, 7 and 9, and nothing that simulates them."""
    monkeypatch.delenv("ROBOTWIN_SHADER", raising=False)
    names = {"suite": "robotwin", "task": "click_bell", "split": "easy"}
    env = SimpleNamespace(**names, simulator={"sapien": "3"}, close=lambda: None)
    recordings = SimpleNamespace(
        folder=Path("demo"), name="click_bell/demo", names=("click_bell", "easy"), seeds=[0, 7, 9], has_paths=True
    )
    monkeypatch.setattr(annotation.Recordings, "open", lambda source: recordings)
    monkeypatch.setattr(annotation, "next_environment", lambda *arguments, **options: env)
    monkeypatch.setattr(annotation, "check_starts", lambda *names: None)
    return recordings


def test_a_missing_recording_is_mendable(tmp_path):
    folder = tmp_path / "click_bell" / "demo_clean"
    folder.mkdir(parents=True)
    (folder / "seed.txt").write_text("3")
    failure = annotated_episode(None, Recordings.open(folder), 0)
    assert failure.reason.startswith("data/episode0.hdf5 is missing") and failure.mendable


def test_what_has_been_mended_is_tried_again_and_a_disagreement_is_not(recordings, tmp_path, monkeypatch):
    """The last call comes after a kill in the one before."""
    tried, missing, killed = [], True, False

    def simulated(env, recordings, number):
        seed = recordings.seeds[number]
        tried.append(seed)
        if killed:
            raise KeyboardInterrupt
        if seed == 7:
            return Failure(seed, "it slipped")
        return Failure(seed, "its file is missing", mendable=True) if seed == 9 and missing else make_episode(seed)

    monkeypatch.setattr(annotation, "annotated_episode", simulated)
    left_out = ["click_bell easy seed 7: it slipped", "click_bell easy seed 9: its file is missing"]
    for expected in ([0, 7, 9], [9]):
        tried.clear()
        assert annotate([Path("demo")], tmp_path / "out", 3) == (1, left_out) and tried == expected
        assert validate(tmp_path / "out", 0, 0).problems == []
    tried.clear()
    missing, killed = False, True
    with pytest.raises(KeyboardInterrupt):
        annotate([Path("demo")], tmp_path / "out", 3)
    killed = False
    for _ in range(2):
        assert annotate([Path("demo")], tmp_path / "out", 3) == (2, left_out[:1])
        assert tried == [9, 9] and validate(tmp_path / "out", 0, 0).problems == []
    whole = write_shard(tmp_path / "whole", [make_episode(seed) for seed in (0, 9)])
    assert next(tmp_path.glob("out/data/*.parquet")).read_bytes() == whole.read_bytes()


def test_a_shard_without_an_episode_leaves_a_folder_that_is_finished(recordings, tmp_path, monkeypatch):
    def simulated(env, recordings, number):
        seed = recordings.seeds[number]
        return Failure(seed, "it slipped") if seed else make_episode(seed)

    monkeypatch.setattr(annotation, "annotated_episode", simulated)
    for _ in range(2):
        told = annotate([Path("demo")], tmp_path / "out", 1)
        assert told == (1, ["click_bell easy seed 7: it slipped", "click_bell easy seed 9: it slipped"])
        assert validate(tmp_path / "out", 0, 0).problems == []
    monkeypatch.setenv("ROBOTWIN_SHADER", "trivial")
    with pytest.raises(FileExistsError, match="made from something else: shader None there, 'trivial' now"):
        annotate([Path("demo")], tmp_path / "out", 1)
