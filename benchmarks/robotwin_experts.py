"""How often RoboTwin's experts succeed with the assets, the robot and the planner that the variables name.

ROBOTWIN_PYTHON=.venv-robotwin/bin/python ROBOTWIN_ASSETS_ROOT=outputs/robotwin-assets ROBOTWIN_SHADER=trivial \\
    ROBOTWIN_PLANNER=cpu python benchmarks/robotwin_experts.py --output_file benchmarks/results/robotwin_experts.json

Tasks that aren't named keep their results in an existing file; each task has its own commit.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from aim_hf.commands import PathParser
from aim_hf.envs import TASKS, make_environment
from aim_hf.envs.base import SPLITS, SeedRejected, SimulatorLost
from aim_hf.envs.robotwin import RoboTwinError, RoboTwinMissing
from aim_hf.envs.seeds import episode_seeds
from aim_hf.utils.files import write_json
from aim_hf.utils.provenance import provenance


def measure_expert(task: str, split: str, seeds: list[int]) -> dict[str, Any]:
    """Runs the expert once a seed, without rendering. `problem` says why a task doesn't run."""
    start, successes, failures = time.perf_counter(), 0, {}
    try:
        environment = make_environment("robotwin", task, split)
    except RoboTwinMissing as error:
        return {"problem": "; ".join(error.missing)}
    try:
        for seed in seeds:
            try:
                environment.reset(seed)
                *_, last = environment.demonstrate(observe=False)
                successes += last.success
                if not last.success:
                    failures[seed] = "the task isn't fulfilled"
            except (SeedRejected, SimulatorLost) as error:
                failures[seed] = getattr(error, "reason", str(error))
    except RoboTwinError as error:
        return {"problem": str(error).splitlines()[0], "simulator": environment.simulator}
    finally:
        environment.close()
    return {
        "episodes": len(seeds),
        "successes": successes,
        "failures": failures,
        "seconds": time.perf_counter() - start,
        "simulator": environment.simulator,
    }


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS["robotwin"])
    parser.add_argument("--episodes", type=int, default=10, help="seeds a task and split")
    parser.add_argument("--output_file", type=Path, help="JSON file to write, after each task")
    args = parser.parse_args()

    seeds = episode_seeds("train", 0, args.episodes)
    report = {**provenance(torch.device("cpu")), "load_at_start": os.getloadavg()[0], "seeds": [seeds[0], seeds[-1]]}
    known = args.output_file and args.output_file.exists() and json.loads(args.output_file.read_text())["tasks"]
    report["tasks"] = known or {}

    def measure(task: str) -> dict[str, Any]:
        return {"commit": report["commit"], **{split: measure_expert(task, split, seeds) for split in SPLITS}}

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each simulator is a process of its own
        for task, rows in zip(args.tasks, pool.map(measure, args.tasks), strict=True):
            report["tasks"][task] = rows
            print(
                task, {split: rows[split].get("successes", rows[split].get("problem")) for split in SPLITS}, flush=True
            )
            if args.output_file:
                write_json(args.output_file, report)


if __name__ == "__main__":
    main()
