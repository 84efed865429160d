"""What ros2_control's joint_trajectory_controller of ROS 2 Jazzy does with a message, without ROS.

It follows ``JointTrajectoryController::validate_trajectory_msg`` and ``Trajectory::sample`` of
ros2_controllers (branch jazzy), with ``allow_partial_joints_goal``,
``allow_nonzero_velocity_at_trajectory_end`` and ``allow_integration_in_goal_trajectories`` false
(the defaults) and ``interpolate_from_desired_state`` true (what streamed trajectories need). The
real controller answers a bad message with a log line only; this one also counts it by reason, and
counts where the commanded signal, differentiated at 1 kHz as the FR3 does, breaks a limit. One rule
is added: numbers that are not finite are refused, which the real one would pass on to the arm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.control.robots import JointLimits
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.types import FloatArray

TICK_NS = 1_000_000
"""The controller's period, ns."""
_TOLERANCE = 1e-3  # relative: rounding of differences is not a violation
_HISTORY = 3  # earlier samples that a jerk needs


class Rejection(str, Enum):
    """Why a message is not accepted."""

    EMPTY = "no points"
    JOINTS = "joint names do not match"
    ENDS_IN_PAST = "ends in the past"
    MOVING_END = "last velocity is not zero"
    TIMES = "times are not strictly increasing"
    FIELD_SIZE = "field size does not match"
    EFFORT = "effort given to a position controller"
    NOT_FINITE = "a number is not finite"


@dataclass(frozen=True)
class TrajectoryPoint:
    """One ``trajectory_msgs/JointTrajectoryPoint``; an empty field is not given.

    Attributes:
        time_from_start_ns: ns.
        positions: rad.
        velocities: rad/s.
        accelerations: rad/s^2.
        effort: N m.
    """

    time_from_start_ns: int
    positions: Sequence[float]
    velocities: Sequence[float] = ()
    accelerations: Sequence[float] = ()
    effort: Sequence[float] = ()


@dataclass(frozen=True)
class TrajectoryMessage:
    """One ``trajectory_msgs/JointTrajectory``.

    Attributes:
        joint_names: in any order.
        points: the way.
        stamp_ns: when it starts, on the controller's clock; 0 means at once.
    """

    joint_names: Sequence[str]
    points: Sequence[TrajectoryPoint]
    stamp_ns: int = 0


class JointTrajectoryController:
    """Follows the last accepted trajectory, then holds its end.

    Args:
        joint_names: the J joints, in the controller's order.
        limits: what the commanded signal is checked against.
        position: (J,) where to hold until told otherwise, rad.
        now_ns: the controller's clock.
    """

    def __init__(
        self,
        joint_names: Sequence[str],
        limits: JointLimits,
        position: FloatArray,
        now_ns: int = 0,
    ) -> None:
        self.joint_names = tuple(joint_names)
        self.limits = limits
        self.early = True
        """Whether a blend begins one tick early, as in Jazzy."""
        self.accepted = 0
        """Messages accepted so far."""
        self.rejections: Counter[Rejection] = Counter()
        """Messages refused so far, by reason."""
        self.violations: Counter[str] = Counter()
        """Samples at 1 kHz in which a joint broke its limit, by kind of limit."""
        self.hold(position, now_ns)

    def hold(self, position: FloatArray, now_ns: int) -> None:
        """Forget the trajectory and stand at a position (J,), without looking how it got there."""
        position = np.array(position, dtype=np.float64)
        self._now_ns = int(now_ns)
        self._state = MotionState.at_rest(position)
        self._history = np.repeat(position[None], _HISTORY, axis=0)
        self._follow(_Knots.standing(position, now_ns))

    @property
    def now_ns(self) -> int:
        """The controller's clock, ns."""
        return self._now_ns

    @property
    def state(self) -> MotionState:
        """What is commanded now."""
        return self._state

    @property
    def active(self) -> bool:
        """Whether a trajectory has not reached its end yet."""
        return self._now_ns < self._knots.times[-1]

    def accept(self, message: TrajectoryMessage) -> Rejection | None:
        """Take a trajectory in place of the running one, or refuse it and go on.

        A stamp of 0 starts at the next tick. Points that are already past are skipped; when the
        first one is, there is no blend from the commanded state and the command may jump. A blend
        begins one tick early, as it does in Jazzy: a command that moves jumps by one tick's way.

        Returns:
            None when it was accepted, otherwise the reason, which is counted.
        """
        reason = self._reason_to_reject(message)
        if reason is not None:
            self.rejections[reason] += 1
            return reason
        self.accepted += 1
        last_tick = self._now_ns // TICK_NS * TICK_NS
        start = message.stamp_ns or last_tick + TICK_NS
        order = [list(message.joint_names).index(name) for name in self.joint_names]
        knots = _Knots.from_points(message.points, start, order)
        if last_tick + TICK_NS < knots.times[0]:
            knots = knots.preceded_by(self._state, last_tick - TICK_NS * self.early)
        self._follow(knots)
        return None

    def advance(self, until_ns: int) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
        """Run the clock forward and give the command of every tick on the way.

        Returns:
            The ticks (T,) ns after the old time and not after the new, positions (T, J) rad and
            velocities (T, J) rad/s.
        """
        first = self._now_ns // TICK_NS + 1
        ticks = np.arange(first, until_ns // TICK_NS + 1, dtype=np.int64) * TICK_NS
        self._now_ns = int(until_ns)
        if len(ticks) == 0:
            empty = np.zeros((0, len(self.joint_names)))
            return ticks, empty, empty
        positions, velocities, accelerations = self._sample(ticks)
        self._state = MotionState(positions[-1], velocities[-1], accelerations[-1])
        self._check(positions)
        return ticks, positions, velocities

    def get_state(self) -> FloatArray:
        """(C,) clock, history and trajectory; C depends on the number of points."""
        state = self._state
        return np.concatenate(
            [
                [self._now_ns],
                self._history.ravel(),
                state.position,
                state.velocity,
                state.acceleration,
                self._knots.to_array().ravel(),
            ]
        )

    def set_state(self, state: FloatArray) -> None:
        """Return to a state of :meth:`get_state`; the counters go on.

        Raises:
            ConfigurationError: not a state of this controller.
        """
        joints = len(self.joint_names)
        head = 1 + (_HISTORY + 3) * joints
        width = _Knots.width(joints)
        if len(state) < head + width or (len(state) - head) % width:
            raise ConfigurationError(
                f"controller state: expected {head} numbers and one or more rows of {width}, got "
                f"{len(state)}"
            )
        self._now_ns = int(state[0])
        rows = np.array(state[1:head]).reshape(_HISTORY + 3, joints)
        self._history = rows[:_HISTORY]
        self._state = MotionState(*rows[_HISTORY:])
        self._follow(_Knots.from_array(np.reshape(state[head:], (-1, width))))

    def _reason_to_reject(self, message: TrajectoryMessage) -> Rejection | None:
        names, points = list(message.joint_names), message.points
        if sorted(names) != sorted(self.joint_names):
            return Rejection.JOINTS
        if not points:
            return Rejection.EMPTY
        if message.stamp_ns and message.stamp_ns + points[-1].time_from_start_ns < self._now_ns:
            return Rejection.ENDS_IN_PAST
        if np.any(np.abs(points[-1].velocities) > np.finfo(np.float32).eps):
            return Rejection.MOVING_END
        previous = -1
        for point in points:
            if point.time_from_start_ns <= previous:
                return Rejection.TIMES
            previous = point.time_from_start_ns
            if len(point.effort):
                return Rejection.EFFORT
            if len(point.positions) != len(names):
                return Rejection.FIELD_SIZE
            for field in (point.positions, point.velocities, point.accelerations):
                if len(field) not in (0, len(names)):
                    return Rejection.FIELD_SIZE
                if not np.isfinite(field).all():
                    return Rejection.NOT_FINITE
        return None

    def _follow(self, knots: _Knots) -> None:
        self._knots = knots
        self._coefficients = knots.coefficients()

    def _sample(self, times: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Position, velocity and acceleration (T, J) at times (T,) ns."""
        knots = self._knots.times
        position = np.repeat(self._knots.positions[-1:], len(times), axis=0)
        velocity, acceleration = np.zeros_like(position), np.zeros_like(position)
        moving = times < knots[-1]
        if moving.any():
            inside = times[moving]
            segment = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, len(knots) - 2)
            c = self._coefficients[:, segment]
            x = ((inside - knots[segment]) * 1e-9)[:, None]
            position[moving] = c[0] + x * (c[1] + x * (c[2] + x * (c[3] + x * (c[4] + x * c[5]))))
            velocity[moving] = c[1] + x * (
                2 * c[2] + x * (3 * c[3] + x * (4 * c[4] + x * 5 * c[5]))
            )
            acceleration[moving] = 2 * c[2] + x * (6 * c[3] + x * (12 * c[4] + x * 20 * c[5]))
        return position, velocity, acceleration

    def _check(self, positions: FloatArray) -> None:
        """Count the ticks that break a limit, from backward differences of the command."""
        signal = np.concatenate([self._history, positions])
        self._history = signal[-_HISTORY:].copy()
        dt = TICK_NS * 1e-9
        velocity = np.diff(signal, axis=0) / dt
        acceleration = np.diff(velocity, axis=0) / dt
        jerk = np.diff(acceleration, axis=0) / dt
        limits = self.limits
        velocity, acceleration = velocity[-len(positions) :], acceleration[-len(positions) :]
        slack = 1.0 + _TOLERANCE
        span = _TOLERANCE * (limits.position_max - limits.position_min)
        lowest = np.repeat(-limits.velocity[None], len(positions), axis=0)
        highest = -lowest
        if limits.velocity_envelope is not None:
            low, high = limits.velocity_envelope.bounds(positions)
            lowest, highest = np.maximum(lowest, low), np.minimum(highest, high)
        broken = {
            "position": (positions < limits.position_min - span)
            | (positions > limits.position_max + span),
            "velocity": (velocity < slack * lowest - 1e-6) | (velocity > slack * highest + 1e-6),
            "acceleration": np.abs(acceleration) > slack * limits.acceleration,
            "jerk": np.abs(jerk) > slack * limits.jerk,
        }
        for kind, samples in broken.items():
            count = int(samples.any(axis=1).sum())
            if count:
                self.violations[kind] += count


@dataclass(frozen=True)
class _Knots:
    """A trajectory on the controller's clock and in its joint order; N knots of J joints.

    Attributes:
        times: (N,) ns.
        positions, velocities, accelerations: (N, J); zeros where not given.
        given: (N, 2) whether velocity and acceleration were.
    """

    times: NDArray[np.int64]
    positions: FloatArray
    velocities: FloatArray
    accelerations: FloatArray
    given: NDArray[np.bool_]

    @staticmethod
    def standing(position: FloatArray, time_ns: int) -> _Knots:
        still = np.zeros((1, len(position)))
        return _Knots(
            np.array([time_ns], dtype=np.int64), position[None], still, still, np.ones((1, 2), bool)
        )

    @staticmethod
    def from_points(points: Sequence[TrajectoryPoint], start_ns: int, order: list[int]) -> _Knots:
        def field(name: str) -> FloatArray:
            rows = [
                getattr(p, name) if len(getattr(p, name)) else [0.0] * len(order) for p in points
            ]
            return np.array(rows, dtype=np.float64)[:, order]

        return _Knots(
            np.array([start_ns + p.time_from_start_ns for p in points], dtype=np.int64),
            field("positions"),
            field("velocities"),
            field("accelerations"),
            np.array([(len(p.velocities) > 0, len(p.accelerations) > 0) for p in points]),
        )

    def preceded_by(self, state: MotionState, time_ns: int) -> _Knots:
        return _Knots(
            np.concatenate([[time_ns], self.times]),
            np.concatenate([state.position[None], self.positions]),
            np.concatenate([state.velocity[None], self.velocities]),
            np.concatenate([state.acceleration[None], self.accelerations]),
            np.concatenate([[[True, True]], self.given]),
        )

    @staticmethod
    def width(joints: int) -> int:
        return 3 + 3 * joints

    def to_array(self) -> FloatArray:
        return np.column_stack(
            [self.times, self.given, self.positions, self.velocities, self.accelerations]
        )

    @staticmethod
    def from_array(rows: FloatArray) -> _Knots:
        positions, velocities, accelerations = np.split(rows[:, 3:], 3, axis=1)
        times, given = rows[:, 0].astype(np.int64), rows[:, 1:3].astype(bool)
        return _Knots(times, positions, velocities, accelerations, given)

    def coefficients(self) -> FloatArray:
        """(6, N - 1, J) of the polynomials between knots, lowest power first.

        Linear, cubic where both ends have velocities, quintic where they have accelerations too.
        """
        if len(self.times) == 1:
            return np.zeros((6, 0, self.positions.shape[1]))
        h = (np.diff(self.times) * 1e-9)[:, None]
        p0, p1 = self.positions[:-1], self.positions[1:]
        both = self.given[:-1] & self.given[1:]
        cubic, quintic = both[:, :1], both.all(axis=1, keepdims=True)
        v0, v1 = (np.where(cubic, v, 0.0) for v in (self.velocities[:-1], self.velocities[1:]))
        a0, a1 = (
            np.where(quintic, a, 0.0) for a in (self.accelerations[:-1], self.accelerations[1:])
        )
        d = p1 - p0
        zero = np.zeros_like(p0)
        linear = np.stack([p0, d / h, zero, zero, zero, zero])
        third = np.stack(
            [
                p0,
                v0,
                (3 * d - (2 * v0 + v1) * h) / h**2,
                (-2 * d + (v0 + v1) * h) / h**3,
                zero,
                zero,
            ]
        )
        fifth = np.stack(
            [
                p0,
                v0,
                a0 / 2,
                (20 * d - (8 * v1 + 12 * v0) * h - (3 * a0 - a1) * h**2) / (2 * h**3),
                (-30 * d + (14 * v1 + 16 * v0) * h + (3 * a0 - 2 * a1) * h**2) / (2 * h**4),
                (12 * d - 6 * (v1 + v0) * h + (a1 - a0) * h**2) / (2 * h**5),
            ]
        )
        return np.where(quintic, fifth, np.where(cubic, third, linear))
