"""How many rows a call of the network has."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Rows of one call of the network, always: with fewer the last is repeated. A matrix product of another size may round
# differently, and a rollout amplifies the last bit; with one size a row's result doesn't depend on how many episodes
# run beside it. 8 is where a row costs the least on a CPU.
ROWS = 8


def filled(rows: Sequence[T], count: int = ROWS) -> list[T]:
    """Completed to `count` by repeating the last one."""
    return [*rows, *[rows[-1]] * (count - len(rows))]
