"""Make episodes of a LeRobot dataset, v3.0 or v2.1, of any robot:

    aim-hf import-lerobot you/your-dataset --config my_robot.json --output_dir runs/episodes

The source is a folder or a repo id. `--config` says which columns and cameras are what (docs/own_robot.md); an export
of `dataset_scripts/export_lerobot.py` needs none, and gets everything back that it was made of. Each episode is safe
once it is written: a run that was killed goes on with the next one when the same command is given again. With
`accelerate launch` several processes share the work.
"""

import json
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from ..data.card import write_card
from ..data.lerobot.importer import imported_row, plan, restored_row
from ..data.lerobot.robot import Robot
from ..data.lerobot.source import LeRobotSource
from ..data.preview import write_preview
from ..data.shards import ShardWriter, remove_leftovers
from . import Parser

ORIGIN = """Made of {episodes} episodes of the LeRobot dataset `{name}` ({version}) by
`dataset_scripts/import_lerobot.py` of aim-hf. `manifest/` holds the configuration. Videos are those of the source,
frame by frame."""


def main(argv: list[str]) -> None:
    parser = Parser("import-lerobot", __doc__)
    parser.add_argument("source", help="folder or repo id of a LeRobot dataset")
    parser.add_argument("--config", type=Path, help="JSON: which columns and cameras are what; see docs/own_robot.md")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="episodes to leave out")
    parser.add_argument("--shard_size", type=int, default=50, help="episodes of a Parquet file")
    parser.add_argument("--license", default="unknown", help="of the source, by the Hub's name of it")
    args = parser.parse_args(argv)

    state = PartialState(cpu=True, timeout=timedelta(days=7))
    robot = Robot.load(args.config) if args.config else None
    with state.main_process_first():  # one of them fetches it
        source = LeRobotSource.open(args.source, list(robot.cameras.values()) if robot else None)
    if robot is not None:
        robot.check_source(source)
    elif not source.own:
        raise ValueError(
            f"{source.name} is no export of ours: say with --config which columns and cameras are what "
            f"(docs/own_robot.md). It has {', '.join(source.features)}"
        )
    if state.is_main_process:
        remove_leftovers(args.output_dir)
    state.wait_for_everyone()

    shards = plan(source, robot is None, args.shard_size, set(args.skip))[state.process_index :: state.num_processes]
    provenance = {
        "source": source.name,
        "codebase_version": source.version,
        "robot": json.loads(args.config.read_text()) if args.config else None,
        "simulator": {},
    }
    total = sum(len(shard.episodes) for shard in shards)
    with tqdm(total=total, unit="episode", desc=f"process {state.process_index}", position=state.process_index) as bar:
        for shard in shards:
            writer = ShardWriter(args.output_dir, shard.split, shard.task, shard.index)
            if writer.is_done(len(shard.episodes)):
                writer.remove_pieces()
                bar.update(len(shard.episodes))
                continue
            for seed, episode in shard.episodes:
                if seed not in writer.tried:
                    writer.add(
                        imported_row(source, robot, episode, shard.split) if robot else restored_row(source, episode)
                    )
                bar.update()
            writer.finish({"task": shard.task, "split": shard.split} | provenance)
    state.wait_for_everyone()
    if state.is_main_process:
        write_preview(args.output_dir)
        episodes = source.num_episodes - len(set(args.skip))
        origin = ORIGIN.format(episodes=episodes, name=source.name, version=source.version)
        write_card(args.output_dir, origin=origin, license=args.license)
        print(f"{episodes} episodes in {args.output_dir}")
