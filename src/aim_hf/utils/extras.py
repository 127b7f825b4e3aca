"""Packages that only some uses need are extras of this one: a missing one is told by the extra that brings it.

with extra("sim"):
    import sapien
"""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package is missing that an extra brings."""


class SimulatorFailed(RuntimeError):
    """A simulator can't run here, or its own code failed; the message says what is missing."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of the packages of an extra. Raises MissingExtra if one isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtra(
            f"{package} is not installed; it comes with the extra {name!r}: pip install 'aim-hf[{name}]'", name=package
        ) from error
