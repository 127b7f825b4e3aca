"""Tables of success: of policies, of stages of training, of settings and of the suites' experts."""

import csv
import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from markdown_tables import ROOT, bullets, measured, origin, read, table

from aim_hf.envs.names import splits_of
from aim_hf.evaluation.comparison import format_comparison, mean_rate
from aim_hf.evaluation.statistics import PEAKS, format_peaks, format_rate, paired_difference, wilson_interval
from aim_hf.utils.provenance import machine

PUBLISHED = ROOT / "src" / "aim_hf" / "evaluation" / "published"
EVALUATIONS = {"easy": "Easy", "hard": "Hard", "easy-true-maps": "Easy, given the true value maps"}


def episodes(comparison: dict[str, Any]) -> int:
    return sum(task["episodes"] for task in comparison["tasks"].values())


def read_evaluations(folder: Path, path: str = "{}.json") -> dict[str, dict[str, Any]]:
    """Title -> results.json of those of `EVALUATIONS` that are in `folder`, each under `path`."""
    paths = {title: folder / path.format(name) for name, title in EVALUATIONS.items()}
    return {title: json.loads(path.read_text()) for title, path in paths.items() if path.exists()}


def success_table(results: dict[str, dict[str, Any]]) -> str:
    """Success rates of each task with their 95 % Wilson intervals, and the first maps' peaks, on Hard if it is there.

    Args:
        results: of `read_evaluations`.
    """
    if not results:
        return "Nothing was measured yet.\n"
    title = "Hard" if "Hard" in results else next(iter(results))
    tasks = list(dict.fromkeys(task for result in results.values() for task in result["tasks"]))

    def cell(result: dict[str, Any], form: Callable[[dict[str, Any]], str], mean: str) -> Callable[[str], str]:
        def of(task: str) -> str:
            if task not in tasks:
                return mean
            return form(result["tasks"][task]) if task in result["tasks"] else ""  # it was evaluated on others

        return of

    columns = {
        "task": lambda task: f"`{task}`" if task in tasks else task,
        **{name: cell(result, format_rate, f"**{result['mean_rate']:.0%}**") for name, result in results.items()},
        f"{PEAKS}, {title}": cell(results[title], format_peaks, format_peaks(results[title])),
    }
    return table(columns, tasks + ["mean"] if len(tasks) > 1 else tasks)


# Results of `aim-hf compare`: the change, the two policies, the split, and the file.
_STAGES = ("after stage 1", "after stage 2")
COMPARISONS = [
    (
        "8,000 steps of training at the times of 1 + 4 steps, instead of 5 + 10",
        ("5 + 10", "1 + 4"),
        "Hard",
        "aim-tiny/few-steps-hard",
    ),
    *(
        (change, names, split, f"aim-tiny-0.1/{file}-{split.lower()}")
        for change, names, file in (
            ("actions without noise (`action_noise_scale` 0), after stage 1", ("from noise", "without"), "noise"),
            ("stage 2", _STAGES, "stage2"),
            ("stage 2, both without action noise", _STAGES, "stage2-without-noise"),
            ("value maps, after stage 1", ("without value maps", "with"), "value-maps"),
        )
        for split in ("Easy", "Hard")
    ),
    ("stage 2 practised and judged without action noise", _STAGES, "Hard", "grpo/aim-tiny-without-noise"),
    ("bfloat16 instead of float32", ("float32", "bfloat16"), "Hard", "dtype/bfloat16-hard"),
]


def pooled_rate(comparison: dict[str, Any], side: str) -> str:
    """Successes of all tasks, with their 95 % Wilson interval in percent."""
    successes, count = sum(task[side]["successes"] for task in comparison["tasks"].values()), episodes(comparison)
    low, high = (round(100 * bound) for bound in wilson_interval(successes, count))
    return f"{mean_rate(comparison, side):.1%} ({successes}/{count}; {low} to {high})"


def comparison_table() -> str:
    """A row for each of `COMPARISONS`."""
    rows = [(change, split, read(file)) for change, _, split, file in COMPARISONS]
    columns = {
        "change": itemgetter(0),
        "split": itemgetter(1),
        "before": lambda row: pooled_rate(row[2], "before"),
        "after": lambda row: pooled_rate(row[2], "after"),
        "gain, points": lambda row: f"{row[2]['gain_points']:+.1f}",
        "McNemar's p": lambda row: f"{row[2]['mcnemar_p']:.2g}",
        "seeds from": lambda row: f"{row[2]['seeds'][0]:,}",
    }
    return table(columns, rows)


def comparison_origins() -> dict[str, dict[str, Any]]:
    return {
        f"{change}, {split}, {name}": read(file)[side]
        for change, names, split, file in COMPARISONS
        for name, side in zip(names, ("before", "after"))
    }


REWARDS = {
    "both": "grpo_tabletop",
    "success alone": "grpo/success",
    "value map alone": "grpo/value_map",
    "both, `action_noise_scale` 0": "grpo/without-noise",
}


def grpo_tasks() -> str:
    """Success of each task before and after the run with both rewards, and the cost of that run."""
    run = read("grpo_tabletop")
    training = run["training"]
    unchanged = (
        "All weights that RGB and value maps depend on are stored unchanged: both imagine the same, within the "
        "rounding of float32."
        if run["same_world"]
        else "**RGB or value maps are not the same before and after.**"
    )
    return f"""{format_comparison(run)}
{episodes(run)} episodes, on seeds from {run["seeds"][0]:,} on, before and after {training["steps"]} steps of GRPO on
{training["episodes"]:,} episodes of practice, which took {60 * training["hours"]:.0f} minutes \
({machine(training["hardware"])}; commit {training["commit"][:10]}).
{unchanged}
"""


def grpo_rewards() -> str:
    """Success and rollout metrics of each choice of rewards."""
    runs = {rewards: read(name) for rewards, name in REWARDS.items()}

    def rolled(metric: str, form: str) -> Callable[[str], str]:
        means = {
            rewards: [run["training"][part][metric] for part in ("first", "last")] for rewards, run in runs.items()
        }
        return lambda rewards: " to ".join(f"{mean:{form}}" for mean in means[rewards])

    columns = {
        "rewards": str,
        "before": lambda rewards: f"{mean_rate(runs[rewards], 'before'):.1%}",
        "after": lambda rewards: f"{mean_rate(runs[rewards], 'after'):.1%}",
        "gain, points": lambda rewards: f"{runs[rewards]['gain_points']:+.1f}",
        "McNemar's p": lambda rewards: f"{runs[rewards]['mcnemar_p']:.2g}",
        "value map's reward": rolled("rewards/value_map_reward/mean", ".2f"),
        "value hits": rolled("rollout/value_hit", ".0%"),
        "KL": lambda rewards: f"{runs[rewards]['training']['last']['kl']:.2f}",
    }
    training, learner = runs["both"]["training"], read("grpo/tiny")
    return f"""{table(columns, runs)}
The run with both rewards simulated {training["control_steps_per_core_second"]:.0f} control steps a second and core;
simulation took {training["simulation_share"]:.0%} of its time. A learner that trains all denoising steps is
{learner["plain_over_ours"]:.1f} times as fast as one that runs the video expert again for each of them, and
{learner["replayed_over_ours"]:.1f} times as fast as one that replays its cache (`benchmarks/grpo.py`).
"""


def study(name: str) -> str:
    """A study of `benchmarks/closed_loop.py`."""
    found = read(f"closed_loop/{name}")
    columns = {
        "setting": lambda row: ", ".join(f"`{name}` {value}" for name, value in row["setting"].items()) or "defaults",
        "success": format_rate,
        **{f"`{task}`": lambda row, task=task: row["tasks"][task] for task in found["rows"][0]["tasks"]},
    }
    if "to_first" in found["rows"][0]:  # few_steps-0.1-hard was run before settings were compared seed by seed
        columns["points"] = lambda row: f"{row['to_first']['gain_points']:+.1f}"
        columns["p"] = lambda row: f"{row['to_first']['p']:.2g}"
    return f"{table(columns, found['rows'])}\n{_conditions(found)}"


def delays() -> str:
    """Success by inference delay, with and without real-time chunking."""
    found = read("closed_loop/delays-hard")
    rows = {(row["setting"].get("delay", 0), row["setting"].get("real_time_chunking")): row for row in found["rows"]}

    def cell(delay: int, told: bool) -> str:
        row = rows[delay, told if delay else None]
        return f"{format_rate(row)}; {row['to_first']['gain_points']:+.1f}, p {row['to_first']['p']:.2g}"

    columns = {
        "`delay`": str,
        "with real-time chunking": lambda delay: cell(delay, True),
        "without": lambda delay: cell(delay, False),
    }
    return f"{table(columns, sorted({delay for delay, _ in rows}))}\n{_conditions(found)}"


def _conditions(found: dict[str, Any]) -> str:
    first = found["rows"][0]
    points = " Points are to the first row, p is McNemar's, uncorrected." if "to_first" in first else ""
    return (
        f"`{found['policy']}` on {found['split'].capitalize()}, {first['episodes'] // len(first['tasks'])} episodes a "
        f"task and setting, the same seeds for all of them.{points} {origin(found)}.\n"
    )


def signals() -> str:
    """Success of the fifths of the episodes by each signal of doubt."""
    found = read("closed_loop/signals-hard")
    parts = range(len(next(iter(found["signals"].values()))["rates"]))

    def cell(name: str, part: int) -> str:
        rate, (low, high) = found["signals"][name]["rates"][part], found["signals"][name]["intervals"][part]
        return f"{rate:.0%} ({100 * low:.0f} to {100 * high:.0f})"

    columns = {
        "signal": {"entropy": "entropy of the value maps", "drift": "drift of the imagined frames"}.get,
        **{f"{part + 1} of {len(parts)}": lambda name, part=part: cell(name, part) for part in parts},
        "AUROC of failure": lambda name: "{auroc:.2f} ({0:.2f} to {1:.2f})".format(
            *found["signals"][name]["auroc_interval"], **found["signals"][name]
        ),
    }
    return f"{table(columns, found['signals'])}\n{len(found['episodes'])} episodes: {origin(found)}.\n"


def imagined_study() -> str:
    """Success on Hard before and after training the actions further, on true maps or also on imagined ones."""
    names = {
        "stage 1, a third of the steps": "before",
        "250 more steps, true maps": "true_maps",
        "250 more steps, half of them imagined": "imagined_maps",
        "stage 1 anew, half of them imagined from the start": "from_the_start",
    }
    found = {title: read(f"evidence/imagined/{name}") for title, name in names.items()}
    tasks = list(found["stage 1, a third of the steps"]["tasks"])
    columns = {
        "training": str,
        "success": lambda title: f"{found[title]['mean_rate']:.0%}",
        **{f"`{task}`": lambda title, task=task: found[title]["tasks"][task]["successes"] for task in tasks},
    }
    before, after = list(found.values())[1:3]
    change = difference(before, after)
    return (
        f"{table(columns, names)}\nThe third row against the second: {change['gain_points']:+.1f} points, McNemar's "
        f"p = {change['p']:.1g}. {before['tasks'][tasks[0]]['episodes']} episodes a task, the same seeds for all:\n\n"
        f"{bullets(found)}"
    )


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """`paired_difference` of two results.json on the same scenes."""
    tasks = [(before["tasks"][name], after["tasks"][name]) for name in before["tasks"]]
    if any(first["seeds"] != second["seeds"] for first, second in tasks):
        raise ValueError("the results are of other scenes; expected the same seeds in each task.")
    first, second = ([outcome == "1" for task in of for outcome in task["outcomes"]] for of in zip(*tasks))
    return paired_difference(first, second)


def noise_study() -> str:
    """Success by `action_noise_scale`, split and stage of training."""
    files = {"Easy": "noise-easy", "Hard": "noise-hard", "Hard, as stage 1 had left it": "noise-stage1-hard"}
    studies = {title: read(f"closed_loop/{name}") for title, name in files.items()}
    # A setting that doesn't name the scale has the default, 1.
    rates = {
        title: {row["setting"].get("action_noise_scale", 1.0): row for row in found["rows"]}
        for title, found in studies.items()
    }
    columns = {"`action_noise_scale`": str}
    for scale in rates["Hard"]:
        columns[f"{scale:g}"] = lambda title, scale=scale: format_rate(rates[title][scale])
    first = studies["Hard"]["rows"][0]
    return (
        f"{table(columns, studies)}\n{first['episodes'] // len(first['tasks'])} episodes a task and setting, the same "
        f"seeds for all of a split; 95 % intervals:\n\n{bullets(studies)}"
    )


def experts(suite: str) -> str:
    """Success of a suite's scripted experts."""
    found = read(f"{suite}_experts")
    columns = {"task": lambda task: f"`{task}`"}
    for split in splits_of(suite):
        columns[split.capitalize()] = lambda task, split=split: "{successes}/{episodes}".format(
            **found["tasks"][task][split]
        )
    return f"{table(columns, found['tasks'])}\nMeasured by {origin(found)}.\n"


def robotwin_experts() -> str:
    """Success of RoboTwin's experts with the stand-in assets, and why the other tasks don't run."""
    found = read("robotwin_experts")
    tasks = {task: rows for task, rows in sorted(found["tasks"].items()) if "problem" not in rows["easy"]}
    columns = {"task": lambda task: f"`{task}`"}
    for split in ("easy", "hard"):
        columns[split.capitalize()] = lambda task, split=split: "{successes}/{episodes}".format(**tasks[task][split])
    columns["assets"] = lambda task: tasks[task]["easy"]["simulator"]["assets"]
    columns["commit"] = lambda task: tasks[task]["commit"][:10]
    others = "; ".join(
        f"`{task}`: {rows['easy']['problem']}" for task, rows in found["tasks"].items() if task not in tasks
    )
    return (
        f"{table(columns, tasks)}\nMeasured by `benchmarks/robotwin_experts.py` on {machine(found['hardware'])}, each "
        f"task with the assets and the code that it names. Tasks that don't run: {others}\n"
    )


def aloha() -> str:
    """AIM and LeRobot's policies on ALOHA's transfer cube; nothing before `benchmarks/aloha.py report` has run."""
    if not measured("aloha"):
        return "Not run yet.\n"
    found = read("aloha")
    columns = {
        "arm": lambda row: f"`{row['arm']}`",
        "episodes": lambda row: row["episodes"],
        "checkpoint": lambda row: row["checkpoint"],
        "hours": lambda row: f"{row['hours']:.1f}",
        "`lerobot-eval`": lambda row: format_rate(row["success"]["lerobot"]),
        "`aim-hf evaluate`": lambda row: format_rate(row["success"]["ours"]) if "ours" in row["success"] else "",
        "differing scenes": lambda row: "" if row["differing"] is None else row["differing"],
    }
    pairs = {
        "episodes": lambda test: test["episodes"],
        "arms": lambda test: " and ".join(f"`{name}`" for name in test["pair"]),
        "only one of them succeeds on": lambda test: " and ".join(map(str, test["only"])),
        "p, Holm's p": lambda test: f"{test['p']:.2g}, {test['holm_p']:.2g}",
    }
    return f"{table(columns, found['entries'])}\n{table(pairs, found['tests'])}\nMeasured by {origin(found)}.\n"


def aloha_published() -> str:
    """Published success on ALOHA's transfer cube."""
    with open(PUBLISHED / "aloha_transfer_cube.csv") as file:
        rows = list(csv.DictReader(file))
    columns = {name: lambda row, name=name: row[name] for name in ("policy", "data", "percent", "episodes", "source")}
    return table(columns, rows)
