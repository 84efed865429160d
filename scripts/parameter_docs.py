"""Write config/<node>.yaml, config/schema/ and docs/parameters.md from the declared parameters.

``python scripts/parameter_docs.py`` writes them, with ``--check`` it only says which are out of
date. Run it after ``make setup``, in the shell of ``scripts/environment.sh``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.data.contract import Actions, CameraStream, Gripper, JointStream, Moments
from vla_reasoner_ros.parameters import Declaration, declarations

ROOT = Path(__file__).resolve().parent.parent
NODES = {
    "camera_node": "CameraNode",
    "planner_node": "PlannerNode",
    "arm_controller_node": "ArmControllerNode",
    "deadman_node": "DeadmanNode",
    "sim_node": "SimNode",
    "view_node": "ViewNode",
}
CONTRACT = {
    "": Moments,
    "joint_states.": JointStream,
    "gripper.": Gripper,
    "cameras.NAME.": CameraStream,
    "actions.": Actions,
}
ORIGIN = "Written by scripts/parameter_docs.py from the declarations in the code."
WIDTH = 100


def main() -> int:
    """Write or check the files; the exit code is 1 when a checked file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    outdated = []
    for path, text in files():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(str(path.relative_to(ROOT)))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    verb = "out of date" if check else "written"
    print("\n".join(f"{name}: {verb}" for name in outdated) or "all up to date")
    return int(check and bool(outdated))


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with what it must contain."""
    declared = {node: list(declarations(_parameters_class(node))) for node in NODES}
    for node, parameters in declared.items():
        yield ROOT / "config" / f"{node}.yaml", node_yaml(node, parameters)
        schema = json.dumps(node_schema(node, parameters), indent=2) + "\n"
        yield ROOT / "config" / "schema" / f"{node}.json", schema
    yield ROOT / "docs" / "parameters.md", table_page(declared)


def _parameters_class(node: str) -> type:
    module = importlib.import_module(f"vla_reasoner_ros.nodes.{node}")
    parameters: type = getattr(module, NODES[node]).parameters_class
    return parameters


def node_yaml(node: str, parameters: list[Declaration]) -> str:
    """A ROS parameter file with every default, each below its description."""
    lines = [
        f"# yaml-language-server: $schema=schema/{node}.json",
        f"# Parameters of {node} and their defaults.",
        f"# {ORIGIN}",
        "/**:",
    ]
    lines.append("  ros__parameters:")
    groups: list[str] = []
    for declaration in parameters:
        *path, leaf = declaration.name.split(".")
        shared = 0
        while shared < min(len(path), len(groups)) and path[shared] == groups[shared]:
            shared += 1
        for depth in range(shared, len(path)):
            lines.append("  " * (depth + 2) + f"{path[depth]}:")
        groups = path
        indent = "  " * (len(path) + 2)
        comment = " ".join([declaration.description, *_constraints(declaration)])
        lines += textwrap.wrap(
            comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        # ROS cannot read an empty list: it has no type.
        hidden = "# " if declaration.default == () else ""
        lines.append(f"{indent}{hidden}{leaf}: {_scalar(declaration.default)}")
    return "\n".join(lines) + "\n"


def node_schema(node: str, parameters: list[Declaration]) -> dict[str, Any]:
    """The JSON schema of a ROS parameter file of this node, for editors and checkers."""
    own: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    for declaration in parameters:
        *path, leaf = declaration.name.split(".")
        group = own
        for name in path:
            group = group["properties"].setdefault(
                name, {"type": "object", "properties": {}, "additionalProperties": False}
            )
        group["properties"][leaf] = _leaf_schema(declaration)
    own["properties"]["use_sim_time"] = {"type": "boolean", "description": "Time from /clock."}
    own["properties"]["qos_overrides"] = {
        "type": "object",
        "description": "Overrides of the quality of service by topic (docs/interfaces.md).",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Parameters of {node}",
        "description": ORIGIN,
        "type": "object",
        "patternProperties": {
            rf"^(/\*\*|(/?[\w*]+)*/?{node})$": {
                "type": "object",
                "properties": {"ros__parameters": own},
                "required": ["ros__parameters"],
            }
        },
    }


def _leaf_schema(declaration: Declaration) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    listed = typing.get_origin(declaration.type) is tuple
    kind = typing.get_args(declaration.type)[0] if listed else declaration.type
    item: dict[str, Any] = {"type": kinds[kind]}
    if declaration.minimum is not None:
        item["minimum"] = declaration.minimum
    if declaration.maximum is not None:
        item["maximum"] = declaration.maximum
    if declaration.choices:
        item["enum"] = list(declaration.choices)
    schema = {"type": "array", "items": item} if listed else item
    description = " ".join([declaration.description, *_constraints(declaration)])
    default = declaration.default
    return {
        **schema,
        "description": description,
        "default": list(default) if listed else default,
    }


def _constraints(declaration: Declaration) -> list[str]:
    found = []
    extent = _range(declaration)
    if extent or declaration.unit:
        found.append(f"[{' '.join(filter(None, [extent, declaration.unit]))}]")
    if declaration.choices:
        found.append(f"One of {', '.join(declaration.choices)}.")
    if declaration.read_only:
        found.append("Fixed once the node is configured.")
    return found


def _range(declaration: Declaration) -> str:
    low, high = declaration.minimum, declaration.maximum
    if low is None and high is None:
        return ""
    if high is None:
        return f"{low:g} or more"
    return f"up to {high:g}" if low is None else f"{low:g} to {high:g}"


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    return yaml.safe_dump(value).removesuffix("\n...\n").strip()


def table_page(declared: dict[str, list[Declaration]]) -> str:
    """The reference page of all parameters."""
    lines = [
        "# Parameters",
        "",
        f"<!-- {ORIGIN} -->",
        "Every parameter of every node: `config/<node>.yaml` holds the defaults, "
        "`ros2 param describe`",
        "says the same. All but those marked *fixed* can be changed while the node runs "
        "(`ros2 param set`);",
        "what is out of range is refused with the reason. Several set at once are taken all or "
        "none.",
    ]
    for node, parameters in declared.items():
        lines += ["", f"## {node}", "", *_table(parameters)]
    lines += [
        "",
        "## Contracts",
        "",
        "Entries of the files in `config/contract/`, which `camera_node` and the replay of "
        "recordings read.",
        "",
        *_table([d for prefix, cls in CONTRACT.items() for d in declarations(cls, prefix)]),
    ]
    return "\n".join(lines) + "\n"


def _table(parameters: list[Declaration]) -> list[str]:
    rows = ["| name | type | default | range | description |", "|---|---|---|---|---|"]
    for declaration in parameters:
        extent = ", ".join(declaration.choices) or _range(declaration)
        extent = " ".join(filter(None, [extent, declaration.unit]))
        cells = [
            f"`{declaration.name}`" + (" *fixed*" if declaration.read_only else ""),
            _type_name(declaration.type),
            f"`{_scalar(declaration.default)}`",
            extent,
            declaration.description,
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"list of {typing.get_args(kind)[0].__name__}"
    return str(kind.__name__)


if __name__ == "__main__":
    sys.exit(main())
