"""The comparison on ALOHA: its hours, its report, and the page that shows it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import aloha
import markdown_tables
import pytest
import success_tables

from aim_hf.envs.seeds import episode_seeds
from aim_hf.utils.files import write_json

OUTCOMES = {"maps": "1111111111", "act": "1111000000"}


@pytest.fixture
def runs(tmp_path):
    """Judged checkpoints of two arms, as LeRobot's and our evaluator write them; they differ in one scene of `act`."""
    run = tmp_path / "50"
    for arm, checkpoint in (("maps", "pipeline"), ("act", "000020")):
        folder = run / "judged" / arm / checkpoint
        success = [each == "1" for each in OUTCOMES[arm]]
        (folder / "lerobot").mkdir(parents=True)
        info = {"per_task": [{"task_group": "transfer_cube", "task_id": 0, "metrics": {"successes": success}}]}
        (folder / "lerobot" / "eval_info.json").write_text(json.dumps(info))
        (folder / "ours" / "episodes").mkdir(parents=True)
        (folder / "ours" / "results.json").write_text("{}")
        if arm == "act":
            success[9] = True
        record = {"instruction": "", "steps": 9, "expert_success": True, "peak_error": None, "video": None}
        lines = [
            json.dumps(record | {"seed": seed, "success": each, "simulator": {}})
            for seed, each in zip(episode_seeds("evaluation", 0, 10), success)
        ]
        (folder / "ours" / "episodes" / "transfer_cube.jsonl").write_text("\n".join(lines) + "\n")
    write_sessions(run / "hours" / "maps.json", (0, 3600))
    write_sessions(run / "hours" / "latents.json", (0, 1800))
    write_sessions(run / "hours" / "act.json", (0, 3600), (10_000, 10_000 + 7200))
    weights = run / "act" / "checkpoints" / "000020" / "pretrained_model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    os.utime(weights, (13_600, 13_600))
    return tmp_path


def write_sessions(path, *sessions):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"sessions": [{"start": start, "end": end} for start, end in sessions]}))


def test_hours_are_those_until_the_checkpoint(runs):
    record = runs / "50" / "hours" / "act.json"
    assert aloha.hours(record) == 3
    assert aloha.hours(record, 13_600) == 2
    assert aloha.hours(record, 5_000) == 1


def test_a_command_leaves_its_time_and_its_failure(tmp_path):
    record = tmp_path / "hours" / "act.json"
    aloha.timed([sys.executable, "-c", "pass"], record)
    with pytest.raises(SystemExit, match="3"):
        aloha.timed([sys.executable, "-c", "raise SystemExit(3)"], record)
    sessions = json.loads(record.read_text())["sessions"]
    assert len(sessions) == 2 and all(session["end"] > session["start"] for session in sessions)
    assert sessions[1]["runs"][-1] == "raise SystemExit(3)" and sessions[0]["hardware"]["cores"]


def test_a_training_whose_hours_nobody_counted_is_refused(runs):
    aloha.check_counted(runs / "50" / "act", runs / "50" / "hours" / "act.json")
    aloha.check_counted(runs / "50" / "diffusion", runs / "50" / "hours" / "diffusion.json")
    with pytest.raises(SystemExit, match="act is there, but not its hours, .*other.json; give another --output_dir"):
        aloha.check_counted(runs / "50" / "act", runs / "50" / "hours" / "other.json")


def test_the_last_step_of_a_falling_learning_rate_is_not_moved(tmp_path):
    write_json(tmp_path / "pretrained_model" / "train_config.json", {"steps": 20_000})
    aloha.check_steps(tmp_path, SimpleNamespace(arm="act", steps=30_000))  # whose rate is constant
    aloha.check_steps(tmp_path, SimpleNamespace(arm="diffusion", steps=20_000))
    with pytest.raises(SystemExit, match="--steps is 30000, and 20000 in .*; give the same"):
        aloha.check_steps(tmp_path, SimpleNamespace(arm="diffusion", steps=30_000))


def test_outcomes_of_another_policy_or_other_options_are_not_reused(tmp_path, monkeypatch):
    policy, folder, commands = tmp_path / "policy", tmp_path / "judged", []

    def lerobot_eval(command, check):
        commands.append(command)
        info = {"per_task": [{"metrics": {"successes": [True, False]}}]}
        write_json(folder / "lerobot" / "eval_info.json", info)

    monkeypatch.setattr(aloha.subprocess, "run", lerobot_eval)
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").write_bytes(b"first")
    args = SimpleNamespace(scenes=2, start_seed=0, options=[])
    for _ in range(2):  # the second call has nothing to do
        aloha.judge_by_lerobot(policy, folder, args, "--eval.batch_size=1")
    assert len(commands) == 1 and aloha.outcomes(folder)["lerobot"].tolist() == [True, False]
    for changed, told in ({"scenes": 3}, "scenes 2 there, 3 now"), ({"options": ["--policy.n=1"]}, "options"):
        with pytest.raises(FileExistsError, match=told):
            aloha.judge_by_lerobot(policy, folder, SimpleNamespace(**vars(args) | changed), "--eval.batch_size=1")
    (policy / "model.safetensors").write_bytes(b"trained again")
    with pytest.raises(FileExistsError, match="policy_sha256"):
        aloha.judge_by_lerobot(policy, folder, args, "--eval.batch_size=1")
    assert len(commands) == 1


def test_the_report_has_rates_agreement_and_paired_tests(runs, monkeypatch):
    aloha.report(SimpleNamespace(output_dir=runs, output_file=runs / "aloha.json"))
    found = json.loads((runs / "aloha.json").read_text())
    act, maps = found["entries"]
    assert (act["hours"], maps["hours"]) == (2, 1.5) and act["episodes"] == 50
    assert act["success"]["lerobot"]["outcomes"] == OUTCOMES["act"] and act["differing"] == 1
    assert maps["success"]["ours"]["rate"] == 1 and maps["differing"] == 0
    (test,) = found["tests"]
    assert test["only"] == [0, 6] and test["p"] == test["holm_p"] == pytest.approx(2 / 2**6)
    monkeypatch.setattr(markdown_tables, "RESULTS", runs)
    page = success_tables.aloha()
    assert "| `act` | 50 | 000020 | 2.0 | 40% (4/10;" in page and "| 50% (5/10;" in page
    assert "| 50 | `act/000020` and `maps/pipeline` | 0 and 6 | 0.031, 0.031 |" in page


def test_without_a_report_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown_tables, "RESULTS", tmp_path)
    assert success_tables.aloha() == "Not run yet.\n"


@pytest.mark.parametrize("arm", aloha.AIM_ARMS)
def test_make_knows_the_arms(arm):
    told = subprocess.run(
        ["make", "--dry-run", "train-aloha", "EPISODES=50", "STEPS=30", f"ARM={arm}", "RUN=runs/x", "JUDGED="],
        cwd=aloha.RESULTS.parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--suite aloha --splits easy --tasks transfer_cube" in told and "--episodes 50" in told
    assert f"--output_dir runs/x/{arm}" in told and told.count("--preset tiny-50hz") == 2
    assert ("--imagined_value_start 20" in told) == ("observations" not in told) == (arm == "maps")
    assert ('"value_loss_weight": 0' in told) == (arm == "no-maps")
