"""Put a pill bottle on a pad."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, TARGET_COLORS, Task, arm_beside

_RADIUS, _HEIGHT = 0.027, 0.055
_CAP = Part("cylinder", (0.022, 0.015), (0.20, 0.20, 0.26), (0, 0, _HEIGHT + 0.0075))
_PAD_SIZE = (0.09, 0.09, 0.004)
_GRASP_HEIGHT = 0.035
_LIFT = 0.075
_TOLERANCE = 0.03  # along x and y, of the bottle's axis from the pad's middle


class MovePillbottlePad(Task):
    step_limit = 80
    seen = (
        "Move the {a} pill bottle onto the {b} pad.",
        "Place the {a} bottle on the {b} pad.",
        "Put the {a} pill bottle on the {b} mat.",
        "Pick up the {a} bottle and set it down on the {b} pad.",
        "Set the {a} pill bottle on the {b} square.",
    )
    unseen = (
        "The {a} bottle of pills belongs on the {b} pad.",
        "Take the {a} pill bottle and leave it standing on the {b} mat.",
        "Bring the {a} bottle over to the {b} pad.",
    )
    requests = (
        "park the {a} pill bottle upright on the {b} pad",
        "carry the {a} bottle onto the {b} square",
        "get the {a} pills onto the {b} mat",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        width, depth = (0.24, 0.09) if split == "easy" else (0.25, 0.11)
        side = rng.choice([-1, 1])
        while True:  # until the bottle stands beside the pad; both on one side, so that one arm reaches them
            bottle_at = rng.uniform((0.05, -depth), (width, depth)) * [side, 1]
            pad_at = rng.uniform((0.05, -depth), (width, depth)) * [side, 1]
            if np.linalg.norm(bottle_at - pad_at) > 0.12:
                break
        a, b = (str(rng.choice(list(colors))) for colors in (COLORS, TARGET_COLORS))
        pad = Part("box", _PAD_SIZE, TARGET_COLORS[b], (0, 0, _PAD_SIZE[2] / 2))
        bottle = Part("cylinder", (_RADIUS, _HEIGHT), COLORS[a], (0, 0, _HEIGHT / 2))
        scene.add_body("pad", [pad], *pad_at, dynamic=False)
        scene.add_body("bottle", [bottle, _CAP], *bottle_at)
        height = scene.table_top + scene.scale * _GRASP_HEIGHT
        self._grasp = np.array([*bottle_at, height])
        self._goal = np.array([*pad_at, height + scene.scale * _PAD_SIZE[2] + 0.003])
        self.keep_clear, self.words = [bottle_at, pad_at], {"a": a, "b": b}

    def success(self, scene: TabletopScene) -> bool:
        bottle, pad = scene.pose("bottle")[:3], scene.pose("pad")[:3]
        return bool(
            np.all(np.abs(bottle[:2] - pad[:2]) < _TOLERANCE)
            and abs(bottle[2] - pad[2] - scene.scale * _PAD_SIZE[2]) < 0.008
            and scene.tilt("bottle") < 0.2
            and scene.is_left("bottle")
        )

    def expert(self) -> ExpertPath:
        arm = arm_beside(self._grasp[0])
        motion = Motion(home_poses())
        motion.pick(arm, self._grasp, _LIFT)
        motion.place(arm, self._goal, _LIFT)
        return motion.path()
