"""Press the top of a bell."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, Task, arm_beside

_BASE = Part("cylinder", (0.045, 0.014), (0.22, 0.20, 0.30), (0, 0, 0.007))
_DOME = Part("cylinder", (0.033, 0.022), COLORS["red"], (0, 0, 0.025))
_BUTTON = Part("cylinder", (0.014, 0.006), COLORS["yellow"], (0, 0, 0.039))
_HEIGHT = 0.042


class ClickBell(Task):
    step_limit = 40
    targets = {"bell": "press"}
    seen = (
        "Click the bell.",
        "Press the top of the bell.",
        "Ring the bell.",
        "Push the bell's button.",
        "Tap the bell on its top.",
    )
    unseen = (
        "Make the bell ring by pressing it.",
        "Hit the button of the bell.",
        "Use a gripper to click the bell once.",
    )
    requests = (
        "give the bell a single ding",
        "poke the yellow button on top of the bell",
        "sound the bell with one gripper",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        farthest = (0.22, 0.10) if split == "easy" else (0.235, 0.12)
        x = rng.choice([-1, 1]) * rng.uniform(0.03, farthest[0])
        y = rng.uniform(-farthest[1], farthest[1])
        scene.add_body("bell", [_BASE, _DOME, _BUTTON], x, y)
        self._top = np.array([x, y, scene.table_top + scene.scale * _HEIGHT])
        self.keep_clear = [self._top[:2]]

    def success(self, scene: TabletopScene) -> bool:
        return scene.is_pressed("bell", scene.pose("bell")[:3] + [0, 0, scene.scale * _HEIGHT])

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        motion.press(arm_beside(self._top[0]), self._top)
        return motion.path(holding_steps=2)
