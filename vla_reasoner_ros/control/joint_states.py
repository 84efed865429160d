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
        self._not_before_ns = not_before_ns

    def add(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> str:
        """Take a state; an older one than the newest is ignored, one of its stamp replaces it.

        Returns:
            What moved as no arm can since the state before; empty when nothing did.

        Raises:
            ObservationError: wrong width, or a number that is not finite.
        """
        state = JointState(
            stamp_ns,
            self._checked("position", positions),
            self._checked("velocity", velocities),
        )
        if self._not_before_ns is not None and stamp_ns < self._not_before_ns:
            return ""
        jump = ""
        if self._states:
            before = self._states[-1]
            if stamp_ns < before.stamp_ns:
                return ""
            if stamp_ns == before.stamp_ns:
                self._states.pop()
            else:
                jump = self._jump(before, state)
        self._states.append(state)
        return jump

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
        """Which joint moves, in words; empty when the arm stands. There must be a state."""
        speed = np.abs(self.newest.velocities)
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
