"""Errors about a wrong value name it, and stay readable however large it is."""

import os
from pathlib import Path

import numpy as np
import pytest

from aim_hf.protocol.messages import MessageError, pack, unpack
from aim_hf.utils.checks import (
    check_choice,
    check_number,
    check_path,
    check_positive,
    check_whole,
    finite_numbers,
    shortened,
)

LARGE = list(range(100_000))
HUGE = 10**400  # no float holds it


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: check_whole("steps", LARGE),
        lambda: check_number("noise", LARGE, 0),
        lambda: check_positive("fps", LARGE),
        lambda: check_number("noise", HUGE, 0),
        lambda: check_positive("fps", HUGE),
        lambda: finite_numbers("scale", [HUGE]),
        lambda: check_choice("pictures", str(LARGE), ("none", "all")),
    ],
)
def test_a_large_value_is_told_in_short(refuse):
    with pytest.raises(ValueError, match=r"^\w+ is '?\[?[01].*….*; expected ") as raised:
        refuse()
    assert len(str(raised.value)) < 300


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [float, np.float32, np.float16, np.float64])
def test_numbers_of_every_kind_are_finite_or_refused(kind):
    assert check_number("x", kind(2), 0) == check_positive("x", kind(2)) == finite_numbers("x", [kind(2)])[0] == 2
    for check in (lambda x: check_number("x", x, 0), lambda x: check_positive("x", x)):
        for wrong in ("inf", "nan", "-inf"):
            with pytest.raises(ValueError, match=r"^x is "):
                check(kind(wrong))
    with pytest.raises(ValueError, match=r"^x is "):
        finite_numbers("x", [kind("inf")])


def test_a_client_is_told_its_large_shape_in_short():
    array = {b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": ["x" * 50] * 2000}
    with pytest.raises(MessageError, match="an array has shape .*…; expected a list of sizes") as raised:
        unpack(pack(array))
    assert len(str(raised.value)) < 300


def test_a_text_is_truncated_within_its_quotes():
    assert shortened("ab\n" * 100, 5) == repr("ab\nab…")
    assert shortened("press the bell") == "'press the bell'"


def test_a_path_that_is_not_utf8_is_refused():
    """pyarrow and cards can't write it: a collection ended after its first episode."""
    with pytest.raises(ValueError, match=r"^it is 'runs/\\udce9'; expected a name in UTF-8\. .* set LC_ALL=C.UTF-8"):
        check_path("it", os.fsdecode(b"runs/\xe9"))
    assert check_path("it", "runs/é") == Path("runs/é")
