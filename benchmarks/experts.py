"""How often the experts of `tabletop` or `aloha` succeed, how long their episodes are, and how fast the suite runs.

python benchmarks/experts.py --suite tabletop --output_file benchmarks/results/tabletop_experts.json
python benchmarks/experts.py --suite aloha --output_file benchmarks/results/aloha_experts.json
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

from aim_hf.commands import PathParser
from aim_hf.envs import TASKS, make_environment
from aim_hf.envs.names import splits_of
from aim_hf.envs.seeds import episode_seeds
from aim_hf.utils.files import write_json
from aim_hf.utils.provenance import provenance


def measure_experts(suite: str, task: str, split: str, seeds: list[int]) -> dict:
    """Runs the expert once a seed, without rendering."""
    environment = make_environment(suite, task, split, render=False)
    failures, lengths, resetting, stepping = [], [], 0.0, 0.0
    for seed in seeds:
        start = time.perf_counter()
        environment.reset(seed)
        resetting += time.perf_counter() - start
        actions = environment.expert().actions
        start = time.perf_counter()
        for action in actions:
            result = environment.step(action, observe=False)
        stepping += time.perf_counter() - start
        lengths.append(len(actions))
        if not result.success:
            failures.append(seed)
    return {
        "episodes": len(seeds),
        "successes": len(seeds) - len(failures),
        "failed_seeds": failures,
        "mean_length": float(np.mean(lengths)),
        "shortest": min(lengths),
        "longest": max(lengths),
        "step_limit": environment.step_limit,
        "control_steps_per_second": sum(lengths) / stepping,
        "reset_ms": 1000 * resetting / len(seeds),
        "simulator": environment.simulator,
    }


def measure_observations(suite: str, split: str, seed: int, count: int = 200) -> dict:
    """Times what rendering costs: three-camera observations of a standing scene, and whole resets."""
    environment = make_environment(suite, TASKS[suite][0], split)
    environment.reset(seed)  # the first picture compiles the shaders
    start = time.perf_counter()
    for _ in range(count):
        environment.observe()
    observations_per_second = count / (time.perf_counter() - start)
    start = time.perf_counter()
    for other in range(20):
        environment.reset(seed + other)
    return {
        "observations_per_second": observations_per_second,
        "reset_with_rendering_ms": 1000 * (time.perf_counter() - start) / 20,
    }


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("--suite", choices=("tabletop", "aloha"), default="tabletop")
    parser.add_argument("--episodes", type=int, default=100, help="episodes a task and split")
    parser.add_argument("--output_file", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    suite, splits = arguments.suite, splits_of(arguments.suite)
    seeds = episode_seeds("evaluation", 0, arguments.episodes)
    report = {
        **provenance(torch.device("cpu")),
        "load_at_start": os.getloadavg()[0],
        "seeds": [seeds[0], seeds[-1]],
        "rendering": {split: measure_observations(suite, split, seeds[0]) for split in splits},
        "tasks": {},
    }
    print("| task | split | success | length (min–max) | steps/s | reset ms |\n|---|---|---|---|---|---|")
    for task in TASKS[suite]:
        report["tasks"][task] = {}
        for split in splits:
            row = report["tasks"][task][split] = measure_experts(suite, task, split, seeds)
            lengths = f"{row['mean_length']:.1f} ({row['shortest']}–{row['longest']})"
            print(
                f"| {task} | {split} | {row['successes']}/{row['episodes']} | {lengths} "
                f"| {row['control_steps_per_second']:.0f} | {row['reset_ms']:.1f} |",
                flush=True,
            )
    for split, row in report["rendering"].items():
        print(f"{split}: {row['observations_per_second']:.0f} three-camera observations/s")
    if arguments.output_file:
        write_json(arguments.output_file, report, indent=2)


if __name__ == "__main__":
    main()
