"""Write episodes as a LeRobot v3.0 dataset, value maps as extra videos:

    python dataset_scripts/export_lerobot.py runs/episodes --output runs/lerobot --repo-id you/your-dataset

LeRobot's policies take every video of a dataset for an input; `--no-value-maps` leaves the maps out.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from tqdm import tqdm

from aim_hf.data.lerobot.export import export_lerobot, rows_of
from aim_hf.data.shards import shard_paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of episodes or a repo id")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--splits", nargs="+", help="default: all")
    parser.add_argument("--repo-id", help="where you mean to publish it, for its card; default: the folder's name")
    parser.add_argument("--no-value-maps", action="store_true")
    args = parser.parse_args()

    source = Path(args.source)
    if not source.exists() and args.source.count("/") == 1:
        source = Path(snapshot_download(args.source, repo_type="dataset"))
    total = sum(pq.read_metadata(path).num_rows for path in shard_paths(source))
    with tqdm(rows_of(source, args.splits), total=total, unit="episode", desc="export") as rows:
        info = export_lerobot(rows, args.output, args.repo_id or args.output.name, not args.no_value_maps)
    print(f"{info['total_episodes']} episodes, {info['total_frames']} frames in {args.output}")


if __name__ == "__main__":
    main()
