"""Arrays in MessagePack as openpi writes them: a mapping with the bytes, the type and the shape.

Only plain numbers pass, in both directions: object arrays, which would need pickle, are refused.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from vla_reasoner_ros.errors import ModelError

_KINDS = "biuf"


def pack(value: Any) -> bytes:
    """Mappings, lists, texts, numbers and arrays of numbers to bytes.

    Raises:
        ModelError: something else is among them.
    """
    try:
        return msgpack.packb(value, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"message: cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
    """The inverse of :func:`pack`; arrays are read-only views of ``data``.

    Raises:
        ModelError: the bytes are no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decode, strict_map_key=False)
    except ModelError:
        raise
    except Exception as error:  # msgpack raises a dozen types on garbage.
        raise ModelError(
            f"message of {len(data)} bytes: not MessagePack: {type(error).__name__}: {error}"
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise TypeError(f"arrays of {value.dtype} do not pass")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} does not pass")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype = _dtype(value)
        shape, data = value.get(b"shape"), value.get(b"data")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ModelError(f"message: array of shape {shape!r}")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            size = len(data) if isinstance(data, bytes) else type(data).__name__
            raise ModelError(f"message: an array {shape} of {dtype} does not have {size} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in value:
        return _dtype(value).type(value.get(b"data"))
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(b"dtype")
    try:
        dtype = np.dtype(name.decode() if isinstance(name, bytes) else name)
    except (TypeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"message: {name!r} is no type of numbers") from error
    if dtype.kind not in _KINDS or name is None:
        raise ModelError(f"message: arrays of {dtype} do not pass")
    return dtype
