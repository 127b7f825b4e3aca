"""Paired comparison of two evaluations."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from aim_hf import envs
from aim_hf.commands import run
from aim_hf.envs.base import SeedRejected
from aim_hf.evaluation.comparison import check_weights, compare, format_comparison, training_summary
from aim_hf.evaluation.evaluate import read_results
from aim_hf.evaluation.statistics import mcnemar_p, paired_difference, summarize
from aim_hf.model.checkpoint import fingerprint
from aim_hf.rollout import policies, storyboard, vector_env
from aim_hf.rollout import run as rollout
from aim_hf.training.curve import plot_comparison, plot_grpo
from aim_hf.utils.files import UnreadableFile


def write(folder, successes: dict[str, list[bool]], **settings):
    """An output folder of `evaluate` with these outcomes, on seeds 100, 101 ..."""
    (folder / "episodes").mkdir(parents=True)
    alike = {
        "instruction": "go",
        "steps": 9,
        "expert_success": True,
        "peak_error": None,
        "video": None,
        "simulator": {},
    }
    records = {
        task: [{"seed": 100 + i, "success": success} | alike for i, success in enumerate(outcomes)]
        for task, outcomes in successes.items()
    }
    for task, lines in records.items():
        (folder / "episodes" / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"suite": "tabletop", "split": "easy", "instructions": "seen", "value_maps": "predicted"} | settings
    results |= {name: folder.name for name in ("command", "commit", "hardware")}
    results = {"policy": folder.name, "policy_sha256": folder.name} | results
    results |= {"start_seed": 0} | summarize(records, dict.fromkeys(records, {}))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_p(3, 12) == mcnemar_p(12, 3) == pytest.approx(0.03515625)
    assert mcnemar_p(4, 4) == 1


def test_a_paired_difference_pairs_episodes_in_their_order():
    change = paired_difference([True, True, False, False], [False, True, True, True])
    assert change == {"gain_points": 25, "lost": 1, "won": 2, "p": 1}
    with pytest.raises(ValueError):
        paired_difference([True], [True, False])


def test_pairs_are_counted_by_task_and_seed(tmp_path):
    before = write(tmp_path / "before", {"push": [True, False, False, False], "pull": [True, True]})
    after = write(tmp_path / "after", {"push": [False, True, True, True], "pull": [True, False]})
    comparison = compare(before, after)
    push, pull = comparison["tasks"]["push"], comparison["tasks"]["pull"]
    assert (push["before"]["successes"], push["after"]["successes"], push["gain_points"]) == (1, 3, 50)
    assert push["lost"] == [100] and push["won"] == [101, 102, 103]
    assert pull["gain_points"] == -50 and pull["lost"] == [101] and pull["won"] == []
    assert comparison["gain_points"] == 0 and comparison["seeds"] == [100, 103]
    assert (comparison["only_before"], comparison["only_after"]) == (2, 3)
    assert comparison["mcnemar_p"] == mcnemar_p(2, 3) and comparison["after"]["policy"] == "after"
    lines = format_comparison(comparison).splitlines()
    assert lines[2].startswith("| `push` | 25% (1/4; 5% to 70%) | 75% (3/4; ") and "| +50 | 1 / 3 |" in lines[2]
    plot_comparison(comparison, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    turned = write(tmp_path / "turned", {"pull": [True, False], "push": [False, True, True, True]})
    assert compare(before, turned)["tasks"] == comparison["tasks"]  # --tasks was given in another order


def test_policies_that_were_sampled_differently_are_told(tmp_path):
    outcomes = {"push": [True, False]}
    noisy = write(tmp_path / "noisy", outcomes, action_noise_scale=1.0, num_inference_steps=5)
    still = write(tmp_path / "still", outcomes, action_noise_scale=0.0, num_inference_steps=5)
    comparison = compare(noisy, still)
    assert comparison["sampled_differently"] == {"action_noise_scale": [1.0, 0.0]}
    assert "Sampled differently: `action_noise_scale` 1.0 before, 0.0 after" in format_comparison(comparison)
    alike = compare(noisy, noisy)
    assert alike["sampled_differently"] == {} and "differently" not in format_comparison(alike)


def test_a_policy_behind_a_server_is_compared_without_its_weights(tmp_path, capsys):
    here = write(tmp_path / "here", {"push": [True, False]})
    served = write(tmp_path / "served", {"push": [True, True]}, policy="pi0.5")
    results = json.loads((served / "results.json").read_text())
    del results["policy_sha256"]  # as `evaluate` writes them for a server that isn't AIM's
    (served / "results.json").write_text(json.dumps(results))
    comparison = compare(served, here)
    assert (comparison["before"]["policy"], comparison["before"]["policy_sha256"]) == ("pi0.5", None)
    assert comparison["gain_points"] == -50 and comparison["tasks"]["push"]["lost"] == [101]
    options = ["compare", "--before", str(served), "--after", str(here), "--output_dir", str(tmp_path / "out")]
    for needs_weights in (["--videos", "1"], ["--training", "training.json"]):
        with pytest.raises(SystemExit) as ended:
            run([*options, *needs_weights])
        told = "aim-hf compare: pi0.5 was evaluated behind a server, and its weights aren't here.\n"
        assert ended.value.code == 2 and capsys.readouterr().err == told and not (tmp_path / "out").exists()
    for folder in (served, here):
        (folder / "settings.json").write_text("{}")
    run(options)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["only_before"] == 1
    run(options)  # as of more episodes
    (here / "settings.json").write_text('{"policy": "another"}')  # whose videos would stay beside it
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(options)
    assert "out was made from something else: after policy None there, 'another' now." in capsys.readouterr().err


def compared(tmp_path, task: str = "click_bell", **settings) -> list[str]:
    """The command that compares two evaluations of one policy in which each wins an episode, beside settings.json of
    something else."""
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    settings |= {"policy": str(policy), "policy_sha256": fingerprint(policy)}
    for side, outcomes in (("before", [True, False]), ("after", [False, True])):
        folder = write(tmp_path / side, {task: outcomes, "lift_pot": [True, True]}, **settings)
        (folder / "settings.json").write_text('{"num_inference_steps": 50}')
    return ["compare", *(f"--{side}={tmp_path / side}" for side in ("before", "after")), f"--output_dir={tmp_path}"]


def test_films_are_of_what_was_evaluated(tmp_path, monkeypatch, capsys):
    """Whatever settings.json says, which may be another evaluation's."""
    filmed = []
    monkeypatch.setattr(policies.AIMPolicy, "from_pretrained", lambda policy, **options: (policy, options))
    monkeypatch.setattr(vector_env, "VectorEnvironment", lambda *of, num_workers: nullcontext(of))
    monkeypatch.setattr(rollout, "run_episodes", lambda *of: filmed.append(of) or [SimpleNamespace(storyboard=None)])
    monkeypatch.setattr(storyboard, "write_video", lambda path, board: filmed.append(path.name))
    run([*compared(tmp_path, split="hard", instructions="unseen", num_inference_steps=3), "--videos=1"])
    policy = (str(tmp_path / "policy"), {"num_inference_steps": 3})
    shown = (policy, ("tabletop", "hard"), "click_bell", [101], "unseen", "predicted", {101})
    assert filmed == [shown, "click_bell-101-before.mp4", shown, "click_bell-101-after.mp4"]
    monkeypatch.setattr(rollout, "run_episodes", lambda *of: [SeedRejected(101, "the bell has fallen over")])
    (other := tmp_path / "other").mkdir()
    with pytest.raises(SystemExit):
        run([*compared(other, split="hard", instructions="unseen"), "--videos=1"])
    assert "seed 101 of click_bell can't be filmed: the suite rejects it (the bell has" in capsys.readouterr().err


def test_the_world_is_compared_on_a_scene_of_its_task(tmp_path, monkeypatch, capsys):
    """The suite may have rejected the first seed of another task."""
    command = compared(tmp_path)
    for records in tmp_path.glob("*/episodes/click_bell.jsonl"):
        records.write_text(records.read_text().replace('"seed": 100', '"seed": 103'))
    entry = {"reward": 1.0, "rollout/control_steps": 800, "completions/mean_length": 50.0, "time/learning": 9.0}
    record = dict.fromkeys(("command", "commit", "hardware", "seeds", "steps"), "") | {"processes": 1}
    record |= {"log_history": [entry | {"rollout/control_steps_per_core_second": 100.0}]}
    (tmp_path / "training.json").write_text(json.dumps(record))

    def reset(seed):
        raise ValueError(f"reset to {seed}")

    monkeypatch.setattr(envs, "make_environment", lambda *scene: SimpleNamespace(reset=reset))
    with pytest.raises(SystemExit):
        run([*command, f"--training={tmp_path / 'training.json'}"])
    assert capsys.readouterr().err == "aim-hf compare: reset to 101\n"


def test_a_policy_that_has_changed_since_its_evaluation_is_not_taken_for_it(tmp_path):
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text('{"trained": 1}')
    evaluated = {"policy": str(policy), "policy_sha256": fingerprint(policy)}
    comparison = compare(*(write(tmp_path / side, {"push": [True]}, **evaluated) for side in ("before", "after")))
    check_weights(comparison)
    (policy / "config.json").write_text('{"trained": 2}')
    with pytest.raises(ValueError, match=f"{policy} has changed since it was evaluated: .* Evaluate it again"):
        check_weights(comparison)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda results: results.update(suite="table"), "suite is 'table'; expected one of tabletop"),
        (lambda results: results.update(split="hrad"), "split='hrad' is unknown in suite 'tabletop': choose one of"),
        (lambda results: results.update(mean_rate="1"), "mean_rate is '1'; expected 0 to 1"),
        (lambda results: results["tasks"]["push"].update(rate=5), "rate of push is 5, of 1 successes in 2"),
        (lambda results: results["tasks"]["push"].update(wilson=[0.1]), r"wilson of push is \[0.1\]; expected two"),
    ],
)
def test_results_that_cannot_be_are_named(tmp_path, change, told):
    folder = write(tmp_path / "before", {"push": [True, False]})
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(UnreadableFile, match=f"results.json can't be read .{told}"):
        read_results(folder)


def test_a_seed_that_is_no_number_is_named(tmp_path):
    folder = write(tmp_path / "before", {"push": [True, False]})
    path = folder / "episodes" / "push.jsonl"
    path.write_text(path.read_text().replace('"seed": 101', '"seed": "101"'))
    with pytest.raises(UnreadableFile, match="push.jsonl: seed is '101', expected a whole number; delete its line"):
        read_results(folder)


def test_what_is_not_of_the_same_scenes_is_refused(tmp_path):
    before = write(tmp_path / "before", {"push": [True, False]})
    with pytest.raises(FileNotFoundError, match="holds no results.json"):
        compare(before, tmp_path / "nothing")
    with pytest.raises(ValueError, match="split is 'easy' in .*before and 'hard' in .*hard"):
        compare(before, write(tmp_path / "hard", {"push": [True, False]}, split="hard"))
    with pytest.raises(ValueError, match="different seeds of push"):
        compare(before, write(tmp_path / "more", {"push": [True, False, True]}))
    with pytest.raises(ValueError, match="different tasks"):
        compare(before, write(tmp_path / "other", {"pull": [True, False]}))


def test_a_run_of_stage_2_in_short():
    def iteration(step: int, success: float) -> list[dict]:
        rolled = {"reward": 2 * success, "reward_std": 0.1, "rewards/success_reward/mean": success}
        rolled |= {"rollout/success_rate": success, "rollout/value_hit": 0.5, "rollout/control_steps": 800}
        rolled |= {"rollout/control_steps_per_core_second": 100.0, "completions/mean_length": 50.0}
        times = {"time/simulation": 1800.0, "time/inference": 2700.0, "time/learning": 2000.0}
        first = {"step": step, "kl": 0.1 * step} | rolled | times
        return [first, {"step": step + 1, "kl": 0.1 * step, "time/learning": 700.0}, {"step": step + 1, "eval_x": 1}]

    history = [entry for number in range(10) for entry in iteration(2 * number, number / 10)]
    del history[6]["kl"], history[7]["kl"]  # an iteration whose groups were all dropped
    origin = {"command": "c", "commit": "d", "hardware": {}, "seeds": {}, "steps": 20, "processes": 2}
    summary = training_summary(origin | {"log_history": history, "versions": {}})
    assert summary["episodes"] == 160 and summary["hours"] == pytest.approx(10)
    assert summary["simulation_share"] == pytest.approx(0.25) and summary["control_steps_per_core_second"] == 100
    assert summary["first"]["rollout/success_rate"] == pytest.approx(0.05)
    assert summary["last"]["reward"] == pytest.approx(1.7) and summary["processes"] == 2
    assert summary["first"]["kl"] == pytest.approx(0.1) and summary["last"]["kl"] == pytest.approx(1.7)
    assert summary["last"]["rollout/value_hit"] == 0.5
    for entry in history[-6:]:
        entry.pop("rollout/value_hit", None)  # iterations in which no map showed a place
    summary = training_summary(origin | {"log_history": history})
    assert summary["first"]["rollout/value_hit"] == 0.5 and summary["last"]["rollout/value_hit"] is None
    del history[0]["rollout/value_hit"]
    assert training_summary(origin | {"log_history": history})["first"]["rollout/value_hit"] == 0.5
    never = [{name: value for name, value in entry.items() if name != "kl"} for entry in history]
    assert training_summary(origin | {"log_history": never})["last"]["kl"] is None
    with pytest.raises(ValueError, match="it logs no rollout, as with --logging_steps above --max_steps"):
        training_summary(origin | {"log_history": [{"step": 20, "train_runtime": 9.0}]})


def test_the_curves_of_stage_2_are_drawn(tmp_path):
    history = [
        {"step": 1, "reward": 0.5, "kl": 0.0, "rollout/success_rate": 0.4, "rollout/value_hit": 0.3},
        {"step": 1, "eval_success_rate": 0.5, "eval_success_low": 0.4, "eval_success_high": 0.6},
        {"step": 2, "eval_success_rate": 0.6, "eval_success_low": 0.5, "eval_success_high": 0.7},
    ]
    plot_grpo(history, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000
    with pytest.raises(OSError, match="training.png/training.png could not be written .*Make room"):
        plot_grpo(history, tmp_path / "training.png" / "training.png")
