"""The base class of the tabletop suite's tasks."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ... import in_process
from ...base import ExpertPath
from ..scene import Part, TabletopScene

# Saturated and distinct; distractors never have similar colors.
COLORS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.72, 0.18),
    "blue": (0.12, 0.25, 0.95),
    "yellow": (0.98, 0.85, 0.05),
}
# Colors of the bodies that objects are placed on or beside.
TARGET_COLORS = {
    "purple": (0.52, 0.12, 0.75),
    "cyan": (0.05, 0.75, 0.85),
    "orange": (1.00, 0.48, 0.02),
}

LARGEST_YAW = {"easy": np.deg2rad(10), "hard": np.deg2rad(20)}


class Task(in_process.Task):
    """The task of one episode. `build` draws the scene; all else refers to that scene.

    `requests` ask for the task in other words than `seen` and `unseen`, as a part of a sentence. `keep_clear`: the
    points (x, y) of the table that clutter must stay away from.
    """

    step_limit: ClassVar[int]
    requests: ClassVar[tuple[str, ...]]
    keep_clear: list[np.ndarray]

    @abstractmethod
    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        """Adds the task's objects to a scene that has its table, and sets `keep_clear` and `words`. Sizes are
        multiplied by `scene.scale`."""

    @abstractmethod
    def success(self, scene: TabletopScene) -> bool:
        """Whether the scene's physical state fulfils the task."""

    @abstractmethod
    def expert(self) -> ExpertPath:
        """The nominal path for the scene as built."""


def arm_beside(x: float) -> str:
    """The arm on whose side of the table x lies."""
    return "left" if x < 0 else "right"


def cube(size: float, color: tuple[float, float, float]) -> Part:
    return Part("box", (size, size, size), color, (0, 0, size / 2))
