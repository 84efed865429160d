"""Parameters declared once: a frozen dataclass whose fields carry description, unit and range.

From the declaration come the ROS descriptors (``ros/parameters.py``), the YAML files in ``config/``
and the tables in the docs. Groups are nested dataclasses; a parameter's full name joins the groups
with dots, as in ``search.simulations``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vla_reasoner_ros.errors import ConfigurationError

P = TypeVar("P")
_KEY = "vla_reasoner_ros.parameter"


@dataclass(frozen=True)
class Declaration:
    """One parameter: its full name, type, default, and what a user needs to know of it.

    Attributes:
        name: the full dotted name.
        type: bool, int, float, str, ``tuple[str, ...]`` or ``tuple[float, ...]``.
        default: the value when nobody says otherwise.
        description: one or two sentences.
        unit: SI unit, empty when dimensionless.
        minimum, maximum: the closed range of numbers (of each element, for tuples); None is open.
        choices: the allowed strings; empty when any is allowed.
        read_only: fixed once the node is configured.
    """

    name: str
    type: Any
    default: Any
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    def check(self, value: Any) -> Any:
        """Return ``value`` in the declared type.

        An int is taken for a float, since YAML writes 1 for 1.0; nothing else is converted.

        Raises:
            ConfigurationError: wrong type, not finite, out of range or not among the choices; the
                message names the parameter, what was expected and what came.
        """
        if typing.get_origin(self.type) is tuple:
            if isinstance(value, str) or not hasattr(value, "__iter__"):
                raise self._error(f"a list of {self._element.__name__}", value)
            return tuple(self._check_one(item, self._element) for item in value)
        return self._check_one(value, self.type)

    @property
    def _element(self) -> type:
        return typing.get_args(self.type)[0]

    def _check_one(self, value: Any, kind: type) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self._error(kind.__name__, value)
        if kind is float and not math.isfinite(value):
            raise self._error("a finite number", value)
        if kind in (int, float):
            if self.minimum is not None and value < self.minimum:
                raise self._error(f"at least {self.minimum}{self._unit}", value)
            if self.maximum is not None and value > self.maximum:
                raise self._error(f"at most {self.maximum}{self._unit}", value)
        if self.choices and value not in self.choices:
            raise self._error("one of " + ", ".join(self.choices), value)
        return value

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _error(self, expected: str, value: Any) -> ConfigurationError:
        return ConfigurationError(f"parameter {self.name}: expected {expected}, got {value!r}")


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = False,
) -> Any:
    """Declare a field of a parameter dataclass; see :class:`Declaration` for the arguments."""
    details = {
        "description": description,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "read_only": read_only,
    }
    return dataclasses.field(default=default, metadata={_KEY: details})


def group(cls: type) -> Any:
    """Declare a field that holds a nested parameter dataclass with its defaults."""
    return dataclasses.field(default_factory=cls)


def declarations(cls: type, prefix: str = "") -> Iterator[Declaration]:
    """Yield every parameter of ``cls`` and of its groups, in the order written."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if _KEY in field.metadata:
            details = field.metadata[_KEY]
            yield Declaration(prefix + field.name, hints[field.name], field.default, **details)
        else:
            yield from declarations(hints[field.name], f"{prefix}{field.name}.")


def flatten(parameters: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a parameter dataclass by full name."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(parameters):
        value = getattr(parameters, field.name)
        if _KEY in field.metadata:
            flat[prefix + field.name] = value
        else:
            flat |= flatten(value, f"{prefix}{field.name}.")
    return flat


def build(cls: type[P], values: Mapping[str, Any], prefix: str = "") -> P:
    """Make a checked parameter dataclass from values by full name; what is not given is default.

    A dataclass may define ``__post_init__`` for rules that span parameters.

    Raises:
        ConfigurationError: an unknown name (the nearest known one is suggested), or a bad value.
    """
    known = {declaration.name: declaration for declaration in declarations(cls, prefix)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"parameter {name}: there is none of this name{hint}")
    checked = {
        name: declaration.check(values.get(name, declaration.default))
        for name, declaration in known.items()
    }
    return _assemble(cls, checked, prefix)


def replace(parameters: P, values: Mapping[str, Any]) -> P:
    """A copy with some values changed, all checked together: all or nothing."""
    return build(type(parameters), flatten(parameters) | dict(values))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted names into nested dictionaries, as YAML files write them."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        branch = tree
        for part in groups:
            branch = branch.setdefault(part, {})
        branch[leaf] = list(value) if isinstance(value, tuple) else value
    return tree


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of :func:`nested`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _assemble(cls: type[P], values: Mapping[str, Any], prefix: str) -> P:
    hints = typing.get_type_hints(cls)
    arguments = {
        field.name: values[prefix + field.name]
        if _KEY in field.metadata
        else _assemble(hints[field.name], values, f"{prefix}{field.name}.")
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    return cls(**arguments)
