"""Where the time of a decision goes."""

from __future__ import annotations

import time

STAGES = ("policy", "encode", "prior", "select", "world_model", "value", "backup")


class Stages:
    """A stopwatch with one sum per stage, in seconds."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
