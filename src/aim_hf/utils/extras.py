"""Imports of optional packages, whose error names the extra to install.

with extra("sim"):
    import sapien
"""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package of an extra is not installed."""


class SimulatorFailed(RuntimeError):
    """A simulator can't run on this machine, or its own code failed; the message names the cause."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Context manager for imports of an extra's packages. Raises MissingExtra if one isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtra(
            f"{package} is not installed; it comes with the extra {name!r}: pip install 'aim-hf[{name}]'", name=package
        ) from error
