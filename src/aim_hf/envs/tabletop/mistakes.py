"""Mistakes of an expert, from which a policy learns to notice that it has missed an object, and to try again."""

from __future__ import annotations

import numpy as np

from ..base import ARMS, ExpertPath, Mistake
from ..motion import CLOSED, straight
from .motion import PUSH_SPEED, SPEED

BESIDE = 0.05  # m: largest distance of a miss to the side, along each axis
ABOVE = 0.06  # m: largest distance above
LEAST = 0.04  # m: smallest distance of a missed grasp
LEAST_BESIDE = 0.01  # m: and of a press beside its place
SHORT = (0.004, 0.03)  # m: by how much a press may stop short
SHORT_PUSH = (0.015, 0.045)  # m: and a push
MOST_UNAWARE = 6  # control steps between the miss and the recovery
HELD = 0.1  # a closed gripper that is measured further open than this holds an object


def with_mistake(path: ExpertPath, rng: np.random.Generator) -> ExpertPath:
    """A path on which one grasp or press misses its object, or one push stops short. After up to `MOST_UNAWARE` more
    actions, the expert goes back and tries again, or pushes on from where it is; meanwhile the other arm waits. Then
    it goes on with `path`.

    `path` has at least one attempt.
    """
    attempt = path.attempts[rng.integers(len(path.attempts))]
    mine, other = (slice(0, 8), slice(8, 16)) if attempt.arm == ARMS[0] else (slice(8, 16), slice(0, 8))
    before, approach = path.actions[max(attempt.start - 1, 0), mine], path.actions[attempt.start : attempt.end, mine]
    way = approach[-1, :3] - before[:3]
    miss = {"grasp": _missed_grasp, "press": _missed_press, "push": _short_push}[attempt.kind](way, rng)
    unaware = _unaware(path, attempt.end, int(rng.integers(MOST_UNAWARE + 1)))
    nominal = np.concatenate([path.actions[: attempt.end], unaware])
    noticed = len(nominal)

    offset = np.zeros_like(nominal)
    moving = np.sum(approach[:, 7] > CLOSED) if attempt.kind == "grasp" else len(approach)
    steps = np.arange(1, noticed - attempt.start + 1) / moving
    offset[attempt.start :, mine][:, :3] = np.minimum(steps, 1)[:, None] * miss

    here = nominal[-1, mine] + offset[-1, mine]
    if attempt.kind == "push":
        again = straight(here, approach[-1, :3], PUSH_SPEED, 2, CLOSED)
        key_steps = range(len(again))
    else:
        back = straight(here, before[:3] + miss, SPEED, 2, before[7])
        back += straight(back[-1], before[:3], SPEED, 2, before[7])
        again = [*back, *approach]
        key_steps = [
            step - attempt.start + len(back) for step in path.key_steps if attempt.start <= step < attempt.end
        ]
    waiting = np.repeat(path.actions[attempt.end - 1 : attempt.end, other], len(again), axis=0)
    return_to = straight(nominal[-1, other], waiting[0, :3], SPEED, 2, waiting[0, 7])[: len(again)]
    waiting[: len(return_to)] = return_to
    recovery = np.empty((len(again), nominal.shape[1]))
    recovery[:, mine], recovery[:, other] = again, waiting

    actions = np.concatenate([nominal, recovery, path.actions[attempt.end :]])
    offset = np.concatenate([offset, np.zeros((len(actions) - noticed, offset.shape[1]))])
    resumed = noticed + len(again)
    key_steps = [
        *(step for step in path.key_steps if step < noticed),
        *(noticed + step for step in key_steps),
        *(step - attempt.end + resumed for step in path.key_steps if attempt.end <= step),
    ]
    return ExpertPath(actions, key_steps, mistake=Mistake(attempt.arm, offset, noticed))


def _missed_grasp(way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the gripper closes, relative to the object, beside or above it: (3,), in meters."""
    while True:
        miss = np.append(rng.uniform(-BESIDE, BESIDE, size=2), rng.uniform(0, ABOVE))
        if LEAST < np.linalg.norm(miss):
            return miss


def _missed_press(way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the press ends, relative to its place. Half of them are beside it, half stop short above it."""
    if rng.random() < 0.5:
        return np.array([0, 0, rng.uniform(*SHORT)])
    distance, angle = rng.uniform(LEAST_BESIDE, BESIDE), rng.uniform(0, 2 * np.pi)
    return np.array([distance * np.cos(angle), distance * np.sin(angle), rng.uniform(0, SHORT[1])])


def _short_push(way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the push along `way` (3,) ends, relative to its place."""
    return -rng.uniform(*SHORT_PUSH) * way / np.linalg.norm(way)


def _unaware(path: ExpertPath, start: int, steps: int) -> np.ndarray:
    """The next `steps` actions of a path, which holds still at its end; none if a gripper opens or closes in them."""
    actions = path.actions[start - 1 : start + steps]
    if not np.all(actions[:, [7, 15]] == actions[0, [7, 15]]):
        return actions[:0]
    return np.concatenate([actions[1:], np.repeat(actions[-1:], steps + 1 - len(actions), axis=0)])
