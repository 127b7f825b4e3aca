"""The movements of tabletop's experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Attempt
from ..motion import CLOSED, OPEN, ArmMotion, above
from . import robot

SPEED = 0.032  # meters per control step, averaged over a movement
CAREFUL_SPEED = 0.025  # near the table
PUSH_SPEED = 0.016  # of presses and pushes
GRIP_STEPS = 3


class Motion(ArmMotion):
    """Movements of both arms, and what they do to objects on the table."""

    def move(self, arm: str, position: np.ndarray, speed: float = SPEED, **options: Any) -> None:
        super().move(arm, position, speed, **options)

    def grip(self, arm: str, opening: float, steps: int = GRIP_STEPS) -> None:
        super().grip(arm, opening, steps)

    def pick(self, arm: str, position: np.ndarray, lift: float) -> None:
        """Grasps the object at `position` from above and lifts it."""
        self.move(arm, above(position, lift), opening=OPEN)
        self.move(arm, position, CAREFUL_SPEED)
        self.grip(arm, CLOSED)
        self.move(arm, above(position, lift), CAREFUL_SPEED)

    def place(self, arm: str, position: np.ndarray, lift: float) -> None:
        """Carries the held object to `position`, sets it down, releases it and retreats upwards."""
        self.move(arm, above(position, lift))
        self.move(arm, position, CAREFUL_SPEED)
        lowered = self._last_move[arm]
        self.grip(arm, OPEN, steps=2)
        self.move(arm, above(position, lift))
        self._attempts.append(Attempt("place", arm, lowered, len(self._rows[arm]) - 1))

    def press(self, arm: str, top: np.ndarray) -> None:
        """Comes down with closed fingers onto the point `top` of an object and presses it. The last step is a key
        step."""
        touch = above(top, robot.FINGER_TIP)
        self.move(arm, above(touch, 0.08), opening=CLOSED)
        self.move(arm, above(touch, -0.004), PUSH_SPEED)
        self._key_steps.add(len(self._rows[arm]) - 2)
        self._attempts.append(Attempt("press", arm, self._last_move[arm], len(self._rows[arm]) - 1))

    def push(self, arm: str, position: np.ndarray) -> None:
        """Moves straight to `position` and pushes along objects in the way. All steps are key steps."""
        self.move_exactly(arm, position, PUSH_SPEED)
        self._attempts.append(Attempt("push", arm, self._last_move[arm], len(self._rows[arm]) - 1))

    def lift_together(self, grasps: dict[str, np.ndarray], approach: float, lift: float) -> None:
        """Grasps at the points `grasps` of both arms at once, from `approach` meters above them, and lifts."""
        for arm, position in grasps.items():
            self.move(arm, above(position, approach))
        self.wait()
        for arm, position in grasps.items():
            self.move(arm, position, speed=0.022)
            self.grip(arm, CLOSED)
            self.move(arm, above(position, lift), speed=0.02)

    def go_home(self, arm: str, **options: Any) -> None:
        """Moves to the home position. `options`: of `move`."""
        self.move(arm, self._home[arm][:3], **options)


def home_poses() -> dict[str, np.ndarray]:
    """The home pose (7,) of each arm's tool center point: beside the workspace, tools down."""
    return {
        "left": np.concatenate([[-0.30, -0.14, 0.92], robot.TOOL_DOWN]),
        "right": np.concatenate([[0.30, -0.14, 0.92], robot.TOOL_DOWN]),
    }
