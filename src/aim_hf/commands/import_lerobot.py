"""Makes episodes of a LeRobot dataset, v3.0, v2.1 or v2.0, of any robot:

    aim-hf import-lerobot you/your-dataset --config my_robot.json --output_dir runs/episodes

The source is a folder or a repo id. `--config` says which columns and cameras are what (docs/own_robot.md); an export
of `aim-hf export-lerobot` needs none, and gets everything back that it was made of. All episodes are checked before
anything is written. Each is safe once it is written: a run that was killed goes on with the next one when the same
command is given again. With `accelerate launch -m aim_hf` several processes share the work.
"""

from pathlib import Path

from . import Parser


def main(argv: list[str]) -> None:
    parser = Parser("import-lerobot", __doc__)
    parser.add_argument("source", help="folder or repo id of a LeRobot dataset")
    parser.add_argument("--config", type=Path, help="JSON: which columns and cameras are what; see docs/own_robot.md")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--revision", help="of a repo: branch, tag or commit")
    parser.add_argument("--episodes", nargs="+", help="numbers, and ranges such as 0:50; default: all")
    parser.add_argument("--tasks", nargs="+", help="instructions whose episodes are imported; default: all")
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="numbers of episodes to leave out")
    parser.add_argument("--skip_broken", action="store_true", help="leave broken episodes out, and say which and why")
    parser.add_argument("--fps", type=float, help="frames a second to keep: a whole part of the source's")
    parser.add_argument("--shard_size", type=int, default=50, help="episodes of a Parquet file")
    parser.add_argument("--license", default="unknown", help="of the source, by the Hub's name of it")
    args = parser.parse_args(argv)

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
