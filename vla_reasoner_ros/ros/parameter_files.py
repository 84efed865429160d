"""What a file of ROS parameters says, without a node: a launch file looks before it starts one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PARAMETERS = "ros__parameters"


def nodes_that_set(name: str, file: str) -> list[str]:
    """The nodes, as the file names them, for which it sets a parameter.

    Args:
        name: of the parameter, without dots.
        file: path of the YAML file; empty is none.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: it is not YAML, or no mapping of nodes to parameters.
    """
    if not file:
        return []
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"params_file: there is no file {file!r}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuntimeError(f"params_file: {file} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise RuntimeError(
            f"params_file: {file}: expected nodes and their {PARAMETERS}, got {content!r}"
        )
    return [node for node, parameters in _parameters(content) if name in parameters]


def _parameters(
    content: Mapping[Any, Any], above: str = ""
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Node and parameters; namespaces may be levels of the file or parts of a name."""
    for key, below in content.items():
        if not isinstance(below, Mapping):
            continue
        if key == PARAMETERS:
            yield above, below
        else:
            yield from _parameters(below, f"{above}/{key}".replace("//", "/"))
