"""The base class of the tabletop suite's tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

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


class Task(ABC):
    """The task of one episode. `build` draws the scene; all other methods refer to that scene.

    `seen` and `unseen` are instruction templates, filled in by `words`; `requests` ask for the task in yet other
    words, as a part of a sentence.
    """

    step_limit: ClassVar[int]
    press_targets: ClassVar[tuple[str, ...]] = ()  # names of the bodies that closed fingers must press
    push_targets: ClassVar[tuple[str, ...]] = ()  # names of the bodies that closed fingers must push along
    seen: ClassVar[tuple[str, ...]]
    unseen: ClassVar[tuple[str, ...]]
    requests: ClassVar[tuple[str, ...]]

    @abstractmethod
    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        """Adds the task's objects to a scene that has its table. Their sizes are multiplied by `scene.scale`."""

    @abstractmethod
    def keep_clear(self) -> list[tuple[float, float]]:
        """The points (x, y) of the table that clutter must stay away from."""

    def words(self) -> dict[str, str]:
        """The values of the placeholders in the templates."""
        return {}

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
