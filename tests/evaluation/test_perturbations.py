"""The table of perturbations: paired with Easy and with another policy, and a small run of it."""

import argparse
import json
import sys

import perturbations
import pytest

from ..rollout.fixtures_policy import make_policy


def test_differences_are_paired():
    before = {("click_bell", seed): seed < 6 for seed in range(10)}
    after = {("click_bell", seed): seed == 0 or seed == 9 for seed in range(10)}
    assert perturbations.difference(before, after) == {
        "gain_points": -40.0,
        "lost": 5,
        "won": 1,
        "p": pytest.approx(2 * (1 + 6) / 2**6),
    }


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The folder of a random policy, judged on two scenes of Easy and of wording-3, and the command."""
    folder = tmp_path_factory.mktemp("perturbations")
    make_policy().pipe.save_pretrained(folder / "a")
    command = ["--policy", str(folder / "a"), "--tasks", "click_bell", "--axes", "wording", "--episodes", "2"]
    command = ["perturbations.py", *command, "--batch_size", "2", "--output_dir", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturbations, "SPLITS", ("easy",))
        patch.setattr(perturbations, "STRENGTHS", (3,))
        patch.setattr(sys, "argv", command)
        perturbations.main()
        yield folder / "out", command


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_policy_is_judged_once(judged, monkeypatch, capsys):
    folder, command = judged
    table = (folder / "perturbations.md").read_text()
    assert rows_of(table) == [
        ["split", "success of A", "A, points to Easy", "Holm's p"],
        ["---"] * 4,
        ["easy", "0.0% (0/2; 0 to 66)", "", ""],
        ["wording-3", "0.0% (0/2; 0 to 66)", "+0.0", "1"],
    ]
    numbers = json.loads((folder / "perturbations.json").read_text())
    assert numbers["start_seed"] == 30_000 and numbers["commit"]
    instructions = {}
    for split in ("easy", "wording-3"):
        lines = (folder / "policy-1" / split / "episodes" / "click_bell.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["seed"] for record in records] == [100_030_000, 100_030_001]
        assert all(record["expert_success"] for record in records)
        instructions[split] = {record["instruction"] for record in records}
    assert not instructions["easy"] & instructions["wording-3"]

    def refuse(*_, **__):
        raise AssertionError("all is there: nothing runs again")

    monkeypatch.setattr("aim_hf.evaluation.evaluate._run_batches", refuse)
    monkeypatch.setattr(sys, "argv", command)
    perturbations.main()
    assert (folder / "perturbations.md").read_text() == table and table in capsys.readouterr().out


def test_two_policies_stand_side_by_side(judged, tmp_path):
    folder, _ = judged
    for place, successes in ((1, (0, 0)), (2, (2, 1))):
        for split, count in zip(("easy", "wording-3"), successes):
            lines = (folder / "policy-1" / split / "episodes" / "click_bell.jsonl").read_text().splitlines()
            records = [json.loads(line) | {"success": number < count} for number, line in enumerate(lines)]
            episodes = tmp_path / f"policy-{place}" / split / "episodes"
            episodes.mkdir(parents=True)
            (episodes / "click_bell.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    args = argparse.Namespace(policy=["a", "b"], tasks=["click_bell"], axes=["wording"], episodes=2)
    args.start_seed, args.output_dir = 30_000, tmp_path
    table = perturbations.table(perturbations.report(args))
    assert table.startswith("A is `a`; B is `b`. 2 episodes of each of `click_bell`, from held-out seed 30,000 on.")
    head, _, *rows = rows_of(table)
    assert head[4:] == ["success of B", "B, points to Easy", "Holm's p", "B - A, points", "Holm's p"]
    assert rows == [
        ["easy", "0.0% (0/2; 0 to 66)", "", "", "100.0% (2/2; 34 to 100)", "", "", "+100.0", "1"],
        ["wording-3", "0.0% (0/2; 0 to 66)", "+0.0", "1", "50.0% (1/2; 9 to 91)", "-50.0", "1", "+50.0", "1"],
    ]
