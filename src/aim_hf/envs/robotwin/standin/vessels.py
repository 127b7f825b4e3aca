"""The stand-in objects that hold others: hollow, or with a rim."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from .bodies import Body, X, Y, Z, bottom, frame, from_above
from .objects import BEIGE, BLACK, GRAY, WHITE, color
from .shapes import Color, Part, box, cylinder, tube


def _at_rim(radius: float, height: float) -> list:
    """Grasps of the wall at the right, the far side, the left and the near side, as a bowl stands in RoboTwin."""
    around = ((0, radius), (radius, 0), (0, -radius), (-radius, 0))
    return [frame((x, height, z), Y, Z if z else X) for x, z in around]


def _round(profile: list[tuple[float, float]], wall: float, tint: Color) -> Body:
    """A vessel whose outer `profile` is (radius, height) from the bottom to the rim, upright at the rim: fingers slip
    off a wall that leans. Closed fingers are 4 mm apart, so that a thin wall is held weakly."""
    parts = [cylinder(profile[0][0], 0.006, (0, 0, 0), tint)]
    for (lower, base), (upper, top) in itertools.pairwise(profile):
        parts += tube((lower, upper), wall, top - base, base, tint)
    radius, height = profile[-1]
    return Body(parts, _at_rim(radius - wall / 2, height - 0.013), [bottom()])


def bowl(index: int) -> Body:
    """A second bowl slides to its middle, and rests 2 cm higher."""
    return _round([(0.040, 0), (0.044, 0.016), (0.059, 0.026), (0.059, 0.054)], 0.010, color(index))


def cup(index: int) -> Body:
    return _round([(0.036, 0), (0.040, 0.04), (0.040, 0.075)], 0.008, color(index))


def plate(index: int) -> Body:
    parts = [cylinder(0.075, 0.006, (0, 0, 0), WHITE), *tube((0.075, 0.09), 0.006, 0.012, 0.003, GRAY)]
    return Body(parts, [], [bottom((0, 0.006, 0))])


def _tray(size: tuple[float, float, float], wall: float, tint: Color) -> list[Part]:
    """A rectangular vessel of outer `size`."""
    x, height, z = size
    floor = box((x, 0.006, z), (0, 0.003, 0), tint)
    sides = [box((wall, height, z), (side * (x - wall) / 2, height / 2, 0), tint) for side in (1, -1)]
    ends = [box((x, height, wall), (0, height / 2, end * (z - wall) / 2), tint) for end in (1, -1)]
    return [floor, *sides, *ends]


def shoe_box(index: int) -> Body:
    """`place_dual_shoes` lays one shoe on the near side of it, one on the far side."""
    return Body(_tray((0.16, 0.012, 0.24), 0.004, BEIGE), [], [bottom((side * 0.04, 0.006, 0)) for side in (1, -1)])


def tray(index: int) -> Body:
    return Body(_tray((0.24, 0.015, 0.14), 0.006, GRAY), [], [bottom((side * 0.06, 0.006, 0)) for side in (-1, 1)])


def plasticbox(index: int) -> Body:
    """Its functional points have z up: `place_cans_plasticbox` places cans by their own frames."""
    parts = _tray((0.12, 0.06, 0.20), 0.005, color(index))
    return Body(parts, [], [frame((0, 0.006, side * 0.045), Z, Y) for side in (1, -1)])


def basket(index: int) -> Body:
    """A can is set down on either side of its handle, by which it is then lifted."""
    parts = _tray((0.16, 0.025, 0.28), 0.006, color(index + 2))
    parts += [box((0.010, 0.12, 0.04), (side * 0.075, 0.06, 0), BEIGE) for side in (1, -1)]
    parts.append(box((0.16, 0.02, 0.04), (0, 0.13, 0), BEIGE))
    places = [frame((0, 0.006, side * 0.085), Z, Y) for side in (-1, 1)]
    return Body(parts, from_above(0.13, Z, -Z), places)


def skillet(index: int) -> Body:
    """Its handle lies along -z. It is grasped so that the pan is ahead of the hand's camera side."""
    tint = (BLACK, GRAY)[index % 2]
    parts = [cylinder(0.078, 0.006, (0, 0, 0), tint), *tube((0.078, 0.088), 0.006, 0.032, 0.0, tint)]
    parts.append(box((0.024, 0.020, 0.10), (0, 0.026, -0.132), BEIGE))
    return Body(parts, from_above(0.026, -X, at=(0, -0.14)), [frame((0, 0.006, 0), Z, Y)])


def trashbin(index: int) -> Body:
    """A small bin for the desk, whose floor is a funnel: on a flat one the rubbish would roll for ever.

    `dump_bin_bigbin` grasps its wall, by point 1 with the left arm and 3 with the right.
    """
    body = _round([(0.050, 0), (0.050, 0.10)], 0.008, color(index))
    return replace(body, parts=[*body.parts, *tube((0.012, 0.047), 0.008, 0.035, 0.004, GRAY)], functional=[])


def dustbin(index: int) -> Body:
    """It stands on the ground beside the table. Its floor is high, since the tasks look for rubbish at 0.2 m."""
    x, z, height, base, wall = 0.60, 0.29, 0.62, 0.205, 0.012
    parts = [box((x, 0.02, z), (0, base - 0.01, 0), GRAY)]
    parts += [box((wall, height, z), (side * (x - wall) / 2, height / 2, 0), GRAY) for side in (1, -1)]
    parts += [box((x, height, wall), (0, height / 2, side * (z - wall) / 2), GRAY) for side in (1, -1)]
    return Body(parts, [])


def breadbasket(index: int) -> Body:
    """Its functional point has z up, as that of the plastic box."""
    return Body(_tray((0.17, 0.045, 0.17), 0.005, BEIGE), [], [frame((0, 0.006, 0), Z, Y)])


# Name -> variants and how to make one.
VESSELS: dict[str, tuple[range | tuple[int, ...], Callable[[int], Body]]] = {
    "002_bowl": (range(1, 8), bowl),
    "003_plate": (range(1), plate),
    "011_dustbin": (range(1), dustbin),
    "007_shoe-box": (range(1), shoe_box),
    "008_tray": (range(4), tray),
    "021_cup": (range(13), cup),
    "076_breadbasket": (range(5), breadbasket),
    "062_plasticbox": (range(11), plasticbox),
    "063_tabletrashbin": ((0, 3, 7, 8, 9, 10), trashbin),
    "106_skillet": (range(4), skillet),
    "110_basket": (range(2), basket),
}
