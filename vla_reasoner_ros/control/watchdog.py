"""Looks whether the arm may move on: begins holds that no one asked for, and ends them."""

from __future__ import annotations

from vla_reasoner_ros.control.parameters import WatchdogParameters
from vla_reasoner_ros.control.reference import Reference
from vla_reasoner_ros.control.stops import Hold, Stops

FULL_SPEED, SPEED_TOLERANCE = 100.0, 0.1  # percent


class Watchdog:
    """Watches joint states, the arm's following and the clock.

    Args:
        reference: what is commanded and measured.
        stops: where holds are begun and ended.
        parameters: what is allowed.

    Attributes:
        parameters: may be replaced at any time.
        speed: how fast the arm's controller plays what it is told, percent.
    """

    def __init__(self, reference: Reference, stops: Stops, parameters: WatchdogParameters) -> None:
        self._reference = reference
        self._stops = stops
        self._stands_since: tuple[int | None, float] = (None, 0.0)
        self.parameters = parameters
        self.speed = FULL_SPEED

    @property
    def scaled_down(self) -> bool:
        """Whether the arm's controller plays slower than it is told."""
        return self.speed < FULL_SPEED - SPEED_TOLERANCE

    def look(self, now_ns: int) -> bool:
        """Begin a hold where something is wrong, or end one; whether one ended."""
        if self._stops.hold is not None:
            return self.recover(now_ns)
        problem = self._reference.problem(now_ns)
        if problem:
            self._stops.hold = Hold(problem) if self._reference.joints else None
            return False
        trouble = self._reference.trouble()
        if self.scaled_down:
            trouble = (
                f"the arm's controller plays at {self.speed:.4g} % of the speed that it is told, "
                "expected 100 %; for slower motions lower motion.speed_factor"
            )
        if trouble:
            self._stops.hold = Hold(trouble, resync=True)
        return False

    def recover(self, now_ns: int) -> bool:
        """End a hold whose cause is gone; whether one ended."""
        hold = self._stops.hold
        if hold is None or hold.latched or hold.resync or self._reference.moving(now_ns):
            return False
        if self._reference.problem(now_ns) or self.scaled_down:
            return False
        self._stops.hold = None
        return True

    def clock_stands(self, now_ns: int, wall: float) -> bool:
        """Begin a hold when the clock stands still while the arm moves; whether one began.

        Args:
            now_ns: the time.
            wall: of a clock that nothing stops, s.
        """
        if now_ns != self._stands_since[0]:
            self._stands_since = now_ns, wall
            return False
        stood = wall - self._stands_since[1]
        allowed = self.parameters.max_clock_standstill
        if self._stops.hold is not None or not 0.0 < allowed < stood:
            return False
        if not self._reference.moving(now_ns):
            return False
        self._stops.hold = Hold(
            f"the clock has stood still for {stood:.3f} s of real time, allowed are {allowed:g} s"
        )
        return True
