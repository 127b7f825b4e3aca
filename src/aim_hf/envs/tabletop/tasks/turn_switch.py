"""Push the knob of a sliding switch to its other end with closed fingers."""

from __future__ import annotations

import numpy as np

from ...base import ExpertPath
from ..motion import CLOSED, Motion, above, home_poses
from ..scene import Part, TabletopScene
from .base import COLORS, LARGEST_YAW, TARGET_COLORS, Task, arm_beside

# The knob's foot slides on the table between rails, from one end stop to the other.
_FOOT = (0.064, 0.046, 0.012)
_HANDLE = (0.04, 0.04, 0.05)
_TRAVEL = 0.07
_WALL, _CLEARANCE = 0.014, 0.0015
_FRICTION = 0.0  # of the knob, so that it neither tips nor jams
_MOVED = 0.8 * _TRAVEL
_TOUCH_HEIGHT = 0.040  # of the tool center point above the table
_FINGER = 0.014  # from the middle of the closed fingers to what their side touches


class TurnSwitch(Task):
    step_limit = 45
    targets = {"knob": "push"}
    seen = (
        "Push the {a} switch to the {side}.",
        "Slide the {a} knob to the {side} end.",
        "Turn the switch by pushing the {a} knob to the {side}.",
        "Move the {a} slider to the {side}.",
        "Flip the {a} switch to the {side}.",
    )
    unseen = (
        "The {a} switch should be on its {side} side.",
        "Shove the {a} knob along its slot, {side}ward.",
        "With closed fingers, push the {a} slider over to the {side}.",
    )
    requests = (
        "get the {a} knob over to the {side} end of its slot",
        "nudge the {a} slider all the way {side}",
        "bring the {a} switch into its {side} position",
    )

    def build(self, scene: TabletopScene, split: str, rng: np.random.Generator) -> None:
        width, depth = (0.17, 0.09) if split == "easy" else (0.19, 0.11)
        at = np.array([rng.choice([-1, 1]) * rng.uniform(0.03, width), rng.uniform(-depth, depth)])
        yaw = rng.uniform(-1, 1) * LARGEST_YAW[split]
        self._along = np.array([np.cos(yaw), np.sin(yaw)])
        self._side = int(rng.choice([-1, 1]))
        color = str(rng.choice(list(COLORS)))
        self._travel, self._moved = scene.scale * _TRAVEL, scene.scale * _MOVED
        self._touch_height, self._sideways = scene.scale * _TOUCH_HEIGHT, scene.scale * _HANDLE[0] / 2 + _FINGER
        self._at, self._knob_at = at, at - self._side * self._travel / 2 * self._along
        self._table_top = scene.table_top
        scene.add_body("base", _base(TARGET_COLORS[str(rng.choice(list(TARGET_COLORS)))]), *at, yaw=yaw, dynamic=False)
        foot = Part("box", _FOOT, (0.22, 0.20, 0.30), (0, 0, _FOOT[2] / 2))
        handle = Part("box", _HANDLE, COLORS[color], (0, 0, _FOOT[2] + _HANDLE[2] / 2))
        scene.add_body("knob", [foot, handle], *self._knob_at, yaw=yaw, friction=_FRICTION)
        self.keep_clear = [at + offset * self._along for offset in (-self._travel, 0, self._travel)]
        self.words = {"a": color, "side": "left" if self._side < 0 else "right"}

    def success(self, scene: TabletopScene) -> bool:
        knob = scene.pose("knob")[:3]
        moved = knob[:2] - self._knob_at
        return bool(
            self._side * moved @ self._along > self._moved
            and abs(np.linalg.det([moved, self._along])) < 0.01  # still in its slot
            and abs(knob[2] - self._table_top) < 0.01
        )

    def expert(self) -> ExpertPath:
        arm = arm_beside(self._at[0])

        def touching(knob_at: np.ndarray, distance: float) -> np.ndarray:
            """Where the tool is, `distance` behind the handle."""
            behind = knob_at - self._side * (self._sideways + distance) * self._along
            return np.array([*behind, self._table_top + self._touch_height])

        motion = Motion(home_poses())
        motion.move(arm, above(touching(self._knob_at, 0.03), 0.06), opening=CLOSED)
        motion.move(arm, touching(self._knob_at, 0.03))
        motion.push(arm, touching(self._knob_at + 0.92 * self._side * self._travel * self._along, 0.0))
        return motion.path()


def _base(color: tuple[float, float, float]) -> list[Part]:
    """Rails along both sides of the slot and a stop at either end."""
    length, width = _TRAVEL + _FOOT[0], _FOOT[1] + 2 * _CLEARANCE
    rails = [
        Part("box", (length, _WALL, _FOOT[2]), color, (0, side * (width + _WALL) / 2, _FOOT[2] / 2))
        for side in (-1, 1)
    ]
    stops = [
        Part("box", (_WALL, width + 2 * _WALL, _FOOT[2]), color, (side * (length + _WALL) / 2, 0, _FOOT[2] / 2))
        for side in (-1, 1)
    ]
    return rails + stops
