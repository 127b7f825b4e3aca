"""Converts a LeRobot dataset (v3.0, v2.1 or v2.0) of any robot to episodes:

    aim-hf import-lerobot you/your-dataset --config my_robot.json --output_dir runs/episodes

The source is a folder or a repo id. `--config` maps columns and cameras to AIM's (docs/own_robot.md). Datasets of
`aim-hf export-lerobot` need no config, and their episodes are restored exactly. All episodes are checked before
anything is written. Each is saved as soon as it is converted: an interrupted run continues with the next episode when
the same command is given again. With `accelerate launch -m aim_hf` several processes share the work.
"""

from pathlib import Path

from . import Parser, check_options


def main(argv: list[str]) -> None:
    parser = Parser("import-lerobot", __doc__)
    parser.add_argument("source", help="folder or repo id of a LeRobot dataset")
    parser.add_argument(
        "--config", type=Path, help="JSON file that maps columns and cameras to AIM's; see docs/own_robot.md"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    parser.add_argument("--episodes", nargs="+", help="numbers and ranges such as 0:50; default: all")
    parser.add_argument("--tasks", nargs="+", help="instructions of the episodes to import; default: all")
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="numbers of episodes to leave out")
    parser.add_argument("--skip_broken", action="store_true", help="leave out broken episodes and report why")
    parser.add_argument("--fps", type=float, help="frame rate to keep; the source's must be a multiple of it")
    parser.add_argument("--shard_size", type=int, default=50, help="episodes in a Parquet file")
    parser.add_argument("--license", default="unknown", help="license of the source, by its name on the Hub")
    args = parser.parse_args(argv)
    check_options(args, "shard_size")

    from ..data.lerobot.importer import import_episodes
    from ..data.lerobot.source import LeRobotSource

    source = LeRobotSource.open(args.source, args.revision)
    imported, broken = import_episodes(
        source,
        args.config,
        args.output_dir,
        source.choose(args.episodes, args.tasks, args.skip),
        fps=args.fps,
        shard_size=args.shard_size,
        skip_broken=args.skip_broken,
        license=args.license,
    )
    print(f"{imported} of {source.num_episodes} episodes in {args.output_dir}")
    for episode, reason in broken.items():
        print(f"  left out: episode {episode}: {reason}")
