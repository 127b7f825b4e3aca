"""Validation accepts what collection makes, and names what is wrong with what was changed."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aim_hf.commands import collect, run
from aim_hf.data.card import write_card
from aim_hf.data.collection import made_from
from aim_hf.data.episodes import Episode
from aim_hf.data.shards import ShardWriter, read_rows, shard_paths
from aim_hf.data.validation import validate
from aim_hf.envs.base import SimulatorLost
from aim_hf.utils.files import claim

from .fixtures_episodes import make_episode

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def collected(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("collected")
    options = ["--tasks", "click_bell", "--episodes", "2", "--output", folder]
    subprocess.run([python, "-m", "aim_hf", "collect", *options], check=True)
    return folder


def test_what_was_collected_is_found_whole_and_simulates_again_bit_by_bit(collected, monkeypatch):
    monkeypatch.setattr("aim_hf.envs.tabletop.TabletopEnvironment._pictures", None)  # rendering takes the most time
    report = validate(collected, render=2, simulate=2)
    assert report.problems == []
    assert (report.episodes, report.rendered, report.simulated) == (2, 2, 2)
    assert 0 < report.largest_video_error < 32


def test_what_another_simulation_gives_is_found_part_by_part(collected, tmp_path):
    """Also what value maps are made of: maps that agree with wrong cameras and contacts are wrong, too."""
    (path,) = shard_paths(collected)
    manifest = json.loads((collected / "manifest" / f"{path.stem}.json").read_text())
    episodes = [Episode.from_row(row) for row in read_rows(path)]
    episodes[0].instruction += "!"
    episodes[0].intrinsics["head_camera"][:, 0, 0] *= 1.01
    episodes[0].extrinsics["left_camera"][2, 1, 3] += 1e-5
    episodes[1].state[3, 0] += 1e-6
    event = episodes[1].events[0]
    event.body_name = "something"
    event.points[0, 1] += 1e-5
    event.body_pose[4, 2] += 1e-5
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    for episode in episodes:
        writer.add(episode.to_row())
    writer.finish({name: manifest[name] for name in manifest if name != "seeds"})
    write_card(tmp_path)
    report = validate(tmp_path, render=0, simulate=2)
    parts = [(0, name) for name in ("instruction", "intrinsics_head_camera", "extrinsics_left_camera")]
    parts += [(1, name) for name in ("state", "the list of events", "points of event 0", "body_pose of event 0")]
    assert report.problems == [
        f"click_bell easy seed {episodes[number].seed}: simulated again, {name} differs; other versions of simulator "
        "or project made it"
        for number, name in parts
    ]


def test_a_simulator_that_is_lost_is_a_problem_of_its_episode(tmp_path, monkeypatch):
    """It ended the validation, and what that had found was lost."""
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    for seed in (100, 101):
        writer.add(make_episode(seed).to_row())
    writer.finish({"suite": "tabletop", "simulator": {}, "noise": 0.01})
    write_card(tmp_path)

    def reset(seed):
        raise SimulatorLost(f"the simulator's process hung at {seed}")

    env = SimpleNamespace(task="click_bell", split="easy", simulator={}, reset=reset, close=lambda: None)
    monkeypatch.setattr("aim_hf.data.validation.next_environment", lambda *arguments, **options: env)
    report = validate(tmp_path, render=0, simulate=2)
    assert (report.episodes, report.simulated) == (2, 2)
    assert report.problems == [
        f"click_bell easy seed {seed}: simulated again, it fails: the simulator's process hung at {seed}"
        for seed in (100, 101)
    ]


def test_a_report_that_cannot_be_written_is_told_all_the_same(tmp_path, capsys):
    """Since hours of simulating may lie in it."""
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    writer.add(make_episode(100).to_row())
    writer.finish({"suite": "tabletop", "simulator": {}, "noise": 0.01, "seeds_from": 100})
    write_card(tmp_path)
    options = ["--render", "0", "--simulate", "0", "--output_file", str(tmp_path / "README.md" / "report.json")]
    with pytest.raises(SystemExit) as ended:
        run(["validate", str(tmp_path), *options])
    told = capsys.readouterr()
    assert ended.value.code == 2 and "report.json could not be written" in told.err
    assert told.out.startswith("1 episodes, ") and "0 problems" in told.out


def test_a_record_that_says_something_else_than_the_manifests_is_found(tmp_path):
    """As after copying a shard of another collection into the folder."""
    for index, seeds_from in ((0, 100), (1, 300), (2, 500)):
        writer = ShardWriter(tmp_path, "easy", "click_bell", index)
        writer.add(make_episode(seeds_from).to_row())
        writer.finish({"suite": "tabletop", "simulator": {}, "noise": 0.01 * (index + 1), "seeds_from": seeds_from})
    write_card(tmp_path)
    assert validate(tmp_path, render=0, simulate=0).problems == []
    args = collect.parse(["--episodes=50", "--output_dir=.", "--start_seed=100", "--seeds_per_episode=4"])
    record = made_from(args)
    assert record["noise"] == 0.01 and "mistakes" not in record
    claim(tmp_path, record, "nothing")
    problems = validate(tmp_path, render=0, simulate=0).problems
    assert len(problems) == 2
    for index, problem in zip((1, 2), problems):
        told = f"its manifest has noise = 0.0{index + 1}, but 0.01 by made_from.json; make the folder again"
        assert problem.endswith(f"easy-click_bell-0000{index}.parquet: {told}")
    (tmp_path / "made_from.json").write_text(json.dumps(record | {"noise": 0.02, "start_seed": 300}))
    problems = validate(tmp_path, render=0, simulate=0).problems
    assert sum("noise" in problem for problem in problems) == 2
    assert sum("seeds_from = 500, but 700" in problem for problem in problems) == 1
    writer.path.rename(writer.path.with_name("easy-click_bell-old.parquet"))
    writer.manifest.rename(writer.manifest.with_name("easy-click_bell-old.json"))
    problems = validate(tmp_path, render=0, simulate=0).problems
    assert sum("old.parquet: expected a number at the end" in problem for problem in problems) == 1
    with pytest.raises(FileExistsError, match="noise 0.02 there, 0.0 now"):
        args.noise, args.start_seed = 0.0, 300
        claim(tmp_path, made_from(args), "data/*.parquet")


def test_what_cannot_be_simulated_again_is_told_and_not_counted(tmp_path):
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    writer.add(make_episode(0).to_row())
    writer.finish({"suite": "tabletop", "simulator": {}})
    write_card(tmp_path)
    report = validate(tmp_path, render=0, simulate=1)
    assert report.simulated == 0 and "its manifest doesn't tell the noise" in report.problems[0]


def test_an_episode_without_the_events_that_it_has_simulated_again_is_named(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    writer.add(make_episode(100).to_row() | {"events": None})
    writer.finish({"suite": "tabletop", "simulator": {}, "noise": 0.01})
    write_card(tmp_path)
    replay = Episode.from_row(next(read_rows(writer.path)))
    replay.events = make_episode(100).events
    env = SimpleNamespace(simulator={}, close=lambda: None)
    monkeypatch.setattr("aim_hf.data.validation.next_environment", lambda *arguments, **options: env)
    monkeypatch.setattr("aim_hf.data.validation.record_episode", lambda *arguments: replay)
    problems = validate(tmp_path, render=1, simulate=1).problems
    assert problems[0].startswith("click_bell easy seed 100: simulated again, the list of events differs")


def test_other_settings_of_the_simulator_are_named(tmp_path):
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    writer.add(make_episode(0).to_row())
    writer.finish({"suite": "tabletop", "simulator": {"shader": "rt"}})
    write_card(tmp_path)
    problems = validate(tmp_path, render=0, simulate=1).problems
    assert any("made with shader 'rt', and simulated again with None" in problem for problem in problems)


def test_every_problem_is_named(tmp_path):
    right, shifted = make_episode(1), make_episode(1)
    maps = {camera: right.value_maps(camera) for camera in right.rgb}
    shifted.recorded_value_maps = {camera: np.roll(frames, 20, axis=2) for camera, frames in maps.items()}
    shifted.events = None
    wrong = {name: value for name, value in shifted.to_row().items() if name.startswith("value_")}
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    writer.add(make_episode(0).to_row())
    writer.add(right.to_row() | wrong)
    writer.finish({"suite": "tabletop", "simulator": {}, "noise": 0.0})
    writer.manifest.write_text(writer.manifest.read_text().replace('"seed": 1', '"seed": 9'))
    ShardWriter(tmp_path, "easy", "lift_pot", 0).add(make_episode(5).to_row())
    expected = ["no README.md", "unfinished shard"]
    expected += [f"seed 1: value_{camera} is up to" for camera in right.rgb] + [
        "those that its manifest calls recorded"
    ]
    problems = validate(tmp_path, render=2, simulate=0).problems
    assert len(problems) == len(expected)
    for problem, message in zip(problems, expected, strict=True):
        assert message in problem


def test_episodes_behind_a_bad_one_are_checked_too(tmp_path):
    writer = ShardWriter(tmp_path, "easy", "click_bell", 0)
    rows = [make_episode(seed).to_row() for seed in range(4)]
    rows[0]["instruction"], rows[2]["instruction"] = " ", ""
    for row in rows:
        writer.add(row)
    writer.finish({"suite": "tabletop", "simulator": {}})
    write_card(tmp_path)
    report = validate(tmp_path, render=4, simulate=0)
    told = [f"{writer.path}, row {row}: the instruction is empty" for row in (0, 2)]
    assert report.problems == told and (report.episodes, report.frames, report.rendered) == (4, 14, 2)
    writer.manifest.write_text("{")
    report = validate(tmp_path, render=4, simulate=0)
    assert len(report.problems) == 3 and report.problems[1:] == told
