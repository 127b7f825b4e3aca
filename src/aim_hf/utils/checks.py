"""Checks of arguments, with errors that name the argument."""

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int. Raises ValueError unless it is an integer, not a bool, of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, at least {least}.")
    return int(value)


def check_number(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number, not a bool, from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not (least <= value <= most and math.isfinite(value)):
        expected = f"{least:g} to {most:g}" if math.isfinite(most) else f"a finite number, at least {least:g}"
        raise ValueError(f"{name} is {value!r}; expected {expected}.")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection) -> Any:
    """`value`. Raises ValueError unless it is one of `choices`."""
    if value not in list(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}.")
    return value


def quoted(text: str, length: int = 40) -> str:
    """`repr` of `text`, truncated to `length` characters."""
    return repr(text if len(text) <= length else text[:length] + "…")
