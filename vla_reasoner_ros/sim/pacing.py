"""How far simulated time may go: in real time, faster, or in step with whoever commands the arm."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import parameter

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class PacingParameters:
    """When simulated time passes."""

    real_time_factor: float = parameter(
        1.0,
        "Simulated seconds per second of the wall clock; 0 lets time pass as fast as it can be "
        "computed.",
        minimum=0.0,
        maximum=1000.0,
    )
    lockstep: bool = parameter(
        False,
        "Simulated time stops when lockstep_period has passed since the last accepted trajectory, "
        "and goes on with the next: the planner's speed no longer matters.",
    )
    lockstep_period: float = parameter(
        0.4,
        "Simulated time that follows an accepted trajectory in lockstep.",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )
    lockstep_patience: float = parameter(
        10.0,
        "Wall-clock time after which a period passes in lockstep without a trajectory, so that a "
        "lost or refused message does not end everything; 0 waits for ever.",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    )


class Pacer:
    """Tells the simulator's loop how much time may pass at each turn.

    Simulated time is in nanoseconds on a grid of ``tick_ns``; the wall clock in seconds of any
    monotonic clock. In lockstep a fresh pacer stands still until a trajectory is accepted.

    Args:
        parameters: when time passes.
        tick_ns: the grid; the lockstep period must be a whole number of ticks.
        time_ns: simulated time now.
        wall: wall clock now, s.
        most: simulated seconds that one turn may catch up; what is later than that is given up,
            so that a slow machine falls behind real time instead of hanging.

    Raises:
        ConfigurationError: the lockstep period is not a whole number of ticks.
    """

    def __init__(
        self,
        parameters: PacingParameters,
        tick_ns: int,
        time_ns: int,
        wall: float,
        most: float = 0.1,
    ) -> None:
        period_ns = round(parameters.lockstep_period * NANOSECONDS)
        if parameters.lockstep and period_ns % tick_ns:
            raise ConfigurationError(
                f"lockstep_period: expected a whole number of ticks of {tick_ns / 1e9} s, got "
                f"{parameters.lockstep_period} s"
            )
        self._parameters = parameters
        self._tick_ns = tick_ns
        self._period_ns = period_ns
        self._most_ns = max(tick_ns, round(most * NANOSECONDS))
        self.restart(time_ns, wall)

    def restart(self, time_ns: int, wall: float) -> None:
        """Begin anew at a simulated time: real time counts from here, lockstep stands still."""
        self._origin_ns = time_ns
        self._origin_wall = wall
        self._stop_ns = time_ns
        self._stood_since = math.inf

    def accepted(self, time_ns: int) -> None:
        """A trajectory was accepted at this simulated time: in lockstep, let one period pass."""
        self._stop_ns = time_ns + self._period_ns
        self._stood_since = math.inf

    def standing(self, time_ns: int) -> bool:
        """Whether time stands still at ``time_ns`` until the next trajectory."""
        return self._parameters.lockstep and time_ns >= self._stop_ns

    def ticks(self, time_ns: int, wall: float) -> int:
        """Ticks that may pass now."""
        self._lose_patience(time_ns, wall)
        due_ns = self._due_ns(time_ns, wall)
        if self._parameters.lockstep:
            due_ns = min(due_ns, self._stop_ns)
        return max(0, (due_ns - time_ns) // self._tick_ns)

    def wait(self, time_ns: int, wall: float) -> float:
        """Seconds of the wall clock until the next tick is due; infinite where none will be."""
        if self.standing(time_ns):
            patience = self._parameters.lockstep_patience
            return max(0.0, self._stood_since + patience - wall) if patience > 0.0 else math.inf
        factor = self._parameters.real_time_factor
        if factor == 0.0:
            return 0.0
        next_ns = time_ns + self._tick_ns - self._origin_ns
        return max(0.0, self._origin_wall + next_ns / NANOSECONDS / factor - wall)

    def _lose_patience(self, time_ns: int, wall: float) -> None:
        patience = self._parameters.lockstep_patience
        if not self.standing(time_ns):
            return
        self._stood_since = min(self._stood_since, wall)
        if patience > 0.0 and wall - self._stood_since >= patience:
            self.accepted(time_ns)

    def _due_ns(self, time_ns: int, wall: float) -> int:
        factor = self._parameters.real_time_factor
        if factor == 0.0:
            return time_ns + self._most_ns
        elapsed_ns = math.floor((wall - self._origin_wall) * factor * NANOSECONDS)
        due_ns = self._origin_ns + elapsed_ns
        standing = self.standing(time_ns)
        if standing or due_ns - time_ns > self._most_ns:
            # Time lost to a slow machine, or spent standing still, is not made up for.
            due_ns = time_ns if standing else time_ns + self._most_ns
            self._origin_ns, self._origin_wall = due_ns, wall
        return due_ns
