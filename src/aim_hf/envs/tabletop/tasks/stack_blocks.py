"""Move the red cube to the mark in the middle, then the green cube onto it; with three, the blue one on top."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import ClassVar

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, above, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, LARGEST_YAW, Task, arm_beside, cube

_SIZE = 0.055
_MIDDLE = np.array([0.0, -0.02])
_MARK = Part("box", (0.08, 0.08, 0.001), (0.42, 0.42, 0.46), (0, 0, 0.0005), solid=False)
_LIFT = 0.075
_MIDDLE_TOLERANCE = 0.035
_STACK_TOLERANCE = 0.022


class _StackBlocks(Task):
    colors: ClassVar[tuple[str, ...]]  # from the bottom up

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        farthest = (0.24, 0.09) if split == "easy" else (0.26, 0.11)
        while True:  # until the cubes leave room for a gripper between them
            places = [rng.uniform((0.12, -farthest[1]), farthest) * [rng.choice([-1, 1]), 1] for _ in self.colors]
            if all(np.linalg.norm(first - second) > 0.12 for first, second in combinations(places, 2)):
                break
        scene.add_body("mark", [_MARK], *_MIDDLE, dynamic=False)
        for name, position in zip(self.colors, places, strict=True):
            yaw = rng.uniform(-1, 1) * LARGEST_YAW[split]
            scene.add_body(f"{name}_cube", [cube(_SIZE, COLORS[name])], *position, yaw=yaw)
        self._size = scene.scale * _SIZE
        height = scene.table_top + self._size / 2
        self._cubes = [np.array([*position, height]) for position in places]
        self._goal = np.array([*_MIDDLE, height])
        self.keep_clear = [point[:2] for point in (*self._cubes, self._goal)]

    def success(self, scene: TabletopScene) -> bool:
        names = [f"{color}_cube" for color in self.colors]
        cubes = [scene.pose(name)[:3] for name in names]
        return bool(
            np.linalg.norm(cubes[0][:2] - _MIDDLE) < _MIDDLE_TOLERANCE
            and abs(cubes[0][2] - scene.table_top) < 0.01
            and all(np.linalg.norm(upper[:2] - lower[:2]) < _STACK_TOLERANCE for lower, upper in pairwise(cubes))
            and all(abs(upper[2] - lower[2] - self._size) < 0.008 for lower, upper in pairwise(cubes))
            and all(scene.is_left(name) for name in names)
        )

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        arms = [arm_beside(position[0]) for position in self._cubes]
        for level, (arm, position) in enumerate(zip(arms, self._cubes, strict=True)):
            if level and arm != arms[level - 1]:
                # This arm fetches its cube while the other goes home, and never waits beside it.
                motion.wait_until(arm, arms[level - 1])
                motion.go_home(arms[level - 1])
            # An arm that has just left the tower leaves it at that height, so that its fingers don't catch on it.
            motion.pick(arm, position, _LIFT + max(level - 1, 0) * self._size)
            motion.place(arm, above(self._goal, level * self._size + 0.003), _LIFT)
        return motion.path()


class StackBlocksTwo(_StackBlocks):
    step_limit = 140
    colors = ("red", "green")
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
    requests = (
        "get the green cube to rest upon the red one in the middle",
        "pile the blocks up: red below, then green",
        "use the red cube as the base for the green one",
    )


class StackBlocksThree(_StackBlocks):
    step_limit = 200
    colors = ("red", "green", "blue")
    seen = (
        "Stack the green cube on the red cube and the blue cube on the green cube.",
        "Move the red block to the middle, put the green block on it and the blue block on top.",
        "Place the red cube on the mark, then the green cube, then the blue cube.",
        "Build a stack of three: red below, green between, blue on top.",
        "Stack the red, the green and the blue block in the middle, in this order.",
    )
    unseen = (
        "Make a tower of red, green and blue, from the bottom up.",
        "First bring the red cube to the center, then stack the green one and the blue one on it.",
        "The blue block should end up on the green block, which stands on the red one.",
    )
    requests = (
        "pile the blocks up: red below, then green, then blue",
        "get blue on top of green, and green on top of red",
        "begin with red, lay green on it and end with blue",
    )
