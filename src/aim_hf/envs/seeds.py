"""Seed ranges by purpose, which keep evaluation scenes out of training.

The ranges are disjoint, and every function of this module refuses a seed outside the range of its purpose.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

from ..utils.checks import check_choice

Purpose = Literal["train", "rl", "validation", "evaluation"]

SEED_RANGES: dict[str, range] = {
    "train": range(0, 1_000_000),
    "rl": range(1_000_000, 2_000_000),
    "validation": range(2_000_000, 3_000_000),  # for monitoring a training, so that evaluation scenes stay unseen
    "evaluation": range(100_000_000, 200_000_000),
}


def seed_range(purpose: Purpose) -> range:
    """The seeds of a purpose. Raises ValueError for an unknown purpose."""
    check_choice("purpose", purpose, SEED_RANGES)
    return SEED_RANGES[purpose]


def check_seed(seed: int, purpose: Purpose | None = None) -> int:
    """The seed as an int. Raises ValueError if it is outside the range of `purpose`, or of all purposes if None."""
    ranges = {purpose: seed_range(purpose)} if purpose is not None else SEED_RANGES
    is_whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_whole or not any(seed in r for r in ranges.values()):
        allowed = ", ".join(f"{name}: {r.start} to {r.stop - 1}" for name, r in ranges.items())
        raise ValueError(f"seed={seed!r} is out of range: expected an integer of {allowed}.")
    return int(seed)


def episode_seeds(purpose: Purpose, start: int, count: int) -> list[int]:
    """`count` seeds of a purpose from index `start` on. Raises ValueError if the range is too short."""
    seeds = seed_range(purpose)
    if start < 0 or count < 0 or start + count > len(seeds):
        raise ValueError(
            f"start={start}, count={count}: purpose {purpose!r} has {len(seeds)} seeds; choose 0 <= start and "
            f"start + count <= {len(seeds)}."
        )
    return list(seeds[start : start + count])


def scene_generator(task: str, split: str, seed: int, stream: str) -> np.random.Generator:
    """The random generator of one aspect (`stream`) of the scene (task, split, seed).

    Separate streams keep the aspects independent: adding a distractor doesn't change objects or instructions.
    """
    return np.random.default_rng([seed, zlib.crc32(f"{task}/{split}/{stream}".encode())])
