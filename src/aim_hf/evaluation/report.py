"""One report over result folders, in Markdown and in HTML.

Its head always lists how the runs differ from RoboTwin's official protocol. Published numbers stand beside ours under
a label of their own.
"""

import base64
import csv
import html
import io
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from ..envs import TASKS, robotwin
from ..envs.base import SPLITS
from ..envs.names import PERTURBATIONS
from ..utils.extras import extra
from ..utils.files import reading, write_bytes, write_text
from ..utils.provenance import machine
from .comparison import compare
from .evaluate import read_records, read_results
from .statistics import PEAKS, format_peaks, format_rate

with extra("plot"):
    from markdown_it import MarkdownIt
    from matplotlib.figure import Figure

OFFICIAL_EPISODES = 100  # of each task, in RoboTwin's own script
OFFICIAL_STRIDE = 100_000  # seeds between two runs of it: its `seed` 0, 1, ...


@dataclass(frozen=True)
class Run:
    """An output folder of `evaluate`. is_named: whether its name tells the folder, too."""

    folder: Path
    results: dict[str, Any]
    is_named: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Raises OSError where there are no results, or damaged ones."""
        run = cls(folder, read_results(folder))
        with reading(folder / "results.json", "evaluate into the same folder again"):
            run.row()
        return run

    @property
    def name(self) -> str:
        given = ", true maps" if self.results["value_maps"] == "true" else ""
        folder = f", in {self.folder}" if self.is_named else ""
        return f"{self.results['policy']}, {self.results['split']}{given}{folder}"

    @property
    def title(self) -> str:
        """The name in Markdown."""
        return _plain(self.name)

    def row(self) -> list[str]:
        """Its row in the head of the report."""
        results = self.results
        return [
            f"`{results['policy']}`",
            results["split"] + (", true maps" if results["value_maps"] == "true" else ""),
            f"{sum(task['episodes'] for task in results['tasks'].values())} in {len(results['tasks'])} tasks",
            f"**{results['mean_rate']:.1%}**",
            format_peaks(results),
            results["instructions"],
            f"`{(results.get('policy_sha256') or 'unknown')[:12]}`",
            f"`{(results['commit'] or 'unknown')[:10]}`",
            machine(results["hardware"]),
        ]


def published_rates(folder: Path, suite: str, split: str) -> dict[str, dict[str, float]]:
    """The paper's Table 1 and Table 2 for a split, model -> task or "mean" -> percent; nothing for other suites than
    RoboTwin. `folder` holds `table1_robotwin.csv` and `table2_robotwin.csv`."""
    if suite != "robotwin":
        return {}
    rates: dict[str, dict[str, float]] = {}
    mend = "give the folder of the paper's tables"
    with reading(folder / "table1_robotwin.csv", mend), open(folder / "table1_robotwin.csv", newline="") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                if row["task"] in TASKS[suite] and column.endswith(f"_{split}") and value:
                    rates.setdefault(column.removesuffix(f"_{split}"), {})[row["task"]] = float(value)
    with reading(folder / "table2_robotwin.csv", mend), open(folder / "table2_robotwin.csv", newline="") as file:
        (means,) = (row for row in csv.DictReader(file) if row["setting"] == split)
        for model, value in means.items():
            if model != "setting":
                rates.setdefault(model, {})["mean"] = float(value)
    return rates


def deviations(run: Run) -> list[str]:
    """The differences of a run from RoboTwin's official protocol, a sentence each; [] for other suites."""
    results, found = run.results, []
    if results["suite"] != "robotwin":
        return []
    if missing := [task for task in TASKS["robotwin"] if task not in results["tasks"]]:
        found.append(f"{len(missing)} of 50 tasks are missing, so the mean is over fewer: {', '.join(missing)}.")
    others = {task: of["episodes"] for task, of in results["tasks"].items() if of["episodes"] != OFFICIAL_EPISODES}
    if others:
        counts = sorted(set(others.values()))
        found.append(f"{len(others)} tasks have {', '.join(map(str, counts))} episodes, not {OFFICIAL_EPISODES}.")
    if results["start_seed"] % OFFICIAL_STRIDE:
        found.append(
            f"Seeds begin at {results['start_seed']}; official runs begin at 0, {OFFICIAL_STRIDE:,} and so on."
        )
    if results["value_maps"] == "true":
        found.append("The policy acts on true value maps: a diagnostic, no result.")
    if results.get("delay"):
        found.append(f"A chunk takes {results['delay']} control steps to compute; the official script waits for it.")
    simulators = results.get("simulators", [])  # early evaluations don't record them
    if len(simulators) > 1:
        found.append(f"{len(simulators)} different simulators took part: {simulators}.")
    found += dict.fromkeys(sentence for simulator in simulators for sentence in robotwin.deviations(simulator))
    return found


def write_report(folders: list[Path], published: Path, output: Path) -> None:
    """Writes `report.md`, `report.html` (one file with everything in it), and a plot for each split.

    Args:
        folders: output folders of `evaluate`, all of one suite.
        published: folder of the paper's tables, as CSV.

    Raises:
        OSError: for a folder without results, with damaged ones, or that can't be written. ValueError: if the suites
            differ.
    """
    runs = [Run.read(folder) for folder in folders]
    counts = Counter(run.name for run in runs)  # equal for one policy that was sampled differently
    runs = [replace(run, is_named=counts[run.name] > 1) for run in runs]
    suites = sorted({run.results["suite"] for run in runs})
    if len(suites) != 1:
        raise ValueError(f"the results are of the suites {', '.join(suites)}; a report is of one.")
    sections = [_head(suites[0], runs), _deviations(suites[0], runs)]
    pictures: dict[str, bytes] = {}
    for split in (*SPLITS, *PERTURBATIONS):
        if of_split := [run for run in runs if run.results["split"] == split]:
            rates = published_rates(published, suites[0], split)
            pictures[f"{split}.png"] = _plot(of_split, rates, split)
            sections.append(_split_section(of_split, rates, split))
    sections.append(_failures(runs, output))
    text = "\n\n".join(sections) + "\n"
    for name, picture in pictures.items():
        write_bytes(output / name, picture)
    write_text(output / "report.md", text)
    write_text(output / "report.html", _page(f"AIM on {suites[0]}", text, pictures))


def _table(rows: list[list[str]]) -> str:
    """A table in Markdown, the first row its head."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _plain(text: str) -> str:
    """`text` of other sources, escaped so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", html.escape(text, quote=False))


def _page(title: str, text: str, pictures: dict[str, bytes]) -> str:
    """Markdown as one HTML file, the pictures within."""
    body = MarkdownIt("commonmark").enable("table").render(text)
    for name, picture in pictures.items():
        body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"')
    return _PAGE.substitute(title=title, body=body)


def _head(suite: str, runs: list[Run]) -> str:
    rows = [["policy", "split", "episodes", "mean success", PEAKS, "instructions", "checkpoint", "code", "hardware"]]
    rows += [run.row() for run in runs]
    commands = _list([f"{run.title}: `{run.results['command']}`" for run in runs])
    simulators = sorted({json.dumps(simulator) for run in runs for simulator in run.results.get("simulators", [])})
    measured = (
        "Success rates in closed loop on held-out scenes, with 95 % Wilson intervals. Means are of the tasks' rates. "
        f"Simulator: {'; '.join(f'`{simulator}`' for simulator in simulators)}."
    )
    return "\n\n".join([f"# AIM on {suite}", measured, _table(rows), commands])


def _deviations(suite: str, runs: list[Run]) -> str:
    if suite != "robotwin":
        text = f"The protocol of {suite} is this project's own; there are no published numbers to compare with."
        return f"## Protocol\n\n{text}"
    rule = (
        "RoboTwin's: of each task the first 100 scenes, in the order of their seeds, that its own expert fulfils; "
        "success when the task's check holds after any step; its step limits. Instructions: RoboTwin's script takes "
        "unseen ones in the 2025 releases, and today seen ones on Easy and unseen ones on Hard; those taken here are "
        "listed above."
    )
    own = [f"{run.title}: {sentence}" for run in runs for sentence in deviations(run)]
    always = [f"Always: {sentence}" for sentence in robotwin.DEVIATIONS]
    return "\n\n".join(["## Protocol, and where these runs deviate from it", rule, _list(own + always)])


def _tasks(runs: list[Run]) -> list[str]:
    """The tasks of all runs in the suite's order; last those that it hasn't in this version: the means count them."""
    there = {task for run in runs for task in run.results["tasks"]}
    known = [task for task in TASKS[runs[0].results["suite"]] if task in there]
    return known + sorted(there.difference(known))


def _split_section(runs: list[Run], published: dict[str, dict[str, float]], split: str) -> str:
    tasks = _tasks(runs)
    by_task = {model: rates for model, rates in published.items() if len(rates) > 1}
    rows = [["task", *(run.title for run in runs), *(f"{model}, published" for model in by_task)]]
    for task in tasks:
        ours = [format_rate(of) if (of := run.results["tasks"].get(task)) else "" for run in runs]
        rows.append([f"`{task}`", *ours, *(_percent(rates.get(task)) for rates in by_task.values())])
    means = [f"**{run.results['mean_rate']:.1%}**" for run in runs]
    rows.append(["mean", *means, *(_percent(rates["mean"]) for rates in by_task.values())])
    parts = [f"## {split.capitalize()}", f"![success of each task, {split}]({split}.png)"]
    if published:
        others = [f"{model} {rates['mean']:g}%" for model, rates in published.items() if model not in by_task]
        parts.append(
            "Numbers marked as published are the paper's claim; this project has not measured them. Means that it "
            f"publishes without a table by task: {', '.join(others)}."
        )
    parts.append(_table(rows))
    pairs = []
    for first, second in itertools.combinations(runs, 2):
        try:
            compared = compare(first.folder, second.folder)
        except ValueError:  # other scenes, instructions or maps: there are no pairs
            continue
        pairs.append(
            f"{second.title} against {first.title}, on the same scenes: {compared['gain_points']:+.1f} points, "
            f"McNemar's p = {compared['mcnemar_p']:.2g}."
        )
    if pairs:
        parts.append(_list(pairs))
    return "\n\n".join(parts)


def _failures(runs: list[Run], output: Path) -> str:
    rows = [["policy", "task", "seed", "instruction", "steps", "film"]]
    for run in runs:
        for task in run.results["tasks"]:
            for record in sorted(read_records(run.folder, task), key=lambda record: record["seed"]):
                if not record["success"]:
                    film = record["video"] and os.path.relpath(run.folder / record["video"], output)
                    link = f"[film]({quote(film)})" if film else ""
                    words = _plain(record["instruction"])
                    rows.append([run.title, f"`{task}`", str(record["seed"]), words, str(record["steps"]), link])
    if len(rows) == 1:
        return "## Failed episodes\n\nNone."
    summary = f"<summary><h2>Failed episodes ({len(rows) - 1})</h2></summary>"
    return f"<details>{summary}\n\n{_table(rows)}\n\n</details>"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:g}%"


def _plot(runs: list[Run], published: dict[str, dict[str, float]], split: str) -> bytes:
    """Success of each task with its interval, a row each, and the paper's AIM where it has published it."""
    tasks = _tasks(runs)
    height = 0.8 / len(runs)
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(tasks) * max(1, len(runs) / 2)))
    axis = figure.subplots()
    for index, run in enumerate(runs):
        label = run.name  # of its first bar
        for row, task in enumerate(tasks):
            if (of := run.results["tasks"].get(task)) is None:
                continue
            low, high = of["wilson"]
            place, color = row + (index - (len(runs) - 1) / 2) * height, f"C{index}"
            axis.barh(place, 100 * of["rate"], 0.85 * height, color=color, label=label)
            axis.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1)
            label = None
    if "aim" in published:
        claimed = [(published["aim"][task], row) for row, task in enumerate(tasks) if task in published["aim"]]
        axis.scatter(*zip(*claimed), marker="|", s=120, color="crimson", label="AIM, published", zorder=3)
    axis.set_yticks(range(len(tasks)), tasks, fontsize=8)
    axis.set_ylim(len(tasks) - 0.4, -0.6)
    axis.set_xlim(0, 101)
    axis.set_xlabel(f"success, %, {split}; lines are 95 % Wilson intervals")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2, frameon=False)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    return picture.getvalue()


_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e24; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .3rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #eee; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
code { background: #f4f4f6; padding: 0 .2rem; overflow-wrap: anywhere; }
td code, thead th { white-space: nowrap; }
img { max-width: 100%; }
summary h2 { display: inline-block; }
</style>
$body
</html>
""")
