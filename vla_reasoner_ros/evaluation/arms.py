"""The ways of deciding that evaluations compare, and how each is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_reasoner_ros.components import (
    AUTO,
    LEARNED,
    NONE,
    ComponentParameters,
    load_components,
    world_model_verdict,
)
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.records import Arm
from vla_reasoner_ros.parameters import build, flatten
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters

SIMULATOR = "simulator"
TWIN = "twin"
SHIPPED = AUTO
"""What a planner drives with: the learned world model where its report card is green, else none. A
user's ``planner.world_model`` takes its place."""


@dataclass(frozen=True)
class Recipe:
    """How an arm decides.

    Attributes:
        label: as people read it.
        world_model: a registered name, ``none``, or :data:`SHIPPED`.
        value: a registered name.
        search: search parameters that make the arm what it is.
    """

    label: str
    world_model: str
    value: str = "progress"
    search: Mapping[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "policy": Recipe("policy alone", NONE),
    "search": Recipe("search", SHIPPED),
    "best_of_n": Recipe("best of N", SHIPPED, search={"search.method": "best_of_n"}),
    "shooting": Recipe("random shooting", SHIPPED, search={"search.method": "shooting"}),
    "cem": Recipe("cross-entropy method", SHIPPED, search={"search.method": "cem"}),
    "mppi": Recipe("MPPI", SHIPPED, search={"search.method": "mppi"}),
    "oracle": Recipe("oracle", SIMULATOR, value="privileged"),
    "search_simulator": Recipe("search, true simulator", SIMULATOR),
    "search_privileged": Recipe("search, privileged value", LEARNED, value="privileged"),
    "search_learned": Recipe("search, learned world model", LEARNED),
    "search_twin": Recipe("search, twin", TWIN),
}


def recipe(name: str) -> Recipe:
    """The recipe of an arm.

    Raises:
        ConfigurationError: there is no arm of this name.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"arm {name!r} is unknown; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def world_model_of(name: str, overrides: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The world model that an arm gets, by name, and why it is none where one was wanted.

    Args:
        name: the arm.
        overrides: the user's parameters by full name.
    """
    chosen = recipe(name).world_model
    if chosen == SHIPPED:
        chosen = str((overrides or {}).get("planner.world_model", AUTO))
    if chosen != AUTO:
        return chosen, ""
    verdict = world_model_verdict()
    return (LEARNED, "") if verdict.passed else (NONE, verdict.reason)


def value_of(name: str, overrides: Mapping[str, Any] | None = None) -> str:
    """The value that an arm gets, by name: its own where it has a special one, else the user's."""
    own = recipe(name).value
    if own != "progress":
        return own
    return str((overrides or {}).get("planner.value", own))


def describe(name: str, overrides: Mapping[str, Any] | None = None) -> Arm:
    """The arm as tables and reports say it."""
    label = recipe(name).label
    world_model, reason = world_model_of(name, overrides)
    if world_model == NONE:
        said = "The frozen policy's own chunk, without search"
        return Arm(name, label, f"{said}: {reason}." if reason else f"{said}.")
    model = {
        SIMULATOR: "the true simulator as world model (it sees the true state)",
        TWIN: "the twin as world model (objects located from the images, dynamics by MuJoCo)",
    }.get(world_model, f"the learned world model {world_model!r}")
    value = (
        "the task's own progress as value"
        if value_of(name, overrides) == "privileged"
        else "the learned value"
    )
    method = str(recipe(name).search.get("search.method", "tree"))
    means = "Tree search" if method == "tree" else _sentence(label)
    return Arm(name, label, f"{means} with {model} and {value}.")


def notes(names: list[str], overrides: Mapping[str, Any] | None = None) -> list[str]:
    """What must be said about the arms so that no one takes them for more than they are."""
    said = []
    for name in names:
        label = _sentence(recipe(name).label)
        world_model, reason = world_model_of(name, overrides)
        if reason:
            said.append(f"{label} is the policy alone: {reason}.")
        elif world_model == SIMULATOR:
            said.append(
                f"{label} imagines with the true simulator, which no real robot has: "
                "an upper bound, whose thinking time never counts."
            )
        elif world_model == LEARNED and not (verdict := world_model_verdict()).passed:
            said.append(
                f"{label} imagines with a learned model that may not drive yet: {verdict.reason}."
            )
        if world_model not in (NONE, SIMULATOR) and value_of(name, overrides) == "privileged":
            said.append(
                f"{label} values what it imagined by the simulated task's own progress, which no "
                "real robot has."
            )
    return said


def thinks_in_no_time(name: str, overrides: Mapping[str, Any] | None = None) -> bool:
    """Whether an arm's thinking time is left out where it is counted otherwise: the upper bounds'.

    Simulating what no robot could know takes seconds, which say nothing about a robot.
    """
    return world_model_of(name, overrides)[0] == SIMULATOR


def search_parameters(name: str, overrides: Mapping[str, Any]) -> SearchParameters:
    """The search parameters of an arm: defaults, the user's, then what makes the arm what it is.

    Args:
        name: the arm.
        overrides: parameters by full name, as in ``search.depth``; others are left aside.

    Raises:
        ConfigurationError: an unknown name or a bad value.
    """
    given = {key: value for key, value in overrides.items() if not key.startswith("planner.")}
    values = flatten(SearchParameters(), "search.") | given | dict(recipe(name).search)
    return build(SearchParameters, values, "search.")


def component_parameters(name: str, overrides: Mapping[str, Any]) -> ComponentParameters:
    """The components of an arm: the user's, as in ``planner.prior``, then the arm's own.

    Raises:
        ConfigurationError: an unknown name or a bad value.
    """
    given = {key: value for key, value in overrides.items() if key.startswith("planner.")}
    world_model, _ = world_model_of(name, overrides)
    own = {"planner.world_model": world_model, "planner.value": value_of(name, overrides)}
    return build(ComponentParameters, given | own, "planner.")


def make_reasoner(
    name: str,
    overrides: Mapping[str, Any],
    scene_hook: str = "",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Reasoner:
    """Put an arm together.

    Args:
        name: the arm.
        overrides: search and planner parameters by full name.
        scene_hook: given to the true simulator where it serves as world model, and to nothing else.
        options: options of components by kind.
    """
    parameters = component_parameters(name, overrides)
    given: dict[str, Mapping[str, Any]] = dict(options or {})
    if parameters.world_model == SIMULATOR:
        given["world_model"] = {**given.get("world_model", {}), "scene_hook": scene_hook}
    components = load_components(parameters, given)
    return Reasoner(
        components.policy,
        components.world_model,
        components.value,
        components.prior,
        search_parameters(name, overrides),
    )


def _sentence(label: str) -> str:
    """A label as the beginning of a sentence."""
    return label[0].upper() + label[1:]
