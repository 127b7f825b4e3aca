"""Scenes of Easy in which one thing is perturbed: the splits `<axis>-<strength>` of `names.PERTURBATIONS`.

The seed decides in which direction a scene is perturbed, the strength how far:

    axis      unit                     1             2             3             on Hard
    light     factor of brightness     0.75 or 1.2   0.55 or 1.4   0.35 or 1.6   0.68 to 1.05
              darkest channel          0.9           0.8           0.7           0.9
    texture   contrast of the table    0.1           0.2           0.3           0.04 to 0.14, or none
    clutter   distractors              4             7             10            2 to 5
    camera    degrees about the table  2             6             12            1 about each axis, and 1 cm
    height    meters up or down        0.015         0.03          0.05          up to 0.015
    color     degrees of hue           3             6             10            none
              paler, or darker         0.9, 0.92     0.8, 0.84     0.65, 0.75    none
    size      factor                   1.07 or its   1.14 or its   1.2 or its    none
                                       inverse       inverse       inverse
    wording   instructions             held-out      `requests`    chatty        seen in training
    delay     control steps            1             2             4             none

Strength 1 is about the range of Hard where Hard has the axis; 2 and 3 go beyond it. The camera is the head's. Light
multiplies the pictures: the renderer has no lamps and no shadows.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sapien

from .cameras import HEAD_POSITION, HEAD_TARGET
from .randomization import Look, muted_color, texture
from .scene import Color
from .tasks import Task

# Of strengths 1, 2, 3.
DIMMER, BRIGHTER, CAST = (0.75, 0.55, 0.35), (1.2, 1.4, 1.6), (0.1, 0.2, 0.3)
CONTRAST = (0.1, 0.2, 0.3)
DISTRACTORS = (4, 7, 10)
TURN = tuple(np.deg2rad([2.0, 6.0, 12.0]))
LIFT = (0.015, 0.03, 0.05)
HUE, PALER, DARKER = (3 / 360, 6 / 360, 10 / 360), (0.9, 0.8, 0.65), (0.92, 0.84, 0.75)
SIZE = (1.07, 1.14, 1.2)
DELAY = (1, 2, 4)

# Sentences that a request is embedded in. Longer ones would not fit the 32 tokens that checkpoints/aim-tiny can read.
CHATTY = (
    "Uh, please, {request}, ok?",
    "Hey robot, {request}!!",
    "Could you {request}?",
    "Now {request}, thx!",
)


@dataclass(frozen=True)
class Perturbation:
    """The differences of a scene from the Easy scene of its seed.

    `paint` gives a part's color for its color on Easy, `scale` is a factor of the objects' sizes, and `delay` the
    number of control steps by which actions are executed late.
    """

    look: Look = Look()
    distractors: int = 0
    paint: Callable[[Color], Color] = lambda color: color
    scale: float = 1.0
    delay: int = 0


def perturb(axis: str, strength: int, rng: np.random.Generator) -> Perturbation:
    """The perturbation of a scene; none for the axis `wording`, which `reworded` handles."""
    level, direction = strength - 1, rng.choice([-1, 1])
    if axis == "light":
        brightness = (DIMMER if direction < 0 else BRIGHTER)[level]
        cast = rng.permutation([0.0, rng.uniform(), 1.0])
        return Perturbation(Look(tint=(brightness * (1 - CAST[level] * cast)).astype(np.float32)))
    if axis == "texture":
        color, kind = muted_color(rng, 0.45, 0.8), rng.integers(1, 4)
        return Perturbation(
            Look(color, texture(color, kind, CONTRAST[level], rng), floor_color=muted_color(rng, 0.05, 0.6))
        )
    if axis == "clutter":
        return Perturbation(distractors=DISTRACTORS[level])
    if axis == "camera":
        return Perturbation(Look(head_jitter=_orbit(rng.normal(size=3), TURN[level])))
    if axis == "height":
        return Perturbation(Look(table_offset=direction * LIFT[level]))
    if axis == "color":
        hue, (saturation, value) = direction * HUE[level], [(PALER[level], 1.0), (1.0, DARKER[level])][rng.integers(2)]
        return Perturbation(paint=lambda color: _shifted(color, hue, saturation, value))
    if axis == "size":
        return Perturbation(scale=SIZE[level] ** direction)
    if axis == "delay":
        return Perturbation(delay=DELAY[level])
    return Perturbation()


def reworded(task: Task, strength: int, rng: np.random.Generator) -> str:
    """An instruction template of the axis `wording`, never one of the task's `seen`."""
    if strength == 1:
        return task.unseen[rng.integers(len(task.unseen))]
    request = task.requests[rng.integers(len(task.requests))]
    if strength == 2:
        return request[0].upper() + request[1:] + "."
    return CHATTY[rng.integers(len(CHATTY))].format(request=request)


def _orbit(axis: np.ndarray, angle: float) -> np.ndarray:
    """The jitter (6,) that turns the head camera by `angle` (rad) about the point of the table that it looks at."""
    axis = axis / np.linalg.norm(axis)
    turn = sapien.Pose(q=[np.cos(angle / 2), *(np.sin(angle / 2) * axis)])
    arm = HEAD_POSITION - HEAD_TARGET
    return np.concatenate([turn.to_transformation_matrix()[:3, :3] @ arm - arm, turn.get_rpy()])


def _shifted(color: Color, hue: float, saturation: float, value: float) -> Color:
    """A color whose hue is moved by `hue` turns, and whose saturation and value are multiplied."""
    h, s, v = colorsys.rgb_to_hsv(*color)
    return colorsys.hsv_to_rgb((h + hue) % 1.0, saturation * s, value * v)
