"""Run by `check_lerobot.py` in a virtual environment that has the real `lerobot`, and nothing of ours.

    python lerobot_reader.py compare EXPORT EXPECTED.npz     # every frame against what is expected of it
    python lerobot_reader.py windows EXPORT --windows 200    # random training windows a second

Each prints one line of JSON.
"""

import argparse
import importlib.metadata
import json
import time

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def compare(args) -> dict:
    """Reads every frame through `__getitem__`, with each video backend."""
    expected = dict(np.load(args.expected))
    report = {"frames": len(expected["timestamp"])}
    for backend in args.backends:
        dataset = LeRobotDataset("local/export", root=args.export, video_backend=backend)
        if len(dataset) != report["frames"]:
            raise SystemExit(f"lerobot finds {len(dataset)} frames, expected {report['frames']}")
        errors = dict.fromkeys(("observation.state", "action", "expert_action", "timestamp"), 0.0)
        wrong_tasks, pictures, largest = 0, 0, 0
        of_frame = {frame: number for number, frame in enumerate(expected["sample"])}
        for index in range(len(dataset)):
            item = dataset[index]
            for name in errors:
                error = np.abs(item[name].double().numpy() - expected[name][index]).max()
                errors[name] = max(errors[name], float(error))
            episode = (item["episode_index"].item(), item["frame_index"].item())
            if item["task"] != str(expected["task"][index]) or episode != tuple(expected["place"][index]):
                wrong_tasks += 1
            if index in of_frame:
                for key in dataset.meta.video_keys:
                    got = (item[key] * 255).round().permute(1, 2, 0).numpy()
                    wanted = expected[key][of_frame[index]].astype(np.float32)
                    largest = max(largest, float(np.abs(got - wanted).max()))
                    pictures += 1
        report[backend] = {
            "largest_error": errors,
            "frames_of_wrong_task_or_place": wrong_tasks,
            "pictures": pictures,
            "largest_pixel_difference": largest,
        }
    report["splits"], report["stats"] = dataset.meta.info["splits"], sorted(dataset.meta.stats)
    return report


def windows(args) -> dict:
    """Windows of `--frames` pictures of each camera, `--stride` steps apart, and `--actions` actions."""
    meta = LeRobotDataset("local/export", root=args.export).meta
    deltas = {key: [i * args.stride / meta.fps for i in range(args.frames)] for key in meta.video_keys}
    deltas["action"] = [i / meta.fps for i in range(args.actions)]
    dataset = LeRobotDataset("local/export", root=args.export, delta_timestamps=deltas, video_backend=args.backend)
    torch.set_num_threads(args.threads)
    chosen = np.random.default_rng(args.seed).integers(len(dataset), size=args.windows + args.warm_up)
    for index in chosen[: args.warm_up]:
        dataset[int(index)]
    start = time.perf_counter()
    for index in chosen[args.warm_up :]:
        dataset[int(index)]
    seconds = time.perf_counter() - start
    names = ("windows", "frames", "stride", "actions", "backend", "threads", "seed")
    return {
        "windows_per_second": args.windows / seconds,
        "cameras": len(meta.video_keys),
        **{name: getattr(args, name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("compare")
    command.add_argument("export")
    command.add_argument("expected")
    command.add_argument("--backends", nargs="+", default=["torchcodec", "pyav"])
    command.set_defaults(run=compare)
    command = commands.add_parser("windows")
    command.add_argument("export")
    command.add_argument("--windows", type=int, default=200)
    command.add_argument("--warm_up", type=int, default=5)
    command.add_argument("--frames", type=int, default=13, help="pictures of each camera")
    command.add_argument("--stride", type=int, default=2, help="control steps between two pictures")
    command.add_argument("--actions", type=int, default=24)
    command.add_argument("--backend", default="torchcodec")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=windows)
    args = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("lerobot", "torch", "torchcodec", "datasets")}
    print(json.dumps(args.run(args) | {"versions": versions}))


if __name__ == "__main__":
    main()
