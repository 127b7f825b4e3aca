"""Randomization of Hard scenes besides the task's objects: looks, table height, head camera, clutter.

Easy scenes always look the same. Hard scenes draw all of these for every seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .scene import Part, TabletopScene

_TABLE_COLOR = (0.86, 0.84, 0.80)
_FLOOR_COLOR = (0.24, 0.27, 0.33)

# Colors that no task object has.
_CLUTTER_COLORS = (
    (0.55, 0.55, 0.55),
    (0.35, 0.35, 0.37),
    (0.50, 0.38, 0.28),
    (0.66, 0.54, 0.42),
    (0.75, 0.68, 0.80),
    (0.66, 0.78, 0.72),
    (0.82, 0.72, 0.66),
)
_CLUTTER_DISTANCE = 0.115  # m, from the center of a distractor to any point that must stay clear
_CLUTTER_SPACING = 0.07


@dataclass(frozen=True)
class Look:
    """A scene's look. `tint` (3,) multiplies the pictures' colors; `head_jitter` (6,) is in meters and radians."""

    table_color: tuple = _TABLE_COLOR
    table_texture: np.ndarray | None = None
    floor_color: tuple = _FLOOR_COLOR
    table_offset: float = 0.0
    tint: np.ndarray = field(default_factory=lambda: np.ones(3, np.float32))
    head_jitter: np.ndarray = field(default_factory=lambda: np.zeros(6))


def sample_look(split: str, rng: np.random.Generator) -> Look:
    if split == "easy":
        return Look()
    table_color = muted_color(rng, 0.45, 0.95)
    head_jitter = np.concatenate([rng.uniform(-0.01, 0.01, 3), np.deg2rad(rng.uniform(-1, 1, 3))])
    kind = rng.integers(4)  # 0: a plain table
    return Look(
        table_color=table_color,
        table_texture=texture(table_color, kind, rng.uniform(0.04, 0.14), rng) if kind else None,
        floor_color=muted_color(rng, 0.05, 0.6),
        table_offset=rng.uniform(-0.015, 0.015),
        tint=(rng.uniform(0.75, 1.05) * rng.uniform(0.9, 1.0, 3)).astype(np.float32),
        head_jitter=head_jitter,
    )


def add_clutter(
    scene: TabletopScene, wanted: int, keep_clear: list[tuple[float, float]], rng: np.random.Generator
) -> None:
    """Puts `wanted` distractors on the table, or as many as find room, away from the points (x, y) in `keep_clear`."""
    taken: list[np.ndarray] = []
    for _ in range(200):  # points that don't fit are drawn again
        if len(taken) == wanted:
            break
        point = rng.uniform((-0.33, -0.17), (0.33, 0.24))
        if all(np.linalg.norm(point - clear) > _CLUTTER_DISTANCE for clear in keep_clear) and all(
            np.linalg.norm(point - other) > _CLUTTER_SPACING for other in taken
        ):
            taken.append(point)
            color = _CLUTTER_COLORS[rng.integers(len(_CLUTTER_COLORS))]
            height = rng.uniform(0.015, 0.04)
            if rng.random() < 0.5:
                part = Part("box", (*rng.uniform(0.025, 0.045, 2), height), color, (0, 0, height / 2))
            else:
                part = Part("cylinder", (rng.uniform(0.013, 0.022), height), color, (0, 0, height / 2))
            scene.add_body(f"distractor_{len(taken)}", [part], *point, yaw=rng.uniform(-np.pi, np.pi))


def muted_color(rng: np.random.Generator, darkest: float, brightest: float) -> tuple[float, float, float]:
    gray = rng.uniform(darkest, brightest)
    return tuple(float(c) for c in np.clip(gray + rng.uniform(-0.08, 0.08, 3), 0, 1))


def texture(color: tuple, kind: int, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A texture (128, 128, 3) uint8 of colors `contrast` above and below `color`, each 0 .. 1, black to white. `kind`:
    1 stripes, 2 checks, 3 blotches."""
    size = 128
    rows, columns = np.mgrid[0:size, 0:size]
    period = int(rng.integers(8, 33))
    if kind == 1:
        angle = rng.uniform(0, np.pi)
        pattern = np.sign(np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period))
    elif kind == 2:
        pattern = np.where((rows // period + columns // period) % 2, 1.0, -1.0)
    else:
        coarse = rng.uniform(-1, 1, (size // 8, size // 8))
        pattern = np.kron(coarse, np.ones((8, 8)))
    picture = np.array(color) + contrast * pattern[..., None]
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)
