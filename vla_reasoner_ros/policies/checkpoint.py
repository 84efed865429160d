"""Other people's checkpoints: where they lie, what of them is read, and what is refused.

Weights are read from safetensors. A pickle runs whatever code its author put into it, and so does
a repository's own Python ("remote code"); neither is touched unless a parameter of the policy names
and allows it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors
import torch

from vla_reasoner_ros.errors import ConfigurationError

LOGGER = logging.getLogger(__name__)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHAPES_ONLY = ContextVar("shapes_only", default=False)
WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.yaml")


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Make networks of shapes alone: no weight is read, nothing is computed.

    For planning memory. What is made inside can only be used inside.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    token = _SHAPES_ONLY.set(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _SHAPES_ONLY.reset(token)


def only_shapes() -> bool:
    """Whether :func:`shapes_only` is entered."""
    return _SHAPES_ONLY.get()


def find(checkpoint: str, owner: str, revision: str = "") -> Path:
    """The folder of a checkpoint.

    Args:
        checkpoint: a local folder, or a name on the Hugging Face hub (``owner/name``), fetched
            into the hub's cache where it is not there yet.
        owner: what messages call the policy.
        revision: branch, tag or commit on the hub; empty is the newest.

    Raises:
        ConfigurationError: there is no such folder, nor can it be fetched.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise ConfigurationError(f"{owner}: checkpoint {checkpoint!r}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(checkpoint, revision=revision or None, allow_patterns=list(WANTED))
        )
    except Exception as error:  # The hub's client raises its own and the network's errors.
        raise ConfigurationError(
            f"{owner}: checkpoint {checkpoint!r} is no folder here, and the hub did not give it: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


def read_json(path: Path, owner: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigurationError: no such file, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{owner}: {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{owner}: {path}: expected a JSON object")
    return content


def read_weights(folder: Path, owner: str) -> dict[str, torch.Tensor]:
    """All tensors of a folder's ``model*.safetensors``, on the CPU in the type they were stored in.

    Raises:
        ConfigurationError: there are none (only pickles, say), a file is corrupt, or two files
            have a tensor of the same name.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        hint = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise ConfigurationError(f"{owner}: {folder}: no model*.safetensors file in it{hint}")
    weights: dict[str, torch.Tensor] = {}
    for path in files:
        found = read_safetensors(path, owner)
        twice = sorted(weights.keys() & found.keys())
        if twice:
            raise ConfigurationError(f"{owner}: {path}: tensor {twice[0]} is in another file too")
        weights |= found
    return weights


def read_safetensors(path: Path, owner: str) -> dict[str, torch.Tensor]:
    """The tensors of one file.

    Raises:
        ConfigurationError: no such file, or it is corrupt.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if only_shapes():
                return {name: _empty(file.get_slice(name)) for name in names}
            return {name: file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ConfigurationError(f"{owner}: {path}: {error}") from error


def _empty(header: Any) -> torch.Tensor:
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    types |= {"BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
    return torch.empty(header.get_shape(), dtype=types.get(header.get_dtype(), torch.float32))


def read_tensors(path: Path, owner: str, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """A state dictionary from safetensors, or from a pickle where that is allowed.

    Args:
        path: the file.
        owner: what messages call the policy.
        allow_pickle: the policy's parameter of this name. Even then only tensors are unpickled
            (``weights_only``).

    Raises:
        ConfigurationError: a pickle that is not allowed, or no state dictionary.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, owner)
    if not allow_pickle:
        raise ConfigurationError(
            f"{owner}: {path} is a pickle, which can run code when it is read; convert it to "
            "safetensors, or set allow_pickle: true if you trust its author"
        )
    LOGGER.warning(
        "%s: allow_pickle is set: reading the pickle %s; a crafted one can run code with your "
        "rights",
        owner,
        path,
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The unpickler raises anything.
        raise ConfigurationError(f"{owner}: {path}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise ConfigurationError(f"{owner}: {path}: expected a mapping of tensors")
    # Saved under DistributedDataParallel, every name begins with "module.".
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_exactly(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], owner: str, what: str
) -> None:
    """Fill a module made on the meta device or elsewhere; nothing may be missing or left over.

    Raises:
        ConfigurationError: a tensor is missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    problems = [
        *(f"{name} is missing" for name in sorted(expected.keys() - weights.keys())),
        *(f"{name} is unexpected" for name in sorted(weights.keys() - expected.keys())),
        *(
            f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigurationError(f"{owner}: weights of {what}: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(weights), assign=True)


def device_and_type(device: str, dtype: str, owner: str) -> tuple[torch.device, torch.dtype]:
    """Where and in what the model computes.

    Args:
        device: torch's name, or ``auto``: the GPU where there is one.
        dtype: ``bfloat16``, ``float32`` or ``auto``: 16 bits on a GPU, 32 on the CPU.
        owner: what messages call the policy.

    Raises:
        ConfigurationError: no such device or type.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if not only_shapes():
            torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"{owner}: device {device!r}: {error}") from error
    types = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype == "auto":
        dtype = "float32" if place.type == "cpu" else "bfloat16"
    if dtype not in types:
        raise ConfigurationError(f"{owner}: dtype is auto, {' or '.join(types)}, got {dtype!r}")
    # Shapes have no place; those of a device that is not there cannot even be made.
    return torch.device("cpu") if only_shapes() else place, types[dtype]
