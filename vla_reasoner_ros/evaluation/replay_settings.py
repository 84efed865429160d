"""What a replay is made with: from the bag itself, a parameter file, and the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.components import ComponentParameters
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.recording import PARAMETERS_TOPIC
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.parameters import build, declarations, dotted, flatten
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.search.parameters import SearchParameters

AUTO, RECORDED, PLANNER, EVERY = "auto", "recorded", "planner", "every"
MOMENTS = (AUTO, RECORDED, PLANNER, EVERY)
EDGE = 1 << 20
"""Bytes at both ends of a bag's files that tell one bag from another."""


@dataclass(frozen=True)
class ReplaySettings:
    """What a replay is made with.

    Attributes:
        bag_hash: of the bag: sizes of its files, and their beginnings and ends.
        contract, namespace, instruction: for the ingest.
        components: policy, world model, value and prior.
        search: the search's parameters.
        source: where those come from, in words.
        seed: of the Reasoner.
        moments: which observations are decided on.
        keep_deadline: whether ``search.deadline_ms`` holds.
    """

    bag_hash: str
    contract: str
    namespace: str
    instruction: str
    components: ComponentParameters
    search: SearchParameters
    source: str
    seed: int
    moments: str
    keep_deadline: bool

    def parameters(self) -> dict[str, Any]:
        """Every parameter by full name."""
        return flatten(self.components, "planner.") | flatten(self.search, "search.")

    def without_deadline(self) -> SearchParameters:
        """The search's parameters for thinking as long as its budget takes."""
        return replace(self.search, deadline_ms=0.0)

    def fingerprint(self) -> dict[str, Any]:
        """What two replays must share to be the same."""
        cards = sorted(models_directory().glob("*.json"))
        models = hashlib.sha256(b"".join(card.read_bytes() for card in cards)).hexdigest()
        return {
            "bag": self.bag_hash,
            "contract": self.contract,
            "namespace": self.namespace,
            "instruction": self.instruction,
            "parameters": {n: _plain(v) for n, v in self.parameters().items()},
            "seed": self.seed,
            "deadline": self.keep_deadline,
            "models": models[:16],
        }


def read_settings(
    bag: BagReader,
    *,
    contract: str = "sim",
    namespace: str = "",
    instruction: str = "",
    params: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    moments: str = AUTO,
    keep_deadline: bool = False,
) -> ReplaySettings:
    """Put the settings together: the bag's own parameters or a file's, then ``overrides``.

    Raises:
        ConfigurationError: the file cannot be read, a name is unknown or a value wrong.
    """
    if params is not None:
        values, source = read_parameter_file(params), str(params)
    else:
        values, source = recorded_parameters(bag, namespace), "the bag"
        if not values:
            source = "the defaults"
    values = values | dict(overrides or {})
    parts = {}
    for prefix, cls in (("planner.", ComponentParameters), ("search.", SearchParameters)):
        parts[prefix] = build(
            cls, {name: v for name, v in values.items() if name.startswith(prefix)}, prefix
        )
    for name in overrides or {}:
        if not name.startswith(tuple(parts)):
            raise ConfigurationError(
                f"parameter {name}: expected one that begins with {' or '.join(parts)}"
            )
    return ReplaySettings(
        bag_hash=bag_fingerprint(bag),
        contract=contract,
        namespace=namespace,
        instruction=instruction,
        components=parts["planner."],
        search=parts["search."],
        source=source,
        seed=seed,
        moments=moments,
        keep_deadline=keep_deadline,
    )


def read_parameter_file(path: Path) -> dict[str, Any]:
    """The planner's parameters of a ROS parameter file, by full name.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    try:
        return parameters_in(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"parameter file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"parameter file {path}: not a parameter file: {error}") from error


def parameters_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """``planner.`` and ``search.`` parameters of the nodes in a parameter file, by full name."""
    known = {d.name for d in declarations(SearchParameters, "search.")}
    known |= {d.name for d in declarations(ComponentParameters, "planner.")}
    values: dict[str, Any] = {}
    for node, entry in content.items():
        if node.strip("/").rpartition("/")[2] in ("planner_node", "**"):
            values |= dotted(entry["ros__parameters"])
    unknown = [n for n in values if n.startswith(("planner.", "search.")) and n not in known]
    if unknown:
        raise ConfigurationError(f"parameter {unknown[0]}: there is none of this name")
    return {name: value for name, value in values.items() if name in known}


def recorded_parameters(bag: BagReader, namespace: str = "") -> dict[str, Any]:
    """The planner's parameters when the bag was recorded; empty where it does not say."""
    wanted = "/".join(["", *([namespace.strip("/")] if namespace else []), PARAMETERS_TOPIC])
    topics = [t for t in bag.topics if t == wanted]
    if not topics and not namespace:
        topics = [t for t in bag.topics if t.endswith(f"/{PARAMETERS_TOPIC}")]
    values: dict[str, Any] = {}
    for message in bag.messages(topics[:1] if topics else []):
        try:
            values |= parameters_in(yaml.safe_load(bag.deserialize(message).data))
        except (BagError, ConfigurationError, yaml.YAMLError, AttributeError, TypeError) as error:
            bag.problems.append(f"{message.topic}: not the parameters of this version: {error}")
    return values


def bag_fingerprint(bag: BagReader) -> str:
    """A hash that tells bags apart without reading all of them."""
    digest = hashlib.sha256()
    for path in bag.files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
