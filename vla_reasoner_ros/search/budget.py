"""How much thinking a decision may do: simulations and time, whichever ends first."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

Clock = Callable[[], float]


class Stop(str, Enum):
    """Why a search ended."""

    SIMULATIONS = "simulations"
    DEADLINE = "deadline"
    INTERRUPTED = "interrupted"
    GATE = "gate"


class Pace:
    """How long things take, learned from measurements and kept across decisions.

    The estimate follows a high quantile: it jumps half of the way up to a longer time and sinks
    slowly after shorter ones, so that about one measurement in twenty exceeds it.
    """

    RISE, SINK, FORGET = 0.5, 0.025, 0.5

    def __init__(self) -> None:
        self.seconds = 0.0

    def measured(self, seconds: float) -> None:
        """Take a measurement."""
        rate = self.RISE if seconds > self.seconds else self.SINK
        self.seconds += rate * (seconds - self.seconds)

    def refused(self) -> None:
        """Nothing could be started because of the estimate: doubt it, or it never recovers."""
        self.seconds *= 1.0 - self.FORGET


class Budget:
    """The budget of one decision.

    Args:
        simulations: how many may be done.
        deadline: when the decision must be out, in seconds of ``clock``; None is never.
        wave_pace: estimates a wave; updated here.
        reserve: seconds needed after the last wave, to blend and report.
        interrupted: asked before every wave; True ends the search.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        simulations: int,
        deadline: float | None = None,
        wave_pace: Pace | None = None,
        reserve: float = 0.0,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.allowed = simulations
        self.done = 0
        self.stop = Stop.SIMULATIONS
        self._deadline = None if deadline is None else deadline - reserve
        self._pace = wave_pace or Pace()
        self._interrupted = interrupted
        self._clock = clock
        self._waves = 0
        self._begun = 0.0

    def begin_wave(self, size: int) -> int:
        """How many simulations, at most ``size``, a wave may do now; 0 ends the search.

        A wave that would overrun the deadline, by the time that waves took so far, is not started.
        """
        left = self.allowed - self.done
        if left <= 0:
            return 0
        if self._interrupted():
            self.stop = Stop.INTERRUPTED
            return 0
        self._begun = self._clock()
        if self._deadline is not None and self._begun + self._pace.seconds > self._deadline:
            self.stop = Stop.DEADLINE
            if self._waves == 0 and self._begun < self._deadline:
                self._pace.refused()
            return 0
        return min(size, left)

    def end_wave(self, simulations: int) -> None:
        """Count a wave and learn from its time."""
        self.done += simulations
        self._waves += 1
        self._pace.measured(self._clock() - self._begun)

    def shorten(self, simulations: int) -> None:
        """Allow no more than this many simulations in all."""
        self.allowed = min(self.allowed, simulations)
