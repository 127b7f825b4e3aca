"""The study of how the future reaches the actions: its statistics, its interventions, and a small run of it."""

import json
import shutil
import sys

import evidence
import evidence_tables
import markdown_tables
import numpy as np
import pytest
import torch

from aim_hf.rollout.policies import AIMPolicy

from ..fixtures_pipeline import make_observation, make_pipeline
from ..rollout.fixtures_policy import make_policy


def test_a_summary_is_the_mean_over_training_seeds():
    runs = np.zeros((2, len(evidence.TASKS), 4))
    runs[0, 0] = 1
    runs[:, 1, :2] = 1
    summary = evidence.summary(runs, evidence.TASKS)
    assert summary["tasks"][evidence.TASKS[0]] == summary["tasks"][evidence.TASKS[1]] == 50
    assert summary["of_each_seed"] == pytest.approx([100 * 1.5 / 6, 100 * 0.5 / 6])
    assert summary["mean"] == pytest.approx(100 / 6)
    assert summary["interval"][0] < summary["mean"] < summary["interval"][1]


def test_processes_share_the_windows_of_a_step_without_a_rest(tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(evidence, "launch", lambda arguments, _: launched.append(arguments))
    train = ["evidence.py", "train", "--arm", "aim", "--latents", "latents", "--output_dir", str(tmp_path)]
    for processes in ("2", "4"):
        monkeypatch.setattr(sys, "argv", [*train, "--processes", processes])
        evidence.main()
        place = launched[-1].index("--per_device_train_batch_size")
        assert int(launched[-1][place + 1]) * int(processes) == 16
    monkeypatch.setattr(sys, "argv", [*train, "--processes", "3"])
    with pytest.raises(SystemExit, match="2"):
        evidence.main()
    assert len(launched) == 2


@pytest.mark.parametrize("part", ["rgb", "value"])
def test_a_part_of_the_future_is_another_rows(part):
    pipe, rng = make_pipeline(visibility="aim"), np.random.default_rng(0)  # whose actions see both
    session = pipe.start("ring bell", batch_size=2)
    pipe.append(session, [make_observation(rng), make_observation(rng)])

    def sample():
        generators = [torch.Generator().manual_seed(row) for row in range(2)]
        return pipe(session=session, generator=generators, output_type="latent")

    own = sample()
    evidence.exchange(pipe, part)
    exchanged = sample()
    for name, latents in (("rgb", "frames"), ("value", "value_maps")):
        expected = own[latents].roll(1, dims=0) if name == part else own[latents]
        assert torch.equal(exchanged[latents], expected)
    assert (exchanged.actions - own.actions).abs().max() > 1e-4


def test_episodes_that_have_ended_stay_in_the_batch_to_lend_their_future():
    rng, pipe = np.random.default_rng(0), make_pipeline(visibility="aim")  # whose actions see the RGB
    policy = evidence.KeepsAllRows(AIMPolicy(pipe, {"policy": "random"}))
    evidence.exchange(policy.pipe, "rgb")
    frames = policy.pipe.frames_per_chunk
    first, later = ([[make_observation(rng) for _ in range(count)] for _ in range(3)] for count in (1, frames))
    repeats = [later[0], [first[1][0]] * frames, later[2]]  # of the episode that has ended, the last observation

    def second_chunk(ended, observations):
        policy.start(["ring bell"] * 3, [1, 2, 3])
        actions = policy.predict(first).actions
        if ended:
            policy.keep([0, 2])
            observations, actions = [observations[0], observations[2]], actions[[0, 2]]
        return policy.predict(observations, actions).actions

    np.testing.assert_array_equal(second_chunk(True, later), second_chunk(False, repeats)[[0, 2]])


def test_a_stopped_intervention_gives_each_row_another_scenes_future(tmp_path, monkeypatch):
    """The batches of an intervention are those of a run that was never stopped."""
    monkeypatch.setattr(evidence, "TASKS", ["click_bell"])
    monkeypatch.setattr(evidence, "CONDITIONS", {"hard, other map": ("hard", 0.0, "value", 3)})
    make_policy(action_lookahead_frames=1).pipe.save_pretrained(tmp_path / "aim-0" / "pipeline")
    started, start = [], evidence.KeepsAllRows.start
    monkeypatch.setattr(
        evidence.KeepsAllRows, "start", lambda self, of, seeds: started.append(len(seeds)) or start(self, of, seeds)
    )
    judge = ["judge", "--arm", "aim", "--output_dir", str(tmp_path), "--results_dir", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *judge])
    evidence.main()
    (records,) = tmp_path.glob("aim-0/judged/*/episodes/click_bell.jsonl")
    whole = sorted(json.loads(line)["seed"] for line in records.read_text().splitlines())
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]) + '{"seed": 100')  # torn by a kill
    evidence.main()
    evidence.main()
    assert started == [3, 3]
    assert sorted(json.loads(line)["seed"] for line in records.read_text().splitlines()) == whole
    with pytest.raises(RuntimeError, match="seed 7 is alone, .*judge this arm again"):
        evidence.KeepsAllRows(AIMPolicy(make_pipeline(), {"policy": "random"})).start(["ring bell"], [7])


def test_runs_are_judged_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "TASKS", ["click_bell"])
    monkeypatch.setattr(evidence, "GROUPS", {"contact": ["click_bell"]})
    conditions = {"hard": ("hard", 0.0, None, 3), "hard, other map": ("hard", 0.0, "value", 2)}
    monkeypatch.setattr(evidence, "CONDITIONS", conditions)
    runs, results = tmp_path / "runs", ["--results_dir", str(tmp_path / "evidence")]
    for arm in ("aim", "rgb"):
        make_policy(action_lookahead_frames=1).pipe.save_pretrained(runs / f"{arm}-0" / "pipeline")
        judge = ["judge", "--arm", arm, "--output_dir", str(runs)]
        monkeypatch.setattr(sys, "argv", ["evidence.py", *judge, *results])
        evidence.main()
    shutil.rmtree(runs)  # the outcomes of a judged arm outlive its weights
    monkeypatch.setattr(sys, "argv", ["evidence.py", "report", *results])
    evidence.main()
    table = capsys.readouterr().out
    assert "| aim | 0.0 % (0.0 to 0.0; seeds 0.0) | 0.0 % (0.0 to 0.0; seeds 0.0) |" in table
    assert "| hard | aim against rgb | +0.0 | 1 | 1 |" in table and "hard, other map | aim against" not in table
    report = json.loads((tmp_path / "evidence" / "evidence.json").read_text())
    assert [(test["arm"], test["gain_points"], test["holm_p"]) for test in report["interventions"]] == [
        ("aim", 0, 1),
        ("rgb", 0, 1),
    ]
    monkeypatch.setattr(markdown_tables, "RESULTS", tmp_path)
    assert "| `rgb` | 1 | 0.0 (0 to 0) | 0.0 (0 to 0) |" in evidence_tables.rates()
    assert "| Hard | `aim` against `rgb` | +0.0 | 1 | 1 |" in evidence_tables.tests()
    assert "| `rgb` | 0 | 0 |" in evidence_tables.tasks()
    assert "| `aim` | other map | +0.0 | 1 | 1 |" in evidence_tables.interventions()
    assert "| `aim` |" in evidence_tables.peaks()


def test_an_intervention_is_tested_on_the_scenes_that_it_saw(monkeypatch):
    conditions = {"hard": ("hard", 0.0, None, 3), "hard, other map": ("hard", 0.0, "value", 2)}
    monkeypatch.setattr(evidence, "CONDITIONS", conditions)
    monkeypatch.setattr(evidence, "TASKS", ["click_bell"])
    outcomes = {"hard": {"click_bell": "110"}, "hard, other map": {"click_bell": "01"}}
    (test,) = evidence.interventions({"aim": [{"seed": 0, "outcomes": outcomes}]})
    assert (test["arm"], test["condition"], test["gain_points"]) == ("aim", "hard, other map", -50)
