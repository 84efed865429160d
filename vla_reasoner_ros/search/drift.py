"""Does the world do what was imagined? Past a threshold the plain policy drives."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.parameters import Drift
from vla_reasoner_ros.types import ActionChunk


class DriftMonitor:
    """Counts decisions in a row whose seen state lies far from the imagined one."""

    def __init__(self, parameters: Drift) -> None:
        self._parameters = parameters
        self._in_a_row = 0

    def reset(self) -> None:
        """Forget what was seen."""
        self._in_a_row = 0

    def update(self, distance: float) -> bool:
        """Take one comparison; returns whether the policy must drive.

        Args:
            distance: from the state imagined for now to the one seen, in the world model's unit;
                NaN when nothing was imagined for now, which leaves the verdict as it was.
        """
        threshold = self._parameters.threshold
        if threshold > 0.0 and not math.isnan(distance):
            self._in_a_row = self._in_a_row + 1 if distance > threshold else 0
        return threshold > 0.0 and self._in_a_row >= self._parameters.patience


def commanded(
    previous: ActionChunk | None, chunk: ActionChunk, steps: int
) -> NDArray[np.float64] | None:
    """The actions that fall due in the ``steps`` control periods after an observation.

    While the planner thinks, the previous chunk goes on; the new one takes over after
    ``chunk.consumed`` actions.

    Args:
        previous: the chunk that ran when ``chunk`` was planned, None when there was none.
        chunk: the new chunk.
        steps: control periods.

    Returns:
        (steps, D) actions, or None when it cannot be said.
    """
    late = min(chunk.consumed, steps)
    if chunk.steps < steps:
        return None
    own = chunk.actions[late:steps]
    if late == 0:
        return own
    if previous is None:
        return None
    elapsed = (chunk.observation_stamp_ns - previous.observation_stamp_ns) * 1e-9
    start = round(elapsed / chunk.spec.dt)
    running = previous.actions[start : start + late]
    if start < 0 or len(running) < late:
        return None
    return np.concatenate([running, own])
