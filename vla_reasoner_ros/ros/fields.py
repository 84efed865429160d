"""Messages and dataclasses whose fields have the same names."""

from __future__ import annotations

import array
import dataclasses
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def fill(message_type: type[T], source: Any, **given: Any) -> T:
    """A message whose fields are given, or attributes of the same name."""
    names = message_type.get_fields_and_field_types()  # type: ignore[attr-defined]
    return message_type(
        **{n: given[n] if n in given else _plain(getattr(source, n)) for n in names}
    )


def read(cls: type[T], message: Any, **given: Any) -> T:
    """A dataclass whose attributes are given, or fields of the same name."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{n: given[n] if n in given else _listed(getattr(message, n)) for n in names})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()
    return list(value) if isinstance(value, tuple) else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, array.array) else value
