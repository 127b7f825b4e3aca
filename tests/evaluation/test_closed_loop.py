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


def test_settings_are_compared_on_the_same_episodes(tmp_path, monkeypatch):
    """Whatever an earlier run, which was stopped, has left in the folder of one of them."""
    import closed_loop

    from aim_hf.evaluation import evaluate
    from aim_hf.rollout.policies import AIMPolicy

    bell = {"outcomes": "1100"}
    other = {"outcomes": "0010"}
    left = {"defaults": {"click_bell": bell, "lift_pot": {"outcomes": "11"}}, "delay=2": {"click_bell": other}}
    monkeypatch.setitem(closed_loop.STUDIES, "delays", [{}, {"delay": 2}])
    monkeypatch.setattr(AIMPolicy, "from_pretrained", lambda *given, **options: None)
    monkeypatch.setattr(
        evaluate, "evaluate", lambda policy, protocol, folder, *rest, **more: {"tasks": left[folder.name]}
    )
    given = ["--study=delays", "--policy=policy", "--tasks=click_bell", "--episodes=3", f"--output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["closed_loop.py", *given])
    closed_loop.main()
    rows = json.loads((tmp_path / "delays.json").read_text())["rows"]
    assert [(row["successes"], row["episodes"], row["tasks"]) for row in rows] == [
        (2, 3, {"click_bell": 2}),
        (1, 3, {"click_bell": 1}),
    ]
    assert rows[1]["outcomes"] == {"click_bell": "001"}
    assert [(row["to_first"]["lost"], row["to_first"]["won"]) for row in rows] == [(0, 0), (2, 1)]
