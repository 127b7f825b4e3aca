"""`benchmarks/closed_loop.py`, on a tiny random pipeline."""

import json
import sys

from ..rollout.fixtures_policy import make_policy


def test_a_study_runs_each_setting_on_the_same_seeds(tmp_path, monkeypatch):
    import closed_loop

    settings = [{}, {"delay": 2, "real_time_chunking": False}]
    monkeypatch.setitem(closed_loop.STUDIES, "delays", settings)
    make_policy(action_lookahead_frames=1).pipe.save_pretrained(tmp_path / "policy")
    given = {
        "study": "delays",
        "policy": tmp_path / "policy",
        "tasks": "click_bell",
        "episodes": 2,
        "output": tmp_path,
    }
    monkeypatch.setattr(sys, "argv", ["closed_loop.py", *(f"--{name}={value}" for name, value in given.items())])
    closed_loop.main()

    numbers = json.loads((tmp_path / "delays.json").read_text())
    assert [row["setting"] for row in numbers["rows"]] == settings
    assert all(row["episodes"] == 2 and row["tasks"].keys() == {"click_bell"} for row in numbers["rows"])
    runs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("delays/*/results.json"))]
    assert len(runs) == 2 and runs[0]["tasks"]["click_bell"]["seeds"] == runs[1]["tasks"]["click_bell"]["seeds"]
    assert numbers["commit"] and len((tmp_path / "delays.md").read_text().splitlines()) == 4
