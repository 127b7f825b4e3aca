import pytest

from aim_hf.evaluation.statistics import summarize, wilson_interval
from aim_hf.provenance import provenance


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


def record(seed, success, steps, peak):
    outcome = {"seed": seed, "success": success, "steps": steps, "expert_success": True, "peak_error": peak}
    return outcome | {"simulator": {"sapien": "3"}}


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
    assert summary["simulators"] == [{"sapien": "3"}]
    assert pot["wilson"] == list(wilson_interval(2, 3))
    assert pot["first_chunk_peak_within_10_percent"] == {"share": 0.5, "count": 2}
    assert summary["tasks"]["click_bell"]["first_chunk_peak_within_10_percent"] == {"share": None, "count": 0}
    assert summary["mean_rate"] == pytest.approx(1 / 3)  # of tasks, not of episodes
    assert summary["first_chunk_peak_within_10_percent"]["count"] == 2


def test_provenance_names_the_machine(policy):
    where = provenance(policy.pipe.device)
    assert where["hardware"]["cpu"] and where["hardware"]["device"] == "cpu"
    assert where["versions"]["sapien"] and where["command"]
