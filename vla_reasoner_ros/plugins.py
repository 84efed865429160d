"""Policies, world models, values and priors by name, imported when they are asked for.

A built-in component is one file and one line in :data:`BUILT_IN`. Another package adds its own by
an entry point in the group ``vla_reasoner_ros.<kind>``, for example::

    [project.entry-points."vla_reasoner_ros.policy"]
    my_vla = "my_package.my_vla:MyVla"
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.errors import ConfigurationError

BUILT_IN: dict[str, dict[str, str]] = {
    "policy": {
        "small_vla": "vla_reasoner_ros.policies.small_vla:SmallVla",
        "openpi": "vla_reasoner_ros.policies.openpi:OpenPi",
        "process": "vla_reasoner_ros.policies.process:ProcessPolicy",
        "pi0": "vla_reasoner_ros.policies.pi0:Pi0",
        "openvla": "vla_reasoner_ros.policies.openvla:OpenVla",
        "lerobot": "vla_reasoner_ros.policies.lerobot:LeRobot",
    },
    "world_model": {
        "latent": "vla_reasoner_ros.world_models.latent:LatentWorldModel",
        "simulator": "vla_reasoner_ros.sim.world_model:SimulatorWorldModel",
        "twin": "vla_reasoner_ros.sim.twin:TwinWorldModel",
        "vjepa2_ac": "vla_reasoner_ros.world_models.vjepa2_ac:Vjepa2Ac",
    },
    "value": {
        "progress": "vla_reasoner_ros.values.progress:ProgressValue",
        "privileged": "vla_reasoner_ros.sim.privileged_value:PrivilegedValue",
        "vision_progress": "vla_reasoner_ros.values.vision_progress:VisionProgress",
    },
    "prior": {
        "kde": "vla_reasoner_ros.priors.kde:KdePrior",
        "gaussian": "vla_reasoner_ros.priors.gaussian:GaussianPrior",
        "library": "vla_reasoner_ros.priors.library:LibraryPrior",
        "policy_samples": "vla_reasoner_ros.priors.policy_samples:PolicySamplesPrior",
        "primitives": "vla_reasoner_ros.priors.primitives:PrimitivesPrior",
        "mixture": "vla_reasoner_ros.priors.mixture:MixturePrior",
    },
}


def available(kind: str) -> dict[str, str]:
    """Names to ``module:attribute`` of every component of a kind, built in or installed."""
    if kind not in BUILT_IN:
        raise ConfigurationError(
            f"component kind: expected one of {', '.join(BUILT_IN)}, got {kind!r}"
        )
    installed = {e.name: e.value for e in entry_points(group=f"vla_reasoner_ros.{kind}")}
    return installed | BUILT_IN[kind]


def load(kind: str, name: str) -> Any:
    """Import a component's class.

    Raises:
        ConfigurationError: there is none of that name, or its import failed (a missing optional
            dependency, say); the message lists what there is.
    """
    known = available(kind)
    if name not in known:
        raise ConfigurationError(
            f"{kind} {name!r} is unknown; known are {', '.join(sorted(known))}"
        )
    module_name, _, attribute = known[name].partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{kind} {name!r} ({known[name]}) cannot be imported: {error}"
        ) from error


def create(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Make a component from keyword options.

    Raises:
        ConfigurationError: unknown component, an option that it does not take, or one that it
            needs and is not given.
    """
    factory = load(kind, name)
    options = dict(options or {})
    taken = inspect.signature(factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        for option in options:
            if option not in taken:
                raise ConfigurationError(
                    f"{kind} {name!r}: there is no option {option!r}; it takes "
                    f"{', '.join(taken) or 'none'}"
                )
    needed = [
        option
        for option, p in taken.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing := [option for option in needed if option not in options]:
        raise ConfigurationError(
            f"{kind} {name!r}: needs the options {', '.join(missing)}, in a YAML file of options "
            "(config/policies and config/models have examples)"
        )
    return factory(**options)


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a component's options from a YAML file; an empty path means none.

    Raises:
        ConfigurationError: no such file, not YAML, or not a mapping.
    """
    if not str(path):
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"options file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"options file {path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"options file {path}: expected a mapping, got {type(content).__name__}"
        )
    return content
