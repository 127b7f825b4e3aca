"""Training steps a second of `lerobot-train`, with and without the cache of latents.

    python benchmarks/lerobot_training.py --dataset runs/dataset --policy checkpoints/aim-tiny \\
        --output_file benchmarks/results/lerobot_training.json

It needs lerobot and the plug-in, as `make test-lerobot` installs them. A first run of the command fills a cache, and
isn't counted. Then two kinds of runs on the same windows take turns:

- `encoded`: the video codec runs on each window, as in a first epoch.
- `kept`: the latents are read from `--policy.latents_dir`, as in a later epoch.

A step is LeRobot's `data_s` and `updt_s`: loading the window, forward, backward and optimizer. LeRobot decodes the
videos in both kinds. A number is the median of all counted steps.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import finish

from aim_hf.commands import PathParser

KINDS = ("encoded", "kept")
STEP = re.compile(r" step:\S+ .*updt_s:([\d.]+) data_s:([\d.]+)")


def main():
    arguments = PathParser(description=__doc__)
    arguments.add_argument("--dataset", required=True, help="folder of a LeRobot dataset")
    arguments.add_argument("--repo_id", default="you/tabletop", help="its name")
    arguments.add_argument("--policy", default="checkpoints/aim-tiny", help="AIM pipeline to begin from")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch_size", type=int, default=8)
    arguments.add_argument("--num_workers", type=int, default=0, help="processes that load windows")
    arguments.add_argument("--steps", type=int, default=20, help="of a run")
    arguments.add_argument("--warm_up", type=int, default=5, help="steps at its start that aren't counted")
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    arguments.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    args = arguments.parse_args()
    if args.steps <= args.warm_up:
        arguments.error(f"steps is {args.steps}; expected more than the {args.warm_up} of warm_up.")

    seconds = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder), "kept", run=0)
        for run in range(1, args.rounds + 1):
            for kind in KINDS:
                seconds[kind] += step_seconds(train(args, Path(folder), kind, run))[args.warm_up :]
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    numbers = {
        "step_seconds": medians,
        "steps_per_second": {kind: 1 / median for kind, median in medians.items()},
        "kept_over_encoded": medians["encoded"] / medians["kept"],
    }
    finish(numbers, args)


def train(args: argparse.Namespace, folder: Path, kind: str, run: int) -> str:
    """The log of a run of `lerobot-train`, on the windows that every run sees."""
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", "--policy.type=aim", "--seed=0", "--log_freq=1"]
    command += [
        f"--policy.base_model_id={args.policy}",
        f"--policy.device={args.device}",
        "--policy.push_to_hub=false",
    ]
    command += [f"--dataset.repo_id={args.repo_id}", f"--dataset.root={args.dataset}", "--save_checkpoint=false"]
    command += [f"--batch_size={args.batch_size}", f"--num_workers={args.num_workers}", f"--steps={args.steps}"]
    command += [f"--output_dir={folder / f'{kind}-{run}'}"]
    if kind == "kept":
        command += [f"--policy.latents_dir={folder / 'latents'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stderr + done.stdout


def step_seconds(log: str) -> list[float]:
    """Seconds of each step in a log of `lerobot-train --log_freq=1`."""
    return [float(update) + float(data) for update, data in STEP.findall(log)]


if __name__ == "__main__":
    main()
