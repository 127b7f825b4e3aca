"""Plans the shards of a collection, and records them."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..envs.base import Environment
from ..envs.names import TASKS
from ..envs.robotwin import chosen_settings
from ..envs.robotwin.tasks import simulator_seed
from ..envs.seeds import episode_seeds
from .recorder import Failure, record_episode
from .shards import ShardWriter


@dataclass(frozen=True)
class Shard:
    """`episodes` episodes of one task, from the first of `seeds` on which the expert succeeds."""

    task: str
    split: str
    index: int
    episodes: int
    seeds: list[int]

    def writer(self, folder: Path) -> ShardWriter:
        return ShardWriter(folder, self.split, self.task, self.index)


class SeedsExhausted(RuntimeError):
    """The expert fails on too many of a shard's seeds."""


def made_from(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that determine the episodes of a collection, for `files.claim`. Tasks, splits and the number of
    episodes are not among them, because later calls may add some."""
    names = ("suite", "noise", "start_seed", "seeds_per_episode", "shard_size")
    settings = {name: getattr(args, name) for name in names}
    return settings | ({"mistakes": args.mistakes} if args.mistakes else {}) | chosen_settings(args.suite)


def plan(args: argparse.Namespace) -> list[Shard]:
    """The shards of `args.episodes` episodes of each task and split; one that is named twice counts once.

    Raises ValueError if there aren't enough training seeds; RoboTwin has fewer than other suites.
    """
    files = []  # of each task and split
    for index, first in enumerate(range(0, args.episodes, args.shard_size)):
        start = args.start_seed + first * args.seeds_per_episode
        seeds = episode_seeds("train", start, args.shard_size * args.seeds_per_episode)
        files.append((index, min(args.shard_size, args.episodes - first), seeds))
    if args.suite == "robotwin":
        simulator_seed(seeds[-1])
    tasks = dict.fromkeys(args.tasks or TASKS[args.suite])
    return [Shard(task, split, *file) for split in dict.fromkeys(args.splits) for task in tasks for file in files]


def collect_shard(
    env: Environment, shard: Shard, writer: ShardWriter, noise: float, mistakes: float, progress: tqdm
) -> None:
    """Records the missing episodes of a shard, and finishes it. `noise`, `mistakes`: of `record_episode`.

    Raises:
        SeedsExhausted: if the expert fails on too many seeds.
    """
    for seed in shard.seeds:
        if writer.num_episodes >= shard.episodes:
            break
        if seed in writer.tried:
            continue
        episode = record_episode(env, seed, noise, mistakes)
        if isinstance(episode, Failure):
            writer.reject(seed, episode.reason)
            progress.write(f"{shard.task} seed {seed} failed: {episode.reason}")
        else:
            writer.add(episode.to_row())
            progress.update()
    if writer.num_episodes < shard.episodes:
        reasons = [reason for reason in writer.tried.values() if reason is not None]
        raise SeedsExhausted(
            f"{shard.task}: only {writer.num_episodes} of {shard.episodes} episodes from the {len(shard.seeds)} seeds "
            f"{shard.seeds[0]}..{shard.seeds[-1]}; raise "
            f"--seeds_per_episode (in another output folder), or look at why the expert fails: {reasons[-1]}"
        )
    writer.finish(
        {
            "suite": env.suite,
            "task": shard.task,
            "split": shard.split,
            "noise": noise,
            "mistakes": mistakes,
            "seeds_from": shard.seeds[0],
            "simulator": env.simulator,
        }
    )
