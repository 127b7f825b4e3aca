"""The stand-in clutter of Hard scenes, beside the objects that are marked as stable: small things, z up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .objects import color
from .shapes import Part, bounds, box, cone, cylinder, standing, write_obj

_VARIANTS = 4


def _shapes(index: int) -> dict[str, list[Part]]:
    """The things of variant `index`, by name."""
    tint, other = color(index), color(index + 3)
    size = 0.9 + 0.1 * index
    return {
        "beaker": [cone((0.022 * size, 0.03 * size), 0.07 * size, (0, 0, 0), tint)],
        "dice": [box((0.04 * size,) * 3, (0, 0.02 * size, 0), tint)],
        "jar": [cylinder(0.028, 0.06 * size, (0, 0, 0), tint), cylinder(0.022, 0.015, (0, 0.06 * size, 0), other)],
        "puck": [cylinder(0.035 * size, 0.02, (0, 0, 0), tint)],
        "pyramid": [cone((0.035 * size, 0.008), 0.05, (0, 0, 0), tint)],
        "tin": [box((0.07 * size, 0.03, 0.05), (0, 0.015, 0), tint), box((0.06, 0.006, 0.04), (0, 0.033, 0), other)],
    }


def write_clutter(folder: Path) -> None:
    """Writes RoboTwin's lists of clutter and the things in them into the folder `objects`."""
    names = sorted(_shapes(0))
    sizes: dict[str, dict[str, float]] = {"z_max": {}, "radius": {}, "z_offset": {}}
    for index in range(_VARIANTS):
        for name, parts in _shapes(index).items():
            thing = folder / "objaverse" / name / str(index)
            thing.mkdir(parents=True)
            write_obj(thing / "model.obj", standing(parts))
            mesh = '<geometry><mesh filename="model.obj"/></geometry>'
            link = f'<link name="{name}"><visual>{mesh}</visual><collision>{mesh}</collision></link>'
            (thing / "model.urdf").write_text(f'<robot name="{name}">{link}</robot>')
            _, extents = bounds(parts)
            key = f"{name}_{index}"
            sizes["z_max"][key] = float(extents[1])
            sizes["radius"][key] = float(np.hypot(extents[0], extents[2]) / 2)
            sizes["z_offset"][key] = 0.0
    variants = [str(index) for index in range(_VARIANTS)]
    content = {"item_names": names, "list_of_items": dict.fromkeys(names, variants)} | sizes
    (folder / "objaverse" / "list.json").write_text(json.dumps(content))
    (folder / "same.json").write_text("{}")  # objects that count as the same under several names: none
