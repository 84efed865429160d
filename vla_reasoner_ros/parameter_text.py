"""Declared parameters as text: YAML files with comments, tables, and words of a command line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import Declaration, declarations, flatten

WIDTH = 96


def to_yaml(parameters: Any, group: str) -> str:
    """A ROS parameter file of one group for any node, with every parameter explained.

    Args:
        parameters: a parameter dataclass with the values to write.
        group: the name that the group has in the node.
    """
    values = flatten(parameters)
    lines = ["/**:", "  ros__parameters:", f"    {group}:"]
    opened: list[str] = []
    for declaration in declarations(type(parameters)):
        *groups, name = declaration.name.split(".")
        common = 0
        while common < min(len(groups), len(opened)) and groups[common] == opened[common]:
            common += 1
        for depth in range(common, len(groups)):
            lines.append(f"{'  ' * (3 + depth)}{groups[depth]}:")
        opened = groups
        indent = "  " * (3 + len(groups))
        comment = textwrap.wrap(explain(declaration), WIDTH - len(indent) - 2)
        lines += [f"{indent}# {line}" for line in comment]
        lines.append(f"{indent}{name}: {_scalar(values[declaration.name])}")
    return "\n".join(lines) + "\n"


def to_markdown(cls: type, prefix: str = "") -> str:
    """A table of every parameter of a dataclass: name, default, range and what it does."""
    rows = ["| parameter | default | range | what it does |", "|---|---|---|---|"]
    for declaration in declarations(cls, prefix):
        cells = (
            f"`{declaration.name}`",
            f"`{_scalar(declaration.default)}`",
            _range(declaration),
            declaration.description,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as parameters by full name; values are read as YAML.

    Raises:
        ConfigurationError: not of this form.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"--set: expected NAME=VALUE, got {assignment!r}")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {name}: not a value: {text!r}") from error
    return values


def explain(declaration: Declaration) -> str:
    """Description, unit and range in one line."""
    limits = _range(declaration)
    return declaration.description + (f" [{limits}]" if limits else "")


def _range(declaration: Declaration) -> str:
    if declaration.choices:
        return ", ".join(declaration.choices)
    low, high = declaration.minimum, declaration.maximum
    unit = f" {declaration.unit}" if declaration.unit else ""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}{unit}"
    if low is not None:
        return f"{low:g} and more{unit}"
    if high is not None:
        return f"up to {high:g}{unit}"
    return unit.strip()


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()
