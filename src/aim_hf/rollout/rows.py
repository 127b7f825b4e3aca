"""The batch size of a call of the model."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Rows in every call of the model; with fewer rows the last one is repeated. Matrix products of another size may round
# differently, and rollouts amplify such differences. With a constant size, the result of a row doesn't depend on the
# number of episodes in the batch. 8 has the lowest cost per row on a CPU.
ROWS = 8


def filled(rows: Sequence[T], count: int = ROWS) -> list[T]:
    """`rows` padded to `count` with copies of the last one."""
    return [*rows, *[rows[-1]] * (count - len(rows))]
