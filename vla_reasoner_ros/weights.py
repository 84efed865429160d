"""Weights and their cards: ``<stem>.safetensors`` beside ``<stem>.json``, never pickle.

A card says what the weights are (kind, architecture) and where they come from (data, seed, command,
metrics, licence). The two files know one another: the card holds the SHA-256 of the tensors, the
header of the weights holds the SHA-256 of the card, so a file from another training, a changed card
or a flipped bit is refused when it is loaded.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import write_atomically

if TYPE_CHECKING:
    import torch

REQUIRED = ("kind", "architecture", "data", "seed", "command", "metrics", "licence")
"""What every card must say; ``created`` and ``tensors_sha256`` are added when it is saved."""

Arrays = dict[str, NDArray[Any]]
C = TypeVar("C", bound="NetworkConfig")


class NetworkConfig:
    """Base of the frozen dataclasses that say how a network is built, kept in cards."""

    @classmethod
    def from_card(cls: type[C], values: Mapping[str, Any]) -> C:
        """Read what :meth:`to_card` wrote, also after it has been through JSON.

        Raises:
            ConfigurationError: a field is missing, unknown or of another kind.
        """
        try:
            built: C = _built(cls, values)
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"card: {values!r} is no {cls.__name__}: {error}; train the model again"
            ) from error
        return built

    def to_card(self) -> dict[str, Any]:
        """The architecture as plain numbers and strings."""
        return dataclasses.asdict(typing.cast(Any, self))


def save_model(
    stem: str | Path, tensors: Mapping[str, Any], card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write weights and card, each atomically.

    Args:
        stem: the path without suffix, as in ``resource/models/small_vla``.
        tensors: name to ``torch.Tensor`` or array.
        card: what :data:`REQUIRED` names, and anything else that JSON can hold.
        half: store 32-bit floats in 16 bits; loading gives 32 bits back.

    Raises:
        ConfigurationError: the card lacks a field, or a tensor is not finite (also when it
            overflows in 16 bits).
    """
    stem = _stem(stem)
    missing = [field for field in REQUIRED if field not in card]
    if missing:
        raise ConfigurationError(f"card of {stem.name}: missing {', '.join(missing)}")
    arrays = {name: _storable(name, tensor, half) for name, tensor in tensors.items()}
    full_card = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **card,
        "tensors_sha256": tensors_hash(arrays),
    }
    header = {"kind": str(card["kind"]), "card_sha256": _card_hash(full_card)}
    write_atomically(f"{stem}.safetensors", safetensors.numpy.save(arrays, metadata=header))
    text = json.dumps(full_card, indent=2, ensure_ascii=False) + "\n"
    write_atomically(f"{stem}.json", text.encode())


def load_arrays(stem: str | Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Read weights as NumPy arrays, with their card; 16-bit floats come back as 32-bit ones.

    Args:
        stem: the path without suffix; a path that ends in ``.safetensors`` or ``.json`` is taken.
        kind: the kind of model that the caller can use.

    Raises:
        ConfigurationError: a file is missing or corrupt, the card lacks a field, the model is of
            another kind, or card and weights do not belong together.
    """
    stem = _stem(stem)
    card = _read_card(Path(f"{stem}.json"), f"{stem}.safetensors")
    if card["kind"] != kind:
        raise ConfigurationError(
            f"model {stem}: expected kind {kind!r}, the card says {card['kind']!r}"
        )
    path = Path(f"{stem}.safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"weights {path}: no such file, though its card {stem}.json is there"
        ) from error
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ConfigurationError(f"weights {path}: not a safetensors file: {error}") from error
    if header.get("card_sha256") != _card_hash(card):
        raise ConfigurationError(
            f"model {stem}: card and weights do not belong together; the weights were saved with "
            "another card, or the card was edited since"
        )
    if card.get("tensors_sha256") != tensors_hash(arrays):
        raise ConfigurationError(f"weights {path}: corrupt, the tensors' hash is not the card's")
    return {name: _widened(array) for name, array in arrays.items()}, card


def load_model(stem: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """As :func:`load_arrays`, but with torch tensors."""
    import torch

    arrays, card = load_arrays(stem, kind)
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, card


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Copy tensors into a module's parameters and buffers.

    Args:
        module: the module, already built from the card's architecture.
        tensors: its state by name.
        name: what messages call the model.

    Raises:
        ConfigurationError: a tensor is missing, unexpected or of another shape.
    """
    state = module.state_dict()
    missing = sorted(state.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - state.keys())
    shapes = [
        f"{key} expected {tuple(state[key].shape)}, got {tuple(tensors[key].shape)}"
        for key in state.keys() & tensors.keys()
        if state[key].shape != tensors[key].shape
    ]
    problems = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(unexpected)}"] if unexpected else []),
        *([f"shapes differ: {_some(sorted(shapes))}"] if shapes else []),
    ]
    if problems:
        raise ConfigurationError(f"weights of {name}: {'; '.join(problems)}")
    module.load_state_dict(dict(tensors))


def require_architecture(card: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Refuse a model whose architecture is not the expected one.

    Args:
        card: the loaded card.
        expected: hyperparameters that must be as stated; others in the card are free.
        name: what messages call the model.

    Raises:
        ConfigurationError: any of them is missing or differs.
    """
    found = card["architecture"]
    differences = [
        f"{key}: expected {value!r}, the card has {found.get(key)!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if differences:
        raise ConfigurationError(f"architecture of {name}: {'; '.join(differences)}")


def tensors_hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and contents, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _built(kind: Any, value: Any) -> Any:
    """A value of a declared type: nested dataclasses and tuples again, where JSON has others."""
    if value is None:
        return None
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    options = typing.get_args(kind)
    if type(None) in options:
        return _built(next(option for option in options if option is not type(None)), value)
    if not dataclasses.is_dataclass(kind):
        return value
    hints, make = typing.get_type_hints(kind), typing.cast(Any, kind)
    return make(**{name: _built(hints.get(name), part) for name, part in value.items()})


def _stem(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _storable(name: str, tensor: Any, half: bool) -> NDArray[Any]:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().numpy()
    array = np.asarray(tensor, order="C")
    if half and array.dtype == np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigurationError(
            f"tensor {name}: not finite as {array.dtype}; weights that diverged are not saved"
        )
    return array


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _card_hash(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _read_card(path: Path, weights: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"card {path}: no such file; {weights} needs one") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"card {path}: not readable as JSON: {error}") from error
    missing = [field for field in REQUIRED if field not in card] if isinstance(card, dict) else []
    if not isinstance(card, dict) or missing:
        raise ConfigurationError(
            f"card {path}: expected a JSON object with {', '.join(REQUIRED)}; "
            f"{'missing ' + ', '.join(missing) if missing else 'got ' + type(card).__name__}"
        )
    return card


def _some(names: list[str], limit: int = 4) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
