"""The stand-in objects with joints: URDF folders, z up, with RoboTwin's points on their links."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .bodies import X, Y, Z, frame
from .objects import BEIGE, STEEL, color
from .shapes import Color, Part, bounds, box, cylinder, standing, tube, write_obj

# SAPIEN takes a robot of one link for no articulation.
_ROOT = """<link name="root"><inertial><mass value="0.01"/>
<inertia ixx="1e-6" iyy="1e-6" izz="1e-6" ixy="0" ixz="0" iyz="0"/></inertial></link>
<joint name="root_joint" type="fixed"><parent link="root"/><child link="{first}"/></joint>"""
_HINGE = """<joint name="hinge" type="revolute"><parent link="{parent}"/><child link="{child}"/>
<origin xyz="{xyz}" rpy="{rpy}"/><axis xyz="{axis}"/><limit lower="0" upper="{upper}" effort="100" velocity="10"/>
<dynamics damping="{damping}" friction="0.01"/></joint>"""
_SLIDE = """<joint name="slide" type="prismatic"><parent link="{parent}"/><child link="{child}"/>
<axis xyz="{axis}"/><limit lower="0" upper="{upper}" effort="100" velocity="10"/>
<dynamics damping="1" friction="0.01"/></joint>"""
_LEAN = 0.45  # rad, of the switch's rocker
_AHEAD = 0.2  # rad, by which a point for opening lies ahead of the door or the lid

Point = tuple[str, np.ndarray]  # a link and a pose (4, 4) in its frame


@dataclass(frozen=True)
class Articulation:
    """`links`: name -> parts, where the others hang on the first. `joints`: URDF text."""

    links: dict[str, list[Part]]
    contacts: list[Point]
    functional: list[Point] = field(default_factory=list)
    joints: str = ""

    def write(self, folder: Path, index: int) -> None:
        """Writes variant `index`, a folder with `mobility.urdf`, meshes and points."""
        folder = folder / str(index)
        folder.mkdir(parents=True)
        text = _ROOT.format(first=next(iter(self.links)))
        for name, parts in self.links.items():
            write_obj(folder / f"{name}.obj", parts)
            mesh = f'<geometry><mesh filename="{name}.obj"/></geometry>'
            text += f'<link name="{name}"><visual>{mesh}</visual><collision>{mesh}</collision></link>'
        (folder / "mobility.urdf").write_text(f'<robot name="{folder.parent.name}">{text}{self.joints}</robot>')
        center, extents = bounds([part for parts in self.links.values() for part in parts])
        data = {
            "scale": 1.0,
            "transform_matrix": np.eye(4).tolist(),
            "init_qpos": [],
            "mass": {},
            "extents": extents.tolist(),
            "contact_points": [{"base": link, "matrix": pose.tolist()} for link, pose in self.contacts],
            "functional_points": [{"base": link, "matrix": pose.tolist()} for link, pose in self.functional],
            "target_points": [],
        }
        (folder / "model_data.json").write_text(json.dumps(data))
        corners = {"min": (center - extents / 2).tolist(), "max": (center + extents / 2).tolist()}
        (folder / "bounding_box.json").write_text(json.dumps(corners))


def kitchenpot(index: int) -> Articulation:
    """A pot whose ears stand on its rim, along x, at its left (y > 0) and its right."""
    radius, height, wall = 0.085, 0.08, 0.006
    tint = color(index)
    parts = tube((radius - 0.005, radius), wall, height, 0.0, tint)
    parts.append(cylinder(radius - 0.008, 0.006, (0, 0, 0), tint))
    parts = standing(parts)
    reach = radius + 0.002
    parts += [box((0.05, 0.014, 0.045), (0, side * reach, height + 0.0075), (0.1, 0.1, 0.11)) for side in (1, -1)]
    points = [frame((0, side * reach, height + 0.017), Z, -Y) for side in (1, -1)]
    return Articulation({"pot": parts}, [("pot", point) for point in points])


def switch(index: int) -> Articulation:
    """A rocker that leans out of its box towards the robot. The contact point lies 1 cm behind it, so that a closed
    gripper which comes level, as far as the arms reach, pushes the rocker in."""
    tint = color(index)
    links = {
        "box": [box((0.03, 0.09, 0.13), (0.015, 0, 0), (0.9, 0.9, 0.88))],
        "rocker": [box((0.008, 0.05, 0.07), (0, 0, 0.035), tint)],
    }
    level = np.array([np.cos(_LEAN), 0, -np.sin(_LEAN)])  # into the box, in the rocker's frame
    push = frame((0, 0, 0.05) + 0.01 * level, -level, -Y)
    rpy = f"0 {-_LEAN} 0"
    joint = _HINGE.format(
        parent="box", child="rocker", xyz="-0.004 0 -0.03", rpy=rpy, axis="0 1 0", upper=0.4, damping=0.05
    )
    return Articulation(links, [("rocker", push)], joints=joint)


def laptop(index: int) -> Articulation:
    """The lid's free edge is towards the robot. Point 0 is on that edge, point 1 where it is when opened further."""
    tint = (0.55, 0.56, 0.6) if index % 2 else (0.25, 0.25, 0.28)
    width, depth = 0.24, 0.17
    links = {
        "base": [box((depth, width, 0.016), (-depth / 2, 0, 0.008), tint)],
        "lid": [box((depth, width, 0.010), (-depth / 2, 0, 0.005), tint)],
    }
    edge = frame((0.012 - depth, 0, 0.005), -X, Z)
    ahead = np.eye(4)
    ahead[:3, :3] = [[np.cos(_AHEAD), 0, np.sin(_AHEAD)], [0, 1, 0], [-np.sin(_AHEAD), 0, np.cos(_AHEAD)]]
    joint = _HINGE.format(
        parent="base", child="lid", xyz="0 0 0.017", rpy="0 0 0", axis="0 1 0", upper=2.2, damping=0.1
    )
    return Articulation(links, [("lid", edge), ("lid", ahead @ edge)], joints=joint)


def _case(size: tuple[float, float, float], base: float, wall: float, tint: Color) -> list[Part]:
    """A box of outer `size` with its bottom at height `base` that is open towards the robot."""
    depth, width, height = size
    middle = base + height / 2
    parts = [box((depth, width, wall), (0, 0, z), tint) for z in (base + wall / 2, base + height - wall / 2)]
    parts += [box((depth, wall, height), (0, side * (width - wall) / 2, middle), tint) for side in (1, -1)]
    return [*parts, box((wall, width, height), ((depth - wall) / 2, 0, middle), tint)]


def microwave(index: int) -> Articulation:
    """Its door is hinged at the left, with a bar at the right. Points 0 and 1 are on the bar, 2 and 4 where it is when
    opened further."""
    tint, (depth, width, height), base = ((0.2, 0.2, 0.22), (0.85, 0.85, 0.83))[index % 2], (0.2, 0.22, 0.18), -0.055
    middle, at = base + height / 2, 0.02 - width
    links = {
        "case": _case((depth, width, height), base, 0.01, tint),
        "door": [
            box((0.012, width, height), (-0.006, -width / 2, middle), tint),
            box((0.004, 0.6 * width, 0.6 * height), (-0.014, -width / 2, middle), (0.05, 0.05, 0.06)),
            box((0.018, 0.018, 0.11), (-0.045, at, middle), STEEL),
            *[box((0.03, 0.012, 0.012), (-0.025, at, middle + z), STEEL) for z in (-0.045, 0.045)],
        ],
    }
    bar = frame((-0.045, at, middle), -X, -Y)
    ahead = np.eye(4)
    ahead[:2, :2] = [[np.cos(_AHEAD), np.sin(_AHEAD)], [-np.sin(_AHEAD), np.cos(_AHEAD)]]
    hinge = f"{-depth / 2} {width / 2} 0"
    joint = _HINGE.format(parent="case", child="door", xyz=hinge, rpy="0 0 0", axis="0 0 -1", upper=0.75, damping=0.05)
    points = [bar, bar, ahead @ bar, bar, ahead @ bar]
    return Articulation(links, [("door", point) for point in points], joints=joint)


def cabinet(index: int) -> Articulation:
    """A drawer in a case. Its functional point is on the drawer's floor."""
    tint = (0.6, 0.42, 0.25)
    links = {
        "case": _case((0.2, 0.24, 0.105), 0.0, 0.008, tint),
        "drawer": [
            box((0.18, 0.19, 0.006), (-0.005, 0, 0.015), BEIGE),
            *[box((0.18, 0.006, 0.045), (-0.005, side * 0.095, 0.035), BEIGE) for side in (1, -1)],
            box((0.006, 0.19, 0.045), (0.082, 0, 0.035), BEIGE),
            box((0.010, 0.236, 0.085), (-0.106, 0, 0.052), tint),
            box((0.016, 0.016, 0.06), (-0.148, 0, 0.055), STEEL),
            *[box((0.035, 0.010, 0.010), (-0.128, 0, z), STEEL) for z in (0.03, 0.08)],
        ],
    }
    floor = np.eye(4)
    floor[:3, 3] = (0, 0, 0.018)
    joint = _SLIDE.format(parent="case", child="drawer", axis="-1 0 0", upper=0.17)
    return Articulation(links, [("drawer", frame((-0.148, 0, 0.055), -X, -Y))], [("drawer", floor)], joint)


# Name -> variants and how to make one.
ARTICULATED: dict[str, tuple[range | tuple[int, ...], Callable[[int], Articulation]]] = {
    "015_laptop": (range(11), laptop),
    "036_cabinet": ((46653,), cabinet),
    "044_microwave": (range(2), microwave),
    "056_switch": (range(8), switch),
    "060_kitchenpot": (range(8), kitchenpot),
}
