"""What the search asks of a value."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.base import Slots, WorldModel


class Value(Protocol):
    """V(s): progress toward the instruction, 0 to 1 (arXiv 2509.22643, eq. 7)."""

    name: str
    privileged: bool
    """Whether it reads the true state of a simulator."""

    def bind(self, world_model: WorldModel) -> None:
        """Check at configure that this value can read that world model's states.

        Raises:
            ConfigurationError: it cannot; the message says what each side has.
        """

    def begin(self, observation: Observation) -> None:
        """Take the instruction of a decision; called once before :meth:`evaluate`."""

    def evaluate(self, slots: Slots) -> NDArray[np.float64]:
        """(K, B) progress in [0, 1] of each imagined state, one row per member of the ensemble."""
