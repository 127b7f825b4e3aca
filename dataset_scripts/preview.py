"""Look at episodes: a contact sheet, for each camera of frames and below them the same in gray under their value maps.

python dataset_scripts/preview.py DIR --output sheet.png [--tasks click_bell] [--episodes 1] [--frames 12]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aim_hf.data.episodes import load_episodes
from aim_hf.data.video import decode_video
from aim_hf.envs.base import CAMERAS

LABEL_HEIGHT = 14
CELL_WIDTH = 192


def overlay(rgb: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Frames in gray with their value maps in red, both (num_frames, height, width, 3) uint8."""
    gray = 0.6 * rgb.mean(axis=-1, keepdims=True)
    weight = value[..., :1].astype(np.float32) / 255
    return ((1 - weight) * gray + weight * np.array([255, 40, 20])).astype(np.uint8)


def contact_sheet(row: dict, num_frames: int) -> Image.Image:
    """RGB above overlay for each camera at `num_frames` moments, the events' frames among them."""
    moments = np.linspace(0, row["num_frames"] - 1, num_frames).astype(int)
    for event in row["events"]:
        moments[np.abs(moments - event["frame"]).argmin()] = event["frame"]
    strips = []
    for camera in CAMERAS:
        rgb = decode_video(row[f"rgb_{camera}"], list(moments))
        value = decode_video(row[f"value_{camera}"], list(moments))
        height = CELL_WIDTH * rgb.shape[1] // rgb.shape[2]
        for frames in (rgb, overlay(rgb, value)):
            cells = [np.asarray(Image.fromarray(f).resize((CELL_WIDTH, height), Image.NEAREST)) for f in frames]
            strips.append(np.concatenate(cells, axis=1))
    sheet = Image.fromarray(np.concatenate([np.zeros((2 * LABEL_HEIGHT, *strips[0].shape[1:]), np.uint8), *strips]))
    draw = ImageDraw.Draw(sheet)
    events = ", ".join(f"{e['kind']} {e['arm']} {e['body_name']} @{e['frame']}" for e in row["events"])
    draw.text((2, 0), f"{row['task']} {row['split']} seed {row['seed']}: {row['instruction']} | {events}", "white")
    for column, moment in enumerate(moments):
        draw.text((column * CELL_WIDTH + 2, LABEL_HEIGHT), f"frame {moment}", "white")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of episodes or a repo id")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--episodes", type=int, default=1, help="of each task and split")
    parser.add_argument("--frames", type=int, default=10)
    args = parser.parse_args()

    dataset = load_episodes(args.source)
    chosen: dict[tuple[str, str], list[int]] = {}
    for index, (task, split) in enumerate(zip(dataset["task"], dataset["split"], strict=True)):
        if args.tasks is None or task in args.tasks:
            chosen.setdefault((task, split), []).append(index)
    indices = [index for group in chosen.values() for index in group[: args.episodes]]
    if not indices:
        raise SystemExit(f"no episode of {args.tasks} in {args.source}; it holds {sorted(set(dataset['task']))}")
    sheets = [np.asarray(contact_sheet(dataset[index], args.frames)) for index in indices]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheets)).save(args.output)
    print(f"{len(sheets)} episodes in {args.output}")


if __name__ == "__main__":
    main()
