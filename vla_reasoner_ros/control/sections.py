"""Strict reading of YAML files: every key is known, every value checked, every error names both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.types import FloatArray


def read_sections(path: Path) -> Section:
    """The whole of a robot file.

    Raises:
        ConfigurationError: it cannot be read, is not YAML, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"robot file {path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"robot file {path}: not valid YAML: {error}") from error
    return Section(content, str(path), "")


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As any mapping, after a look for keys that stand twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} stands twice, again in line {line}")
        return super().construct_mapping(node, deep)


class Section:
    """One mapping of the file; every read is checked and every key must be read."""

    def __init__(self, content: Any, file: str, name: str) -> None:
        self.file = file
        self.name = name
        if not isinstance(content, Mapping):
            raise self.error("", "a mapping", content)
        self.content = content

    def error(self, key: str, expected: str, found: Any) -> ConfigurationError:
        """What to raise about a field: file, field, what was expected and what was found."""
        field = ".".join(part for part in (self.name, key) if part) or "the file"
        return ConfigurationError(
            f"robot file {self.file}: {field}: expected {expected}, got {found!r}"
        )

    def keys(self, *expected: str) -> None:
        """Require these keys and no others."""
        unknown = [key for key in self.content if key not in expected]
        missing = [key for key in expected if key not in self.content]
        if unknown or missing:
            parts = [f"unknown key {key!r}" for key in unknown]
            parts += [f"missing key {key!r}" for key in missing]
            where = f"{self.name}: " if self.name else ""
            raise ConfigurationError(f"robot file {self.file}: {where}{', '.join(parts)}")

    def section(self, key: str) -> Section:
        """The mapping under a key."""
        return Section(self.content[key], self.file, f"{self.name}.{key}" if self.name else key)

    def entries(self, key: str, expected: str) -> list[Any]:
        """The entries of a list that is not empty."""
        value = self.content[key]
        if not isinstance(value, list) or not value:
            raise self.error(key, expected, value)
        return value

    def sections(self, key: str, expected: str) -> list[Section]:
        """The mappings of a list that is not empty."""
        prefix = f"{self.name}.{key}" if self.name else key
        return [
            Section(entry, self.file, f"{prefix}[{index}]")
            for index, entry in enumerate(self.entries(key, expected))
        ]

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.content[key]
        if not isinstance(value, str) or not value:
            raise self.error(key, "a name", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts that differ."""
        value = self.content[key]
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.error(key, "a list of names", value)
        if len(set(value)) != len(value):
            raise self.error(key, "names that differ", value)
        return tuple(value)

    def number(self, key: str, positive: bool = False) -> float:
        """A finite number."""
        return float(self._numbers(key, [self.content[key]], positive)[0])

    def numbers(self, key: str, length: int, positive: bool = False) -> FloatArray:
        """A list of so many finite numbers, as a read-only array."""
        value = self.content[key]
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"a list of {length} numbers", value)
        return self._numbers(key, value, positive)

    def _numbers(self, key: str, values: Sequence[Any], positive: bool) -> FloatArray:
        for value in values:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not np.isfinite(value) or (positive and value <= 0.0):
                raise self.error(key, f"finite {'positive ' if positive else ''}numbers", value)
        array = np.array(values, dtype=np.float64)
        array.setflags(write=False)
        return array
