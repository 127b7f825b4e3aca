"""The `worker_init_fn` of a loader. The worker imports this file, and no test."""

import sys


def has_no_diffusers(worker: int) -> None:
    assert "diffusers" not in sys.modules
