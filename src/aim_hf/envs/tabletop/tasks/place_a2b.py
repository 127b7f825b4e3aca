"""Place a cube to the left or to the right of a disc. Both tasks share their scenes: the words alone decide."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, above, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, LARGEST_YAW, TARGET_COLORS, Task, arm_beside, cube

_DISC_RADIUS, _DISC_HEIGHT = 0.045, 0.012  # low enough for an open finger to pass above it
_SIZE = 0.055
_DISTANCE = 0.10  # between the middles, along x
_TOLERANCE = np.array([0.04, 0.05])  # along x and y
_LIFT = 0.075


class _PlaceA2B(Task):
    step_limit = 80
    side: ClassVar[int]  # the goal's direction along x
    seen = (
        "Place the {a} cube to the {side} of the {b} disc.",
        "Put the {a} block on the {side} side of the {b} disc.",
        "Move the {a} cube to the {side} of the {b} plate.",
        "Set the {a} block down {side} of the {b} disc.",
        "Pick up the {a} cube and place it to the {side} of the {b} disc.",
    )
    unseen = (
        "The {a} cube belongs to the {side} of the {b} disc.",
        "Take the {a} block and put it beside the {b} disc, on its {side}.",
        "Bring the {a} cube to the {side} side of the {b} plate.",
    )
    requests = (
        "get the {a} cube to stand {side} of the {b} disc",
        "slide the {a} cube over to the {side} of the {b} disc",
        "lay the {a} block by the {side} side of the {b} plate",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        half_width, half_depth = (0.24, 0.09) if split == "easy" else (0.25, 0.11)
        arm_side = rng.choice([-1, 1])
        while True:  # until the cube is beside neither side of the disc, nor on it
            # Seen from the cube's side, so that one arm reaches the cube and both goals.
            cube_at = rng.uniform((0.03, -half_depth), (half_width, half_depth)) * [arm_side, 1]
            disc_at = rng.uniform((0.0, -half_depth + 0.02), (0.15, half_depth - 0.02)) * [arm_side, 1]
            offset = np.abs(cube_at - disc_at)
            if np.linalg.norm(offset) > 0.11 and np.any(np.abs(offset - [_DISTANCE, 0]) > _TOLERANCE + 0.02):
                break
        a, b = (str(rng.choice(list(colors))) for colors in (COLORS, TARGET_COLORS))
        disc = Part("cylinder", (_DISC_RADIUS, _DISC_HEIGHT), TARGET_COLORS[b], (0, 0, _DISC_HEIGHT / 2))
        scene.add_body("disc", [disc], *disc_at)
        scene.add_body("cube", [cube(_SIZE, COLORS[a])], *cube_at, yaw=rng.uniform(-1, 1) * LARGEST_YAW[split])
        height = scene.table_top + scene.scale * _SIZE / 2 + 0.004
        self._grasp = np.array([*cube_at, height])
        self._goal = np.array([*(disc_at + [self.side * _DISTANCE, 0]), height])
        self.keep_clear = [cube_at, self._goal[:2], disc_at - [self.side * _DISTANCE, 0], disc_at]
        self.words = {"a": a, "b": b, "side": "left" if self.side < 0 else "right"}

    def success(self, scene: TabletopScene) -> bool:
        cube_at, disc_at = scene.pose("cube")[:3], scene.pose("disc")[:3]
        error = cube_at[:2] - disc_at[:2] - [self.side * _DISTANCE, 0]
        return bool(
            np.all(np.abs(error) < _TOLERANCE)
            and abs(cube_at[2] - scene.table_top) < 0.01
            and scene.tilt("cube") < 0.2
            and scene.is_left("cube")
        )

    def expert(self) -> ExpertPath:
        arm = arm_beside(self._grasp[0])
        motion = Motion(home_poses())
        motion.pick(arm, self._grasp, _LIFT)
        motion.place(arm, above(self._goal, 0.003), _LIFT)
        return motion.path()


class PlaceA2BLeft(_PlaceA2B):
    side = -1


class PlaceA2BRight(_PlaceA2B):
    side = 1
