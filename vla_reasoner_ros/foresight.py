"""What the last decision imagined for now, to be compared with what is seen now."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.base import WorldModel


@dataclass(frozen=True)
class Foresight:
    """Two imagined states, one macro-action after an observation.

    Attributes:
        observation: what was seen then.
        slot: the state after the macro-action that was commanded; None when not imagined.
        node: the state after the root candidate that was chosen, also its node in the tree; None
            without a search.
    """

    observation: Observation
    slot: int | None
    node: int | None

    def is_due(self, observation: Observation, seconds: float, tolerance: float) -> bool:
        """Whether an observation shows the moment imagined, of the same instruction.

        Args:
            observation: what is seen now.
            seconds: length of a macro-action.
            tolerance: how far from that moment is still close enough, s.
        """
        elapsed = (observation.stamp_ns - self.observation.stamp_ns) * 1e-9
        same_task = observation.instruction == self.observation.instruction
        return same_task and abs(elapsed - seconds) <= tolerance


def distance_to(world_model: WorldModel, slot: int | None) -> float:
    """From an imagined state to the one seen, in the world model's unit; NaN for None.

    Raises:
        ModelError: the world model's answer is not one finite number.
    """
    if slot is None:
        return math.nan
    answer = np.asarray(world_model.distance(np.array([slot], np.int64)))
    if answer.shape != (1,) or not np.isfinite(answer).all():
        raise ModelError(f"world model: expected one finite distance, got {answer}")
    return float(answer[0])
