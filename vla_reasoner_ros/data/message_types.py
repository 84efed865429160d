"""Message types without ROS: Jazzy's, this package's own, and messages made from plain values.

The definitions of this package come from its ``msg/`` folder, so that what is written to a bag is
what the nodes publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_reasoner_ros.paths import PACKAGE, share_directory

NANOSECONDS = 1_000_000_000
TIME = "builtin_interfaces/msg/Time"

Converter = Callable[[Any], Any]
"""From a plain value, or None for what was not named, to what a message's field holds."""


@cache
def standard_types() -> Typestore:
    """The types of ROS 2 Jazzy and of this package.

    Shared by all that read and write bags; a bag's own types go into a store of their own.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted((share_directory() / "msg").glob("*.msg")):
        name = f"{PACKAGE}/msg/{path.stem}"
        store.register(get_types_from_msg(path.read_text(encoding="utf-8"), name))
    return store


def make(type_name: str, values: Mapping[str, Any]) -> Any:
    """A message from plain values.

    Args:
        type_name: as in ``sensor_msgs/msg/JointState``.
        values: by field; nested messages as mappings, or as messages made before. Fields that are
            not named are zero or empty. An int given for a time is nanoseconds.

    Raises:
        KeyError: there is no such field or type.
    """
    message, fields = _fields(type_name)
    if not values.keys() <= fields.keys():
        unknown = ", ".join(sorted(values.keys() - fields.keys()))
        raise KeyError(f"{type_name} has no field {unknown}")
    get = values.get
    return message(*[convert(get(name)) for name, convert in fields.items()])


def serialize(type_name: str, values: Mapping[str, Any] | Any) -> bytes:
    """CDR of a message, or of the plain values that :func:`make` makes one of."""
    message = make(type_name, values) if isinstance(values, Mapping) else values
    return bytes(standard_types().serialize_cdr(message, type_name))


def deserialize(type_name: str, data: bytes, store: Typestore | None = None) -> Any:
    """A message from its CDR; arrays of numbers are views of ``data``.

    Args:
        type_name: as in ``sensor_msgs/msg/Image``.
        data: the bytes.
        store: of the type; None is :func:`standard_types`.

    Raises:
        Exception: rosbags names many kinds of wrong bytes, none of them in a class for all.
    """
    store = standard_types() if store is None else store
    view = memoryview(data)  # of bytes, rosbags would make a copy
    try:
        return store.deserialize_cdr(view, type_name)
    except SerdeError:
        # Fast DDS aligns the elements of an empty sequence at the end: four bytes too many.
        return store.deserialize_cdr(view[:-4], type_name)


def prepare(type_names: Iterable[str]) -> None:
    """Make the code that reads and writes these types now, and not at their first message."""
    for type_name in type_names:
        deserialize(type_name, serialize(type_name, {}))


def to_nanoseconds(stamp: Any) -> int:
    """A message's time in nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


@cache
def _fields(type_name: str) -> tuple[type[Any], dict[str, Converter]]:
    """A type's class, and how to make each of its fields, in their order."""
    store = standard_types()
    described = store.fielddefs[type_name][1]
    return store.types[type_name], {name: _converter(kind) for name, kind in described}


def _converter(kind: Any) -> Converter:
    node, detail = kind
    if node == Nodetype.BASE:
        return _scalar(detail[0])
    if node == Nodetype.NAME:
        return _nested(detail)
    (element_node, element), length = detail
    if element_node == Nodetype.BASE and element[0] != "string":
        return _numbers(_dtype(element[0]), length if node == Nodetype.ARRAY else 0)
    one = _converter((element_node, element))
    return lambda value: [] if value is None else [one(item) for item in value]


def _scalar(name: str) -> Converter:
    if name == "string":
        return lambda value: "" if value is None else str(value)
    if name.startswith("float"):
        return lambda value: 0.0 if value is None else float(value)
    if name == "bool":
        return bool
    return lambda value: 0 if value is None else int(value)


def _nested(type_name: str) -> Converter:
    def convert(value: Any) -> Any:
        if value is None or isinstance(value, Mapping):
            return make(type_name, value or {})
        return value

    def time(value: Any) -> Any:
        if isinstance(value, int):
            seconds, nanoseconds = divmod(value, NANOSECONDS)
            value = {"sec": seconds, "nanosec": nanoseconds}
        return convert(value)

    return time if type_name == TIME else convert


def _numbers(dtype: np.dtype[Any], length: int) -> Converter:
    def convert(value: Any) -> Any:
        if value is None:
            return np.zeros(length, dtype)
        if isinstance(value, (bytes, bytearray)):
            return np.frombuffer(value, dtype=np.uint8)
        return np.ascontiguousarray(value, dtype=dtype).ravel()

    return convert


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype("bool" if name == "bool" else "uint8" if name in ("octet", "char") else name)
