"""Splines through waypoints: the interpolant of least jerk, slowed down until limits hold.

The natural quintic spline (jerk and snap continuous) minimises the integral of squared jerk among
all curves through the waypoints at the given times, from a given state to rest; see de Boor,
"Best approximation properties of spline functions of odd degree", 1963.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.robots import JointLimits
from vla_reasoner_ros.control.spline_kernels import (
    SPEED_SAMPLES,
    interval_excess,
    kicked_spline_knots,
    spline_knots,
)
from vla_reasoner_ros.control.trajectory import (
    JointTrajectory,
    MotionState,
    unit_coefficients,
)
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

STRETCH_ITERATIONS = 40
STRETCH_STEP = 1.5  # largest factor on one interval in one iteration
KICK_SHARE = 0.995  # of the acceleration and jerk limits for a quick change at the start
KICK_INTERVAL = 0.3  # of the first interval that such a change may last
MIN_KICK = 1e-3  # s, likewise
CATCH_UPS = 6  # attempts at making up for lost time
FASTEST = 0.75  # of the time asked for: the shortest that an interval becomes by catching up
SPARE = 1.02  # room kept to the limits in an interval that is made shorter
ON_TIME = 1e-6  # s


def spline_to_rest(
    joint_names: tuple[str, ...],
    start: MotionState,
    waypoints: FloatArray,
    intervals: FloatArray,
) -> JointTrajectory:
    """The minimum-jerk spline from ``start`` through ``waypoints`` to rest at the last.

    Args:
        joint_names: the J joints.
        start: the commanded state at time 0.
        waypoints: (N, J) rad.
        intervals: (N,) s, the time from the knot before to each waypoint.

    Returns:
        N + 1 knots: position, velocity and acceleration given at both ends, jerk and snap
        continuous in between.
    """
    state = np.array([start.position, start.velocity, start.acceleration])
    waypoints, intervals = (np.array(a, np.float64, order="C") for a in (waypoints, intervals))
    times, knots = spline_knots(state, waypoints, intervals)
    return JointTrajectory(joint_names, times, *knots)


class _Trials:
    """Splines from one start that may break limits, and by how much they do."""

    def __init__(
        self, joint_names: tuple[str, ...], start: MotionState, limits: JointLimits
    ) -> None:
        self._joint_names = joint_names
        self._start = np.array([start.position, start.velocity, start.acceleration])
        self._limits = np.array([limits.velocity, limits.acceleration, limits.jerk])
        self._envelope = np.empty((0, len(limits.velocity)))
        if (e := limits.velocity_envelope) is not None:
            self._envelope = np.array([e.offset, e.gain, e.position_min, e.position_max])

    def make(
        self, waypoints: FloatArray, intervals: FloatArray, kick: bool
    ) -> tuple[JointTrajectory, FloatArray]:
        """The spline of least jerk, or the one whose acceleration changes quickly at the start.

        With it, (N,), by how much each interval is too short: above 1 where a limit breaks in it.
        """
        if kick:
            times, knots = kicked_spline_knots(
                self._start,
                waypoints,
                intervals,
                KICK_SHARE * self._limits,
                KICK_INTERVAL,
                MIN_KICK,
            )
        else:
            times, knots = spline_knots(self._start, waypoints, intervals)
        excess = interval_excess(times, knots, self._limits, self._envelope)
        return JointTrajectory(self._joint_names, times, *knots), excess


@dataclass(frozen=True)
class TimedSpline:
    """A spline within limits, and what it took.

    Attributes:
        trajectory: the motion.
        arrivals: (N,) s, when it passes each waypoint.
    """

    trajectory: JointTrajectory
    arrivals: FloatArray

    @property
    def intervals(self) -> FloatArray:
        """(N,) s, the time from the waypoint before, or the start, to each waypoint."""
        return np.diff(self.arrivals, prepend=0.0)


def compile_kernels(limits: JointLimits) -> None:
    """Compile what is not compiled yet, so that no motion has to wait for it."""
    still = np.zeros_like(limits.velocity)
    trials = _Trials((), MotionState.at_rest(still), limits)
    for kick in (False, True):
        trials.make(np.array([still, still]), np.ones(2), kick)


def limited_spline_to_rest(
    joint_names: tuple[str, ...],
    start: MotionState,
    waypoints: FloatArray,
    intervals: FloatArray,
    limits: JointLimits,
    max_duration: float,
    blend: float = 0.0,
) -> TimedSpline:
    """A spline through the waypoints that respects velocity, acceleration and jerk.

    Where a limit would break because the acceleration cannot jump at the start, it first changes
    quickly, at nearly the largest jerk, to what suits the waypoints. Then intervals in which a
    limit still breaks are made longer, those alone, until none breaks; and the time that this cost
    is made up for in later intervals that are far from every limit. The waypoints stay: where that
    is not enough, the motion along them slows down.

    Args:
        joint_names: the J joints.
        start: the commanded state at time 0.
        waypoints: (N, J) rad.
        intervals: (N,) s, the time asked for from the knot before to each waypoint.
        limits: what must be respected.
        max_duration: s, the longest that the motion may take.
        blend: rad; how far from the first waypoint a running motion may pass it, where it is too
            fast for what that waypoint, soon due, asks for, and more time would make it go back.

    Raises:
        TrajectoryError: more time does not help, or it takes more than ``max_duration``; the
            joint, the limit, the time and the value are named.
    """
    trials = _Trials(joint_names, start, limits)
    waypoints = np.array(waypoints, dtype=np.float64, order="C")
    asked = np.array(intervals, dtype=np.float64)
    intervals = asked.copy()
    best: JointTrajectory | None = None
    kick, blended, catch_ups = False, False, 0
    for _ in range(STRETCH_ITERATIONS):
        trajectory, excess = trials.make(waypoints, intervals, kick)
        if not np.isfinite(excess).all():
            break
        if kick:
            excess = np.concatenate([[excess[:2].max()], excess[2:]])
        elif excess[0] > 1.0:
            kick = True
            continue
        if np.all(excess <= 1.0):
            if best is None or trajectory.duration < best.duration:
                best = trajectory
            if best.duration <= asked.sum() + ON_TIME or catch_ups == CATCH_UPS:
                break
            catch_ups += 1
            intervals = _caught_up(intervals, asked, excess)
            continue
        if excess[0] > 1.0 and not (blended or start.resting):
            blended = True
            passing = _passing(trials, waypoints, asked, blend)
            if passing is not None:
                later = passing.times[1 - len(waypoints) :]
                return TimedSpline(passing, np.concatenate([asked[:1], later]))
        intervals *= np.where(excess > 1.0, np.clip(1.01 * excess, 1.0, STRETCH_STEP), 1.0)
        if intervals.sum() > max_duration:
            break
    if best is not None:
        return TimedSpline(best, best.times[-len(waypoints) :])
    raise TrajectoryError(
        f"{_worst(trajectory, limits)}; a motion of {trajectory.duration:.2f} s does not help, "
        f"allowed are {max_duration:.2f} s"
    )


def _passing(
    trials: _Trials, waypoints: FloatArray, intervals: FloatArray, blend: float
) -> JointTrajectory | None:
    """A spline that only comes near the first waypoint; None where that does not help."""
    if len(waypoints) < 2 or blend <= 0.0:
        return None
    merged = np.concatenate([[intervals[0] + intervals[1]], intervals[2:]])
    for kick in (False, True):
        trajectory, excess = trials.make(waypoints[1:], merged, kick)
        if np.all(excess <= 1.0):
            passed = trajectory.sample(float(intervals[0])).position
            return trajectory if np.abs(passed - waypoints[0]).max() <= blend else None
    return None


def _caught_up(intervals: FloatArray, asked: FloatArray, excess: FloatArray) -> FloatArray:
    """Intervals (N,) s, those with room made shorter until no time is lost.

    The earliest that have it give up about half of their room. No waypoint is passed sooner than
    asked for.
    """
    shortest = np.maximum(intervals * SPARE * excess, FASTEST * asked)
    late = np.cumsum(intervals - asked)
    room = np.where(late > 0.0, np.maximum(intervals - shortest, 0.0), 0.0)
    enough = int(np.searchsorted(np.cumsum(room), 2.0 * late[-1])) + 1
    room[enough:] = 0.0
    given = np.cumsum(room) * min(1.0, late[-1] / max(float(room.sum()), ON_TIME))
    latest = np.minimum.accumulate(late[::-1])[::-1]
    return intervals - np.diff(np.clip(given, 0.0, np.maximum(latest, 0.0)), prepend=0.0)


def _envelope_ratio(position: FloatArray, velocity: FloatArray, limits: JointLimits) -> FloatArray:
    lower, upper = limits.velocity_bounds(position)
    bound = np.where(velocity > 0.0, upper, -lower)
    return np.where(velocity == 0.0, 0.0, np.abs(velocity) / np.maximum(bound, 1e-9))


_GRID = np.linspace(0.0, 1.0, SPEED_SAMPLES)
_POWERS = _GRID[:, None] ** np.arange(6.0)


def _samples(
    trajectory: JointTrajectory,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Position, velocity, acceleration and jerk inside every interval, each (N, samples, J)."""
    h = np.diff(trajectory.times)[:, None]
    scaled = unit_coefficients(trajectory)
    by_segment = scaled.transpose(1, 0, 2)  # (N, 6, J), of time over h
    position = _POWERS @ by_segment
    first = by_segment[:, 1:] * np.arange(1.0, 6.0)[:, None]
    second = first[:, 1:] * np.arange(1.0, 5.0)[:, None]
    third = second[:, 1:] * np.arange(1.0, 4.0)[:, None]
    velocity = (_POWERS[:, :5] @ first) / h[:, None]
    acceleration = (_POWERS[:, :4] @ second) / h[:, None] ** 2
    jerk = (_POWERS[:, :3] @ third) / h[:, None] ** 3
    return position, velocity, acceleration, jerk


def _worst(trajectory: JointTrajectory, limits: JointLimits) -> str:
    """The limit that is broken most, in words."""
    position, velocity, acceleration, jerk = _samples(trajectory)
    candidates = (
        (
            "velocity",
            "rad/s",
            velocity,
            limits.velocity,
            _envelope_ratio(position, velocity, limits),
        ),
        ("acceleration", "rad/s^2", acceleration, limits.acceleration, None),
        ("jerk", "rad/s^3", jerk, limits.jerk, None),
    )
    texts: list[tuple[float, str]] = []
    for name, unit, values, bound, ratio in candidates:
        ratio = np.abs(values) / bound if ratio is None else ratio
        ratio = np.where(np.isfinite(ratio), ratio, np.inf)
        segment, sample, joint = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        h = trajectory.times[segment + 1] - trajectory.times[segment]
        texts.append(
            (
                float(ratio[segment, sample, joint]),
                f"{trajectory.joint_names[joint]} breaks its {name} limit of {bound[joint]:g} "
                f"{unit} at {trajectory.times[segment] + _GRID[sample] * h:.3f} s: "
                f"{values[segment, sample, joint]:.4g} {unit}",
            )
        )
    return max(texts)[1]
