"""What a worker of a loader does first: it imports this file, and no test."""

import sys


def has_no_diffusers(worker: int) -> None:
    assert "diffusers" not in sys.modules
