"""Pick up two bottles at once, one with each gripper."""

from __future__ import annotations

import numpy as np

from ...base import ARMS, ExpertPath
from ..motion import Motion, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, Task

_RADIUS, _HEIGHT = 0.027, 0.095
_NECK = Part("cylinder", (0.012, 0.02), (0.20, 0.20, 0.26), (0, 0, _HEIGHT + 0.01))
_GRASP_HEIGHT = 0.06
_LIFT = 0.09
_LEAST_LIFT = 0.06
_LARGEST_TILT = np.deg2rad(15)


class PickDualBottles(Task):
    step_limit = 55
    seen = (
        "Pick up both bottles at once.",
        "Lift the {left} bottle with the left arm and the {right} bottle with the right arm.",
        "Grasp the two bottles, one with each gripper, and raise them.",
        "Pick up the {left} bottle and the {right} bottle with two hands.",
        "Use both arms to lift the bottles off the table.",
    )
    unseen = (
        "Take one bottle in each hand and bring them up.",
        "Raise the {left} and the {right} bottle together.",
        "Both bottles should be held above the table, each by an arm.",
    )
    requests = (
        "hoist the two bottles together",
        "get both bottles into the air, one per hand",
        "grab the {left} and the {right} bottle and lift both",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        width, depth = (0.22, 0.09) if split == "easy" else (0.25, 0.11)
        self.words = dict(zip(ARMS, map(str, rng.choice(list(COLORS), 2, replace=False)), strict=True))
        self._grasps = {}
        for arm, side in zip(ARMS, (-1, 1), strict=True):
            x, y = rng.uniform((0.08, -depth), (width, depth)) * [side, 1]
            part = Part("cylinder", (_RADIUS, _HEIGHT), COLORS[self.words[arm]], (0, 0, _HEIGHT / 2))
            scene.add_body(f"{arm}_bottle", [part, _NECK], x, y)
            self._grasps[arm] = np.array([x, y, scene.table_top + scene.scale * _GRASP_HEIGHT])
        self.keep_clear = [grasp[:2] for grasp in self._grasps.values()]

    def success(self, scene: TabletopScene) -> bool:
        return all(
            scene.pose(f"{arm}_bottle")[2] - scene.table_top > _LEAST_LIFT
            and scene.tilt(f"{arm}_bottle") < _LARGEST_TILT
            and scene.touching(f"{arm}_bottle", scene.fingers[arm])
            for arm in ARMS
        )

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        motion.lift_together(self._grasps, 0.08, _LIFT)
        return motion.path()
