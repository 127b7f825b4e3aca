"""Collect expert episodes with value maps:

    accelerate launch --multi_gpu --num_processes 2 -m aim_hf collect --suite tabletop --tasks click_bell \
        --splits easy hard --episodes 100 --output_dir DIR

The work is cut into shards: `--shard_size` episodes of one task and split, from a range of seeds of its own, whichever
process makes it. So the folder's content doesn't depend on the number of processes or machines. Each episode is safe
once it is recorded: a run that was killed goes on with the next one when the same command is given again. Machines
that share no disk write folders that may simply be copied into one; the same command there then only writes the card.

RoboTwin 2.0 runs in its own checkout and interpreter:

    aim-hf collect --suite robotwin --robotwin_root ~/RoboTwin \
        --robotwin_python ~/miniconda3/envs/RoboTwin/bin/python --seeds_per_episode 20 --episodes 600 --output_dir DIR
"""

import os
from datetime import timedelta
from pathlib import Path

from ..envs.base import SPLITS
from ..envs.names import TASKS
from ..envs.robotwin import add_robotwin_arguments
from ..utils.checks import check_number
from . import Parser

# Set before the simulator loads its renderer: a process renders on one core, and processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")

NOISE = {"tabletop": 0.01, "robotwin": 0.0}
LARGEST_NOISE = 0.2  # m: no arm reaches further from its path than that and comes back


def main(argv: list[str]) -> None:
    parser = Parser("collect", __doc__)
    parser.add_argument("--suite", choices=sorted(TASKS), default="tabletop")
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the suite")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["easy"])
    parser.add_argument("--episodes", type=int, required=True, help="recorded episodes of each task and split")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--noise",
        type=float,
        help="standard deviation of the tools' offsets in m; default: 0.01, and 0 where the expert bears none",
    )
    parser.add_argument("--start_seed", type=int, default=0)
    parser.add_argument("--shard_size", type=int, default=50, help="episodes of a Parquet file")
    parser.add_argument(
        "--seeds_per_episode", type=int, default=2, help="a shard may try this many seeds for each episode it wants"
    )
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    for name, number in (("episodes", args.episodes), ("shard_size", args.shard_size)):
        if number < 1:
            parser.error(f"--{name} is {number}; expected at least 1")
    if unknown := set(args.tasks or ()) - set(TASKS[args.suite]):
        parser.error(f"no task {', '.join(unknown)} in suite {args.suite}; choose from {', '.join(TASKS[args.suite])}")
    noise = NOISE[args.suite] if args.noise is None else check_number("--noise", args.noise, 0, LARGEST_NOISE)

    from accelerate import PartialState
    from tqdm import tqdm

    from ..data.card import write_card
    from ..data.collection import SeedsExhausted, collect_shard, plan
    from ..data.preview import write_preview
    from ..data.recorder import made_from
    from ..data.shards import remove_leftovers
    from ..envs import next_environment
    from ..utils.files import claim

    # Processes meet only at the start and at the end, which may be days away.
    state = PartialState(cpu=True, timeout=timedelta(days=30))
    settings = made_from(args.suite, noise, args.start_seed, args.seeds_per_episode, args.shard_size)
    with state.main_process_first():
        if state.is_main_process:
            claim(args.output_dir, settings, "data/*.parquet")
            remove_leftovers(args.output_dir)
    mine = plan(args)[state.process_index :: state.num_processes]
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
                collect_shard(env, shard, writer, noise, progress)
            except SeedsExhausted as error:  # the other tasks shall not wait for this one
                exhausted.append(str(error))
    if env is not None:
        env.close()
    state.wait_for_everyone()
    if state.is_main_process:
        write_preview(args.output_dir)
        write_card(args.output_dir)
    if exhausted:
        raise SystemExit("\n".join(exhausted))
