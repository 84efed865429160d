"""Message types without ROS: Jazzy's, this package's own, and messages made from plain values.

The definitions of this package come from its ``msg/`` folder, so that what is written to a bag is
what the nodes publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_reasoner_ros.paths import PACKAGE, share_directory

NANOSECONDS = 1_000_000_000
TIME = "builtin_interfaces/msg/Time"


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
    store = standard_types()
    fields = store.fielddefs[type_name][1]
    unknown = set(values) - {name for name, _ in fields}
    if unknown:
        raise KeyError(f"{type_name} has no field {', '.join(sorted(unknown))}")
    made = {name: _field(kind, values.get(name)) for name, kind in fields}
    return store.types[type_name](**made)


def serialize(type_name: str, values: Mapping[str, Any] | Any) -> bytes:
    """CDR of a message, or of the plain values that :func:`make` makes one of."""
    message = make(type_name, values) if isinstance(values, Mapping) else values
    return bytes(standard_types().serialize_cdr(message, type_name))


def to_nanoseconds(stamp: Any) -> int:
    """A message's time in nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def _field(kind: Any, value: Any) -> Any:
    node, detail = kind
    if node == Nodetype.BASE:
        return _scalar(detail[0], value)
    if node == Nodetype.NAME:
        if detail == TIME and isinstance(value, int):
            seconds, rest = divmod(value, NANOSECONDS)
            value = {"sec": seconds, "nanosec": rest}
        return make(detail, value or {}) if value is None or isinstance(value, Mapping) else value
    (element_node, element), length = detail
    if element_node == Nodetype.BASE and element[0] != "string":
        if value is None:
            value = np.zeros(length if node == Nodetype.ARRAY else 0)
        if isinstance(value, (bytes, bytearray)):
            return np.frombuffer(value, dtype=np.uint8)
        return np.ascontiguousarray(value, dtype=_dtype(element[0])).ravel()
    return [_field((element_node, element), item) for item in _sequence(value)]


def _sequence(value: Any) -> Sequence[Any]:
    return [] if value is None else list(value)


def _scalar(name: str, value: Any) -> Any:
    if name == "string":
        return "" if value is None else str(value)
    if name.startswith("float"):
        return 0.0 if value is None else float(value)
    if name == "bool":
        return bool(value)
    return 0 if value is None else int(value)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype("bool" if name == "bool" else "uint8" if name in ("octet", "char") else name)
