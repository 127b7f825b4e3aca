"""Builds an expert's path from movements of each arm, as one action per control step."""

from __future__ import annotations

import numpy as np

from .base import ARMS, Attempt, ExpertPath
from .poses import blend

OPEN, CLOSED = 1.0, 0.0


class ArmMotion:
    """Records the movements of both arms. Each arm has its own time line; `wait` aligns them.

    The path depends only on the calls, so it is a deterministic function of the scene.
    """

    def __init__(self, home: dict[str, np.ndarray], gripper: float = OPEN) -> None:
        """`home`: each arm's initial pose (7,); `gripper`: initial opening of both grippers."""
        self._home = home
        self._rows = {arm: [np.concatenate([home[arm], [gripper]])] for arm in ARMS}
        self._key_steps: set[int] = set()
        self._attempts: list[Attempt] = []
        self._last_move: dict[str, int] = {}  # the first action of each arm's latest movement

    def move(
        self,
        arm: str,
        position: np.ndarray,
        speed: float,
        minimum: int = 2,
        opening: float | None = None,
        rotation: np.ndarray | None = None,
    ) -> None:
        """Moves straight to `position` (3,), at `speed` meters a control step, with slight acceleration and
        deceleration. Opening and orientation are kept, or set to `opening` from the first step on, and turned to the
        quaternion `rotation` (4,) on the way. A movement takes at least `minimum` steps."""
        start = self._rows[arm][-1]
        self._last_move[arm] = len(self._rows[arm]) - 1
        opening = start[7] if opening is None else opening
        self._rows[arm].extend(straight(start, position, speed, minimum, opening, rotation))

    def move_exactly(self, arm: str, position: np.ndarray, speed: float) -> None:
        """`move`, all of whose steps are key steps."""
        first = len(self._rows[arm]) - 1
        self.move(arm, position, speed)
        self._key_steps.update(range(first, len(self._rows[arm]) - 1))

    def grip(self, arm: str, opening: float, steps: int) -> None:
        """Opens or closes the gripper in place, as a key step."""
        self._key_steps.add(len(self._rows[arm]) - 1)
        for _ in range(steps):
            row = self._rows[arm][-1].copy()
            row[7] = opening
            self._rows[arm].append(row)
        if opening == CLOSED:
            self._attempts.append(Attempt("grasp", arm, self._last_move[arm], len(self._rows[arm]) - 1))

    def hold(self, arm: str, steps: int) -> None:
        self._rows[arm].extend(self._rows[arm][-1].copy() for _ in range(steps))

    def wait(self, *arms: str) -> None:
        """Lets the named arms (default: both) hold still until the last of them has finished."""
        length = max(len(self._rows[arm]) for arm in arms or ARMS)
        for arm in arms or ARMS:
            self.hold(arm, length - len(self._rows[arm]))

    def wait_until(self, arm: str, other: str, earlier: int = 0) -> None:
        """Lets `arm` hold still until `earlier` steps before the end of the other arm's movements so far."""
        self.hold(arm, max(0, len(self._rows[other]) - earlier - len(self._rows[arm])))

    def path(self, holding_steps: int = 3) -> ExpertPath:
        """The path of both arms, with `holding_steps` of holding still at the end."""
        self.wait()
        for arm in ARMS:
            self.hold(arm, holding_steps)
        actions = np.concatenate([np.stack(self._rows[arm][1:]) for arm in ARMS], axis=1)
        attempts = sorted(self._attempts, key=lambda attempt: attempt.end)
        return ExpertPath(actions, sorted(self._key_steps), tuple(attempts))


def straight(
    start: np.ndarray,
    position: np.ndarray,
    speed: float,
    minimum: int,
    opening: float,
    rotation: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Rows (8,) of an arm's way from the row `start` to `position` (3,), with slight acceleration and deceleration.
    With `rotation` (4,) it turns on the way, along the shorter arc."""
    change = np.asarray(position, dtype=np.float64) - start[:3]
    steps = max(minimum, int(np.ceil(np.linalg.norm(change) / speed)))
    rows = []
    for time in np.arange(1, steps + 1) / steps:
        progress = 0.5 * time + 0.5 * time * time * (3 - 2 * time)
        row = start.copy()
        row[:3] += progress * change
        row[7] = opening
        if rotation is not None:
            quaternion = blend(start[:7], np.concatenate([position, rotation]), progress)[3:]
            row[3:7] = quaternion / np.linalg.norm(quaternion)
        rows.append(row)
    return rows


def above(position: np.ndarray, height: float) -> np.ndarray:
    """The point `height` meters above `position`."""
    return np.asarray(position, dtype=np.float64) + [0, 0, height]
