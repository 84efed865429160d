"""Splines through waypoints: the interpolant of least jerk, slowed down until limits hold.

The natural quintic spline (jerk and snap continuous) minimises the integral of squared jerk among
all curves through the waypoints at the given times, from a given state to rest; see de Boor,
"Best approximation properties of spline functions of odd degree", 1963.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgbsv

from vla_reasoner_ros.control.robots import JointLimits
from vla_reasoner_ros.control.trajectory import (
    JointTrajectory,
    MotionState,
    unit_coefficients,
    whole_nanoseconds,
)
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

STRETCH_ITERATIONS = 40
STRETCH_STEP = 1.5  # largest factor on one interval in one iteration
KICK_SHARE = 0.995  # of the acceleration and jerk limits for a quick change at the start
KICK_INTERVAL = 0.3  # of the first interval that such a change may last
MIN_KICK = 1e-3  # s, likewise
SAMPLES_PER_SEGMENT = 12
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
    positions = np.concatenate([start.position[None], waypoints])
    intervals = np.maximum(np.round(intervals * 1e9), 1.0) * 1e-9
    velocities, accelerations = _minimum_jerk_knots(positions, intervals, start)
    times = whole_nanoseconds(np.concatenate([[0.0], np.cumsum(intervals)]))
    return JointTrajectory(joint_names, times, positions, velocities, accelerations)


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
    asked = np.array(intervals, dtype=np.float64)
    intervals = asked.copy()
    best: TimedSpline | None = None
    kick, blended, catch_ups = False, False, 0
    for _ in range(STRETCH_ITERATIONS):
        if kick:
            trajectory = _kicked_spline(joint_names, start, waypoints, intervals, limits)
        else:
            trajectory = spline_to_rest(joint_names, start, waypoints, intervals)
        excess = _excess(trajectory, limits)
        if not np.isfinite(excess).all():
            break
        if kick:
            excess = np.concatenate([[excess[:2].max()], excess[2:]])
        elif excess[0] > 1.0:
            kick = True
            continue
        if np.all(excess <= 1.0):
            if best is None or trajectory.duration < best.trajectory.duration:
                best = TimedSpline(trajectory, trajectory.times[-len(waypoints) :])
            if best.trajectory.duration <= asked.sum() + ON_TIME or catch_ups == CATCH_UPS:
                return best
            catch_ups += 1
            intervals = _caught_up(intervals, asked, excess)
            continue
        if excess[0] > 1.0 and not (blended or start.resting):
            blended = True
            passing = _passing(joint_names, start, waypoints, asked, limits, blend)
            if passing is not None:
                return passing
        intervals *= np.where(excess > 1.0, np.clip(1.01 * excess, 1.0, STRETCH_STEP), 1.0)
        if intervals.sum() > max_duration:
            break
    if best is not None:
        return best
    raise TrajectoryError(
        f"{_worst(trajectory, limits)}; a motion of {trajectory.duration:.2f} s does not help, "
        f"allowed are {max_duration:.2f} s"
    )


def _passing(
    joint_names: tuple[str, ...],
    start: MotionState,
    waypoints: FloatArray,
    intervals: FloatArray,
    limits: JointLimits,
    blend: float,
) -> TimedSpline | None:
    """A spline that only comes near the first waypoint; None where that does not help."""
    if len(waypoints) < 2 or blend <= 0.0:
        return None
    merged = np.concatenate([[intervals[0] + intervals[1]], intervals[2:]])
    for make in (
        lambda: spline_to_rest(joint_names, start, waypoints[1:], merged),
        lambda: _kicked_spline(joint_names, start, waypoints[1:], merged, limits),
    ):
        trajectory = make()
        if np.all(_excess(trajectory, limits) <= 1.0):
            passed = trajectory.sample(float(intervals[0])).position
            if np.abs(passed - waypoints[0]).max() > blend:
                return None
            arrivals = trajectory.times[-len(merged) :]
            return TimedSpline(trajectory, np.concatenate([intervals[:1], arrivals]))
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


def _kicked_spline(
    joint_names: tuple[str, ...],
    start: MotionState,
    waypoints: FloatArray,
    intervals: FloatArray,
    limits: JointLimits,
) -> JointTrajectory:
    """A spline whose acceleration changes at once, as fast as jerk allows, and then smoothly.

    What it changes to is the acceleration with which the spline of least jerk would start if it
    were free to.
    """
    positions = np.concatenate([start.position[None], waypoints])
    _, accelerations = _minimum_jerk_knots(positions, intervals, start, free_start=True)
    bound = KICK_SHARE * limits.acceleration
    wanted = np.clip(accelerations[0], -bound, bound) - start.acceleration
    duration = max(float(np.max(np.abs(wanted) / (KICK_SHARE * limits.jerk))), MIN_KICK)
    longest = KICK_INTERVAL * float(intervals[0])
    if duration > longest:
        wanted, duration = wanted * (longest / duration), longest
    duration = round(duration * 1e9) * 1e-9
    jerk = wanted / duration
    kicked = MotionState(
        start.position
        + duration
        * (start.velocity + duration * (start.acceleration / 2.0 + duration * jerk / 6.0)),
        start.velocity + duration * (start.acceleration + duration * jerk / 2.0),
        start.acceleration + wanted,
    )
    rest = np.concatenate([[intervals[0] - duration], intervals[1:]])
    spline = spline_to_rest(joint_names, kicked, waypoints, rest)
    return JointTrajectory(
        joint_names,
        whole_nanoseconds(np.concatenate([[0.0], duration + spline.times])),
        np.concatenate([start.position[None], spline.positions]),
        np.concatenate([start.velocity[None], spline.velocities]),
        np.concatenate([start.acceleration[None], spline.accelerations]),
    )


def _minimum_jerk_knots(
    positions: FloatArray, intervals: FloatArray, start: MotionState, free_start: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Velocities and accelerations (N + 1, J) that make jerk and snap continuous.

    The unknowns of knot k are u = v h and w = a h^2 with h the mean interval, which keeps the
    matrix near unit scale; two equations per inner knot couple it to its neighbours, so the matrix
    has three diagonals on either side. With ``free_start`` the acceleration at the start is unknown
    too, and the jerk there is zero, as the least jerk wants it.
    """
    knots, joints = positions.shape
    velocities = np.zeros((knots, joints))
    accelerations = np.zeros((knots, joints))
    velocities[0], accelerations[0] = start.velocity, start.acceleration
    inner = knots - 2
    extra = int(free_start)
    if inner + extra < 1:
        return velocities, accelerations
    scale = intervals.mean()
    h = intervals / scale
    change = np.diff(positions, axis=0) / h[:, None] ** 3
    left, right = h[:-1], h[1:]
    matrix = np.zeros((inner, 2, 6))
    # jerk at the end of the left interval minus jerk at the start of the right one
    matrix[:, 0, 0], matrix[:, 0, 1] = -24.0 / left**2, -3.0 / left
    matrix[:, 0, 2], matrix[:, 0, 3] = 36.0 / right**2 - 36.0 / left**2, 9.0 / left + 9.0 / right
    matrix[:, 0, 4], matrix[:, 0, 5] = 24.0 / right**2, -3.0 / right
    # snap, likewise
    matrix[:, 1, 0], matrix[:, 1, 1] = -168.0 / left**3, -24.0 / left**2
    matrix[:, 1, 2] = -192.0 / left**3 - 192.0 / right**3
    matrix[:, 1, 3] = 36.0 / left**2 - 36.0 / right**2
    matrix[:, 1, 4], matrix[:, 1, 5] = -168.0 / right**3, 24.0 / right**2
    known = np.empty((extra + 2 * inner, joints))
    known[extra::2] = 60.0 * (change[1:] - change[:-1])
    known[extra + 1 :: 2] = -360.0 * (change[1:] / right[:, None] + change[:-1] / left[:, None])
    banded = np.zeros((10, extra + 2 * inner))  # LAPACK's layout: three rows to work in, the bands
    if inner:
        known[extra : extra + 2] -= np.outer(matrix[0, :, 0], start.velocity * scale)
        if not free_start:
            known[:2] -= np.outer(matrix[0, :, 1], start.acceleration * scale**2)
    if free_start:  # 9 w0 / h + 24 u1 / h^2 - 3 w1 / h = 60 change - 36 u0 / h^2
        known[0] = 60.0 * change[0] - 36.0 * start.velocity * scale / h[0] ** 2
        banded[6, 0] = 9.0 / h[0]
        if inner:
            banded[5, 1], banded[4, 2] = 24.0 / h[0] ** 2, -3.0 / h[0]
    for row in range(2):
        for column in range(6):
            offset = column - 2 - row  # of the column from the diagonal
            first = 0 if column > 1 or (column == 1 and free_start) else 1
            last = inner - 1 if column > 3 else inner
            at = extra + 2 * first + row + offset
            banded[6 - offset, at : at + 2 * (last - first) : 2] = matrix[first:last, row, column]
    _, _, solution, singular = dgbsv(3, 3, banded, known, overwrite_ab=True, overwrite_b=True)
    if singular:  # intervals so unequal that nothing can be computed; no limit holds for these
        solution = np.full_like(known, np.nan)
    velocities[1:-1] = solution[extra::2] / scale
    accelerations[1:-1] = solution[extra + 1 :: 2] / scale**2
    if free_start:
        accelerations[0] = solution[0] / scale**2
    return velocities, accelerations


def _excess(trajectory: JointTrajectory, limits: JointLimits) -> FloatArray:
    """By how much each interval (N,) is too short: above 1 where a limit is broken inside it."""
    coefficients = unit_coefficients(trajectory)
    h = np.diff(trajectory.times)[:, None]
    acceleration, jerk = _extremes(coefficients, h)
    by_segment = coefficients.transpose(1, 0, 2)
    velocity = _RATES @ by_segment[:, 1:] / h[:, None]
    if limits.velocity_envelope is None:
        speed = np.abs(velocity) / limits.velocity
    else:
        speed = _envelope_ratio(_POWERS @ by_segment, velocity, limits)
    return np.maximum(
        speed.max(axis=(1, 2)),
        np.maximum(
            np.sqrt((acceleration / limits.acceleration).max(axis=1)),
            np.cbrt((jerk / limits.jerk).max(axis=1)),
        ),
    )


def _extremes(c: FloatArray, h: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The largest acceleration and jerk, absolute, in every interval: each (N, J).

    Jerk is a parabola with its extreme where snap is zero; acceleration is a cubic with its
    extremes where jerk is zero.

    Args:
        c: quintic coefficients (6, N, J) of time over interval length.
        h: (N, 1) s, the lengths.
    """
    constant, linear, square = 6.0 * c[3], 24.0 * c[4], 60.0 * c[5]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -linear / (2.0 * square)
        spread = np.sqrt(linear**2 - 4.0 * square * constant)
        roots = (
            (-linear - spread) / (2.0 * square),
            (-linear + spread) / (2.0 * square),
            -constant / linear,
        )
    ends = (np.zeros_like(vertex), np.ones_like(vertex))

    def largest(places: tuple[FloatArray, ...], *powers: FloatArray) -> FloatArray:
        inside = np.fmin(np.fmax(np.stack((*ends, *places)), 0.0), 1.0)  # 0 where there is none
        value = np.zeros_like(inside)
        for coefficient in powers[::-1]:
            value = value * inside + coefficient
        return np.abs(value).max(axis=0)

    acceleration = largest(roots, 2.0 * c[2], 6.0 * c[3], 12.0 * c[4], 20.0 * c[5]) / h**2
    jerk = largest((vertex,), constant, linear, square) / h**3
    return acceleration, jerk


def _envelope_ratio(position: FloatArray, velocity: FloatArray, limits: JointLimits) -> FloatArray:
    lower, upper = limits.velocity_bounds(position)
    bound = np.where(velocity > 0.0, upper, -lower)
    return np.where(velocity == 0.0, 0.0, np.abs(velocity) / np.maximum(bound, 1e-9))


_GRID = np.linspace(0.0, 1.0, SAMPLES_PER_SEGMENT)
_POWERS = _GRID[:, None] ** np.arange(6.0)
_RATES = _POWERS[:, :5] * np.arange(1.0, 6.0)


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
