"""Cost of recording episodes of RoboTwin, in processor seconds and bytes, with the installation that variables name.

    ROBOTWIN_PYTHON=.venv-robotwin/bin/python ROBOTWIN_ASSETS_ROOT=outputs/robotwin-assets ROBOTWIN_SHADER=trivial \\
        ROBOTWIN_PLANNER=cpu python benchmarks/robotwin_cost.py --episodes_dir runs/robotwin-cost \\
        --output_file benchmarks/results/robotwin_cost.json

Processor seconds are those of this process and of the simulator, seeds without an episode included. They don't count
the time in which other programs run, but these slow caches down. The start of a simulator is counted separately: a
process starts one a task and split.

A killed run continues: tasks in the output file, with as many episodes, aren't measured again. The folder is one of
`aim-hf collect`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from aim_hf.commands import PathParser  # noqa: E402
from aim_hf.data.collection import Shard, collect_shard  # noqa: E402
from aim_hf.data.shards import remove_leftovers  # noqa: E402
from aim_hf.envs import TASKS, make_environment  # noqa: E402
from aim_hf.envs.base import SPLITS  # noqa: E402
from aim_hf.envs.robotwin import RoboTwinError  # noqa: E402
from aim_hf.envs.seeds import episode_seeds  # noqa: E402
from aim_hf.utils.files import write_json  # noqa: E402
from aim_hf.utils.provenance import provenance  # noqa: E402

SEEDS = 10  # that an episode may take


def processor_seconds() -> tuple[float, float]:
    """Of this process, and of the simulators that it has started."""
    this = psutil.Process()
    own, children = this.cpu_times(), [child.cpu_times() for child in this.children(recursive=True)]
    return own.user + own.system, sum(times.user + times.system for times in children)


def measure(task: str, split: str, folder: Path, episodes: int) -> dict[str, Any]:
    """Records the first episodes of a task and split."""
    shard = Shard(task, split, 0, episodes, episode_seeds("train", 0, SEEDS * episodes))
    writer = shard.writer(folder)
    writer.remove_pieces()  # of a killed run, whose seconds are lost
    writer = shard.writer(folder)
    start = sum(processor_seconds())
    environment = make_environment("robotwin", task, split, depth=True)
    try:
        before = processor_seconds()
        with tqdm(total=episodes, desc=f"{task} {split}", unit="episode") as progress:
            collect_shard(environment, shard, writer, 0.0, 0.0, progress)
        ours, simulator = np.subtract(processor_seconds(), before) / episodes
    finally:
        environment.close()
    frames = pq.read_table(writer.path, columns=["num_frames"])["num_frames"].to_pylist()
    return {
        "episodes": episodes,
        "seeds": len(writer.tried),
        "start_seconds": sum(before) - start,
        "seconds": {"simulator": simulator, "labels and videos": ours},
        "frames": sum(frames) / episodes,
        "bytes": writer.path.stat().st_size / episodes,
        "simulator": environment.simulator,
    }


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS["robotwin"])
    parser.add_argument("--splits", nargs="+", default=SPLITS)
    parser.add_argument("--episodes", type=int, default=1, help="of each task and split")
    parser.add_argument("--episodes_dir", type=Path, required=True, help="folder that the episodes are recorded in")
    parser.add_argument("--output_file", type=Path, required=True, help="JSON file to write, after each task")
    args = parser.parse_args()

    remove_leftovers(args.episodes_dir)
    report = {**provenance(torch.device("cpu")), "load_at_start": os.getloadavg()[0]}
    report["tasks"] = json.loads(args.output_file.read_text())["tasks"] if args.output_file.exists() else {}
    for split in args.splits:
        for task in args.tasks:
            if report["tasks"].get(f"{task}/{split}", {}).get("episodes") == args.episodes:
                continue
            try:
                row = measure(task, split, args.episodes_dir, args.episodes)
            except RoboTwinError as error:
                row = {"problem": str(error).splitlines()[0]}
            report["tasks"][f"{task}/{split}"] = {"commit": report["commit"], **row}
            write_json(args.output_file, report)


if __name__ == "__main__":
    main()
