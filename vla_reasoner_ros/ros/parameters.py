"""A parameter dataclass as the parameters of a node: declared, checked, changed all or nothing."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterNotDeclaredException
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import Declaration, build, declarations, flatten, replace

P = TypeVar("P")

_INT64 = 2**63
_TYPES: dict[Any, Parameter.Type] = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[str, ...]: Parameter.Type.STRING_ARRAY,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
}
_ROS_OWN = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def descriptor(declaration: Declaration) -> ParameterDescriptor:
    """The ROS descriptor of a declaration: description, unit, range, choices.

    What is fixed once the node is configured is not ``read_only`` here, since it may change while
    the node is unconfigured; :class:`NodeParameters` refuses it later, by name.
    """
    kind = _TYPES[declaration.type]
    unit = f" [{declaration.unit}]" if declaration.unit else ""
    constraints = []
    if declaration.choices:
        constraints.append("one of " + ", ".join(declaration.choices))
    if declaration.read_only:
        constraints.append("fixed once the node is configured")
    result = ParameterDescriptor(
        name=declaration.name,
        type=kind.value,
        description=declaration.description + unit,
        additional_constraints="; ".join(constraints),
    )
    low, high = declaration.minimum, declaration.maximum
    if low is None and high is None:
        return result
    if kind is Parameter.Type.INTEGER:
        result.integer_range = [
            IntegerRange(
                from_value=-_INT64 if low is None else math.ceil(low),
                to_value=_INT64 - 1 if high is None else math.floor(high),
            )
        ]
    elif kind is Parameter.Type.DOUBLE:
        result.floating_point_range = [
            FloatingPointRange(
                from_value=-math.inf if low is None else float(low),
                to_value=math.inf if high is None else float(high),
            )
        ]
    return result


class NodeParameters(Generic[P]):
    """Declares ``cls`` on a node and keeps the newest valid value as an immutable snapshot.

    The node must be made with ``automatically_declare_parameters_from_overrides=True``, so that
    what a YAML file or the command line says is all there and a wrong name can be told. What is
    wrong at the start does not stop the node from being made: :meth:`require_valid` says it when
    the node is configured.

    Args:
        node: the node.
        cls: a parameter dataclass.
        locked: whether the parameters declared ``read_only`` are fixed now.
        check: called with a snapshot before it is set; refuses it by a ConfigurationError.
        on_change: called with the new snapshot after it has been set.
    """

    def __init__(
        self,
        node: Node,
        cls: type[P],
        locked: Callable[[], bool],
        check: Callable[[P], None],
        on_change: Callable[[P], None],
    ) -> None:
        self._node = node
        self._locked = locked
        self._further_check = check
        self._on_change = on_change
        self._declarations = {d.name: d for d in declarations(cls)}
        self._problems: dict[str, str] = {}
        self._value: P = self._declare(cls)
        node.add_pre_set_parameters_callback(self._prepare)
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._apply)

    @property
    def value(self) -> P:
        """The newest valid parameters."""
        return self._value

    def require_valid(self) -> None:
        """Refuse to go on with what a file or the command line said wrongly.

        Raises:
            ConfigurationError: unknown names or bad values, all of them in one message.
        """
        if self._problems:
            raise ConfigurationError("; ".join(self._problems.values()))

    def _declare(self, cls: type[P]) -> P:
        everything: dict[str, Any] = self._node.get_parameters_by_prefix("")
        given = {n: p.value for n, p in everything.items() if not n.startswith(_ROS_OWN)}
        self._problems = _problems(cls, given)
        good = {name: value for name, value in given.items() if name not in self._problems}
        try:
            value = build(cls, good)
        except ConfigurationError as error:  # a rule across parameters
            self._problems[""] = str(error)
            value = build(cls, {})
        flat = flatten(value)
        for declaration in self._declarations.values():
            if self._node.has_parameter(declaration.name):
                self._node.undeclare_parameter(declaration.name)
            described = descriptor(declaration)
            self._node.declare_parameter(
                declaration.name, _TYPES[declaration.type], described, ignore_override=True
            )
        self._node.set_parameters_atomically(
            [_to_parameter(d, flat[d.name]) for d in self._declarations.values()]
        )
        return value

    def _prepare(self, changes: list[Parameter]) -> list[Parameter]:
        """Name unknown parameters, which rclpy does not, and take 1 for 1.0 as YAML writes it."""
        unknown = [c.name for c in changes if not self._node.has_parameter(c.name)]
        if unknown:
            raise ParameterNotDeclaredException([self._suggest(name) for name in unknown])
        return [self._integer_to_float(change) for change in changes]

    def _suggest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._declarations, n=1)
        return f"{name} (did you mean {near[0]}?)" if near else name

    def _integer_to_float(self, change: Parameter) -> Parameter:
        declaration = self._declarations.get(change.name)
        if declaration is None:
            return change
        wanted = _TYPES[declaration.type]
        if (wanted, change.type_) == (Parameter.Type.DOUBLE, Parameter.Type.INTEGER):
            return Parameter(change.name, wanted, float(change.value))
        if (wanted, change.type_) == (Parameter.Type.DOUBLE_ARRAY, Parameter.Type.INTEGER_ARRAY):
            return Parameter(change.name, wanted, [float(item) for item in change.value])
        return change

    def _changed(self, changes: list[Parameter]) -> dict[str, Any]:
        return {c.name: _plain(c.value) for c in changes if c.name in self._declarations}

    def _check(self, changes: list[Parameter]) -> SetParametersResult:
        values = self._changed(changes)
        current = flatten(self._value)
        for name, value in values.items():
            fixed = self._declarations[name].read_only and self._locked()
            if fixed and value != _plain(current[name]):
                return SetParametersResult(
                    successful=False,
                    reason=f"parameter {name}: fixed once the node is configured, clean it up "
                    f"first; it is {current[name]!r}, got {value!r}",
                )
        try:
            changed = replace(self._value, values)
            if values:
                self._further_check(changed)
        except ConfigurationError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply(self, changes: list[Parameter]) -> None:
        values = self._changed(changes)
        if not values:
            return
        self._value = replace(self._value, values)
        for name in (*values, ""):
            self._problems.pop(name, None)
        self._on_change(self._value)


def _problems(cls: type, given: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    known = {d.name: d for d in declarations(cls)}
    for name, value in given.items():
        try:
            if name in known:
                known[name].check(_plain(value))
            else:
                build(cls, {name: value})
        except ConfigurationError as error:
            found[name] = str(error)
    return found


def _plain(value: Any) -> Any:
    """ROS gives arrays as ``array.array``; a declaration takes tuples."""
    return tuple(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value


def _to_parameter(declaration: Declaration, value: Any) -> Parameter:
    kind = _TYPES[declaration.type]
    return Parameter(declaration.name, kind, list(value) if isinstance(value, tuple) else value)
