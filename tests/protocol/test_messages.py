"""The bytes of messages: as openpi's client writes and reads them, and nothing that could do harm."""

import tracemalloc

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from aim_hf.protocol.messages import MessageError, pack, unpack

MESSAGE = {
    "prompt": "ring the bell",
    "seed": 3,
    "images": {"cam_high": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "nothing": np.zeros((0, 3))},
    "state": np.linspace(0, 1, 14),
    "nested": [None, True, 2.5, b"raw", [1, {"deep": np.float32(0.1)}]],
    "scalar": np.float32(0.25),
    "flag": np.bool_(True),
    "half": np.array([1.5], dtype=np.float16),
}


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for pair in zip(left, right):
            assert_same(*pair)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


def test_openpi_reads_what_we_write_and_we_read_what_it_writes():
    assert_same(msgpack_numpy.unpackb(pack(MESSAGE)), MESSAGE)
    assert_same(unpack(msgpack_numpy.packb(MESSAGE)), MESSAGE)
    assert pack(MESSAGE) == msgpack_numpy.packb(MESSAGE)


def test_arrays_that_are_not_contiguous_are_packed_in_order():
    array = np.arange(12).reshape(3, 4).T
    np.testing.assert_array_equal(unpack(pack(array)), array)


def array(data=b"\0" * 8, dtype="<f8", shape=(1,), **more):
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape} | more)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not msgpack, or incomplete"),
        (b"\xc1", "not msgpack, or incomplete"),
        (pack(MESSAGE)[:-3], "not msgpack, or incomplete"),
        (pack(MESSAGE) + b"\0", "not msgpack, or incomplete"),
        (b"\x91" * 100_000, "not msgpack, or incomplete"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack, or incomplete"),
        (b"\xd9\x02\xff\xfe", "not msgpack, or incomplete"),
        (msgpack.packb({1: 2}), "not msgpack, or incomplete"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension of type 5"),
        (array(dtype="|O"), r"dtype '\|O'"),
        (array(dtype="O"), "dtype 'O'"),
        (array(dtype="<c16", shape=[0]), "dtype '<c16'"),
        (array(dtype="|V8"), r"dtype '\|V8'"),
        (array(dtype="<U2"), "dtype '<U2'"),
        (array(dtype="f8,f8"), "dtype 'f8,f8'"),
        (array(dtype=["<f8"]), "dtype"),
        (array(dtype=None), "dtype None"),
        (array(shape=[2]), "holds 8 bytes; expected 16"),
        (array(shape=[-1]), "expected a list of sizes"),
        (array(shape=[1.0]), "expected a list of sizes"),
        (array(shape=[True]), "expected a list of sizes"),
        (array(shape=3), "expected a list of sizes"),
        (array(shape=[1] * 33), "33 dimensions"),
        (array(shape=[2**40, 2**40]), "expected 9671406556917033397649408 bytes"),
        (array(data=b"", shape=[0, 2**63]), "not msgpack, or incomplete"),
        (array(data="text"), "holds str"),
        (array(data=None), "holds NoneType"),
        (msgpack.packb({b"__ndarray__": True}), "dtype None"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f8"}), "holds str"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "not msgpack, or incomplete"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "dtype"),
    ],
)
def test_bad_bytes_are_refused(data, reason):
    with pytest.raises(MessageError, match=reason):
        unpack(data)


@pytest.mark.parametrize("value", [np.array([None]), np.array(["text"]), np.zeros(2, "i4,f4"), 1j, object(), {1, 2}])
def test_what_is_no_message_is_not_packed(value):
    with pytest.raises(TypeError, match="a message can't hold"):
        pack({"value": value})


def test_any_bytes_give_a_message_or_its_error_in_little_memory():
    """Random bytes, and messages that were cut, changed and spliced at random."""
    rng = np.random.default_rng(0)
    sources = [pack(MESSAGE), array(), array(data=b"\0" * 64, shape=[2, 4]), b"\xdd\x00\x00\x10\x00" * 500]
    largest = max(map(len, sources))
    refused = read = 0
    tracemalloc.start()
    for _ in range(1500):
        data = bytearray(sources[rng.integers(len(sources))])
        kind = rng.integers(4)
        if kind == 0:
            data = bytearray(rng.bytes(rng.integers(1, 200)))
        elif kind == 1:
            del data[rng.integers(len(data)) :]
        elif kind == 2:
            other = sources[rng.integers(len(sources))]
            place = rng.integers(len(data))
            data[place:place] = other[: rng.integers(len(other))]
        for place in rng.integers(0, len(data), rng.integers(4)) if data else ():
            data[place] = rng.integers(256)
        try:
            unpack(bytes(data))
            read += 1
        except MessageError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 500 and read > 50
    # Lists within lists, each of the greatest length that one may have, to the greatest depth.
    assert peak < 100 * largest + 1024 * 4096 * 8
