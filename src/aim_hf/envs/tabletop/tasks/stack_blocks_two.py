"""Move the red cube to the mark in the middle, then the green cube onto it."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, above, home_poses
from ..scene import Part, Scene
from .base import COLORS, LARGEST_YAW, Task, arm_beside, cube

_SIZE = 0.055
_MIDDLE = np.array([0.0, -0.02])
_MARK = Part("box", (0.08, 0.08, 0.001), (0.42, 0.42, 0.46), (0, 0, 0.0005), solid=False)
_LIFT = 0.075
_MIDDLE_TOLERANCE = 0.035
_STACK_TOLERANCE = 0.022


class StackBlocksTwo(Task):
    step_limit = 140
    seen = (
        "Stack the green cube on the red cube.",
        "Move the red block to the middle and put the green block on top of it.",
        "Place the red cube on the mark, then the green cube on the red cube.",
        "Build a stack with the red block below and the green block on top.",
        "Put the green cube on top of the red cube in the middle.",
    )
    unseen = (
        "Make a tower: red at the bottom, green above.",
        "First bring the red cube to the center, then stack the green one on it.",
        "The green block should end up on the red block in the middle.",
    )

    def build(self, scene: Scene, split: str, rng: np.random.Generator) -> None:
        farthest = (0.24, 0.09) if split == "easy" else (0.26, 0.11)
        while True:  # until the cubes leave room for a gripper between them
            red, green = (rng.uniform((0.12, -farthest[1]), farthest) * [rng.choice([-1, 1]), 1] for _ in range(2))
            if np.linalg.norm(red - green) > 0.12:
                break
        scene.add_body("mark", [_MARK], *_MIDDLE, dynamic=False)
        for name, position in (("red", red), ("green", green)):
            yaw = rng.uniform(-1, 1) * LARGEST_YAW[split]
            scene.add_body(f"{name}_cube", [cube(_SIZE, COLORS[name])], *position, yaw=yaw)
        height = scene.table_top + _SIZE / 2
        self._red, self._green = np.array([*red, height]), np.array([*green, height])
        self._goal = np.array([*_MIDDLE, height])

    def keep_clear(self) -> list[tuple[float, float]]:
        return [self._red[:2], self._green[:2], self._goal[:2]]

    def success(self, scene: Scene) -> bool:
        red, green = scene.pose("red_cube")[:3], scene.pose("green_cube")[:3]
        return bool(
            np.linalg.norm(red[:2] - _MIDDLE) < _MIDDLE_TOLERANCE
            and abs(red[2] - scene.table_top) < 0.01
            and np.linalg.norm(green[:2] - red[:2]) < _STACK_TOLERANCE
            and abs(green[2] - red[2] - _SIZE) < 0.008
            and all(scene.is_free(name) and scene.is_at_rest(name) for name in ("red_cube", "green_cube"))
        )

    def expert(self) -> ExpertPath:
        first, second = arm_beside(self._red[0]), arm_beside(self._green[0])
        motion = Motion(home_poses())
        motion.pick(first, self._red, _LIFT)
        motion.place(first, above(self._goal, 0.003), _LIFT)
        if second != first:
            # The second arm fetches its cube while the first goes home, and never waits beside it.
            motion.wait_until(second, first)
            motion.go_home(first)
        motion.pick(second, self._green, _LIFT)
        motion.place(second, above(self._goal, _SIZE + 0.003), _LIFT)
        return motion.path()
