"""Cost of the dataset: of collecting, storing and reading it.

    python benchmarks/dataset.py collect --output_file benchmarks/results/dataset/collect.json
    python benchmarks/dataset.py size --output_file benchmarks/results/dataset/size.json
    python benchmarks/dataset.py read --output_file benchmarks/results/dataset/read.json [--lerobot_python PYTHON]

collect: seconds of one core that an episode takes, by physics, rendering, labelling (finding contacts, rendering value
maps, measuring occlusion) and encoding; all tasks, both splits.
size: bytes of an episode at RoboTwin's three views of 320 x 240, a frame and for 150 frames.
read: windows a second of `EpisodeWindows`, of decoding each window's whole episode, and, where its interpreter is
given, of `lerobot`'s own reader on the exported copy; random windows, one process, in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from aim_hf.commands import PathParser  # noqa: E402
from aim_hf.data import episodes, recorder  # noqa: E402
from aim_hf.data.episodes import VIDEO_COLUMNS, Episode  # noqa: E402
from aim_hf.data.shards import ShardWriter, load_episodes  # noqa: E402
from aim_hf.data.windows import EpisodeWindows, Window  # noqa: E402
from aim_hf.envs import TASKS, make_environment  # noqa: E402
from aim_hf.envs.base import CAMERAS, SPLITS, Environment  # noqa: E402
from aim_hf.envs.tabletop.cameras import CameraRig  # noqa: E402
from aim_hf.envs.tabletop.scene import TabletopScene  # noqa: E402
from aim_hf.utils.files import write_json  # noqa: E402
from aim_hf.utils.provenance import provenance  # noqa: E402
from aim_hf.value_maps.contacts import EventDetector  # noqa: E402

ROBOTWIN_SIZES = dict.fromkeys(CAMERAS, (320, 240))
ROBOTWIN_FRAMES = 150
SHARES = {
    "physics": [(TabletopScene, "step")],
    "rendering": [(CameraRig, "pictures")],
    "labelling": [
        (EventDetector, "__init__"),
        (EventDetector, "__call__"),
        (EventDetector, "add_frame"),
        (EventDetector, "events"),
        (recorder, "visible_shares"),
        (episodes, "render_value_maps"),
    ],
    "encoding": [(episodes, "encode_video")],
}


@contextmanager
def stopwatch(seconds: Counter):
    """Adds up the processor time of each of `SHARES` while it lasts."""
    with ExitStack() as patches:
        for share, functions in SHARES.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, _timed(getattr(owner, name), share, seconds)))
        yield


def _timed(function: Callable, share: str, seconds: Counter) -> Callable:
    def timed(*args, **kwargs):
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[share] += time.process_time() - start

    return timed


def record(env: Environment, seed: int) -> Episode:
    episode = recorder.record_episode(env, seed, 0.01)
    if isinstance(episode, recorder.Failure):
        raise SystemExit(f"{env.task} seed {seed}: {episode.reason}; choose other seeds")
    return episode


def collect(args: argparse.Namespace) -> dict:
    rows = {}
    for task in tqdm(TASKS["tabletop"], unit="task"):
        for split in SPLITS:
            env = make_environment("tabletop", task, split, depth=True)
            record(env, 0)  # the first picture of a process loads the renderer
            seconds, frames, size, start = Counter(), 0, 0, time.process_time()
            with stopwatch(seconds):
                for seed in range(args.episodes):
                    episode = record(env, seed)
                    row = episode.to_row()
                    frames += episode.num_frames
                    size += sum(len(row[name]["bytes"]) for name in VIDEO_COLUMNS)
            total = time.process_time() - start
            env.close()
            rows[f"{task}/{split}"] = {
                "seconds_per_episode": total / args.episodes,
                "frames_per_episode": frames / args.episodes,
                "video_bytes_per_episode": size / args.episodes,
                **{share: seconds[share] / args.episodes for share in SHARES},
            }
    mean = {name: statistics.mean(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    simulating = mean["seconds_per_episode"] - mean["labelling"] - mean["encoding"]
    return {
        "episodes_per_task_and_split": args.episodes,
        "episodes_per_hour_and_core": 3600 / mean["seconds_per_episode"],
        "shares": {share: mean[share] / mean["seconds_per_episode"] for share in SHARES},
        "labelling_over_simulating_and_rendering": mean["labelling"] / simulating,
        "mean": mean,
        "tasks": rows,
    }


def size(args: argparse.Namespace) -> dict:
    tasks, numbers = ("stack_blocks_two", "blocks_ranking_rgb", "place_a2b_left"), {}
    for split in SPLITS:
        total, seconds, frames = Counter(), Counter(), 0
        with stopwatch(seconds):
            for task in tasks:
                env = make_environment("tabletop", task, split, depth=True, sizes=ROBOTWIN_SIZES)
                for seed in tqdm(range(args.episodes), desc=f"{task} {split}"):
                    with tempfile.TemporaryDirectory() as folder:
                        episode = record(env, seed)
                        row = episode.to_row()
                        frames += episode.num_frames
                        for name in VIDEO_COLUMNS:
                            total["rgb" if name.startswith("rgb") else "value"] += len(row[name]["bytes"])
                        writer = ShardWriter(Path(folder), split, task, 0)
                        writer.add(row)
                        writer.finish({})
                        total["parquet"] += writer.path.stat().st_size
                env.close()
        megabytes = total["parquet"] / frames * ROBOTWIN_FRAMES / 1e6
        numbers[split] = {
            "frames": frames,
            "bytes_per_frame": {name: count / frames for name, count in total.items()},
            "seconds_per_frame": {share: seconds[share] / frames for share in ("labelling", "encoding")},
            "megabytes_per_episode": megabytes,
            "gigabytes_of_30000_episodes": megabytes * 30,
        }
    return {
        "tasks": tasks,
        "episodes_per_task_and_split": args.episodes,
        "frames_of_an_episode": ROBOTWIN_FRAMES,
    } | numbers


def read(args: argparse.Namespace) -> dict:
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "episodes"
        writer = ShardWriter(source, "easy", "blocks_ranking_rgb", 0)
        env = make_environment("tabletop", "blocks_ranking_rgb", depth=True, sizes=ROBOTWIN_SIZES)
        for seed in tqdm(range(args.episodes), desc="record"):
            writer.add(record(env, seed).to_row())
        env.close()
        writer.finish({})
        window = Window(num_frames=9, frame_stride=4)
        readers = {
            "windows_rendered": EpisodeWindows(source, window),
            "windows_decoded": EpisodeWindows(source, Window(9, 4, value_maps="decoded")),
            "windows_rgb": EpisodeWindows(source, Window(9, 4, value_maps=None)),
        }
        rows = load_episodes(source)
        times = {name: [] for name in [*readers, "whole_episodes"]}
        rng = np.random.default_rng(0)
        for _ in range(args.rounds):
            for name, windows in readers.items():
                items = rng.integers(len(windows), size=args.windows)
                start = time.perf_counter()
                for item in items:
                    windows[int(item)]
                times[name].append((time.perf_counter() - start) / args.windows)
            start = time.perf_counter()
            for item in rng.integers(len(rows), size=args.windows // 8):
                episode = Episode.from_row(rows[int(item)])
                for camera in CAMERAS:
                    episode.value_maps(camera)
            times["whole_episodes"].append((time.perf_counter() - start) / (args.windows // 8))
        rates = {name: 1 / statistics.median(values) for name, values in times.items()}
        if args.lerobot_python:
            export = Path(folder) / "lerobot"
            command = [sys.executable, "-m", "aim_hf", "export-lerobot", source, "--output_dir", export]
            subprocess.run(command, check=True)
            check = [args.lerobot_python, root / "scripts" / "lerobot_reader.py", "windows", export]
            check += ["--frames", "9", "--stride", "4", "--actions", "32", "--windows", str(args.windows)]
            answer = subprocess.run(check, check=True, capture_output=True, text=True).stdout
            rates["lerobot"] = json.loads(answer)["windows_per_second"]
    result = {
        "episodes": args.episodes,
        "frames": int(np.sum(rows["num_frames"])),
        "window": {"num_frames": 9, "frame_stride": 4, "views": "three of 320 x 240"},
        "windows_per_second": rates,
        "windows_over_whole_episodes": rates["windows_rendered"] / rates["whole_episodes"],
    }
    if args.lerobot_python:
        result["windows_decoded_over_lerobot"] = rates["windows_decoded"] / rates["lerobot"]
    return result


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("what", choices=("collect", "size", "read"))
    parser.add_argument("--episodes", type=int, default=5, help="of each task and split; of all, for read")
    parser.add_argument("--windows", type=int, default=64, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lerobot_python", help="interpreter that can import lerobot")
    parser.add_argument("--output_file", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    result = {"collect": collect, "size": size, "read": read}[args.what](args)
    result |= provenance(torch.device("cpu"))
    print(json.dumps(result, indent=1))
    if args.output_file is not None:
        write_json(args.output_file, result)


if __name__ == "__main__":
    main()
