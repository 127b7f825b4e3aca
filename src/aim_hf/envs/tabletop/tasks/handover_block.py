"""Pick up a long block with one arm, hand it to the other, and place it on the pad on that arm's side."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import CLOSED, OPEN, Motion, above, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, TARGET_COLORS, Task

_SIZE = (0.045, 0.15, 0.045)  # the block lies along y, away from the robot
_GRIP = 0.048  # from the block's middle to where a gripper holds it
_PAD_SIZE = (0.09, 0.18, 0.004)
_LIFT = 0.07
_MEETING = np.array([0.0, -0.01])  # of the block's middle
_MEETING_HEIGHT = 0.10
_TOLERANCE = np.array([0.04, 0.05])  # along x and y
_DENSITY = 200.0
# Held by one end, a block askew between the fingers touches them with its edges only and droops.
_LARGEST_YAW = {"easy": np.deg2rad(10), "hard": np.deg2rad(12)}


class HandoverBlock(Task):
    step_limit = 110
    seen = (
        "Hand over the {a} block and place it on the {b} pad.",
        "Pass the {a} block from one arm to the other and put it on the {b} pad.",
        "Pick up the {a} block, hand it to the other arm and set it down on the {b} pad.",
        "Give the {a} block to the other gripper, which places it on the {b} pad.",
        "Move the {a} block to the {b} pad with a handover.",
    )
    unseen = (
        "Let one arm take the {a} block, pass it on, and let the other one put it on the {b} pad.",
        "The {a} block should change hands in the middle and end up on the {b} pad.",
        "Transfer the {a} block between the grippers, then leave it on the {b} pad.",
    )
    requests = (
        "let the {a} block pass to the other hand, then to the {b} pad",
        "get the {a} block from one hand to the other and to the {b} pad",
        "hand off the {a} block and let it end on the {b} pad",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        reach = 0.05 if split == "easy" else 0.07
        side = rng.choice([-1, 1])
        block_at = np.array([side * rng.uniform(0.13, 0.23), rng.uniform(-reach, reach)])
        pad_at = np.array([-side * rng.uniform(0.13, 0.23), rng.uniform(-reach, reach)])
        yaw = rng.uniform(-1, 1) * _LARGEST_YAW[split]
        a, b = (str(rng.choice(list(colors))) for colors in (COLORS, TARGET_COLORS))
        pad = Part("box", _PAD_SIZE, TARGET_COLORS[b], (0, 0, _PAD_SIZE[2] / 2))
        block = Part("box", _SIZE, COLORS[a], (0, 0, _SIZE[2] / 2))
        scene.add_body("pad", [pad], *pad_at, dynamic=False)
        scene.add_body("block", [block], *block_at, yaw=yaw, density=_DENSITY)
        self._giver, self._receiver = ("left", "right") if side < 0 else ("right", "left")
        height = scene.table_top + scene.scale * _SIZE[2] / 2
        self._grip = scene.scale * _GRIP
        self._grasp = np.array([*(block_at + self._grip * np.array([-np.sin(yaw), np.cos(yaw)])), height])
        self._meeting = np.array([*_MEETING, scene.table_top + _MEETING_HEIGHT])
        self._goal = np.array([*pad_at, height + scene.scale * _PAD_SIZE[2] + 0.003])
        across = [offset * np.array([0.0, self._grip]) for offset in (-1, 0, 1)]
        self.keep_clear = [middle + step for middle in (block_at, pad_at, _MEETING) for step in across]
        self.words = {"a": a, "b": b}

    def success(self, scene: TabletopScene) -> bool:
        block, pad = scene.pose("block")[:3], scene.pose("pad")[:3]
        return bool(
            np.all(np.abs(block[:2] - pad[:2]) < _TOLERANCE)
            and abs(block[2] - scene.table_top - scene.scale * _PAD_SIZE[2]) < 0.008
            and scene.is_left("block")
        )

    def expert(self) -> ExpertPath:
        # Both hold the block from above: the giver its far end, so that the near one stays in the camera's view and
        # free for the receiver. That one comes at the block's height, from the robot's side: above it is the giver's
        # forearm.
        giver, receiver, far = self._giver, self._receiver, np.array([0.0, self._grip, 0.0])
        motion = Motion(home_poses())
        motion.pick(giver, self._grasp, _LIFT)
        motion.move(giver, self._meeting + far)
        take = self._meeting - far
        motion.wait_until(receiver, giver, earlier=12)
        motion.move(receiver, take - [0, _LIFT, 0])
        motion.wait()
        motion.move(receiver, take, speed=0.022)
        motion.grip(receiver, CLOSED)
        motion.wait()
        motion.grip(giver, OPEN, steps=2)
        motion.move(giver, above(self._meeting + far, _LIFT))
        motion.wait()
        motion.go_home(giver)
        motion.place(receiver, self._goal - far, _LIFT)
        return motion.path()
