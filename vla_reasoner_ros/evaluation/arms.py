"""The ways of deciding that evaluations compare, and how each is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_reasoner_ros.components import (
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
ALLOWED = "allowed"
"""The learned world model where its report card is green, else the simulator."""


@dataclass(frozen=True)
class Recipe:
    """How an arm decides.

    Attributes:
        label: as people read it.
        world_model: a registered name, ``none``, or :data:`ALLOWED`.
        value: a registered name.
        search: search parameters that make the arm what it is.
    """

    label: str
    world_model: str
    value: str = "progress"
    search: Mapping[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "policy": Recipe("policy alone", NONE),
    "search": Recipe("search", ALLOWED),
    "search_simulator": Recipe("search, true simulator", SIMULATOR),
    "search_learned": Recipe("search, learned world model", LEARNED),
    "oracle": Recipe("oracle", SIMULATOR, value="privileged"),
    "best_of_n": Recipe("best of N", ALLOWED, search={"search.method": "best_of_n"}),
    "shooting": Recipe("random shooting", ALLOWED, search={"search.method": "shooting"}),
    "cem": Recipe("cross-entropy method", ALLOWED, search={"search.method": "cem"}),
    "mppi": Recipe("MPPI", ALLOWED, search={"search.method": "mppi"}),
}


def recipe(name: str) -> Recipe:
    """The recipe of an arm.

    Raises:
        ConfigurationError: there is no arm of this name.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"arm {name!r} is unknown; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def world_model_of(name: str) -> tuple[str, str]:
    """The world model that an arm gets, by name, and what must be said about the choice."""
    chosen = recipe(name).world_model
    if chosen != ALLOWED:
        return chosen, ""
    verdict = world_model_verdict()
    if verdict.passed:
        return LEARNED, ""
    return SIMULATOR, verdict.reason


def describe(name: str) -> Arm:
    """The arm as tables and reports say it."""
    world_model, _ = world_model_of(name)
    if world_model == NONE:
        return Arm(name, recipe(name).label, "The frozen policy's own chunk, without search.")
    model = (
        "the true simulator as world model (it sees the true state)"
        if world_model == SIMULATOR
        else f"the learned world model {world_model!r}"
    )
    value = (
        "the simulator's true progress as value"
        if recipe(name).value == "privileged"
        else "the learned value"
    )
    method = str(recipe(name).search.get("search.method", "tree"))
    means = "Tree search" if method == "tree" else recipe(name).label.capitalize()
    return Arm(name, recipe(name).label, f"{means} with {model} and {value}.")


def notes(names: list[str]) -> list[str]:
    """What must be said about the arms so that no one takes them for more than they are."""
    said = []
    for name in names:
        world_model, reason = world_model_of(name)
        if reason:
            said.append(
                f"{recipe(name).label.capitalize()} uses the true simulator as world model: "
                f"{reason}."
            )
        elif world_model == SIMULATOR:
            said.append(
                f"{recipe(name).label.capitalize()} imagines with the true simulator, which no "
                "real robot has."
            )
        elif world_model == LEARNED and not (verdict := world_model_verdict()).passed:
            said.append(
                f"{recipe(name).label.capitalize()} imagines with a learned model that may not "
                f"drive yet: {verdict.reason}."
            )
    return said


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
    world_model, _ = world_model_of(name)
    own = {"planner.world_model": world_model, "planner.value": recipe(name).value}
    return build(ComponentParameters, given | own, "planner.")


def make_reasoner(name: str, overrides: Mapping[str, Any], scene_hook: str = "") -> Reasoner:
    """Put an arm together.

    Args:
        name: the arm.
        overrides: search and planner parameters by full name.
        scene_hook: given to a simulator that serves as world model.
    """
    parameters = component_parameters(name, overrides)
    simulated = parameters.world_model == SIMULATOR
    options = {"world_model": {"scene_hook": scene_hook}} if simulated else {}
    components = load_components(parameters, options)
    return Reasoner(
        components.policy,
        components.world_model,
        components.value,
        components.prior,
        search_parameters(name, overrides),
    )
