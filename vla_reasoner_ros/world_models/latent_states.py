"""What learned world models share: latents in numbered slots, and the check of what is imagined."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.world_models.base import Slots


class LatentStates:
    """N latents (N, Z), and how much the members of the ensemble disagreed on the way to each.

    Args:
        spec: the convention of the actions.
        macro_steps: actions imagined per call, M.
        width: of a latent, Z.
        device: where the latents are.
    """

    name: str
    """Of the world model, for messages."""

    def __init__(
        self, spec: ActionSpec, macro_steps: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        self.spec = spec
        self.macro_steps = macro_steps
        self._states = torch.zeros((0, width), device=device)
        self._variance = torch.zeros(0, device=device)

    def allocate(self, capacity: int) -> None:
        """Make room for ``capacity`` states of 4 Z bytes each.

        Raises:
            ConfigurationError: no room at all.
        """
        if capacity < 1:
            raise ConfigurationError(
                f"world model {self.name}: capacity must be positive, got {capacity}"
            )
        self._states = self._states.new_zeros((capacity, self._states.shape[1]))
        self._variance = self._variance.new_zeros(capacity)

    def copy(self, source: Slots, target: Slots) -> None:
        """Copy states between slots, as if all were read before any is written."""
        read, write = self._index(source), self._index(target)
        self._states[write] = self._states[read].clone()
        self._variance[write] = self._variance[read].clone()

    def latents(self, slots: Slots) -> Tensor:
        """(B, Z) float32 latents on the model's device."""
        return self._states[self._index(slots)]

    def _deviation(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) square roots of the variances."""
        return self._variance[self._index(slots)].sqrt().double().cpu().numpy()

    def _set_root(self, latent: Tensor) -> None:
        """Write the state that was seen, (Z,), to slot 0."""
        self._states[0], self._variance[0] = latent, 0.0

    def _commands(self, parents: Slots, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Macro-actions (B, M, D), checked, as contiguous float32.

        Raises:
            ModelError: another shape.
        """
        expected = (len(parents), self.macro_steps, self.spec.dimensions)
        if actions.shape != expected:
            raise ModelError(
                f"world model {self.name}: expected actions {expected}, got {actions.shape}"
            )
        return np.ascontiguousarray(actions, dtype=np.float32)

    def _require_finite(self, finite: bool) -> None:
        if not finite:
            raise ModelError(f"world model {self.name}: the imagined state is not finite")

    def _index(self, slots: Slots) -> Tensor:
        return torch.from_numpy(slots).to(self._states.device)
