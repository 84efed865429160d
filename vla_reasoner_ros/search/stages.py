"""Where the time of a decision goes."""

from __future__ import annotations

import time

STAGES = ("policy", "encode", "prior", "select", "world_model", "value", "backup")


class Stages:
    """A stopwatch with one sum per stage.

    Attributes:
        seconds: stage to the time booked on it.
        last: the moment of the last lap.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Time of each of :data:`STAGES`."""
        return tuple(1e3 * self.seconds[name] for name in STAGES)
