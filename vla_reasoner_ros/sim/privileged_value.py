"""The simulator's true progress as a value: the ceiling that learned values are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.world_model import SimulatorWorldModel
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.base import Slots, WorldModel


class PrivilegedValue:
    """Implements :class:`vla_reasoner_ros.values.base.Value`; reads no image and no instruction.

    The task comes with the simulator's state.
    """

    name = "privileged"
    privileged = True

    def __init__(self) -> None:
        self._world_model: SimulatorWorldModel | None = None

    def bind(self, world_model: WorldModel) -> None:
        """Keep the world model whose states are read.

        Raises:
            ConfigurationError: it is not the simulator.
        """
        if not isinstance(world_model, SimulatorWorldModel):
            raise ConfigurationError(
                "value 'privileged' reads true states and needs world model 'simulator', got "
                f"{getattr(world_model, 'name', type(world_model).__name__)!r}"
            )
        self._world_model = world_model

    def begin(self, observation: Observation) -> None:
        """Nothing to take: the state says which task is on."""

    def evaluate(self, slots: Slots) -> NDArray[np.float64]:
        """(1, B) true progress in [0, 1].

        Raises:
            ConfigurationError: no world model was bound.
        """
        if self._world_model is None:
            raise ConfigurationError("value 'privileged': bind a world model before evaluating")
        return self._world_model.progress(slots)[None]
