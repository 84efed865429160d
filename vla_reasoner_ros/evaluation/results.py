"""Reading what ``evaluate --json`` writes; each field that a report takes from it is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.records import Arm, CommandCounts, RunRecord


@dataclass(frozen=True)
class Kind:
    """What a field holds: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _only(words: str, *types: type) -> Kind:
    return Kind(words, lambda value: isinstance(value, types))


def _list(words: str, *types: type) -> Kind:
    return Kind(
        f"a list of {words}",
        lambda value: isinstance(value, list) and all(isinstance(v, types) for v in value),
    )


TEXT, WHOLE, OBJECT = _only("a text", str), _only("a whole number", int), _only("an object", dict)
FILE = {
    "facts": OBJECT,
    "notes": _list("texts", str),
    "arms": _list("objects", dict),
    "episodes": _list("objects", dict),
}
ARM = {field.name: TEXT for field in fields(Arm)}
EPISODE = {
    "task": TEXT,
    "seed": WHOLE,
    "arm": TEXT,
    "success": _only("true or false", bool),
    "decision_ms": _list("numbers", int, float),
    "simulations": _list("numbers", int, float),
    "deviated": WHOLE,
    "fallbacks": _list("texts", str),
}
COMMANDS = {field.name: WHOLE for field in fields(CommandCounts)}


def read_results(path: Path) -> RunRecord:
    """Read a results file.

    Raises:
        ConfigurationError: it cannot be read, or a field is missing or holds something else; the
            message names file and field.
    """
    where = f"results {path}: not what `evaluate --json` writes"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"results {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    if not isinstance(results, dict):
        raise ConfigurationError(f"{where}: expected an object, got {type(results).__name__}")
    _require(results, FILE, f"{where}: ")
    if not results["arms"]:
        raise ConfigurationError(f"{where}: arms: expected one or more, got none")
    for index, arm in enumerate(results["arms"]):
        _require(arm, ARM, f"{where}: arms[{index}].")
    for index, episode in enumerate(results["episodes"]):
        _require_episode(episode, f"{where}: episodes[{index}].")
    return RunRecord(
        title="Success with and without search",
        facts=[(str(name), str(text)) for name, text in results["facts"].items()],
        notes=results["notes"],
        arms=[Arm(**{name: arm[name] for name in ARM}) for arm in results["arms"]],
        episodes=results["episodes"],
    )


def _require_episode(episode: Mapping[str, Any], where: str) -> None:
    _require(episode, EPISODE, where)
    if episode.get("commands") is not None:
        _require(episode, {"commands": OBJECT}, where)
        _require(episode["commands"], COMMANDS, f"{where}commands.")


def _require(found: Mapping[str, Any], expected: Mapping[str, Kind], where: str) -> None:
    for name, kind in expected.items():
        if name not in found:
            raise ConfigurationError(f"{where}{name}: expected {kind.words}, there is none")
        if not kind.holds(found[name]):
            raise ConfigurationError(
                f"{where}{name}: expected {kind.words}, got {found[name]!r:.60}"
            )
