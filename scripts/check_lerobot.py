"""Read an exported dataset with the real `lerobot`:

    python scripts/check_lerobot.py compare runs/episodes runs/lerobot   # every frame against the episodes
    python scripts/check_lerobot.py windows runs/lerobot --windows 200   # training windows a second, as JSON

lerobot 0.4.4 pins an older torch and datasets than ours, so it gets a virtual environment of its own (`--venv`), made
at the first run: some gigabytes, since pip installs torch's CUDA build; set pip's index to CPU builds to have less.
Every other argument of `windows` goes to `scripts/lerobot_reader.py`, which runs in there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from aim_hf.data.lerobot import format
from aim_hf.data.lerobot.clips import frame_rate
from aim_hf.data.lerobot.export import rows_of
from aim_hf.data.video import decode_video

LEROBOT = "lerobot==0.4.4"
READER = Path(__file__).parent / "lerobot_reader.py"


def interpreter(venv: Path) -> Path:
    """The environment's Python; made, with lerobot, if it isn't there."""
    python = venv / "bin" / "python"
    if not (venv / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", LEROBOT], check=True)
        (venv / "done").touch()
    return python


def expectations(folder: Path, every: int) -> dict[str, np.ndarray]:
    """The values that each frame of an export of `folder` must hold, and the pictures of each `every`-th frame."""
    parts = {name: [] for name in ("timestamp", "task", "place", *format.VECTORS.values())}
    pictures, sample, total = {}, [], 0
    for episode, row in enumerate(rows_of(folder)):
        frames = row["num_frames"]
        parts["timestamp"].append(np.arange(frames) / float(frame_rate(row["fps"])))
        parts["task"].append([row["instruction"]] * frames)
        parts["place"].append([(episode, frame) for frame in range(frames)])
        for column, feature in format.VECTORS.items():
            values = np.asarray(row[column], dtype=np.float64)
            parts[feature].append(np.concatenate([values, values[-1:]])[:frames])
        chosen = list(range(-total % every, frames, every))
        sample += [total + frame for frame in chosen]
        for column, key in format.VIDEO_KEYS.items():
            if row[column] is not None:
                pictures.setdefault(key, []).append(decode_video(row[column]["bytes"], chosen))
        total += frames
    joined = {name: np.concatenate(values) for name, values in (parts | pictures).items() if values}
    return joined | {"sample": np.array(sample)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path("runs/lerobot_venv"))
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare")
    compare.add_argument("episodes", type=Path, help="the folder that was exported, all of its splits")
    compare.add_argument("export", type=Path)
    compare.add_argument("--every", type=int, default=5, help="compare the pictures of each n-th frame")
    commands.add_parser("windows", add_help=False)
    args, rest = parser.parse_known_args()

    python = interpreter(args.venv)
    if args.command == "windows":
        raise SystemExit(subprocess.run([python, READER, "windows", *rest]).returncode)
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "expected.npz"
        np.savez(expected, **expectations(args.episodes, args.every))
        command = [python, READER, "compare", args.export, expected, *rest]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(report, indent=1))
    backends = [value for value in report.values() if isinstance(value, dict) and "pictures" in value]
    wrong = [
        backend
        for backend in backends
        if max(backend["largest_error"].values()) > 1e-5
        or backend["frames_of_wrong_task_or_place"]
        or backend["largest_pixel_difference"] > 2
    ]
    if wrong or not backends:
        raise SystemExit("the export is not what was exported")


if __name__ == "__main__":
    main()
