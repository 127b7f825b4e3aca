import json
import platform
import subprocess

import numpy as np
import pytest
from arms import add_holm, compared, paired_gain, read_judged, sign_flip_p, successes_of

from aim_hf.evaluation.statistics import format_peaks, summarize, wilson_interval
from aim_hf.utils.provenance import cpu_name, provenance, source_commit


@pytest.mark.parametrize(
    "successes, episodes, low, high",
    [  # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3; the last two by hand
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (50, 50, 50 / (50 + 1.959964**2), 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_the_rate_lies_within_its_interval():
    for episodes in range(1, 200):
        for successes in (0, 1, episodes - 1, episodes):
            low, high = wilson_interval(successes, episodes)
            assert 0 <= low <= successes / episodes <= high <= 1


@pytest.mark.parametrize("successes, episodes", [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_counts_that_cannot_be(successes, episodes):
    with pytest.raises(ValueError, match=f"{successes} successes of {episodes}"):
        wilson_interval(successes, episodes)


@pytest.mark.parametrize(
    "ps, corrected", [([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]), ([0.04, 0.01, 0.5], [0.08, 0.03, 0.5])]
)
def test_holms_correction(ps, corrected):
    tests = [{"p": p} for p in ps]
    add_holm(tests)
    assert [test["holm_p"] for test in tests] == pytest.approx(corrected)


def test_flipped_signs():
    assert sign_flip_p(np.array([1.0] * 8 + [0.0] * 5)) == pytest.approx(2 / 2**8, abs=2e-3)
    assert sign_flip_p(np.zeros(7)) == 1


def test_a_gain_is_paired_by_scene_whatever_the_number_of_training_seeds():
    before, after = {0: np.zeros((2, 5))}, {seed: np.zeros((2, 5)) for seed in range(3)}
    after[0][0] = after[1][0] = 1  # two of three training seeds solve each scene of one task
    assert paired_gain(before, after) == {
        "gain_points": pytest.approx(100 / 3),
        "gain_of_each_seed": [50],
        "p": pytest.approx(2 / 2**5, abs=5e-3),
    }


def test_gains_of_each_seed_are_paired_by_the_training_seed(tmp_path):
    def judged(arm, seed, outcomes):
        record = {"seed": seed, "outcomes": {"hard": {"click_bell": outcomes}}}
        (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(record))

    for seed, outcomes in ((1, "0000"), (2, "1100"), (10, "1111")):
        judged("aim", seed, outcomes)
    judged("rgb", 10, "1110")
    judged("rgb", 2, "0100")
    records = read_judged(tmp_path, ["aim", "rgb"])
    assert [record["seed"] for record in records["aim"]] == [1, 2, 10]
    (test,) = compared(successes_of(records, "hard", ["click_bell"]), "hard", [("aim", "rgb")])
    assert test["gain_of_each_seed"] == [-25, -25] and test["gain_points"] == pytest.approx(0)


def record(seed, success, steps, peak, cm=None):
    outcome = {"seed": seed, "success": success, "steps": steps, "expert_success": True, "peak_error": peak}
    return outcome | {"simulator": {"sapien": "3"}} | ({} if cm is None else {"peak_error_cm": cm})


def test_summary_counts_peaks_where_there_is_a_contact_to_see():
    records = {
        "lift_pot": [
            record(3, False, 60, {"head_camera": 0.3}),
            record(1, True, 20, {"head_camera": 0.1}),
            record(2, True, 40, {"head_camera": None}),
        ],
        "click_bell": [record(1, False, 40, None)],
    }
    summary = summarize(records, {"lift_pot": {5: "unstable", 4: "no way"}, "click_bell": {}})
    pot = summary["tasks"]["lift_pot"]
    assert (pot["episodes"], pot["successes"], pot["rate"], pot["mean_steps"]) == (3, 2, 2 / 3, 40)
    assert pot["seeds"] == [1, 2, 3] and pot["rejected_seeds"] == [4, 5]
    assert pot["outcomes"] == "110" and summary["tasks"]["click_bell"]["outcomes"] == "0"
    assert summary["simulators"] == [{"sapien": "3"}]
    assert pot["wilson"] == list(wilson_interval(2, 3))
    assert pot["first_chunk_peak_within_10_percent"] == {"share": 0.5, "count": 2}
    assert summary["tasks"]["click_bell"]["first_chunk_peak_within_10_percent"] == {"share": None, "count": 0}
    assert summary["mean_rate"] == pytest.approx(1 / 3)  # of tasks, not of episodes
    assert summary["first_chunk_peak_within_10_percent"]["count"] == 2


def test_distances_on_the_table_are_told_of_records_that_hold_them():
    def summary(*distances):
        cm = [distance and {"head_camera": distance} for distance in distances]
        records = [record(seed, True, 9, {"head_camera": 0.05}, centimetres) for seed, centimetres in enumerate(cm)]
        return summarize({"lift_pot": records}, {"lift_pot": {}})["tasks"]["lift_pot"]

    new, old = summary(1.0, 2.0, 6.5, 7.0, None), summary(None, None)
    assert new["first_chunk_peak_on_table"] == {"median_cm": 4.25, "within_2_cm": 0.5, "count": 4}
    assert format_peaks(new) == "100% of 5; 4.2 cm, 50% within 2 cm"
    assert old["first_chunk_peak_on_table"]["count"] == 0 and format_peaks(old) == "100% of 2"
    older = {name: value for name, value in old.items() if name != "first_chunk_peak_on_table"}
    assert format_peaks(older) == "100% of 2"


def test_provenance_names_the_machine(policy):
    where = provenance(policy.pipe.device)
    assert where["hardware"]["cpu"] and where["hardware"]["device"] == "cpu"
    assert where["versions"]["sapien"] and where["command"]


def test_the_processor_has_a_name_where_there_is_no_proc(tmp_path):
    """As on macOS and Windows, where a policy is fine-tuned, too; and as on ARM, whose list has no name."""
    assert cpu_name(tmp_path / "cpuinfo") == (platform.processor() or platform.machine()) != ""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_name(tmp_path / "cpuinfo") == cpu_name(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    assert cpu_name(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"


@pytest.mark.parametrize(
    "error", [subprocess.TimeoutExpired("git", 30), PermissionError(13, "no"), FileNotFoundError()]
)
def test_the_commit_is_unknown_where_git_does_not_answer(monkeypatch, error):
    assert source_commit()

    def run(*arguments, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert source_commit() is None
