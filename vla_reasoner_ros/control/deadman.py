"""A second pair of eyes on a moving arm: who should be steering it is heard from, or it stops.

It runs in a process of its own and knows the arm's motion from the command topic, as the arm's own
controller does. A command does not say where the arm is; that is known from the command before, and
for the first one from the joint states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.commands import (
    NANOSECONDS,
    ControllerState,
    ExecutorStatus,
    TimedTrajectory,
)
from vla_reasoner_ros.control.echo import SentCommands, as_played
from vla_reasoner_ros.control.joint_states import JointStateBuffer
from vla_reasoner_ros.control.parameters import ControllerParameters, RobotParameters
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.control.stopping import SOFTLY, STOP_REST, brake, ease_out
from vla_reasoner_ros.control.stops import ResetRefused
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.types import FloatArray

CLOCK_LEAD = 0.05  # s; how far ahead of the clock a stamp may be
JOINTS_AGE = 0.5  # s; a first motion does not start from where the arm was longer ago
ELSEWHERE = 0.05  # rad; an arm that stands so far from where it was sent has been moved otherwise


class SignOfLifeError(VlaReasonerError):
    """A message that does not show that its sender lives now."""


@dataclass(frozen=True)
class DeadmanParameters(RobotParameters, ControllerParameters):
    """Of whom the deadman must hear, and how often."""

    period: float = parameter(
        0.01, "Time between two looks.", unit="s", minimum=0.001, maximum=0.1, read_only=True
    )
    controller_timeout: float = parameter(
        0.2,
        "How long the arm may move without a word of the arm controller, by the node's clock.",
        unit="s",
        minimum=0.01,
        maximum=10.0,
    )
    controller_wall_timeout: float = parameter(
        0.5,
        "The same by a clock that nothing stops. 0 does not look at it.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    planner_timeout: float = parameter(
        2.0,
        "How long the arm may move without a chunk of the planner, by the node's clock.",
        unit="s",
        minimum=0.05,
        maximum=60.0,
    )
    planner_wall_timeout: float = parameter(
        0.0,
        "The same by a clock that nothing stops. 0 does not look at it, as a simulated clock needs "
        "that waits for the planner.",
        unit="s",
        minimum=0.0,
        maximum=600.0,
    )
    lead_time: float = parameter(
        0.01,
        "Time from now to the moment at which the stop leaves the running motion: longer than the "
        "way of a command to the arm takes.",
        unit="s",
        minimum=0.0,
        maximum=0.2,
    )


@dataclass
class _Voice:
    """Someone who must be heard from; what is said counts from when it was said."""

    name: str
    said_ns: int | None = None
    heard_wall: float = 0.0

    def hear(self, said_ns: int, now_ns: int, wall: float) -> None:
        """Hear something that was said at a time.

        Raises:
            SignOfLifeError: it is from before the last, or from the future.
        """
        ahead = (said_ns - now_ns) / NANOSECONDS
        if ahead > CLOCK_LEAD:
            raise SignOfLifeError(
                f"{self.name}: a message from {ahead:.3f} s ahead of the clock, allowed are "
                f"{CLOCK_LEAD:g} s"
            )
        if self.said_ns is not None and said_ns < self.said_ns:
            behind = (self.said_ns - said_ns) / NANOSECONDS
            raise SignOfLifeError(f"{self.name}: a message from {behind:.3f} s before the last")
        self.said_ns, self.heard_wall = said_ns, wall

    def start(self, now_ns: int, wall: float) -> None:
        """Count its silence from now on at the earliest."""
        self.said_ns = now_ns if self.said_ns is None else max(self.said_ns, now_ns)
        self.heard_wall = wall

    def silence(self, now_ns: int, wall: float, timeout: float, wall_timeout: float) -> str:
        """What is wrong, in words; empty when it spoke in time."""
        if self.said_ns is None:
            return f"{self.name} was never heard from"
        silent = (now_ns - self.said_ns) / NANOSECONDS
        if silent > timeout:
            return f"{self.name} silent for {silent:.3f} s, allowed are {timeout:g} s"
        silent = wall - self.heard_wall
        if 0.0 < wall_timeout < silent:
            return (
                f"{self.name} silent for {silent:.3f} s of the wall clock, allowed are "
                f"{wall_timeout:g} s"
            )
        return ""


class Deadman:
    """Stops an arm whose controller or planner has gone silent while it moves.

    The stop is latched: until :meth:`reset` every motion that is heard is stopped again. An arm at
    rest, or one that no command moves, is left alone.

    All times are given by the caller: ``now_ns`` of the node's clock, ns, and ``wall`` of a
    monotonic clock, s. Not thread-safe.

    Args:
        robot: the robot with the limits in force.
        parameters: the time-outs.

    Attributes:
        parameters: may be replaced at any time.
        reason: why it stopped the arm; empty while it has not.
        stops: how often it did.
    """

    def __init__(self, robot: Robot, parameters: DeadmanParameters) -> None:
        self._robot = robot
        self.parameters = parameters
        self.reason = ""
        self.stops = 0
        self._controller, self._planner = _Voice("the arm controller"), _Voice("the planner")
        self._observed_ns: int | None = None
        self._joints = JointStateBuffer(robot)
        self._motion: TimedTrajectory | None = None
        self._placed = False  # whether it is known where the motion starts, about at least
        self._braking = False
        self._sent = SentCommands()
        self._last_ns = 0

    def commanded(self, points: JointTrajectory, stamp_ns: int, now_ns: int, wall: float) -> None:
        """Hear a command on its way to the arm, one's own included.

        Args:
            points: the message: its points with their times from ``stamp_ns``.
            stamp_ns: when it starts, ns; 0 means now.
            now_ns: the time.
            wall: monotonic, s.

        Raises:
            TrajectoryError: the arm would not play it; the motion known so far goes on.
        """
        self._follow_clock(now_ns)
        if self._sent.has(stamp_ns, points.positions[-1]):
            return
        moved = self._moving(now_ns)
        elsewhere = not moved and self._stands_elsewhere(now_ns)
        before = self._motion.at if self._motion is not None else self._measured_at
        motion = as_played(self._robot.joint_names, points, stamp_ns, now_ns, before)
        if self._motion is None or elsewhere:
            self._placed = not elsewhere and self._measured_at(motion.start_ns) is not None
        self._motion, self._braking = motion, False
        if not moved:  # silence counts from the start of the motion
            for voice in (self._controller, self._planner):
                voice.start(now_ns, wall)

    def measured(
        self, stamp_ns: int, positions: FloatArray, velocities: FloatArray, now_ns: int
    ) -> None:
        """Hear where the arm is.

        Args:
            stamp_ns: when it was measured, ns.
            positions: (J,) rad.
            velocities: (J,) rad/s.
            now_ns: the time.

        Raises:
            ObservationError: wrong width, not finite, or stamped far ahead of the clock.
        """
        self._follow_clock(now_ns)
        self._joints.add(stamp_ns, positions, velocities, now_ns)

    def controller_spoke(
        self, said_ns: int, now_ns: int, wall: float, executing: bool = True
    ) -> None:
        """Hear the arm controller.

        Args:
            said_ns: the stamp of what it said, ns: one that is repeated grows old.
            now_ns: the time.
            wall: monotonic, s.
            executing: whether it follows a chunk; when it moves the arm by itself, as after a
                tracking error, the planner has nothing to say.

        Raises:
            SignOfLifeError: older than the last, or from the future; it does not count.
        """
        self._follow_clock(now_ns)
        self._controller.hear(said_ns, now_ns, wall)
        if not executing:
            self._planner.start(now_ns, wall)

    def planner_spoke(self, observed_ns: int, now_ns: int, wall: float) -> None:
        """Hear the planner.

        Args:
            observed_ns: the stamp of the observation that it planned from, ns. Its silence counts
                from the first chunk from the newest observation, so that a chunk that comes again
                does not count, nor one from an observation as old as its silence may be.
            now_ns: the time.
            wall: monotonic, s.

        Raises:
            SignOfLifeError: from no newer observation than the last, from too old a one, or from
                the future; it does not count.
        """
        self._follow_clock(now_ns)
        old = (now_ns - observed_ns) / NANOSECONDS
        if self._observed_ns is not None and observed_ns <= self._observed_ns:
            raise SignOfLifeError("the planner: a chunk from no newer observation than the last")
        if old > self.parameters.planner_timeout:
            raise SignOfLifeError(f"the planner: a chunk from an observation {old:.3f} s old")
        if -old > CLOCK_LEAD:
            raise SignOfLifeError(
                f"the planner: a chunk from an observation {-old:.3f} s ahead of the clock"
            )
        self._observed_ns = observed_ns
        self._planner.start(now_ns, wall)

    def tick(self, now_ns: int, wall: float) -> TimedTrajectory | None:
        """Look whether the arm must be stopped.

        A motion that starts it is not known where goes on to its first point before.

        Returns:
            The decelerating hold to be sent, None when there is nothing to do.
        """
        self._follow_clock(now_ns)
        motion = self._motion
        if motion is None or not self._moving(now_ns) or self._braking:
            return None
        problem = self._problem(now_ns, wall)
        if not (self.reason or problem):
            return None
        self.latch(problem)
        if now_ns < motion.known_ns and not self._placed:
            return None
        self._braking = True
        stop = self._stop(motion, now_ns)
        if stop is not None:
            self._motion = stop
            self._sent.add(now_ns, stop.trajectory.positions[-1])
        return stop

    def latch(self, problem: str) -> None:
        """Stop every motion from now on, for what was found here or by whoever carries the stops.

        Args:
            problem: why; while a stop is latched its first reason stays.
        """
        if not self.reason:
            self.reason = problem
            self.stops += 1

    def reset(self, now_ns: int, wall: float) -> None:
        """End the latched stop.

        Raises:
            ResetRefused: the arm still moves, or the arm controller is still silent.
        """
        self._follow_clock(now_ns)
        given = self.parameters
        problem = self._controller.silence(
            now_ns, wall, given.controller_timeout, given.controller_wall_timeout
        )
        if self._moving(now_ns):
            problem = "the arm still decelerates"
        if self.reason and problem:
            raise ResetRefused(problem)
        self.reason = ""

    def status(self, now_ns: int) -> ExecutorStatus:
        """What it does and why, in the terms of the arm controller."""
        if self.reason:
            state, reason = ControllerState.STOPPED, self.reason
        elif self._moving(now_ns):
            state, reason = ControllerState.EXECUTING, ""
        else:
            state, reason = ControllerState.WAITING, "no motion is commanded"
        return ExecutorStatus(state, reason, 0, 0, 0, self.stops, self.reason, 0.0)

    def _stop(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory | None:
        """The motion to rest, None where the running one rests before a stop could begin.

        On the way to the first point of a motion, which is known roughly, it is one that the arm's
        controller can begin from anywhere near.
        """
        names, limits = self._robot.joint_names, self._robot.limits
        switch_ns = now_ns + round(self.parameters.lead_time * NANOSECONDS)
        if switch_ns < motion.known_ns:
            stop = ease_out(names, motion.at(now_ns), limits, SOFTLY)
            end_ns = now_ns + round(stop.duration * NANOSECONDS)
            about = TimedTrajectory(now_ns, stop, known_ns=end_ns, rest=STOP_REST)
            return about if end_ns < motion.end_ns else None
        if switch_ns >= motion.end_ns:
            return None
        stop = brake(names, motion.at(switch_ns), limits)
        lead = (switch_ns - now_ns) / NANOSECONDS
        whole = motion.from_time(now_ns).then(lead, stop) if lead > 0.0 else stop
        return TimedTrajectory(now_ns, whole, motion.known_ns, STOP_REST)

    def _measured_at(self, time_ns: int) -> MotionState | None:
        """Where the arm was last measured; None when it was not, or too long before a time."""
        if self._joints.problem(time_ns, JOINTS_AGE, CLOCK_LEAD):
            return None
        newest = self._joints.newest
        return MotionState(newest.positions, newest.velocities, np.zeros(self._robot.joints))

    def _stands_elsewhere(self, now_ns: int) -> bool:
        """Whether the arm is measured where its motion did not end.

        It has been moved by hand, and its controller goes on from there, or the joint states are
        frozen, and it does not.
        """
        measured = self._measured_at(now_ns)
        if self._motion is None or measured is None:
            return False
        end = self._motion.trajectory.end.position
        return float(np.abs(measured.position - end).max()) > ELSEWHERE

    def _problem(self, now_ns: int, wall: float) -> str:
        given = self.parameters
        return self._controller.silence(
            now_ns, wall, given.controller_timeout, given.controller_wall_timeout
        ) or self._planner.silence(now_ns, wall, given.planner_timeout, given.planner_wall_timeout)

    def _moving(self, now_ns: int) -> bool:
        return self._motion is not None and now_ns < self._motion.end_ns

    def _follow_clock(self, now_ns: int) -> None:
        """After a jump back in time nothing known is true any more."""
        if now_ns < self._last_ns:
            self._motion, self._braking = None, False
            self._joints.clear(None)
            self._observed_ns = None
            for voice in (self._controller, self._planner):
                voice.said_ns = None if voice.said_ns is None else now_ns
        self._last_ns = now_ns
