"""Press the head of a stapler, which may lie at any angle."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, Task, arm_beside

_LENGTH, _HEIGHT = 0.15, 0.044
_HEAD = 0.045  # from the stapler's middle to the head's
_FOOT_COLOR = (0.22, 0.20, 0.30)


class PressStapler(Task):
    step_limit = 40
    targets = {"stapler": "press"}
    seen = (
        "Press the {a} stapler.",
        "Push down the head of the {a} stapler.",
        "Staple once with the {a} stapler.",
        "Press the yellow end of the {a} stapler.",
        "Use the {a} stapler.",
    )
    unseen = (
        "Make the {a} stapler staple by pressing its head.",
        "Push the {a} stapler down at its yellow end.",
        "Hit the head of the {a} stapler with a closed gripper.",
    )
    requests = (
        "clamp down on the {a} stapler",
        "squeeze the {a} stapler at its yellow end",
        "drive a staple with the {a} stapler",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        width, depth = (0.20, 0.09) if split == "easy" else (0.22, 0.11)
        at = np.array([rng.choice([-1, 1]) * rng.uniform(0.03, width), rng.uniform(-depth, depth)])
        yaw = rng.uniform(-np.pi, np.pi)
        color = str(rng.choice(["red", "green", "blue"]))
        parts = [
            Part("box", (_LENGTH, 0.05, 0.012), _FOOT_COLOR, (0, 0, 0.006)),
            Part("box", (_LENGTH - 0.01, 0.036, 0.026), COLORS[color], (0, 0, 0.025)),
            Part("box", (0.04, 0.04, 0.006), COLORS["yellow"], (_HEAD, 0, 0.041)),
        ]
        scene.add_body("stapler", parts, *at, yaw=yaw, dynamic=False)
        head = scene.scale * _HEAD * np.array([np.cos(yaw), np.sin(yaw)])
        self.keep_clear = [at - head, at, at + head]
        self._head = np.array([*(at + head), scene.table_top + scene.scale * _HEIGHT])
        self.words = {"a": color}

    def success(self, scene: TabletopScene) -> bool:
        return scene.is_pressed("stapler", self._head)

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        motion.press(arm_beside(self._head[0]), self._head)
        return motion.path(holding_steps=2)
