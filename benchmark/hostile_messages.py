"""Messages made from their definitions: plausible, extreme or senseless in every field."""

from __future__ import annotations

import array
import importlib
import math
from functools import cache
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from rosidl_parser import definition as idl

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.ros.clock import to_stamp

FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, math.nan, math.inf, -math.inf, 0.04, 0.1, 3.2)
LENGTHS = (0, 0, 1, 2, 3, 7, 8, 9, 56, 56, 255)
PICTURE = 27_648
"""Bytes of a 96 x 96 picture, so that some are of a plausible size."""
MOST = 56
"""Elements of a sequence of texts or messages."""
WORDS = (
    *("", " ", "base", "world", "rgb8", "bgr8", "mono8", "16UC1", "jpeg", "png", "agent", "wrist"),
    *("end_effector_delta", "joint_position", "x", "y", "z", "rx", "ry", "rz", "gripper"),
    *("fr3_finger_joint1", "fr3_finger_joint2", "\x00", "ä" * 50, "../" * 20, "%s%n", "a" * 5000),
    *load_robot("fr3").joint_names,
)
CHANGES = 20
"""Messages that differ from the one before by one more field, before there is a new one."""
DESCEND = 0.9
"""Share of the changes of a nested message that change one of its fields, not all."""
NEAR_NS = 100_000_000
"""Stamps near now are whole multiples of this, so that messages of several topics share them."""
_CODES = {
    **{"float": "f", "double": "d", "int8": "b", "uint8": "B", "octet": "B", "int16": "h"},
    **{"uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q"},
}


class HostileMessages:
    """An endless stream of messages of one type.

    Every :data:`CHANGES` messages it begins anew, by turns with a random message and with a copy of
    the example stamped now; between, each differs from the one before in one field more, so that
    what checks the fields one after another is asked about each of them.

    Args:
        kind: the message type.
        rng: decides everything.
        example: a valid message, or None where a valid one must not be sent.
    """

    def __init__(self, kind: type, rng: np.random.Generator, example: Any = None) -> None:
        self._kind = kind
        self._rng = rng
        self._example = None if example is None else serialize_message(example)
        self._made = 0
        self._current: Any = None

    def next(self, now_ns: int = 0) -> Any:
        """The next one, to be used before the one after it is asked for."""
        rounds, changes = divmod(self._made, CHANGES)
        self._made += 1
        if changes:
            change(self._current, self._rng, now_ns)
        elif self._example is not None and rounds % 2:
            self._current = deserialize_message(self._example, self._kind)
            _stamp(self._current, now_ns)
        else:
            self._current = message(self._kind, self._rng, now_ns)
        return self._current


def message(kind: type, rng: np.random.Generator, now_ns: int = 0) -> Any:
    """A message of this type whose every field is random."""
    if kind.__name__ == "Time" and rng.integers(2):
        return to_stamp(now_ns - now_ns % NEAR_NS)
    return kind(**{name: _value(slot, rng, now_ns) for name, slot in _slots(kind)})


def change(said: Any, rng: np.random.Generator, now_ns: int = 0) -> None:
    """Make one field of a message random, at any depth."""
    slots = _slots(type(said))
    name, slot = slots[rng.integers(len(slots))]
    inner = getattr(said, name)
    if isinstance(slot, idl.AbstractSequence) and isinstance(slot.value_type, idl.NamespacedType):
        inner = inner[rng.integers(len(inner))] if inner else None
    elif not isinstance(slot, idl.NamespacedType):
        inner = None
    if inner is not None and rng.random() < DESCEND:
        change(inner, rng, now_ns)
    else:
        setattr(said, name, _value(slot, rng, now_ns))


def _stamp(said: Any, now_ns: int) -> None:
    for part in (said, getattr(said, "header", None)):
        for name in ("stamp", "observation_stamp"):
            if hasattr(part, name):
                setattr(part, name, to_stamp(now_ns - now_ns % NEAR_NS))


@cache
def _slots(kind: type) -> list[tuple[str, Any]]:
    names = kind.get_fields_and_field_types()  # type: ignore[attr-defined]
    return list(zip(names, kind.SLOT_TYPES, strict=True))  # type: ignore[attr-defined]


@cache
def _class(namespaces: tuple[str, ...], name: str) -> type:
    found: type = getattr(importlib.import_module(".".join(namespaces)), name)
    return found


def _value(kind: Any, rng: np.random.Generator, now_ns: int) -> Any:
    if isinstance(kind, idl.NamespacedType):
        return message(_class(tuple(kind.namespaces), kind.name), rng, now_ns)
    if isinstance(kind, idl.AbstractString):
        return WORDS[rng.integers(len(WORDS))]
    if isinstance(kind, idl.Array | idl.AbstractSequence):
        return _sequence(kind, rng, now_ns)
    if kind.typename == "boolean":
        return bool(rng.integers(2))
    if kind.typename in idl.FLOATING_POINT_TYPES:
        return FLOATS[rng.integers(len(FLOATS))] if rng.integers(2) else float(rng.normal())
    if kind.typename == "octet":
        return rng.bytes(1)
    low, high = _limits(kind.typename)
    return (low, high, 0, 1, *rng.integers(0, 100, 4).tolist())[rng.integers(8)]


def _limits(typename: str) -> tuple[int, int]:
    bits = int(typename.removeprefix("u").removeprefix("int"))
    if typename.startswith("u"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _sequence(kind: Any, rng: np.random.Generator, now_ns: int) -> Any:
    element = kind.value_type
    size = kind.size if isinstance(kind, idl.Array) else LENGTHS[rng.integers(len(LENGTHS))]
    if isinstance(kind, idl.BoundedSequence):
        size = min(size, kind.maximum_size)
    code = _CODES.get(getattr(element, "typename", ""))
    if code is None or isinstance(kind, idl.Array):
        return [_value(element, rng, now_ns) for _ in range(min(size, MOST))]
    if code in "fd":
        values = rng.normal(size=size)
        bad = rng.random(size) < 0.05
        values[bad] = rng.choice(FLOATS, bad.sum())
        return array.array(code, values.tolist() if code == "d" else values.astype("f").tolist())
    if code == "B" and not isinstance(kind, idl.BoundedSequence) and not rng.integers(8):
        size = PICTURE
    made = array.array(code)
    made.frombytes(rng.bytes(size * made.itemsize))
    return made
