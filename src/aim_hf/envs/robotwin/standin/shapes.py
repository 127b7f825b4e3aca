"""Bodies of primitives, as Wavefront OBJ with colors.

A part is convex and a body is the union of its parts, so hollow things are made of walls. Frames are those of
RoboTwin's objects: y points up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Color = tuple[float, float, float]
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # turns y up into z up
_SIDES, _PLANKS = 20, 12  # of a cylinder, and of a tube


@dataclass(frozen=True)
class Part:
    """A convex part: `vertices` (V, 3) in meters, `faces` of indices, counterclockwise from outside."""

    vertices: np.ndarray
    faces: list[list[int]]
    color: Color


def box(size: Sequence[float], center: Sequence[float], color: Color, turn: float = 0.0) -> Part:
    """A box of `size` (x, y, z), turned about y by `turn` (rad) around the body's y axis."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    faces = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return Part((corners * size + center) @ rotation.T, faces, color)


def cone(radii: Sequence[float], height: float, base: Sequence[float], color: Color, axis: int = 1) -> Part:
    """A frustum of `radii` at its base and its top, along an axis (0 x, 1 y, 2 z) from the center of its base."""
    angles = np.arange(_SIDES) * 2 * np.pi / _SIDES
    ring = np.stack([np.sin(angles), np.zeros(_SIDES), np.cos(angles)], axis=1)
    vertices = np.concatenate([ring * radii[0], ring * radii[1] + [0, height, 0]])
    sides = [[i, (i + 1) % _SIDES, _SIDES + (i + 1) % _SIDES, _SIDES + i] for i in range(_SIDES)]
    faces = [*sides, list(range(_SIDES))[::-1], list(range(_SIDES, 2 * _SIDES))]
    vertices = np.roll(vertices, axis - 1, axis=1)  # cyclic, so faces keep their orientation
    return Part(vertices + np.asarray(base), faces, color)


def cylinder(radius: float, height: float, base: Sequence[float], color: Color, axis: int = 1) -> Part:
    return cone((radius, radius), height, base, color, axis)


def tube(radii: Sequence[float], wall: float, height: float, base: float, color: Color) -> list[Part]:
    """The walls of a round vessel, straight planks that lean between the outer `radii` at `base` and at the top."""
    parts = []
    for index in range(_PLANKS):
        angles = (index + np.array([-0.5, 0.5])) * 2 * np.pi / _PLANKS
        directions = np.stack([np.sin(angles), np.zeros(2), np.cos(angles)], axis=1)
        corners = []
        for direction in directions:
            for radius, y in zip(radii, (base, base + height), strict=True):
                corners += [direction * (radius - wall) + [0, y, 0], direction * radius + [0, y, 0]]
        faces = [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]
        parts.append(Part(np.array(corners), faces, color))
    return parts


def turned(parts: Sequence[Part], axis: Sequence[float], angle: float, to: Sequence[float]) -> list[Part]:
    """The parts turned about a unit `axis` through the origin by `angle` (rad), and then moved by `to`."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return [Part(part.vertices @ rotation.T + np.asarray(to), part.faces, part.color) for part in parts]


def standing(parts: Sequence[Part]) -> list[Part]:
    """The parts turned from y up to z up."""
    return [Part(part.vertices @ UPRIGHT.T, part.faces, part.color) for part in parts]


def bounds(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """The center (3,) and the extents (3,) of the parts' bounding box."""
    vertices = np.concatenate([part.vertices for part in parts])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return (low + high) / 2, high - low


def write_obj(path: Path, parts: Sequence[Part]) -> None:
    """Writes an OBJ and its material file. Faces are flat, so each has vertices of its own normal."""
    material = path.with_suffix(".mtl")
    lines, materials, count, normals = [f"mtllib {material.name}"], [], 0, 0
    for index, part in enumerate(parts):
        red, green, blue = part.color
        materials.append(f"newmtl m{index}\nKd {red:.3f} {green:.3f} {blue:.3f}\nKa 0 0 0\nKs 0 0 0\nd 1\n")
        lines += [f"o part{index}", f"usemtl m{index}"]
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in part.vertices]
        for face in part.faces:
            a, b, c = part.vertices[face[:3]]
            normal = np.cross(b - a, c - a)
            normal = normal / np.linalg.norm(normal)
            normals += 1
            lines.append("vn {:.5f} {:.5f} {:.5f}".format(*normal))
            lines.append("f " + " ".join(f"{count + vertex + 1}//{normals}" for vertex in face))
        count += len(part.vertices)
    path.write_text("\n".join(lines) + "\n")
    material.write_text("\n".join(materials))
