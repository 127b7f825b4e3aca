"""Contact sheets of episodes: frames and, below them, the value maps over the gray frames."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..envs.base import CAMERAS
from ..utils.files import written_file
from ..value_maps.render import overlay
from .episodes import check_row, check_videos, decode_column
from .shards import read_rows, shard_paths

LABEL_HEIGHT = 14
CELL_WIDTH = 192


def contact_sheet(row: dict[str, Any], num_frames: int, max_cameras: int = len(CAMERAS)) -> Image.Image:
    """For each camera, the RGB frames above their overlays, at `num_frames` moments that include the frames of the
    first `num_frames` events. Missing views and value maps are left out. Raises ValueError as `check_row` and
    `check_videos`."""
    where = f"{row['task']} seed {row['seed']}"
    check_row(row, where)
    check_videos(row, where)
    cameras = [camera for camera in CAMERAS if row[f"rgb_{camera}"] is not None][:max_cameras]
    moments = _moments(row, num_frames)

    strips = []
    for camera in cameras:
        pictures = [decode_column(row, f"rgb_{camera}", moments)]
        if row[f"value_{camera}"] is not None:
            pictures.append(overlay(pictures[0], decode_column(row, f"value_{camera}", moments)[..., 0] / 255))
        height = CELL_WIDTH * pictures[0].shape[1] // pictures[0].shape[2]
        for frames in pictures:
            cells = [
                np.asarray(Image.fromarray(frame).resize((CELL_WIDTH, height), Image.NEAREST)) for frame in frames
            ]
            cells = [np.pad(cell, ((0, 0), (0, 2), (0, 0))) for cell in cells]
            strips.append(np.concatenate(cells, axis=1))
    sheet = Image.fromarray(np.concatenate([np.zeros((2 * LABEL_HEIGHT, *strips[0].shape[1:]), np.uint8), *strips]))
    draw = ImageDraw.Draw(sheet)
    events = ", ".join(
        f"{event['kind']} {event['arm']} {event['body_name']} @{event['frame']}" for event in row["events"] or ()
    )
    draw.text((2, 0), f"{row['task']} {row['split']} seed {row['seed']}: {row['instruction']} | {events}", "white")
    for column, moment in enumerate(moments):
        draw.text((column * (CELL_WIDTH + 2) + 2, LABEL_HEIGHT), f"frame {moment}", "white")
    return sheet


def _moments(row: dict[str, Any], count: int) -> list[int]:
    """`count` evenly spread frames in order, the nearest of them replaced by the frames of events."""
    spread = np.linspace(0, row["num_frames"] - 1, count).astype(int).tolist()
    of_events = sorted({event["frame"] for event in row["events"] or ()})[:count]
    for frame in of_events:
        spread.remove(min(spread, key=lambda moment: abs(moment - frame)))
    return sorted(spread + of_events)


def write_preview(folder: Path, episodes: int = 12) -> None:
    """Draws `preview.png`, the picture of the dataset card: the first camera in the first episode of up to `episodes`
    pairs of task and split."""
    firsts: dict[str, Path] = {}
    for path in shard_paths(folder):
        firsts.setdefault(path.stem.rsplit("-", 1)[0], path)
    chosen = list(firsts.values())[:: -(-len(firsts) // episodes)]
    sheets = [np.asarray(contact_sheet(next(read_rows(path)), 8, max_cameras=1)) for path in chosen]
    with written_file(folder / "preview.png") as temporary:
        Image.fromarray(np.concatenate(sheets)).save(temporary, "PNG", optimize=True)
