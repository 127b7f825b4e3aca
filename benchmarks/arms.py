"""What studies of training arms share: how they run the commands of `aim-hf`, and read, test and print judged arms."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from aim_hf.evaluation.statistics import format_runs, paired_gain


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


def judged(runs: dict[str, list[Path]], condition: str, tasks: list[str]) -> dict[str, np.ndarray]:
    """Arm -> success (training seeds, tasks, episodes) under a condition, of those that were judged.

    Args:
        runs: arm -> the folder of each training seed.
    """
    # Imported here: the environments' worker processes import this file too, and need none of it.
    from aim_hf.evaluation.evaluate import read_outcomes

    found = {arm: [read_outcomes(run / "judged" / condition, tasks) for run in of] for arm, of in runs.items()}
    found = {arm: [successes for successes in of if successes is not None] for arm, of in found.items()}
    return {arm: np.stack(of) for arm, of in found.items() if of}


def compared(successes: dict[str, np.ndarray], condition: str, pairs: Iterable[tuple[str, str]]) -> list[dict]:
    """The paired tests of those pairs of arms of which both were judged."""
    return [
        {"condition": condition, "arms": list(pair)} | paired_gain(*(successes[arm] for arm in pair))
        for pair in pairs
        if set(pair) <= successes.keys()
    ]


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
