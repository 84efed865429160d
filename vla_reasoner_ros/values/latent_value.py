"""What learned values share: they read the latents of one encoder, and a sentence."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.language import sentence_encoder
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.base import Slots, WorldModel


class LatentValue:
    """A network on latents, bound to a world model whose encoder it was trained on.

    A subclass gives :meth:`_read` and :meth:`_progress_of`.

    Args:
        encoder: fingerprint of that encoder.
        width: of its latents, Z.
        told: what messages call it.
    """

    name: str
    privileged = False

    def __init__(self, encoder: str, width: int, told: str = "the encoder") -> None:
        self._encoder, self._width, self._told = encoder, width, told
        self._world_model: WorldModel | None = None
        self._has_read = False

    def bind(self, world_model: WorldModel) -> None:
        """Check that the world model's latents come from the encoder that this value knows.

        Raises:
            ConfigurationError: another encoder, or another width.
        """
        if world_model.latent_source != self._encoder:
            raise ConfigurationError(
                f"value {self.name} reads latents of {self._told} {self._encoder[:12]}, world "
                f"model {world_model.name} has {world_model.latent_source[:12] or 'none'}"
            )
        latents = world_model.latents(np.zeros(0, dtype=np.int64))
        if latents.shape[-1] != self._width:
            raise ConfigurationError(
                f"value {self.name} reads latents of {self._width} numbers, world model "
                f"{world_model.name} has {latents.shape[-1]}"
            )
        self._world_model = world_model
        self._move_to(latents.device)

    def begin(self, observation: Observation) -> None:
        """Take the instruction of a decision."""
        vector = np.array(sentence_encoder().encode(observation.instruction))
        self._read(torch.from_numpy(vector)[None])
        self._has_read = True

    def evaluate(self, slots: Slots) -> NDArray[np.float64]:
        """(E, B) progress in [0, 1] of each imagined state.

        Raises:
            ModelError: called before :meth:`bind` and :meth:`begin`, or the answer is not finite.
        """
        if self._world_model is None or not self._has_read:
            raise ModelError(f"value {self.name}: bind and begin come before evaluate")
        progress = self._progress_of(self._world_model.latents(slots))
        if not np.isfinite(progress).all():
            raise ModelError(f"value {self.name}: the answer is not finite")
        return progress

    def _move_to(self, device: torch.device) -> None:
        """Compute where the world model's latents are."""

    def _read(self, sentence: Tensor) -> None:
        """Take the (1, S) unit vector of a sentence."""
        raise NotImplementedError

    def _progress_of(self, latents: Tensor) -> NDArray[np.float64]:
        """(E, B) progress of (B, Z) latents under the sentence that was read last."""
        raise NotImplementedError
