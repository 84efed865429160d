"""How much thinking a decision may do: simulations and time, whichever ends first."""

from __future__ import annotations

import sys
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

    What the estimate forbids is never measured, and may have become quicker: after some refusals
    the estimate is forgotten, so that it is tried once. One stall is over after one refusal; where
    every try is in vain, the refusals between them grow to :attr:`PATIENCE`.
    """

    RISE, SINK, PATIENCE = 0.5, 0.025, 20

    def __init__(self) -> None:
        self.seconds = 0.0
        self._refusals, self._patience = 0, 1

    def measured(self, seconds: float) -> None:
        """Take a measurement; the first one, also after it was forgotten, is the estimate."""
        if self.seconds == 0.0:
            self.seconds = seconds
            return
        rate = self.RISE if seconds > self.seconds else self.SINK
        self.seconds += rate * (seconds - self.seconds)
        self._refusals, self._patience = 0, max(1, self._patience - 1)

    def refused(self) -> bool:
        """Nothing could be started because of the estimate; whether it is forgotten now."""
        self._refusals += 1
        if self._refusals < self._patience:
            return False
        self._refusals, self._patience = 0, min(4 * self._patience, self.PATIENCE)
        self.seconds = 0.0
        return True


class WavePace(Pace):
    """How long a wave takes.

    Attributes:
        largest: simulations in a wave; halved before a wave that took too long is tried again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = sys.maxsize


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
        wave_pace: WavePace | None = None,
        reserve: float = 0.0,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.allowed = simulations
        self.done = 0
        self.stop = Stop.SIMULATIONS
        self._deadline = None if deadline is None else deadline - reserve
        self._pace = wave_pace or WavePace()
        self._interrupted = interrupted
        self._clock = clock
        self._waves = 0
        self._begun = 0.0

    def begin_wave(self, size: int, unit: int = 1) -> int:
        """How many simulations, at most ``size``, a wave may do now; 0 ends the search.

        A wave that would overrun the deadline, by the time that waves took so far, is not started;
        if that leaves no wave at all, the next ones are smaller, but of ``unit`` simulations.
        """
        left = self.allowed - self.done
        if left <= 0:
            return 0
        if self._interrupted():
            self.stop = Stop.INTERRUPTED
            return 0
        self._begun = self._clock()
        if self._deadline is not None:
            pace, seconds = self._pace, self._deadline - self._begun
            if pace.largest < size and 0.0 < 2.0 * pace.seconds <= seconds:
                # A wave of twice the size takes at most twice the time.
                pace.largest, pace.seconds = 2 * pace.largest, 2.0 * pace.seconds
            size = min(size, max(unit, pace.largest))
            if pace.seconds > seconds:
                self.stop = Stop.DEADLINE
                if self._waves == 0 and seconds > 0.0 and pace.refused():
                    pace.largest = max(unit, size // 2)
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
