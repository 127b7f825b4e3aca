"""Checks of arguments, with errors that name the argument."""

import math
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any


@contextmanager
def naming(where: Any) -> Iterator[None]:
    """Context manager for code that checks a part of something. Raises its ValueErrors with `where`, such as
    "row 0, observation 2", in front."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_whole(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    """`value` as an int. Raises ValueError unless it is an integer, not a bool, from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
        raise ValueError(f"{name} is {shortened(value)}; expected a whole number, {expected}.")
    return int(value)


def check_number(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number, not a bool, from `least` to `most`."""
    number = _as_float(value)
    if not (least <= number <= most and math.isfinite(number)):
        expected = f"{least:g} to {most:g}" if math.isfinite(most) else f"a finite number, at least {least:g}"
        raise ValueError(f"{name} is {shortened(value)}; expected {expected}.")
    return number


def check_positive(name: str, value: Any) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number above 0, not a bool."""
    number = _as_float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {shortened(value)}; expected a number above 0.")
    return number


def _as_float(value: Any) -> float:
    """`value` as a float: NaN for a bool and for anything but numbers, infinity for an integer beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def are_finite(values: Any) -> bool:
    """Whether `values` is a list or tuple of finite numbers."""
    return isinstance(values, list | tuple) and all(math.isfinite(_as_float(x)) for x in values)


def finite_numbers(name: str, values: Any) -> list[float]:
    """`values` as floats. Raises ValueError unless it is a list or tuple of finite numbers."""
    if not are_finite(values):
        raise ValueError(f"{name} is {shortened(values)}; expected a list of finite numbers.")
    return [float(value) for value in values]


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raises ValueError unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is of type {type(value).__name__}; expected {kind.__name__}.")


def check_path(name: str, value: str | os.PathLike) -> Path:
    """`value` as a Path, which is absolute if it has a colon: FFmpeg and pyarrow would take `run:1/data` for a URL.

    Raises:
        ValueError: for an empty one, which `Path` takes for the current folder, and one that isn't UTF-8.
    """
    if not os.fspath(value):
        raise ValueError(f"{name} is {shortened(value)}; expected a path. Give '.' for the current folder.")
    path = Path(value)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # a byte that Python couldn't decode
        raise ValueError(
            f"{name} is {str(path)!a}; expected a name in UTF-8. Rename it, or set LC_ALL=C.UTF-8 if it is one."
        ) from error
    return path.absolute() if ":" in str(path) else path


# Checks for `check_fields`.
not_negative = partial(check_number, least=0)
share = partial(check_number, least=0, most=1)
count = partial(check_whole, least=0)
noise_seed = partial(check_whole, least=0, most=2**63 - 1)  # torch takes twice as many: rows may count on from it
numpy_seed = partial(check_whole, least=0, most=2**32 - 1)  # of numpy's global generator, which trainers seed, too


def check_fields(arguments: Any, ranges: Mapping[Callable[[str, Any], Any], Collection[str]]) -> None:
    """Checks the fields of a dataclass. A field may be None if that is its default.

    Args:
        ranges: the names of fields by their check, such as `check_whole`, which takes the name and the value.

    Raises:
        ValueError: for the first field, in order of declaration, that is out of range.
    """
    checks = {name: check for check, names in ranges.items() for name in names}
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in checks and not (value is None and field.default is None):
            checks[field.name](field.name, value)


def check_choice(name: str, value: Any, choices: Collection) -> Any:
    """`value`. Raises ValueError unless it is one of `choices`."""
    if not isinstance(value, Hashable) or value not in list(choices):  # arrays are compared number by number
        raise ValueError(f"{name} is {shortened(value)}; expected one of {', '.join(map(str, choices))}.")
    return value


def check_stored(fields: Mapping[str, Any], name_or_path: str | os.PathLike, file: str, part: str) -> None:
    """Raises OSError without any `fields`: transformers found no `file` of this part of a pipeline, and would take the
    default for each."""
    if not fields:
        raise OSError(
            f'{name_or_path} has no {file}; expected the {part} of a pipeline: give its folder, or subfolder="{part}".'
        )


def shortened(value: Any, length: int = 200) -> str:
    """`repr` of `value`, truncated to about `length` characters. A text is truncated within its quotes."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= length else text[:length] + "…"
    return repr(text) if isinstance(value, str) else text
