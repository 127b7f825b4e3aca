"""Checks a folder of episodes: every row and video, value maps against contacts, numbers against the simulator.

    aim-hf validate DIR [--render 20] [--simulate 20] [--output_file report.json]

Prints the number of checks and every problem; the exit code is 1 if there is any. Episodes that are simulated again
must match bit for bit, which holds only with the versions that the manifests name.
"""

import os
from dataclasses import asdict
from pathlib import Path

from ..envs.robotwin import add_robotwin_arguments
from . import Parser, check_options

os.environ.setdefault("LP_NUM_THREADS", "1")  # before SAPIEN loads its renderer


def main(argv: list[str]) -> None:
    parser = Parser("validate", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--render", type=int, default=20, help="episodes whose value maps are rendered again")
    parser.add_argument("--simulate", type=int, default=20, help="episodes whose seeds are simulated again")
    parser.add_argument("--output_file", type=Path, help="also write the report as JSON")
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "render", "simulate", least=0)

    from ..data.validation import validate
    from ..utils.files import write_json

    report = validate(args.folder, args.render, args.simulate)
    print(
        f"{report.episodes} episodes, {report.frames} frames, {report.bytes / 1e6:.1f} MB; value maps of "
        f"{report.rendered} rendered again (videos at most {report.largest_video_error} of 255 off), "
        f"{report.simulated} simulated again; {len(report.problems)} problems"
    )
    for problem in report.problems:
        print(f"- {problem}")
    if args.output_file is not None:
        write_json(args.output_file, asdict(report))
    raise SystemExit(1 if report.problems else 0)
