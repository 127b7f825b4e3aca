"""Writes episodes as a LeRobot v3.0 dataset, with value maps as extra videos:

    aim-hf export-lerobot runs/episodes --output_dir runs/lerobot --repo_id you/your-dataset

LeRobot's policies use every video of a dataset as an input, and imitate `action`. `--no_value_maps` leaves the value
maps out, and `--expert_actions` writes the expert's actions as `action`, which AIM imitates.
"""

from pathlib import Path

from ..utils.checks import check_path
from . import Parser


def main(argv: list[str]) -> None:
    parser = Parser("export-lerobot", __doc__)
    parser.add_argument("source", help="a folder of episodes or a repo id")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to create")
    parser.add_argument("--splits", nargs="+", help="default: all")
    parser.add_argument("--repo_id", help="repo id that the dataset card names; default: the folder's name")
    parser.add_argument("--no_value_maps", action="store_true", help="leave out the videos of value maps")
    parser.add_argument(
        "--expert_actions", action="store_true", help="write the expert's actions as `action`, not the executed ones"
    )
    args = parser.parse_args(argv)

    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    from ..data.lerobot.export import export_lerobot, license_of, rows_of
    from ..data.shards import reading_repo

    source = check_path("the dataset", args.source)
    if not source.exists() and args.source.count("/") == 1:
        with reading_repo(args.source):
            source = Path(snapshot_download(args.source, repo_type="dataset"))
    with tqdm(rows_of(source, args.splits), unit="episode", desc="export") as rows:
        repo_id, license = args.repo_id or args.output_dir.name, license_of(source)
        info = export_lerobot(rows, args.output_dir, repo_id, not args.no_value_maps, args.expert_actions, license)
    print(f"{info['total_episodes']} episodes, {info['total_frames']} frames in {args.output_dir}")
