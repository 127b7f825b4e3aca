"""Adds value maps, contacts and calibration to trajectories that RoboTwin 2.0 has recorded:

    aim-hf annotate-robotwin data/click_bell/demo_clean data/lift_pot/demo_clean --output_dir DIR

Each source is a folder of RoboTwin's own collection (`seed.txt`, `scene_info.json`, `_traj_data`, `data`), or a
LeRobot dataset of its states into which its `seed.txt` has been copied; the path names task and configuration. Each
episode is simulated again from its seed, along the recorded joint paths, by the recorder of `aim-hf collect`; from a
LeRobot dataset, which has no paths, the expert plans again. An episode whose task isn't fulfilled again, or whose
states differ from the recorded ones, is left out, and the manifest says why. Pickles are read as numbers, never run.

An interrupted run continues with the next episode when the same command is given again, which also tries those again
that lacked a file or an asset, or whose simulator died. With `accelerate launch -m aim_hf` several processes share the
work.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..envs.robotwin import add_robotwin_arguments
from . import Parser, check_options

# Set before SAPIEN loads its renderer: each process renders on one core, since processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("annotate-robotwin", __doc__)
    parser.add_argument("sources", nargs="+", type=Path, help="folders of one task and configuration each")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--shard_size", type=int, default=50, help="episodes in a Parquet file")
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "shard_size")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)

    from accelerate import PartialState

    from ..data.annotation import annotate

    annotated, skipped = annotate(args.sources, args.output_dir, args.shard_size)
    if not annotated:
        raise ValueError(
            f"none of {len(skipped)} episodes agrees with its recording: {'; '.join(skipped[:5])}. The same command "
            "tries those again that lack a file or an asset, or whose simulator died; to try all of them, delete "
            f"{args.output_dir}."
        )
    tell = PartialState().print  # once for all processes
    tell(f"{annotated} of {annotated + len(skipped)} episodes in {args.output_dir}")
    for sentence in skipped:
        tell(f"  left out: {sentence}")
