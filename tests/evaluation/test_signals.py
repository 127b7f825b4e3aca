"""The calibration of signals of doubt: its numbers, and a small run of it."""

import json
import sys

import numpy as np
import pytest
import signals

from ..rollout.fixtures_policy import make_policy


def test_area_under_the_roc_curve():
    assert signals.auroc(np.array([1, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert signals.auroc(np.array([3, 1, 2, 2]), np.array([True, False, True, False])) == 3.5 / 4
    assert np.isnan(signals.auroc(np.array([1, 2]), np.array([True, True])))


def test_episodes_are_ranked_within_their_task():
    """Both tasks fail at their larger signals, though all of the first task's are larger than the second's."""
    episodes = [
        {"task": task, "success": number < 8, "drift": [offset + number]}
        for task, offset in (("lift_pot", 100), ("click_bell", 0))
        for number in range(10)
    ]
    numbers = signals.calibration(episodes, "drift")
    assert numbers["rates"] == [1, 1, 1, 1, 0] and numbers["episodes"] == 20
    assert numbers["auroc"] == pytest.approx(1)


def test_a_run(tmp_path, monkeypatch):
    make_policy(action_lookahead_frames=1).pipe.save_pretrained(tmp_path / "policy")
    arguments = ["--policy", str(tmp_path / "policy"), "--split", "easy", "--tasks", "click_bell", "--episodes", "5"]
    monkeypatch.setattr(sys, "argv", ["signals.py", *arguments, "--output_dir", str(tmp_path / "out")])
    signals.main()
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert [len(episode["drift"]) for episode in content["episodes"]] == [3] * 5
    assert all(0 < value < 1 for episode in content["episodes"] for value in episode["drift"] + episode["entropy"])
    assert (tmp_path / "out" / "signals.png").stat().st_size > 5000
