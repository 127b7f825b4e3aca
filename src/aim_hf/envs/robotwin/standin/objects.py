"""The stand-in objects, by RoboTwin's names. Each is a function of its variant that returns a body.

An object's frame is at its bottom, y up, unless its task places it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .bodies import Body, X, Y, Z, bottom, frame, from_above, from_side
from .shapes import Color, Part, box, cone, cylinder

AROUND = (X, -X, Z, -Z)
RED, ORANGE, YELLOW, GREEN = (0.8, 0.15, 0.12), (0.9, 0.5, 0.1), (0.9, 0.8, 0.2), (0.15, 0.6, 0.25)
BLUE, PURPLE = (0.15, 0.3, 0.8), (0.5, 0.2, 0.6)
WHITE, GRAY, BLACK = (0.9, 0.9, 0.88), (0.5, 0.5, 0.52), (0.1, 0.1, 0.11)
BROWN, BEIGE, STEEL, GOLD = (0.45, 0.28, 0.15), (0.85, 0.7, 0.45), (0.65, 0.67, 0.7), (0.8, 0.62, 0.2)
PALETTE = (BLUE, RED, GREEN, ORANGE, PURPLE, YELLOW, GRAY)


def color(index: int) -> Color:
    return PALETTE[index % len(PALETTE)]


def grow(index: int) -> float:
    """The variant's size: 0.94 to 1.06 of the usual."""
    return 0.94 + 0.03 * (index * 3 % 5)


def _block(size: tuple[float, float, float], tint: Color, *closing: np.ndarray) -> Body:
    """A box that is grasped from above at half of its height."""
    part = box(size, (0, size[1] / 2, 0), tint)
    return Body([part], from_above(size[1] / 2, *(closing or AROUND)), stable=True)


def mouse(index: int) -> Body:
    s, tint = grow(index), (BLACK, GRAY, WHITE)[index % 3]
    parts = [
        box((0.055 * s, 0.024, 0.10 * s), (0, 0.012, 0), tint),
        box((0.045 * s, 0.014, 0.06 * s), (0, 0.029, -0.01), tint),
        box((0.008, 0.006, 0.02), (0, 0.026, 0.035), RED),
    ]
    return Body(parts, from_above(0.017, X, -X), [bottom()], stable=True)


def stapler(index: int) -> Body:
    """The press of `press_stapler` ends with the fingertips 3 mm below the top."""
    s, tint = grow(index), color(index)
    parts = [
        box((0.034, 0.012, 0.12 * s), (0, 0.006, 0), BLACK),
        box((0.026, 0.022, 0.03), (0, 0.023, -0.045 * s), BLACK),
        box((0.03, 0.018, 0.115 * s), (0, 0.042, 0), tint),
    ]
    return Body(parts, [*from_above(0.03, X, -X), *from_above(0.040, X, -X)], [bottom()], stable=True)


def bell(index: int) -> Body:
    """RoboTwin aims the fingertips 4.3 cm above the contact point, 3 mm into the button. It accepts contacts up to 3
    cm above that point, also shapes within 2 cm of each other: the top of the dome under the fingers.
    """
    parts = [
        cylinder(0.036, 0.008, (0, 0, 0), BLACK),
        cone((0.033, 0.020), 0.0305, (0, 0.008, 0), (STEEL, GOLD)[index % 2]),
        cylinder(0.010, 0.0175, (0, 0.0385, 0), BLACK),
    ]
    return Body(parts, from_above(0.010, *AROUND), stable=False)


def toycar(index: int) -> Body:
    s, tint = grow(index), color(index)
    parts = [
        box((0.10 * s, 0.022, 0.045 * s), (0, 0.021, 0), tint),
        box((0.05 * s, 0.02, 0.038 * s), (-0.008, 0.042, 0), WHITE),
    ]
    parts += [
        cylinder(0.011, 0.008, (x * s, 0.011, z * 0.0225 * s - (0.008 if z > 0 else 0)), BLACK, axis=2)
        for x in (-0.032, 0.032)
        for z in (-1, 1)
    ]
    return Body(parts, from_above(0.022, Z, -Z), stable=True)


def rubikscube(index: int) -> Body:
    side = 0.052 * grow(index)
    cell, parts = side / 3, []
    for x in range(3):
        for z in range(3):
            tint = (RED, GREEN, BLUE, YELLOW, ORANGE, WHITE)[(x * 2 + z * 5 + index) % 6]
            parts.append(box((cell, 0.006, cell), ((x - 1) * cell, side - 0.003, (z - 1) * cell), tint))
    parts.append(box((side, side - 0.006, side), (0, (side - 0.006) / 2, 0), (RED, GREEN, BLUE)[index % 3]))
    return Body(parts, from_above(side / 2, *AROUND), stable=True)


def bread(index: int) -> Body:
    s = grow(index)
    parts = [
        box((0.11 * s, 0.036, 0.05 * s), (0, 0.018, 0), BEIGE),
        box((0.10 * s, 0.010, 0.04 * s), (0, 0.041, 0), (0.6, 0.38, 0.15)),
    ]
    return Body(parts, from_above(0.023, Z, -Z), stable=True)


def phone(index: int) -> Body:
    s = grow(index)
    parts = [
        box((0.060 * s, 0.014, 0.13 * s), (0, 0.007, 0), color(index)),
        box((0.054 * s, 0.002, 0.12 * s), (0, 0.015, 0), BLACK),
    ]
    contacts, back = from_above(0.014, X, -X), frame((0, 0, 0), -Z, Y)
    if index == 4:  # `place_phone_stand` lays it face down
        contacts += [frame((0, 0.002, 0), -Y, closing) for closing in (X, -X)]
        back = frame((0, 0.016, 0), Z, -Y)
    return Body(parts, contacts, [back], stable=True)


def playingcards(index: int) -> Body:
    return _block((0.062, 0.026, 0.09), color(index + 1), X, -X)


def woodenblock(index: int) -> Body:
    s = grow(index)
    return _block((0.046 * s, 0.05 * s, 0.06 * s), (BROWN, BEIGE, (0.7, 0.5, 0.3))[index % 3], X, -X)


def soap(index: int) -> Body:
    return _block((0.085 * grow(index), 0.03, 0.055), (WHITE, (0.9, 0.7, 0.75), GREEN, BEIGE)[index % 4], Z, -Z)


def tea_box(index: int) -> Body:
    """`scan_object` turns its bottom to the scanner, which comes along the z axis of functional point 1."""
    block = _block((0.09, 0.05, 0.06 * grow(index)), (GREEN, (0.2, 0.4, 0.2), BEIGE)[index % 3], Z, -Z)
    return replace(block, functional=[bottom(), frame((0, 0, 0), X, Y)])


def coffee_box(index: int) -> Body:
    return _block((0.10, 0.055, 0.06 * grow(index)), (BROWN, BLACK, RED)[index % 3], Z, -Z)


def alarm_clock(index: int) -> Body:
    """The press of `click_alarmclock` aims the fingertips 2.3 cm above the contact point, 3 mm into the button."""
    parts = [
        box((0.035, 0.06, 0.07), (0, 0.03, 0), color(index)),
        box((0.004, 0.045, 0.055), (0.0185, 0.032, 0), WHITE),
        cylinder(0.012, 0.016, (0, 0.06, 0), BLACK),
    ]
    return Body(parts, from_above(0.050, *AROUND))


def _bottle(radius: float, height: float, tint: Color) -> Body:
    """A bottle along y, square so that it doesn't roll. It stands, or lies with z up or down."""
    shoulder = 0.72 * height
    parts = [
        box((2 * radius, shoulder, 2 * radius), (0, shoulder / 2, 0), tint),
        cone((radius, 0.4 * radius), 0.12 * height, (0, shoulder, 0), tint),
        cylinder(0.45 * radius, 0.16 * height, (0, 0.84 * height, 0), WHITE),
    ]
    middle = (0, 0.45 * height, 0)
    lying = [frame(middle, up, side) for up in (Z, -Z) for side in (X, -X)]
    return Body(parts, [*from_side(middle, *AROUND), *lying], [bottom()])


def bottle(index: int) -> Body:
    return _bottle(0.028 * grow(index), 0.17, color(index))


def pillbottle(index: int) -> Body:
    parts = [
        cylinder(0.027, 0.06, (0, 0, 0), (ORANGE, YELLOW, GREEN, RED, PURPLE)[index % 5]),
        cylinder(0.024, 0.02, (0, 0.06, 0), WHITE),
    ]
    return Body(parts, from_above(0.045, *AROUND), [bottom()])


def can(index: int) -> Body:
    parts = [
        cylinder(0.029, 0.085, (0, 0, 0), color(index)),
        cylinder(0.025, 0.004, (0, 0.085, 0), STEEL),
    ]
    return Body(parts, [*from_above(0.06, *AROUND), *from_side((0, 0.05, 0), *AROUND)], [bottom()])


def hammer(index: int) -> Body:
    """It lies with z down; its head strikes along z."""
    parts = [
        box((0.022, 0.17, 0.022), (0, -0.02, 0), BROWN),
        box((0.034, 0.034, 0.06), (0, 0.06, 0.011), STEEL),
    ]
    contacts = [frame((0, -0.04, 0), -Z, side) for side in (X, -X)]
    return Body(parts, contacts, [frame((0, 0.06, 0.041), X, Z)])


def shoe(index: int) -> Body:
    tint = color(index)
    parts = [
        box((0.058, 0.014, 0.19), (0, 0.007, 0), WHITE),
        box((0.052, 0.022, 0.185), (0, 0.025, 0), tint),
        box((0.030, 0.042, 0.085), (0, 0.057, -0.045), tint),
    ]
    return Body(parts, from_above(0.060, X, -X, at=(0, -0.045)), [bottom()])


def seal(index: int) -> Body:
    parts = [
        box((0.036, 0.025, 0.036), (0, 0.0125, 0), (RED, BROWN, GRAY)[index % 3]),
        cylinder(0.012, 0.05, (0, 0.025, 0), BROWN),
    ]
    return Body(parts, [*from_above(0.02, *AROUND), *from_above(0.055, *AROUND)], [bottom()])


def paymentsign(index: int) -> Body:
    parts = [
        box((0.085, 0.01, 0.06), (0, 0.005, 0), BLACK),
        box((0.075, 0.10, 0.012), (0, 0.06, 0), color(index)),
        box((0.05, 0.05, 0.002), (0, 0.07, 0.007), WHITE),
    ]
    return Body(parts, from_above(0.085, Z, -Z), [bottom()])


def roller(index: int) -> Body:
    """Its handles are at the left and the right where `grab_roller` lays it: along z, or along x in variant 2."""
    parts = [
        cylinder(0.025, 0.16, (0, 0.025, -0.08), BEIGE, axis=2),
        cylinder(0.011, 0.26, (0, 0.025, -0.13), BROWN, axis=2),
    ]
    contacts = [frame((0, 0.025, side * 0.105), Y, X) for side in (-1, 1)]
    if index == 2:
        turn = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # z onto -x
        parts = [Part(part.vertices @ turn.T, part.faces, part.color) for part in parts]
        contacts = [frame((-side * 0.105, 0.025, 0), Y, Z) for side in (-1, 1)]
    return Body(parts, contacts, [bottom()])


def scale(index: int) -> Body:
    parts = [
        box((0.14, 0.022, 0.14), (0, 0.011, 0), (GRAY, WHITE, BLACK)[index % 3]),
        cylinder(0.055, 0.006, (0, 0.022, 0), STEEL),
    ]
    return Body(parts, [], [frame((0, 0.028, 0), Z, Y)])


def coaster(index: int) -> Body:
    return Body([cylinder(0.05, 0.006, (0, 0, 0), BROWN)], [], [bottom((0, 0.006, 0))])


def displaystand(index: int) -> Body:
    parts = [cylinder(0.05, 0.01, (0, 0, 0), color(index + 2)), cylinder(0.058, 0.006, (0, 0.01, 0), WHITE)]
    return Body(parts, [], [frame((0, 0.016, 0), Z, Y)])


def remotecontrol(index: int) -> Body:
    return _block((0.045, 0.026, 0.13 * grow(index)), (BLACK, GRAY, WHITE)[index % 3], X, -X)


def hamburg(index: int) -> Body:
    parts = [
        cylinder(0.035, 0.016, (0, 0, 0), BEIGE),
        cylinder(0.037, 0.014, (0, 0.016, 0), BROWN),
        cone((0.036, 0.022), 0.022, (0, 0.03, 0), BEIGE),
    ]
    return Body(parts, from_above(0.026, *AROUND), [bottom()])


def fries(index: int) -> Body:
    """In a frame with z up."""
    parts = [box((0.055, 0.06, 0.03), (0, 0.03, 0), RED), box((0.045, 0.03, 0.02), (0, 0.075, 0), YELLOW)]
    return Body(parts, from_above(0.045, Z, -Z), [bottom()]).standing()


# Name -> variants and how to make one.
OBJECTS: dict[str, tuple[range | tuple[int, ...], Callable[[int], Body]]] = {
    "001_bottle": (range(23), bottle),
    "005_french-fries": (range(4), fries),
    "006_hamburg": (range(6), hamburg),
    "019_coaster": (range(1), coaster),
    "020_hammer": (range(1), hammer),
    "041_shoe": (range(10), shoe),
    "046_alarm-clock": (range(6), alarm_clock),
    "047_mouse": (range(3), mouse),
    "048_stapler": (range(7), stapler),
    "050_bell": (range(2), bell),
    "057_toycar": (range(6), toycar),
    "070_paymentsign": (range(4), paymentsign),
    "071_can": ((0, 1, 2, 3, 5, 6), can),
    "072_electronicscale": ((0, 1, 2, 5, 6), scale),
    "073_rubikscube": (range(3), rubikscube),
    "074_displaystand": (range(5), displaystand),
    "075_bread": (range(7), bread),
    "077_phone": (range(5), phone),
    "079_remotecontrol": (range(7), remotecontrol),
    "080_pillbottle": (range(1, 6), pillbottle),
    "081_playingcards": (range(3), playingcards),
    "086_woodenblock": (range(5), woodenblock),
    "100_seal": ((0, 1, 2, 3, 4, 6), seal),
    "102_roller": (range(3), roller),
    "105_sauce-can": ((0, 2, 4, 5, 6), can),
    "107_soap": (range(4), soap),
    "112_tea-box": (range(6), tea_box),
    "113_coffee-box": (range(7), coffee_box),
}
