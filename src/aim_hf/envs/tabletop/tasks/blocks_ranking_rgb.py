"""Put three cubes side by side on the strip: red, green and blue from left to right."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np

from ...base import ExpertPath
from ..motion import Motion, above, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, LARGEST_YAW, Task, arm_beside, cube

_NAMES = ("red", "green", "blue")
_SIZE = 0.05
_DISTANCE = 0.10  # between neighbours' middles
_NEAREST, _FARTHEST = 0.06, 0.135  # ... as success allows
_STRIP = np.array([0.0, -0.095])
_MARK = Part("box", (0.30, 0.07, 0.001), (0.42, 0.42, 0.46), (0, 0, 0.0005), solid=False)
_STRIP_TOLERANCE = 0.03  # across
_LIFT = 0.075


class BlocksRankingRGB(Task):
    step_limit = 230
    seen = (
        "Arrange the blocks from left to right: red, green, blue.",
        "Put the red, the green and the blue cube in a row on the strip.",
        "Line up the cubes on the strip with red on the left, green in the middle and blue on the right.",
        "Place the three blocks side by side in the order red, green, blue.",
        "Sort the cubes on the strip: red, then green, then blue.",
    )
    unseen = (
        "Make a row of the cubes that reads red, green, blue from the left.",
        "The green cube belongs between the red one on its left and the blue one on its right.",
        "Rank the blocks by color: red leftmost, blue rightmost.",
    )
    requests = (
        "form a row on the strip: red, then green, then blue",
        "lay out red, then green and then blue",
        "order the three blocks from red on the left to blue on the right, green between",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        width, depth = (0.24, 0.10) if split == "easy" else (0.26, 0.12)
        while True:  # until the cubes leave room for a gripper between them
            places = [rng.uniform((0.04, 0.01), (width, depth)) * [rng.choice([-1, 1]), 1] for _ in _NAMES]
            if all(np.linalg.norm(first - second) > 0.12 for first, second in combinations(places, 2)):
                break
        scene.add_body("strip", [_MARK], *_STRIP, dynamic=False)
        for name, position in zip(_NAMES, places, strict=True):
            yaw = rng.uniform(-1, 1) * LARGEST_YAW[split]
            scene.add_body(f"{name}_cube", [cube(_SIZE, COLORS[name])], *position, yaw=yaw)
        height = scene.table_top + scene.scale * _SIZE / 2
        self._cubes = [np.array([*position, height]) for position in places]
        self._goals = [np.array([*(_STRIP + [side * _DISTANCE, 0]), height]) for side in (-1, 0, 1)]
        self.keep_clear = [point[:2] for point in (*self._cubes, *self._goals)]

    def success(self, scene: TabletopScene) -> bool:
        names = [f"{name}_cube" for name in _NAMES]
        cubes = np.array([scene.pose(name)[:3] for name in names])
        return bool(
            np.all(np.abs(cubes[:, 1] - _STRIP[1]) < _STRIP_TOLERANCE)
            and np.all(np.abs(cubes[:, 2] - scene.table_top) < 0.01)
            and all(_NEAREST < right[0] - left[0] < _FARTHEST for left, right in pairwise(cubes))
            and all(scene.is_left(name) for name in names)
        )

    def expert(self) -> ExpertPath:
        motion = Motion(home_poses())
        arms = [arm_beside(position[0]) for position in self._cubes]
        for turn, (arm, position, goal) in enumerate(zip(arms, self._cubes, self._goals, strict=True)):
            if turn and arm != arms[turn - 1]:
                # The other arm may have reached far over to this one's side.
                motion.go_home(arms[turn - 1])
                motion.wait_until(arm, arms[turn - 1], earlier=2)
            motion.pick(arm, position, _LIFT)
            motion.place(arm, above(goal, 0.003), _LIFT)
        return motion.path()
