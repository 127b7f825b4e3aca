"""Serialises messages of the policy protocol: msgpack with numpy arrays, compatible with openpi's client and server.

An array is a map of `__ndarray__`, `data` (its bytes, in C order), `dtype` and `shape`, with keys of type bytes. A
numpy scalar is a map of `__npgeneric__`, `data` and `dtype`. Messages from the network are untrusted: only plain
numbers are read, the number of bytes must match dtype and shape, and any other error is a `MessageError`. The memory
for reading is proportional to the length of a message; the worst case, a list of empty lists, takes about 100 times
its length.
"""

import math
from typing import Any

import numpy as np

from ..utils.checks import shortened
from ..utils.extras import extra

with extra("serve"):
    import msgpack

# Allowed dtype strings. Other strings never reach `np.dtype`, which would also accept structures and objects.
_DTYPES = {np.dtype(code).str: np.dtype(code) for code in "?bBhHiIqQefd"}
_MAX_DIMENSIONS = 32
# msgpack allocates each list, also a nested one, at its declared length.
_MAX_ITEMS = 4096


class MessageError(ValueError):
    """Raised for bytes that are no valid message."""


def pack(message: Any) -> bytes:
    """The bytes of a message of dicts, lists, strings, numbers and numpy arrays.

    Raises:
        TypeError: for anything else, and for arrays that don't hold plain numbers.
    """
    return msgpack.packb(message, default=_pack_array)


def unpack(data: bytes) -> Any:
    """The message in `data`. Its arrays are read-only.

    Raises:
        MessageError: for no message, or an incomplete one; for arrays of objects, structures, strings or
            complex numbers; for arrays whose bytes don't fit their dtype and shape; for extension types.
    """
    try:
        return msgpack.unpackb(
            data,
            object_hook=_unpack_array,
            ext_hook=_refuse_extension,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise MessageError(f"the message is not msgpack, or incomplete ({reason}).") from error


def _pack_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.str not in _DTYPES:
        raise TypeError(f"a message can't hold {getattr(value, 'dtype', type(value).__name__)}; give plain numbers.")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _unpack_array(value: dict) -> Any:
    if b"__ndarray__" in value:
        data, dtype, shape = value.get(b"data"), _dtype(value.get(b"dtype")), value.get(b"shape")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise MessageError(f"an array has shape {shortened(shape)}; expected a list of sizes.")
        if len(shape) > _MAX_DIMENSIONS:
            raise MessageError(f"an array has {len(shape)} dimensions; expected {_MAX_DIMENSIONS} at most.")
        expected = math.prod(shape) * dtype.itemsize
        if not isinstance(data, bytes) or len(data) != expected:
            size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise MessageError(f"an array of {dtype} and shape {shape} holds {size}; expected {expected} bytes.")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in value:
        number, dtype = value.get(b"data"), _dtype(value.get(b"dtype"))
        if not isinstance(number, bool | int | float):
            raise MessageError(f"a numpy scalar holds {type(number).__name__}; expected a number.")
        return dtype.type(number)
    return value


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in _DTYPES:
        raise MessageError(f"an array has dtype {shortened(name)}; expected one of {', '.join(sorted(_DTYPES))}.")
    return _DTYPES[name]


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MessageError(f"the message has an extension of type {code}; expected maps, lists, strings and numbers.")
