"""What the search asks of a world model: imagined states in numbered slots that the model owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from vla_reasoner_ros.types import ActionSpec, Observation

if TYPE_CHECKING:
    from vla_reasoner_ros.world_models.views import ViewCorrector

Slots = NDArray[np.int64]


class WorldModel(Protocol):
    """s_{i+1} = W(s_i, a_i) over macro-actions, batched over leaves (arXiv 2509.22643).

    States never leave the model: the tree knows them by slot number. Slot 0 is the root.
    """

    name: str
    spec: ActionSpec
    """The convention of the actions it was trained on, SI units."""
    macro_steps: int
    """Actions imagined per call of :meth:`step`, M."""
    needs_simulator_state: bool
    """Whether :meth:`encode` reads ``Observation.simulator_state`` (privileged)."""
    joints: int
    """Joints that an observation must have; 0 when it reads none."""
    latent_source: str
    """Fingerprint of the encoder that :meth:`latents` come from; empty when there is none."""

    def example(self) -> Observation:
        """An observation to warm up with; asked only of one that needs a simulator's state."""

    def allocate(self, capacity: int) -> None:
        """Make room for ``capacity`` states; called at configure, never while deciding."""

    def encode(self, observation: Observation) -> None:
        """Write the state that was seen to slot 0."""

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """Imagine a batch.

        Args:
            parents: (B,) slots to start from.
            actions: (B, M, D) in SI units of ``spec``.
            children: (B,) slots to write to, distinct and different from the parents.
        """

    def copy(self, source: Slots, target: Slots) -> None:
        """Copy states between slots, as if all were read before any is written (tree reuse)."""

    def latents(self, slots: Slots) -> torch.Tensor:
        """(B, Z) float32 latents that a learned value reads."""

    def uncertainty(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) disagreement of the ensemble about how each state came to be; zeros without one."""

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) distance of each imagined state from the one seen in slot 0, in the model's unit."""

    def ee_positions(self, slots: Slots) -> NDArray[np.float64]:
        """(B, 3) imagined end-effector positions, m; shape (0, 3) when the model has none."""


@runtime_checkable
class Remembers(Protocol):
    """A world model whose states also depend on the observations before."""

    def forget(self) -> None:
        """An episode begins: the next observation is the first one."""


@runtime_checkable
class RestoresViews(Protocol):
    """A world model that knows what its cameras showed in training."""

    views: ViewCorrector | None
    """Brings images back to that view; None where nothing was trained for it."""
