"""Renderers belong to the process that opened them. A fork of it has its memory, but none of its threads, so that the
fork's first picture would never be finished."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary

from ..utils.extras import SimulatorFailed

_open: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # owner of an open renderer -> id of its process


class RendererForked(SimulatorFailed):
    """This process was forked from one whose renderer was open."""


def use_renderer(owner: Any) -> None:
    """Called before `owner` renders. Its renderer is open as long as it lives. Raises RendererForked."""
    here = os.getpid()
    if any(process != here for process in _open.values()):
        raise RendererForked(
            f"process {here} was forked from one that renders, so its own pictures would never be finished: start it "
            "by multiprocessing's 'spawn' or 'forkserver', in Gymnasium with vector_kwargs={'context': 'forkserver'}."
        )
    _open[owner] = here
