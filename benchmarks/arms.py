"""Shared by studies of training arms: running the commands of `aim-hf`; reading, testing and printing judged arms."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

FLIPS, RESAMPLES = 100_000, 2000  # random draws of a test, and of an interval
# Options of `aim-hf train` that all arms share with checkpoints/aim-tiny.
STAGE1 = {
    "num_action_draws": 4,
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.99,
    "weight_decay": 0.01,
    "committed_probability": 0.3,
    "prompt_dropout": 0.1,
    "logging_steps": 25,
    "save_steps": 100,
    "save_total_limit": 1,
}


def as_arguments(options: dict) -> list[str]:
    """Options of a command; a list is given as several values, and True as none."""
    arguments = []
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *map(str, values)]
    return arguments


def launch(arguments: list[str], processes: int) -> None:
    """Runs a command of `aim-hf` in so many processes of one thread each."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    command += [*(["--multi_gpu"] if processes > 1 else []), "--num_processes", str(processes), "-m", "aim_hf"]
    subprocess.run([*command, *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def read_outcomes(output: Path, tasks: list[str]) -> np.ndarray | None:
    """Success of each episode, (tasks, episodes), in the order of seeds; None without `results.json`."""
    # Imported here: the environments' worker processes import this file too, and need none of it.
    from aim_hf.evaluation.evaluate import read_records

    if not (output / "results.json").is_file():
        return None
    of_tasks = [{record["seed"]: record["success"] for record in read_records(output, task)} for task in tasks]
    return np.array([[successes[seed] for seed in sorted(successes)] for successes in of_tasks], dtype=float)


def write_judged(path: Path, run: Path, conditions: Iterable[str], tasks: list[str], more: dict[str, Any]) -> None:
    """Writes a record of an arm, small enough to be kept: of each condition the `outcomes`, a string of 0 and 1 for
    each task, and how far the first maps' `peaks` lie from the contact; `more`; and where and how it was judged."""
    import torch

    from aim_hf.evaluation.evaluate import read_results
    from aim_hf.utils.files import write_json
    from aim_hf.utils.provenance import provenance

    results = {condition: read_results(run / "judged" / condition) for condition in conditions}
    content = {
        "outcomes": {name: {task: of["tasks"][task]["outcomes"] for task in tasks} for name, of in results.items()},
        "peaks": {name: of["first_chunk_peak_on_table"] for name, of in results.items()},
    }
    write_json(path, content | more | provenance(torch.device("cpu")))


def read_judged(folder: Path, arms: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Arm -> the records of its judged training seeds: the files `<arm>-<seed>.json`."""
    from aim_hf.utils.files import read_json

    paths = {arm: sorted(folder.glob(f"{arm}-[0-9]*.json")) for arm in arms}
    records = {arm: [read_json(path, "judge it again") for path in of] for arm, of in paths.items() if of}
    return {arm: sorted(of_arm, key=itemgetter("seed")) for arm, of_arm in records.items()}


def successes_of(judged: dict[str, list[dict]], condition: str, tasks: list[str]) -> dict[str, dict[int, np.ndarray]]:
    """Arm -> training seed -> success (tasks, episodes) under a condition.

    Raises:
        ValueError: for records with another number of episodes than the first.
    """
    counts = {len(record["outcomes"][condition][task]) for of in judged.values() for record in of for task in tasks}
    if len(counts) > 1:
        raise ValueError(f"the arms were judged on {sorted(counts)} episodes of a task; expected the same number.")
    return {
        arm: {
            record["seed"]: np.array([list(record["outcomes"][condition][task]) for task in tasks]) == "1"
            for record in records
        }
        for arm, records in judged.items()
    }


def study(
    records: dict[str, list[dict]],
    conditions: Iterable[str],
    tasks: list[str],
    pairs: Collection[tuple[str, str]],
    summarize: Callable[[np.ndarray, list[str]], dict[str, Any]],
) -> dict[str, Any]:
    """`arms`, condition -> arm -> its summary, and `tests`, for the pairs whose arms were both judged. Holm's
    correction is the caller's, who knows all tests (`add_holm`)."""
    arms, tests = {}, []
    for condition in conditions:
        successes = successes_of(records, condition, tasks)
        arms[condition] = {arm: summarize(np.stack([*of.values()]), tasks) for arm, of in successes.items()}
        tests += compared(successes, condition, pairs)
    return {"arms": arms, "tests": tests}


def add_holm(tests: Collection[dict[str, Any]]) -> None:
    """Adds to each test, beside its `p`, `holm_p`: the p-value under Holm's correction for all of them."""
    largest = 0.0
    for rank, test in enumerate(sorted(tests, key=itemgetter("p"))):
        largest = max(largest, min(1.0, (len(tests) - rank) * test["p"]))
        test["holm_p"] = largest


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of a mean of paired differences, by flipping their signs at random."""
    rng, observed, extreme = np.random.default_rng(0), abs(differences.sum()), 0
    differences = differences[differences != 0]
    for _ in range(FLIPS // 1000):
        flipped = rng.choice([-1.0, 1.0], size=(1000, len(differences))) @ differences
        extreme += int((np.abs(flipped) >= observed - 1e-9).sum())
    return (extreme + 1) / (FLIPS + 1)


def paired_gain(before: dict[int, np.ndarray], after: dict[int, np.ndarray]) -> dict[str, Any]:
    """`gain_points` of `after` and its `p`, by flipping signs: training seed -> success (tasks, episodes) on the same
    scenes. A scene's gain is the mean over training seeds, which may differ; `gain_of_each_seed` are those of the
    training seeds that both have."""
    means = [np.mean([*of.values()], axis=0) for of in (before, after)]
    difference = (means[1] - means[0]).flatten()
    of_each = [float(100 * (after[seed].mean() - before[seed].mean())) for seed in before if seed in after]
    return {
        "gain_points": float(100 * difference.mean()),
        "gain_of_each_seed": of_each,
        "p": sign_flip_p(difference),
    }


def compared(
    successes: dict[str, dict[int, np.ndarray]], condition: str, pairs: Iterable[tuple[str, str]]
) -> list[dict]:
    """The paired tests of the pairs whose arms were both judged."""
    return [
        {"condition": condition, "arms": list(pair)} | paired_gain(*(successes[arm] for arm in pair))
        for pair in pairs
        if set(pair) <= successes.keys()
    ]


def summarize_runs(runs: np.ndarray, tasks: list[str]) -> dict[str, Any]:
    """Rates in percent of success (training seeds, tasks, episodes): of each training seed, of each task, and the
    mean, with a 95 % interval over scenes."""
    scenes = runs.mean(0)
    rng = np.random.default_rng(0)
    draws = rng.integers(scenes.shape[1], size=(RESAMPLES, *scenes.shape))
    resampled = np.take_along_axis(scenes[None], draws, axis=2).mean((1, 2))
    return {
        "mean": float(100 * scenes.mean()),
        "interval": (100 * np.quantile(resampled, [0.025, 0.975])).tolist(),
        "of_each_seed": (100 * runs.mean((1, 2))).tolist(),
        "tasks": dict(zip(tasks, (100 * scenes.mean(1)).tolist(), strict=True)),
        "episodes": int(runs.size),
    }


def format_runs(summary: dict[str, Any] | None) -> str:
    """An entry of `summarize_runs` in a table; "" for none."""
    if summary is None:
        return ""
    low, high = summary["interval"]
    seeds = ", ".join(f"{rate:.1f}" for rate in summary["of_each_seed"])
    return f"{summary['mean']:.1f} % ({low:.1f} to {high:.1f}; seeds {seeds})"


def rates_table(arms: list[str], rates: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the rates of each arm, `summarize_runs`, under each condition."""
    rows = (line(arm, *(format_runs(of_arm.get(arm)) for of_arm in rates.values())) for arm in arms)
    return [*heading("arm", *rates), *rows]


def tests_table(tests: list[dict]) -> list[str]:
    """Lines of Markdown: the tests of `compared`."""
    lines = heading("condition", "arms", "gain, points", "p", "Holm's p")
    for test in tests:
        first, second = test["arms"]
        numbers = f"{test['gain_points']:+.1f}", f"{test['p']:.2g}", f"{test['holm_p']:.2g}"
        lines.append(line(test["condition"], f"{second} against {first}", *numbers))
    return lines


def heading(*cells: str) -> list[str]:
    return [line(*cells), "|---" * len(cells) + "|"]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
