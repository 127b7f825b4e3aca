"""Records expert episodes with value maps:

    accelerate launch --multi_gpu --num_processes 2 -m aim_hf collect --suite tabletop --tasks click_bell \\
        --splits easy hard --episodes 100 --output_dir DIR

A shard holds `--shard_size` episodes of one task and split, from its own range of seeds, whichever process records
it. The content of the folder therefore doesn't depend on the number of processes or machines. Each episode is saved
as soon as it is recorded: an interrupted run continues with the next episode when the same command is given again.
Machines without a shared disk write separate folders, which can be copied into one; the same command then only writes
the card.

RoboTwin 2.0 runs in its own checkout and interpreter:

    aim-hf collect --suite robotwin --robotwin_root ~/RoboTwin \\
        --robotwin_python ~/miniconda3/envs/RoboTwin/bin/python --seeds_per_episode 20 --episodes 600 --output_dir DIR
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

from ..envs.names import TASKS, check_split, check_tasks
from ..envs.robotwin import add_robotwin_arguments
from ..utils.checks import check_number
from . import SPLITS_HELP, Parser, check_options, check_robotwin_options

# Set before SAPIEN loads its renderer: each process renders on one core, since processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")

NOISE = {"tabletop": 0.01, "robotwin": 0.0, "aloha": 0.01}
LARGEST_NOISE = 0.2  # m: with larger offsets no arm comes back to its path


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, checked, with the suite's default noise."""
    parser = Parser("collect", __doc__)
    parser.add_argument("--suite", choices=sorted(TASKS), default="tabletop")
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the suite")
    parser.add_argument("--splits", nargs="+", default=["easy"], help=SPLITS_HELP)
    parser.add_argument("--episodes", type=int, required=True, help="recorded episodes of each task and split")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--noise",
        type=float,
        help="standard deviation (m) of the offsets added to end-effector positions; default: 0.01, robotwin: 0",
    )
    parser.add_argument(
        "--mistakes",
        type=float,
        default=0.0,
        help="share of the episodes in which the expert misses or stops short, and recovers (tabletop; default: 0)",
    )
    parser.add_argument("--start_seed", type=int, default=0, help="the first seed of each task and split")
    parser.add_argument("--shard_size", type=int, default=50, help="episodes in a Parquet file")
    parser.add_argument(
        "--seeds_per_episode", type=int, default=2, help="seeds that a shard may try for each of its episodes"
    )
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "episodes", "shard_size", "seeds_per_episode")
    check_options(args, "start_seed", least=0)
    check_robotwin_options(args.suite, argv)
    check_tasks(args.suite, args.tasks or ())
    for split in args.splits:
        check_split(args.suite, split)
    usual = NOISE.get(args.suite, 0.0)
    args.noise = usual if args.noise is None else check_number("--noise", args.noise, 0, LARGEST_NOISE)
    if args.noise and args.suite == "robotwin":
        raise ValueError(f"--noise is {args.noise:g}, but RoboTwin's experts plan as they move; leave it out")
    args.mistakes = check_number("--mistakes", args.mistakes, 0, 1)
    if args.mistakes and args.suite != "tabletop":
        raise ValueError(f"--mistakes is {args.mistakes:g}, but only tabletop's experts make mistakes; leave it out")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)

    from ..envs import check_starts, interface, next_environment

    for split in args.splits:
        interface(args.suite, split)  # a missing simulator is reported before anything is claimed

    from accelerate import PartialState
    from tqdm import tqdm

    from ..data.card import write_card
    from ..data.collection import SeedsExhausted, collect_shard, made_from, plan
    from ..data.preview import write_preview
    from ..data.shards import OUTPUTS, remove_leftovers
    from ..utils.files import MADE_FROM, claim

    shards = plan(args)
    # Processes wait for each other only at the start and at the end, days later with many episodes.
    state = PartialState(cpu=True, timeout=timedelta(days=30))
    with state.main_process_first():
        if state.is_main_process:
            check_starts(args.suite, shards[0].task, shards[0].split, args.output_dir / MADE_FROM)
            claim(args.output_dir, made_from(args), *OUTPUTS)
            remove_leftovers(args.output_dir)
    mine = shards[state.process_index :: state.num_processes]
    missing = []
    for shard in mine:
        writer = shard.writer(args.output_dir)
        if writer.is_done(shard.episodes):
            writer.remove_pieces()
        else:
            missing.append((shard, writer))

    total = sum(shard.episodes for shard in mine)
    done = total - sum(shard.episodes - writer.num_episodes for shard, writer in missing)
    rank, env, exhausted = state.process_index, None, []
    with tqdm(total=total, initial=done, unit="episode", desc=f"process {rank}", position=rank) as progress:
        for shard, writer in missing:
            env = next_environment(env, args.suite, shard.task, shard.split, depth=True)
            try:
                collect_shard(env, shard, writer, args.noise, args.mistakes, progress)
            except SeedsExhausted as error:  # goes on with the other tasks
                exhausted.append(str(error))
    if env is not None:
        env.close()
    state.wait_for_everyone()
    if state.is_main_process and any(args.output_dir.glob("data/*.parquet")):
        write_preview(args.output_dir)
        write_card(args.output_dir)
    if exhausted:
        raise SystemExit("\n".join(exhausted))
