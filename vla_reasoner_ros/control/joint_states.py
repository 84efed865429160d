"""The measured joints: the newest states, whether they can be trusted, and where the arm was."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.commands import NANOSECONDS
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.types import FloatArray

IMPOSSIBLE_SPEED = 3.0  # times the velocity limit: a joint that is read so fast has been moved
IMPOSSIBLE_STEP = 0.1  # rad on top
MOVING = 0.05  # rad/s; an arm that is read slower counts as standing
STANDING_TIME = 0.1  # s, over which positions tell as well whether it stands
AHEAD = 1.0  # s; a stamp farther ahead of the clock is wrong, not early
HISTORY = 4096  # states kept


@dataclass(frozen=True)
class JointState:
    """One measurement: stamp in ns, positions (J,) rad and velocities (J,) rad/s."""

    stamp_ns: int
    positions: FloatArray
    velocities: FloatArray


class JointStateBuffer:
    """Keeps the measured joint states of one robot.

    Args:
        robot: gives joint names and velocity limits.
    """

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._states: deque[JointState] = deque(maxlen=HISTORY)
        self._not_before_ns: int | None = None
        self._changed: JointState | None = None  # the first of those whose positions are the newest

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._states)

    @property
    def newest(self) -> JointState:
        """The newest state; there must be one."""
        return self._states[-1]

    def clear(self, not_before_ns: int | None) -> None:
        """Forget all; states measured before a time (None: of any time) are ignored from now on."""
        self._states.clear()
        self._changed = None
        self._not_before_ns = not_before_ns

    def add(
        self,
        stamp_ns: int,
        positions: FloatArray,
        velocities: FloatArray,
        now_ns: int | None = None,
    ) -> str:
        """Take a state; an older one than the newest is ignored, one of its stamp replaces it.

        Args:
            stamp_ns: when it was measured, ns.
            positions: (J,) rad.
            velocities: (J,) rad/s.
            now_ns: the time, as far as it is known.

        Returns:
            What moved as no arm can since the state before; empty when nothing did.

        Raises:
            ObservationError: wrong width, a number that is not finite, or a stamp far ahead of the
                clock, which would make all that follow it old.
        """
        state = JointState(
            stamp_ns,
            self._checked("position", positions),
            self._checked("velocity", velocities),
        )
        if self._not_before_ns is not None and stamp_ns < self._not_before_ns:
            return ""
        ahead = 0.0 if now_ns is None else (stamp_ns - now_ns) / NANOSECONDS
        if ahead > AHEAD:
            raise ObservationError(f"joint state: its stamp is {ahead:.3f} s ahead of the clock")
        jump = ""
        if self._states:
            before = self._states[-1]
            if stamp_ns < before.stamp_ns:
                return ""
            jump = self._jump(before, state)
            if stamp_ns == before.stamp_ns:
                self._states.pop()
        self._states.append(state)
        if self._changed is None or np.any(self._changed.positions != state.positions):
            self._changed = state
        return jump

    @property
    def unchanged_since_ns(self) -> int:
        """The stamp of the first of the states whose positions are the newest's, to the bit."""
        assert self._changed is not None  # there must be a state
        return self._changed.stamp_ns

    def positions_at(self, time_ns: int) -> FloatArray:
        """The measured joints (J,) nearest to a time; there must be some."""
        later = self._states[-1]
        for state in reversed(self._states):
            if state.stamp_ns <= time_ns:
                nearer = later.stamp_ns - time_ns < time_ns - state.stamp_ns
                return later.positions if nearer and later.stamp_ns > time_ns else state.positions
            later = state
        return later.positions

    def problem(self, now_ns: int, max_age: float, max_lead: float) -> str:
        """Why no motion may be based on the joint states now; empty when it may.

        Args:
            now_ns: the time.
            max_age: s, how old the newest may be.
            max_lead: s, how far ahead of the time it may be.
        """
        if not self._states:
            return "no joint state yet"
        age = (now_ns - self.newest.stamp_ns) / NANOSECONDS
        if age > max_age:
            return f"the newest joint state is {age:.3f} s old, allowed are {max_age:g} s"
        if -age > max_lead:
            return (
                f"the newest joint state is {-age:.3f} s ahead of the clock, allowed are "
                f"{max_lead:g} s"
            )
        return ""

    def motion(self) -> str:
        """Which joint moves, in words; empty when the arm stands. There must be a state.

        Positions are asked as well as velocities, which some drivers leave at zero.
        """
        newest = self.newest
        speed = np.abs(newest.velocities)
        for state in reversed(self._states):
            elapsed = (newest.stamp_ns - state.stamp_ns) / NANOSECONDS
            if elapsed >= STANDING_TIME:
                speed = np.maximum(speed, np.abs(newest.positions - state.positions) / elapsed)
                break
        if speed.max() <= MOVING:
            return ""
        joint = int(np.argmax(speed))
        return f"the arm still moves: {self._robot.joint_names[joint]} at {speed[joint]:.3f} rad/s"

    def _checked(self, name: str, values: FloatArray) -> FloatArray:
        checked = np.array(values, dtype=np.float64)
        if checked.shape != (self._robot.joints,):
            raise ObservationError(
                f"joint state: expected {self._robot.joints} numbers for {name}, got shape "
                f"{checked.shape}"
            )
        if not np.isfinite(checked).all():
            joint = self._robot.joint_names[int(np.argmax(~np.isfinite(checked)))]
            raise ObservationError(f"joint state: {name} of {joint} is not finite")
        return checked

    def _jump(self, before: JointState, after: JointState) -> str:
        elapsed = (after.stamp_ns - before.stamp_ns) / NANOSECONDS
        possible = IMPOSSIBLE_SPEED * self._robot.limits.velocity * elapsed + IMPOSSIBLE_STEP
        moved = np.abs(after.positions - before.positions)
        if np.all(moved <= possible):
            return ""
        joint = int(np.argmax(moved / possible))
        return (
            f"{self._robot.joint_names[joint]} jumped by {moved[joint]:.3f} rad in "
            f"{elapsed:.3f} s, which no arm can"
        )
