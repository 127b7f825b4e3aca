"""Grasp a pot by its two handles with both grippers at once, and lift it level."""

from __future__ import annotations

import numpy as np

from ...base import ARMS, ExpertPath
from ..motion import Motion, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, Task

_RADIUS, _HEIGHT = 0.075, 0.06
_HANDLE = 0.087  # of a handle's middle from the pot's axis
_HANDLE_HEIGHT = 0.085  # where it is grasped
_BODY = Part("cylinder", (_RADIUS, _HEIGHT), COLORS["blue"], (0, 0, _HEIGHT / 2))
_INSIDE = Part("cylinder", (_RADIUS - 0.012, 0.001), (0.10, 0.12, 0.35), (0, 0, _HEIGHT + 0.0005), solid=False)
_HANDLES = [Part("box", (0.026, 0.05, 0.085), COLORS["yellow"], (side * _HANDLE, 0, 0.0625)) for side in (-1, 1)]
_DENSITY = 200.0  # kg/m³: it is hollow

_LIFT = 0.09
_LEAST_LIFT = 0.06
_LARGEST_TILT = np.deg2rad(10)
_LARGEST_YAW = {"easy": np.deg2rad(5), "hard": np.deg2rad(10)}


class LiftPot(Task):
    step_limit = 55
    seen = (
        "Lift the pot with both arms.",
        "Grasp both handles of the pot and lift it.",
        "Pick up the pot by its two handles.",
        "Raise the pot with both grippers.",
        "Use both arms to lift the pot off the table.",
    )
    unseen = (
        "Hold the pot on either side and raise it level.",
        "Take the pot by its handles, one in each gripper, and lift it up.",
        "With two hands, bring the pot up from the table.",
    )
    requests = (
        "heave the pot up by both handles",
        "with two hands, get the pot up in the air",
        "get the pot off the table, an arm on either side",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        largest = (0.07, 0.08) if split == "easy" else (0.09, 0.10)
        x, y = rng.uniform(-1, 1, 2) * largest
        yaw = rng.uniform(-1, 1) * _LARGEST_YAW[split]
        scene.add_body("pot", [_BODY, _INSIDE, *_HANDLES], x, y, yaw=yaw, density=_DENSITY)
        handle = scene.scale * _HANDLE * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        middle = np.array([x, y, scene.table_top + scene.scale * _HANDLE_HEIGHT])
        self._handles = {"left": middle - handle, "right": middle + handle}
        self.keep_clear = [middle[:2], *(handle[:2] for handle in self._handles.values())]

    def success(self, scene: TabletopScene) -> bool:
        return bool(
            scene.pose("pot")[2] - scene.table_top > _LEAST_LIFT
            and scene.tilt("pot") < _LARGEST_TILT
            and all(scene.touching("pot", scene.fingers[arm]) for arm in ARMS)
        )

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        motion.lift_together(self._handles, 0.07, _LIFT)
        return motion.path()
