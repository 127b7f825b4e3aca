"""Mistakes of an expert, from which a policy learns to notice that it has failed, and to try again."""

from __future__ import annotations

import numpy as np

from ..base import ARMS, Attempt, ExpertPath, Mistake
from ..motion import CLOSED, OPEN, straight
from .motion import CAREFUL_SPEED, GRIP_STEPS, PUSH_SPEED, SPEED

BESIDE = 0.05  # m: largest distance of a miss to the side, along each axis
ABOVE = 0.06  # m: largest distance above
LEAST = 0.04  # m: smallest distance of a missed grasp
LEAST_BESIDE = 0.01  # m: and of a press beside its place
SHORT = (0.004, 0.03)  # m: by how much a press may stop short
SHORT_PUSH = (0.015, 0.045)  # m: and a push
MISPLACED = (0.035, 0.08)  # m: by how much an object is set down beside its place
OFF_CENTER = (0.022, 0.026)  # m: and on another object, on which it still stands
MOST_UNAWARE = 6  # control steps between a miss and the recovery
HELD = 0.1  # a closed gripper that is measured further open than this holds an object


def with_mistake(path: ExpertPath, rng: np.random.Generator) -> ExpertPath:
    """A path on which a grasp or press misses its object, a push stops short, or an object is placed wrongly.
    After up to `MOST_UNAWARE` more actions, the expert goes back and tries again, or pushes on from where it is.
    A misplaced object is picked up at once. Meanwhile the other arm waits. Then the expert goes on with `path`.

    `path` has an attempt that is no placement.
    """
    attempt = _chosen(path, rng)
    mine, other = _columns(attempt.arm)
    before, approach = path.actions[max(attempt.start - 1, 0), mine], path.actions[attempt.start : attempt.end, mine]
    miss = _miss(path, attempt, rng)
    unaware = _unaware(path, attempt.end, int(rng.integers(MOST_UNAWARE + 1)) if attempt.kind != "place" else 0)
    nominal = np.concatenate([path.actions[: attempt.end], unaware])
    noticed = len(nominal)

    offset = np.zeros_like(nominal)
    of_kind = {"grasp": approach[:, 7] > CLOSED, "place": approach[:, 7] == CLOSED}
    steps = np.arange(1, noticed - attempt.start + 1) / np.sum(of_kind.get(attempt.kind, np.ones(len(approach))))
    offset[attempt.start :, mine][:, :3] = np.minimum(steps, 1)[:, None] * miss

    back, again = _recovery(attempt.kind, nominal[-1, mine] + offset[-1, mine], before, approach, miss)
    recovery = np.empty((len(back) + len(again), nominal.shape[1]))
    recovery[:, mine] = [*back, *again]
    recovery[:, other] = waiting = path.actions[attempt.end - 1, other]
    way = straight(nominal[-1, other], waiting[:3], SPEED, 2, waiting[7])[: len(recovery)]
    recovery[: len(way), other] = way

    actions = np.concatenate([nominal, recovery, path.actions[attempt.end :]])
    offset = np.concatenate([offset, np.zeros((len(actions) - noticed, offset.shape[1]))])
    begin, resumed = noticed + len(back), noticed + len(recovery)
    repeated = [step - attempt.start for step in path.key_steps if attempt.start <= step < attempt.end]
    key_steps = [
        *(step for step in path.key_steps if step < noticed),
        *(range(noticed, begin) if attempt.kind == "place" else []),
        *(range(begin, resumed) if attempt.kind == "push" else (begin + step for step in repeated)),
        *(resumed + step - attempt.end for step in path.key_steps if attempt.end <= step),
    ]
    return ExpertPath(actions, key_steps, mistake=Mistake(attempt.arm, offset, noticed, attempt.kind == "place"))


def _chosen(path: ExpertPath, rng: np.random.Generator) -> Attempt:
    """An attempt of the path; no placement while the other hand isn't open, for it may hold another object."""
    possible = [
        attempt
        for attempt in path.attempts
        if attempt.kind != "place"
        or np.all(path.actions[attempt.start : attempt.end, _columns(attempt.arm)[1]][:, 7] == OPEN)
    ]
    return possible[rng.integers(len(possible))]


def _columns(arm: str) -> tuple[slice, slice]:
    """The numbers of this arm in an action, and those of the other."""
    left, right = slice(0, 8), slice(8, 16)
    return (left, right) if arm == ARMS[0] else (right, left)


def _recovery(
    kind: str, here: np.ndarray, before: np.ndarray, approach: np.ndarray, miss: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows (8,) of the arm that has missed and is `here`: those that lead back, and those of the second try."""
    if kind == "push":
        return [], straight(here, approach[-1, :3], PUSH_SPEED, 2, CLOSED)
    back = []
    if kind == "place":
        lowest = approach[approach[:, 2].argmin(), :3]
        back += straight(here, lowest + miss, CAREFUL_SPEED, 2, OPEN)
        back += GRIP_STEPS * [np.append(back[-1][:7], CLOSED)]
    back += straight(back[-1] if back else here, before[:3] + miss, SPEED, 2, before[7])
    back += straight(back[-1], before[:3], SPEED, 2, before[7])
    return back, list(approach)


def _miss(path: ExpertPath, attempt: Attempt, rng: np.random.Generator) -> np.ndarray:
    """Where an attempt ends, relative to its place: (3,), in meters."""
    if attempt.kind == "grasp":
        return _missed_grasp(rng)
    if attempt.kind == "press":
        return _missed_press(rng)
    positions = path.actions[:, _columns(attempt.arm)[0]][:, :3]
    if attempt.kind == "push":
        way = positions[attempt.end - 1] - positions[max(attempt.start - 1, 0)]
        return -rng.uniform(*SHORT_PUSH) * way / np.linalg.norm(way)
    grasps = [other for other in path.attempts if (other.kind, other.arm) == ("grasp", attempt.arm)]
    picked = max(other.end for other in grasps if other.end <= attempt.start) - 1
    on_table = abs(positions[picked, 2] - positions[attempt.start : attempt.end, 2].min()) < 0.01
    return _beside(rng.uniform(*(MISPLACED if on_table else OFF_CENTER)), rng)


def _beside(distance: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([distance * np.cos(angle), distance * np.sin(angle), 0])


def _missed_grasp(rng: np.random.Generator) -> np.ndarray:
    """Where the gripper closes, beside or above the object."""
    while True:
        miss = np.append(rng.uniform(-BESIDE, BESIDE, size=2), rng.uniform(0, ABOVE))
        if LEAST < np.linalg.norm(miss):
            return miss


def _missed_press(rng: np.random.Generator) -> np.ndarray:
    """Where the press ends. Half of them are beside its place, half stop short above it."""
    if rng.random() < 0.5:
        return np.array([0, 0, rng.uniform(*SHORT)])
    return _beside(rng.uniform(LEAST_BESIDE, BESIDE), rng) + [0, 0, rng.uniform(0, SHORT[1])]


def _unaware(path: ExpertPath, start: int, steps: int) -> np.ndarray:
    """The next `steps` actions of a path, which holds still at its end; none if a gripper opens or closes in them."""
    actions = path.actions[start - 1 : start + steps]
    if not np.all(actions[:, [7, 15]] == actions[0, [7, 15]]):
        return actions[:0]
    return np.concatenate([actions[1:], np.repeat(actions[-1:], steps + 1 - len(actions), axis=0)])
