"""Collect expert episodes with value maps:

    accelerate launch --multi_gpu --num_processes 2 dataset_scripts/collect.py --suite tabletop --tasks click_bell \
        --split easy --episodes 100 --output DIR

The unit of work is a shard: `--shard-size` episodes of one task from a range of seeds of its own, whichever process
makes it. So the folder's content doesn't depend on the number of processes, and a run that was killed goes on with the
shards that are missing when the same command is given again.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

# Set before the simulator loads its renderer: a process renders on one core, and processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")

import pyarrow.parquet as pq  # noqa: E402
from accelerate import PartialState  # noqa: E402
from datasets import disable_progress_bars  # noqa: E402
from tqdm import tqdm  # noqa: E402

from aim_hf.data.episodes import remove_leftovers, shard_path, write_card, write_shard  # noqa: E402
from aim_hf.data.recorder import Failure, record_episode  # noqa: E402
from aim_hf.envs import TASKS, make_environment  # noqa: E402
from aim_hf.envs.base import SPLITS, Environment  # noqa: E402
from aim_hf.envs.seeds import episode_seeds, scene_generator  # noqa: E402

SEEDS_PER_EPISODE = 2  # a shard may try this many seeds for each episode that it wants


@dataclass(frozen=True)
class Shard:
    """`episodes` episodes of a task, from the first of `seeds` on which the expert succeeds."""

    task: str
    split: str
    index: int
    episodes: int
    seeds: list[int]


def plan(tasks: list[str], split: str, episodes: int, shard_size: int, start_seed: int) -> list[Shard]:
    """The shards that hold `episodes` episodes of each task."""
    shards = []
    for task in tasks:
        for index, first in enumerate(range(0, episodes, shard_size)):
            start = start_seed + first * SEEDS_PER_EPISODE
            seeds = episode_seeds("train", start, shard_size * SEEDS_PER_EPISODE)
            shards.append(Shard(task, split, index, min(shard_size, episodes - first), seeds))
    return shards


def collect_shard(env: Environment, shard: Shard, noise: float, progress: tqdm) -> tuple[list[dict], list[dict]]:
    """Record a shard: its rows, and the manifest's entry for each seed tried.

    Raises:
        RuntimeError: if the seeds run out.
    """
    rows, tried = [], []
    for seed in shard.seeds:
        if len(rows) == shard.episodes:
            break
        rng = scene_generator(shard.task, shard.split, seed, "noise")
        episode = record_episode(env, seed, noise, rng)
        entry = {"suite": env.suite, "task": shard.task, "split": shard.split, "seed": seed, "noise": noise}
        if isinstance(episode, Failure):
            tried.append(entry | {"outcome": "failed", "reason": episode.reason})
            progress.write(f"{shard.task} seed {seed} failed: {episode.reason}")
        else:
            tried.append(entry | {"outcome": "recorded"})
            rows.append(episode.to_row())
            progress.update()
    if len(rows) < shard.episodes:
        raise RuntimeError(
            f"{shard.task}: only {len(rows)} of {shard.episodes} episodes from the {len(shard.seeds)} seeds "
            f"{shard.seeds[0]}..{shard.seeds[-1]}; the expert fails too often: {tried[-1].get('reason')}"
        )
    return rows, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(TASKS), default="tabletop")
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the suite")
    parser.add_argument("--split", choices=SPLITS, default="easy")
    parser.add_argument("--episodes", type=int, required=True, help="recorded episodes of each task")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of the tools' offsets in m")
    parser.add_argument("--start-seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=50, help="episodes of a Parquet file")
    args = parser.parse_args()

    tasks = args.tasks or list(TASKS[args.suite])
    shards = plan(tasks, args.split, args.episodes, args.shard_size, args.start_seed)
    missing = [shard for shard in shards if not is_done(args.output, shard)]
    state = PartialState(cpu=True)
    if state.is_main_process:
        remove_leftovers(args.output)
    state.wait_for_everyone()
    mine = missing[state.process_index :: state.num_processes]
    disable_progress_bars()  # of `datasets`, one for each file written

    rank, total = state.process_index, sum(shard.episodes for shard in mine)
    with tqdm(total=total, unit="episode", desc=f"process {rank}", position=rank) as progress:
        env = None
        for shard in mine:
            if env is None or env.task != shard.task:
                if env is not None:
                    env.close()
                env = make_environment(args.suite, shard.task, shard.split)
            rows, tried = collect_shard(env, shard, args.noise, progress)
            write_shard(shard_path(args.output, shard.split, shard.task, shard.index), rows, tried)
            write_card(args.output)
        if env is not None:
            env.close()


def is_done(output: Path, shard: Shard) -> bool:
    """Whether the shard is there with all its episodes. One that an earlier run wanted shorter is made again."""
    path = shard_path(output, shard.split, shard.task, shard.index)
    return path.exists() and pq.read_metadata(path).num_rows == shard.episodes


if __name__ == "__main__":
    main()
