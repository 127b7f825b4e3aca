"""Simulation suites behind one protocol (`base.py`)."""

from __future__ import annotations

from .base import Environment
from .robotwin import TASKS as _ROBOTWIN_TASKS
from .robotwin import RoboTwinEnvironment
from .tabletop import TASKS as _TABLETOP_TASKS
from .tabletop import TabletopEnvironment

TASKS: dict[str, tuple[str, ...]] = {"tabletop": tuple(_TABLETOP_TASKS), "robotwin": _ROBOTWIN_TASKS}

_ENVIRONMENTS = {"tabletop": TabletopEnvironment, "robotwin": RoboTwinEnvironment}


def make_environment(suite: str, task: str, split: str = "easy", **options) -> Environment:
    """The environment of a task. `options` go to the suite's environment class.

    Raises ValueError for an unknown suite, task or split.
    """
    if suite not in _ENVIRONMENTS:
        raise ValueError(f"suite={suite!r} is unknown: choose one of {list(_ENVIRONMENTS)}.")
    return _ENVIRONMENTS[suite](task, split, **options)


def next_environment(last: Environment | None, suite: str, task: str, split: str, **options) -> Environment:
    """`last` itself if it is of this task and split; otherwise it is closed, and a new one takes its place."""
    if last is not None:
        if (last.suite, last.task, last.split) == (suite, task, split):
            return last
        last.close()
    return make_environment(suite, task, split, **options)
