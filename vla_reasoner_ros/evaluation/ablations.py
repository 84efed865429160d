"""Ablations as data: which variants are compared, read from a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms as arm_table

KINDS = ("policy", "world_model", "value", "prior")


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes:
        name: as the table says it.
        arm: whose recipe it follows.
        overrides: parameters by full name.
        options: options of components by kind.
    """

    name: str
    arm: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


BASE = Variant("policy alone", "policy")
"""What all variants are compared with."""


@dataclass(frozen=True)
class Ablation:
    """One question and the variants that answer it.

    Attributes:
        name: the file's, without suffix.
        title: the heading of its report.
        question: what is asked, in a sentence.
        reference: the variant that the others are compared with; empty for none.
        variants: in the order of the table.
    """

    name: str
    title: str
    question: str
    reference: str
    variants: tuple[Variant, ...]


def read_ablation(path: Path) -> Ablation:
    """Read and check a file.

    It has ``title``, ``question``, optionally ``reference``, ``arm`` (``search``), ``set`` and
    ``options`` for all variants, and ``variants``: name to ``arm``, ``set`` and ``options``, each
    of which may be left out.

    Raises:
        ConfigurationError: unreadable, an unknown key, arm, parameter or reference; the message
            names the file and the variant.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"ablation {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"ablation {path}: not valid YAML: {error}") from error
    top = _mapping(content, f"ablation {path}")
    _require_keys(
        top,
        {"title", "question", "variants"},
        {"reference", "arm", "set", "options"},
        f"ablation {path}",
    )
    common = {key: top[key] for key in ("arm", "set", "options") if key in top}
    variants = tuple(
        _variant(str(name), _mapping(given or {}, where), common, where)
        for name, given in _mapping(top["variants"], f"ablation {path}: variants").items()
        for where in [f"ablation {path}: variant {name!r}"]
    )
    slugs = [variant.slug for variant in variants]
    if not variants or len(set(slugs)) != len(slugs):
        raise ConfigurationError(
            f"ablation {path}: expected one or more variants whose names differ in letters or "
            f"digits, got {[variant.name for variant in variants]}"
        )
    if BASE.slug in slugs:
        raise ConfigurationError(
            f"ablation {path}: expected names other than {BASE.name!r}, with which all variants "
            f"are compared, got {[variant.name for variant in variants]}"
        )
    reference = str(top.get("reference", ""))
    if reference and reference not in [variant.name for variant in variants]:
        raise ConfigurationError(f"ablation {path}: reference {reference!r} is no variant")
    return Ablation(path.stem, str(top["title"]), str(top["question"]), reference, variants)


def _variant(name: str, given: Mapping[str, Any], common: Mapping[str, Any], where: str) -> Variant:
    _require_keys(given, set(), {"arm", "set", "options"}, where)
    overrides: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for part in (common, given):
        overrides |= _mapping(part.get("set") or {}, f"{where}: set")
        for kind, values in _mapping(part.get("options") or {}, f"{where}: options").items():
            if kind not in KINDS:
                raise ConfigurationError(
                    f"{where}: options: expected {', '.join(KINDS)}, got {kind!r}"
                )
            found = _mapping(values, f"{where}: options.{kind}")
            options[kind] = options.get(kind, {}) | found
    variant = Variant(name, str(given.get("arm", common.get("arm", "search"))), overrides, options)
    require_parameters(variant, where)
    return variant


def require_parameters(variant: Variant, where: str) -> None:
    """Refuse a variant whose arm or parameters there are none of.

    Raises:
        ConfigurationError: the message begins with ``where``.
    """
    try:
        arm_table.search_parameters(variant.arm, variant.overrides)
        arm_table.component_parameters(variant.arm, variant.overrides)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: expected a mapping, got {type(value).__name__}")
    return value


def _require_keys(
    found: Mapping[str, Any], needed: set[str], allowed: set[str], where: str
) -> None:
    missing, unknown = needed - set(found), set(found) - needed - allowed
    if missing or unknown:
        raise ConfigurationError(
            f"{where}: "
            + "; ".join(
                f"{text} {', '.join(sorted(map(str, keys)))}"
                for text, keys in (("missing", missing), ("unknown", unknown))
                if keys
            )
        )
