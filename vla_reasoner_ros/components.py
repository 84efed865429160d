"""The four components of a planner, chosen by name, and whether their report card lets them drive.

``auto`` as world model means: the learned one where its report card is green, and otherwise none.
A model that failed its report card may still be asked for by its own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.policies.base import Policy
from vla_reasoner_ros.priors.base import Prior
from vla_reasoner_ros.self_check import check_configured
from vla_reasoner_ros.values.base import Value
from vla_reasoner_ros.world_models.base import WorldModel

AUTO = "auto"
NONE = "none"
LEARNED = "latent"


@dataclass(frozen=True)
class ComponentParameters:
    """Which policy, world model, value and prior, by their registered names."""

    policy: str = parameter("small_vla", "Frozen policy by its registered name.", read_only=True)
    policy_options: str = parameter(
        "", "YAML file with options of the policy; empty is none.", read_only=True
    )
    world_model: str = parameter(
        AUTO,
        "World model by its registered name; auto is the learned one if its report card lets it "
        "drive and none otherwise; none leaves the search out.",
        read_only=True,
    )
    world_model_options: str = parameter(
        "", "YAML file with options of the world model; empty is none.", read_only=True
    )
    value: str = parameter("progress", "Value by its registered name.", read_only=True)
    value_options: str = parameter(
        "", "YAML file with options of the value; empty is none.", read_only=True
    )
    prior: str = parameter("mixture", "Prior by its registered name.", read_only=True)
    prior_options: str = parameter(
        "", "YAML file with options of the prior; empty is none.", read_only=True
    )
    check_robot: str = parameter(
        "",
        "Robot, by name or file, that the policy's conventions are held against at configure; "
        "empty leaves it out.",
        read_only=True,
    )
    check_data: str = parameter(
        "",
        "Folder of recorded episodes that the policy answers at configure, to compare its actions "
        "with those demonstrated; what contradicts them stops the planner. Empty leaves it out.",
        read_only=True,
    )
    check_observations: int = parameter(
        48, "Recorded observations that are answered.", minimum=8, maximum=10000, read_only=True
    )
    threads: int = parameter(
        1,
        "Threads of the models on the CPU; 0 is torch's own choice. More than one pays only where "
        "cores are idle: threads that wait for one another make a busy machine much slower.",
        minimum=0,
        maximum=1024,
        read_only=True,
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a model may drive, and what was said against it."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Components:
    """What a Reasoner is made of.

    Attributes:
        policy: the frozen policy.
        world_model: None when the search is left out, with the value and the prior.
        value: bound to the world model.
        prior: of the policy's action convention.
        reason: why there is no world model; empty when there is one.
        names: kind to registered name of what was loaded.
    """

    policy: Policy
    world_model: WorldModel | None = None
    value: Value | None = None
    prior: Prior | None = None
    reason: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


def world_model_verdict(name: str = LEARNED, card: Path | None = None) -> Verdict:
    """What the report card says about a learned world model, if it is about these weights.

    Args:
        name: the world model's registered name.
        card: the report card; the shipped one when None.

    Raises:
        ConfigurationError: the file is there but is no report card.
    """
    path = card or models_directory() / "report_card.json"
    if not path.is_file():
        return Verdict(False, f"there is no report card of {name!r}")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))["world_models"].get(name)
        if entry is None:
            return Verdict(False, f"the report card says nothing of {name!r}")
        others = [
            stem
            for stem, digest in entry["weights"].items()
            if json.loads((path.parent / f"{stem}.json").read_text())["tensors_sha256"] != digest
        ]
        if others:
            return Verdict(
                False, f"the report card of {name!r} judged other weights of {', '.join(others)}"
            )
        if entry["passed"]:
            return Verdict(True)
        failures = "; ".join(entry.get("failures", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"report card {path}: not a report card: {error!r}") from error
    return Verdict(
        False, f"the report card of {name!r} is red" + (f": {failures}" if failures else "")
    )


def device(component: Any) -> str:
    """Where a component computes: what it says itself, or where its network lies; else the CPU."""
    said = getattr(component, "device", None)
    if said is not None:
        return str(said)
    for part in vars(component).values():
        if isinstance(part, torch.nn.Module):
            parameter = next(part.parameters(), None)
            if parameter is not None:
                return str(parameter.device)
    return "cpu"


def load_components(
    parameters: ComponentParameters, options: Mapping[str, Mapping[str, Any]] | None = None
) -> Components:
    """Make the components and see that they fit one another.

    Args:
        parameters: their names and options files.
        options: further options by kind, over those of the files.

    Raises:
        ConfigurationError: an unknown name or option, unusable weights, components of different
            action conventions, or a policy that the convention self-check refuses.
    """
    extra = options or {}
    if parameters.threads:
        torch.set_num_threads(parameters.threads)

    def create(kind: str, name: str) -> Any:
        given = plugins.read_options(getattr(parameters, f"{kind}_options"))
        return plugins.create(kind, name, given | dict(extra.get(kind, {})))

    policy: Policy = create("policy", parameters.policy)
    check_configured(
        policy, parameters.check_robot, parameters.check_data, parameters.check_observations
    )
    name, reason = parameters.world_model, ""
    if name == AUTO:
        verdict = world_model_verdict()
        name = LEARNED if verdict.passed else NONE
        reason = verdict.reason
    if name == NONE:
        return Components(
            policy,
            reason=reason or "the parameters name no world model",
            names={"policy": parameters.policy},
        )
    world_model: WorldModel = create("world_model", name)
    value: Value = create("value", parameters.value)
    prior: Prior = create("prior", parameters.prior)
    spec = policy.spec.action
    spec.require_same(world_model.spec, f"policy {parameters.policy!r}", f"world model {name!r}")
    spec.require_same(prior.spec, f"policy {parameters.policy!r}", f"prior {parameters.prior!r}")
    value.bind(world_model)
    names = {
        "policy": parameters.policy,
        "world_model": name,
        "value": parameters.value,
        "prior": parameters.prior,
    }
    return Components(policy, world_model, value, prior, names=names)
