"""The report: our numbers and published ones apart, deviations in its head, everything in one HTML file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from aim_hf.envs import TASKS
from aim_hf.evaluation import report
from aim_hf.evaluation.report import Run, deviations, published_rates, write_report
from aim_hf.evaluation.statistics import summarize
from aim_hf.utils.files import UnreadableFile

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "src" / "aim_hf" / "evaluation" / "published"
START = 100_000_000


def write_run(folder, successes, suite="robotwin", episodes=100, **changes):
    """An output folder of `evaluate` in which every task has `successes`, the seeds' first ones."""
    settings = {"policy": "aim", "suite": suite, "split": "easy", "instructions": "unseen", "start_seed": 0}
    settings |= {"value_maps": "predicted", "policy_sha256": "12" * 32} | changes
    tasks = settings.pop("tasks", TASKS[suite])
    records = {
        task: [
            {
                "seed": START + number,
                "instruction": "Put <b>it</b> | there.",
                "success": number < successes,
                "steps": 50,
                "expert_success": True,
                "peak_error": None,
                "video": f"videos/{task}.mp4" if number == successes else None,
                "simulator": {"robotwin": "cf47ab5"},
            }
            for number in range(episodes)
        ]
        for task in tasks
    }
    (folder / "episodes").mkdir(parents=True)
    for task, lines in records.items():
        (folder / "episodes" / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = settings | summarize(records, {task: {} for task in records})
    results |= {"commit": "0" * 40, "hardware": {"cpu": "some", "cores": 2}, "command": "evaluate.py --episodes 100"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_published_numbers_are_the_papers():
    easy, hard = (published_rates(PUBLISHED, "robotwin", split) for split in ("easy", "hard"))
    assert easy["aim"]["click_bell"] == 100 and hard["aim"]["blocks_ranking_size"] == 43
    assert easy["lingbot_va"] == {"mean": 92.9} and hard["aim_stage1"]["mean"] == 92.0
    assert set(easy["aim"]) == {*TASKS["robotwin"], "mean"}
    assert published_rates(PUBLISHED, "tabletop", "easy") == {}


def test_tasks_that_this_version_does_not_know_are_in_the_table(tmp_path):
    """As those of a later version, which the mean counts."""
    run = write_run(tmp_path / "run", 1, suite="tabletop", episodes=2, tasks=["stack_moons", "click_bell"])
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"policy_sha256": None}))
    write_report([run], PUBLISHED, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if "50% (1/2;" in line]
    assert rows == ["`click_bell`", "`stack_moons`"] and any("`unknown`" in line for line in lines)


def test_our_numbers_stand_beside_published_ones_that_say_so(tmp_path):
    folders = [write_run(tmp_path / "easy", 90), write_run(tmp_path / "hard", 80, split="hard")]
    write_report(folders, PUBLISHED, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| task | aim, easy"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert [column for column in columns if "published" not in column] == ["task", "aim, easy"]
    row = next(line for line in text.splitlines() if line.startswith("| `click_bell`"))
    cells = dict(zip(columns, (cell.strip() for cell in row.strip("|").split("|"))))
    assert cells["aim, easy"] == "90% (90/100; 83 to 94)" and cells["aim, published"] == "100%"
    assert (
        "has not measured them" in text
        and "lingbot_va 92.9%" in text
        and "| mean | **90.0%** |" in text
        and "| mean | **80.0%** |" in text
    )
    assert (tmp_path / "report" / "easy.png").stat().st_size > 10_000


def test_what_follows_the_protocol_deviates_only_where_everything_does(tmp_path):
    assert deviations(Run.read(write_run(tmp_path / "whole", 90))) == []
    changes = {"episodes": 10, "tasks": ["click_bell", "lift_pot"], "start_seed": 5, "value_maps": "true", "delay": 2}
    found = deviations(Run.read(write_run(tmp_path / "part", 5, **changes)))
    for said in ("48 of 50 tasks", "10 episodes, not 100", "begin at 5", "diagnostic", "2 control steps"):
        assert any(said in sentence for sentence in found), said
    write_report([tmp_path / "part"], PUBLISHED, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert all(sentence in text for sentence in found) and text.index(found[0]) < text.index("## Easy")
    assert "Always: The front camera" in text


def test_another_renderer_robot_planner_and_assets_are_deviations(tmp_path):
    simulator = {"shader": "trivial", "embodiment": "piper piper 0.6", "planner": "cpu", "assets": "stand-in 1"}
    folder = write_run(tmp_path / "run", 90)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"simulators": [simulator]}))
    found = deviations(Run.read(folder))
    assert len(found) == 4 and all(any(value in sentence for sentence in found) for value in simulator.values())


def test_policies_on_the_same_scenes_are_paired(tmp_path):
    tasks = {"suite": "tabletop", "episodes": 40, "tasks": ["click_bell"]}
    folders = [
        write_run(tmp_path / "a", 20, **tasks),
        write_run(tmp_path / "b", 32, policy="other", **tasks),
        write_run(tmp_path / "c", 20, policy="third", instructions="seen", **tasks),
    ]
    write_report(folders, PUBLISHED, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    pairs = [line for line in text.splitlines() if "McNemar" in line]
    assert pairs == [
        "- other, easy against aim, easy, on the same scenes: +30.0 points, McNemar's p = 0.00049."
    ]  # 12 against 0: 2 / 2 ** 12
    assert "published" not in text.replace("no published numbers", "")


def test_one_policy_sampled_differently_is_told_apart_by_its_folders(tmp_path):
    tasks = {"suite": "tabletop", "episodes": 40, "tasks": ["click_bell"]}
    folders = [write_run(tmp_path / name, successes, **tasks) for name, successes in (("5", 32), ("1", 20))]
    other = write_run(tmp_path / "other", 20, policy="other", **tasks)
    write_report([*folders, other], PUBLISHED, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    first, second = (report._plain(f"aim, easy, in {folder}") for folder in folders)
    assert f"| task | {first} | {second} | other, easy |" in text
    assert f"- {second} against {first}, on the same scenes: -30.0 points" in text


def test_a_perturbation_has_a_section_after_easy(tmp_path):
    tasks = {"suite": "tabletop", "episodes": 40, "tasks": ["click_bell"]}
    folders = [write_run(tmp_path / split, 20, split=split, **tasks) for split in ("camera-2", "easy")]
    write_report(folders, PUBLISHED, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.index("## Easy") < text.index("## Camera-2") and "| task | aim, camera-2 |" in text
    assert (tmp_path / "report" / "camera-2.png").stat().st_size > 10_000


def test_every_run_is_in_the_legend_by_its_plain_name(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "Figure", lambda **size: figures.append(Figure(**size)) or figures[-1])
    folders = [
        write_run(tmp_path / "a", 1, "tabletop", 2, policy="my_policy", tasks=["click_bell"]),
        write_run(tmp_path / "b", 1, "tabletop", 2, policy="other & co", tasks=["lift_pot"]),
    ]
    write_report(folders, PUBLISHED, tmp_path / "report")
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert texts == ["my_policy, easy", "other & co, easy"]
    assert r"my\_policy, easy" in (tmp_path / "report" / "report.md").read_text()


def test_films_in_folders_with_spaces_are_linked(tmp_path):
    folder = write_run(tmp_path / "my run (1)", 3, suite="tabletop", episodes=5, tasks=["click_bell"])
    write_report([folder], PUBLISHED, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert '<a href="../my%20run%20%281%29/videos/click_bell.mp4">film</a>' in page


def test_html_holds_everything_and_escapes_what_it_was_given(tmp_path):
    folder = write_run(tmp_path / "run", 3, suite="tabletop", episodes=5, tasks=["click_bell"])
    write_report([folder], PUBLISHED, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()

    class Checked(HTMLParser):
        opened, sources, links = [], [], []

        def handle_starttag(self, tag, attributes):
            self.opened.append(tag)
            self.sources += [value for name, value in attributes if name == "src"]
            self.links += [value for name, value in attributes if name == "href"]

    parsed = Checked()
    parsed.feed(page)
    assert parsed.sources and all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert parsed.links == ["../run/videos/click_bell.mp4"]
    assert "Put &lt;b&gt;it&lt;/b&gt; | there." in page and "strong" in parsed.opened and "b" not in parsed.opened
    markdown = (tmp_path / "report" / "report.md").read_text()
    failed = [line for line in markdown.splitlines() if "100000003" in line or "100000004" in line]
    assert len(failed) == 2 and all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in failed)


def test_where_first_maps_have_their_peaks_is_told_in_centimetres_where_records_hold_them(tmp_path):
    folder = write_run(tmp_path / "run", 3, suite="tabletop", episodes=5, tasks=["click_bell"])
    results = json.loads((folder / "results.json").read_text())
    results["first_chunk_peak_within_10_percent"] = {"share": 0.95, "count": 20}
    results["first_chunk_peak_on_table"] = {"median_cm": 3.14, "within_2_cm": 0.35, "count": 20}
    for told, text in ((results, "95% of 20; 3.1 cm, 35% within 2 cm"), (older(results), "95% of 20")):
        (folder / "results.json").write_text(json.dumps(told))
        write_report([folder], PUBLISHED, tmp_path / "report")
        assert f"| {text} |" in (tmp_path / "report" / "report.md").read_text()


def older(results: dict) -> dict:
    """As the first evaluations wrote it."""
    return {name: of for name, of in results.items() if name not in ("first_chunk_peak_on_table", "simulators")}


ODD_RATE = {"episodes": 5, "successes": 3, "rate": "x", "wilson": [0.0, 0.6]}
RELABELLED = {"tasks": {"click_bell": {"episodes": 5, "successes": 1, "rate": 0.2, "wilson": [0.0, 0.6]}}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "results.json can't be read .*; evaluate into the same folder again"),
        ("results.json", "{}", "results.json can't be read .it has no policy, suite, split"),
        ("results.json", {"tasks": {"click_bell": {"episodes": 5}}}, "it has no successes of click_bell, rate of"),
        ("results.json", {"tasks": {}}, "it has no tasks"),
        ("results.json", {"tasks": {"click_bell": ODD_RATE}}, "rate of click_bell is 'x'; expected a number"),
        ("results.json", {"start_seed": "7"}, "start_seed is '7'; expected a whole number, at least 0"),
        ("results.json", {"hardware": {}}, "results.json can't be read .has no 'cpu'.; evaluate into the same folder"),
        ("results.json", {"first_chunk_peak_within_10_percent": None}, "results.json can't be read .'NoneType' obj"),
        ("results.json", RELABELLED, "it says 1 of 5 for click_bell, and its records 3 of 5"),
        ("episodes/click_bell.jsonl", '{"seed": 1}\n{"see', "record of seed|line 2: .*delete that line and evaluate"),
        ("episodes/click_bell.jsonl", "[]\n", "line 1 is .., expected an object with seed"),
        ("episodes/click_bell.jsonl", '{"seed": 7}\n', "the record of seed 7 has no instruction, success"),
    ],
)
def test_damaged_results_are_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run", 3, suite="tabletop", episodes=5, tasks=["click_bell"])
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).write_text(content)
    with pytest.raises(UnreadableFile, match=message):
        write_report([folder], PUBLISHED, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_results_without_their_episodes_are_refused(tmp_path):
    """Their failures could not be told, nor pairs counted."""
    folder = write_run(tmp_path / "run", 3, suite="tabletop", episodes=5, tasks=["click_bell"])
    (folder / "episodes" / "click_bell.jsonl").unlink()
    with pytest.raises(UnreadableFile, match="it says 3 of 5 .* records 0 of 0, in episodes/click_bell.jsonl"):
        write_report([folder, folder], PUBLISHED, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_bad_input_is_refused_and_nothing_is_written(tmp_path):
    runs = [write_run(tmp_path / suite, 1, suite, 2) for suite in ("robotwin", "tabletop")]
    with pytest.raises(ValueError, match="suites robotwin, tabletop; a report is of one"):
        write_report(runs, PUBLISHED, tmp_path / "report")
    with pytest.raises(FileNotFoundError, match="none holds no results.json"):
        write_report([tmp_path / "none"], PUBLISHED, tmp_path / "report")
    assert not (tmp_path / "report").exists()
