"""The arithmetic of :mod:`vla_reasoner_ros.control.spline`, compiled: a chunk takes many trials.

States and knots are arrays of position, velocity and acceleration: (3, J) and (3, N + 1, J).
"""

from __future__ import annotations

import math

import numpy as np

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.types import FloatArray

SPEED_SAMPLES = 12
"""Times in an interval, ends included, at which its speed is looked at."""
SHORTEST = 1e-12
"""Of the mean interval: of shorter ones, as of 0 or no number, nothing is computed."""
STOPPED = 1e-9
"""rad/s, a velocity limit that is as good as none left."""


@kernel
def _whole(seconds: float) -> float:
    """Rounded to whole nanoseconds."""
    return np.rint(seconds * 1e9) * 1e-9


@kernel
def spline_knots(
    start: FloatArray, waypoints: FloatArray, intervals: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The spline of least jerk through waypoints to rest at the last.

    Args:
        start: (3, J) state at time 0.
        waypoints: (N, J) rad.
        intervals: (N,) s, the time from the knot before to each waypoint.

    Returns:
        Times (N + 1,), s, whole nanoseconds, and knots (3, N + 1, J); NaN where the intervals are
        so unequal that nothing can be computed.
    """
    count, joints = waypoints.shape
    times, lengths = np.zeros(count + 1), np.empty(count)
    passed = 0.0
    for k in range(count):
        lengths[k] = max(np.rint(intervals[k] * 1e9), 1.0) * 1e-9
        passed += lengths[k]
        times[k + 1] = _whole(passed)
    knots = np.empty((3, count + 1, joints))
    knots[0, 0], knots[0, 1:] = start[0], waypoints
    _least_jerk(knots, lengths, start, False)
    return times, knots


@kernel
def kicked_spline_knots(
    start: FloatArray,
    waypoints: FloatArray,
    intervals: FloatArray,
    limits: FloatArray,
    longest_share: float,
    shortest: float,
) -> tuple[FloatArray, FloatArray]:
    """Likewise, but the acceleration changes at once, as fast as jerk allows, and then smoothly.

    What it changes to is the acceleration with which the spline of least jerk would start if it
    were free to.

    Args:
        start: (3, J) state at time 0.
        waypoints: (N, J) rad.
        intervals: (N,) s, the time from the knot before to each waypoint.
        limits: (3, J) of velocity, acceleration and jerk for that change.
        longest_share: of the first interval, which the change may last.
        shortest: s, likewise.

    Returns:
        Times (N + 2,) and knots (3, N + 2, J), of which the second is the end of that change.
    """
    count, joints = waypoints.shape
    knots = np.empty((3, count + 1, joints))
    knots[0, 0], knots[0, 1:] = start[0], waypoints
    _least_jerk(knots, intervals, start, True)
    wanted = np.minimum(np.maximum(knots[2, 0], -limits[1]), limits[1]) - start[2]
    duration = max((np.abs(wanted) / limits[2]).max(), shortest)
    longest = longest_share * intervals[0]
    if duration > longest:
        wanted, duration = wanted * (longest / duration), longest
    duration = _whole(duration)
    kicked = start.copy()
    if duration > 0.0:
        jerk = wanted / duration
        kicked[0] += duration * (start[1] + duration * (start[2] / 2.0 + duration * jerk / 6.0))
        kicked[1] += duration * (start[2] + duration * jerk / 2.0)
        kicked[2] += wanted
    rest = intervals.copy()
    rest[0] -= duration
    later, spline = spline_knots(kicked, waypoints, rest)
    times, all_knots = np.zeros(count + 2), np.empty((3, count + 2, joints))
    for k in range(count + 1):
        times[k + 1] = _whole(duration + later[k])
    all_knots[:, 0], all_knots[:, 1:] = start, spline
    return times, all_knots


@kernel
def _least_jerk(
    knots: FloatArray, intervals: FloatArray, start: FloatArray, free_start: bool
) -> None:
    """Fill in velocities and accelerations that make jerk and snap continuous between knots.

    The unknowns of knot k are u = v h and w = a h^2 with h the mean interval, which keeps the
    matrix near unit scale. That snap and jerk do not jump at an inner knot are two equations, which
    couple it to its neighbours; they are the gradient of the integral of squared jerk, so that the
    matrix of 2 x 2 blocks on three diagonals is positive definite, and elimination needs no pivots.

    Args:
        knots: (3, N + 1, J), positions given; at rest at the last knot.
        intervals: (N,) s.
        start: (3, J) state at the first knot.
        free_start: the acceleration there is unknown too, and the jerk zero, as the least jerk
            wants it.
    """
    positions = knots[0]
    last, joints = positions.shape[0] - 1, positions.shape[1]
    scale = intervals.mean()
    if not intervals.min() > SHORTEST * scale:
        knots[1:] = np.nan
        return
    h = intervals / scale
    # By knot, elimination leaves x_k = y_k - upper_k x_{k+1}, with x = (u, w) and x_last = 0.
    upper = np.zeros((last, 2, 2))
    u, w = knots[1], knots[2]
    u[0], w[0] = start[1] * scale, start[2] * scale**2
    u[last], w[last] = 0.0, 0.0
    if free_start:  # 9 w0 / h + 24 u1 / h^2 - 3 w1 / h = 60 change - 36 u0 / h^2
        upper[0, 1, 0], upper[0, 1, 1] = 24.0 / (9.0 * h[0]), -1.0 / 3.0
        for joint in range(joints):
            change = (positions[1, joint] - positions[0, joint]) / h[0] ** 3
            w[0, joint] = (60.0 * change - 36.0 * u[0, joint] / h[0] ** 2) * h[0] / 9.0
    for k in range(1, last):
        left, right = 1.0 / h[k - 1], 1.0 / h[k]
        # Rows: minus the jump of snap, the jump of jerk. Columns: the knot before, this one, next.
        a, b, c, d = 168.0 * left**3, 24.0 * left**2, -24.0 * left**2, -3.0 * left
        before = upper[k - 1]
        p = 192.0 * (left**3 + right**3) - a * before[0, 0] - b * before[1, 0]
        q = 36.0 * (right**2 - left**2) - a * before[0, 1] - b * before[1, 1]
        r = 36.0 * (right**2 - left**2) - c * before[0, 0] - d * before[1, 0]
        s = 9.0 * (left + right) - c * before[0, 1] - d * before[1, 1]
        determinant = p * s - q * r
        if not determinant > 0.0:
            knots[1:] = np.nan
            return
        p, q, r, s = s / determinant, -q / determinant, -r / determinant, p / determinant
        a2, b2, c2, d2 = 168.0 * right**3, -24.0 * right**2, 24.0 * right**2, -3.0 * right
        upper[k, 0, 0], upper[k, 0, 1] = p * a2 + q * c2, p * b2 + q * d2
        upper[k, 1, 0], upper[k, 1, 1] = r * a2 + s * c2, r * b2 + s * d2
        for joint in range(joints):
            came = (positions[k, joint] - positions[k - 1, joint]) * left**3
            goes = (positions[k + 1, joint] - positions[k, joint]) * right**3
            u0, w0 = u[k - 1, joint], w[k - 1, joint]
            snap = 360.0 * (goes * right + came * left) - a * u0 - b * w0
            jerk = 60.0 * (goes - came) - c * u0 - d * w0
            u[k, joint], w[k, joint] = p * snap + q * jerk, r * snap + s * jerk
    for k in range(last - 1, -1, -1):
        for joint in range(joints):
            u1, w1 = u[k + 1, joint], w[k + 1, joint]
            u[k, joint] -= upper[k, 0, 0] * u1 + upper[k, 0, 1] * w1
            w[k, joint] -= upper[k, 1, 0] * u1 + upper[k, 1, 1] * w1
    u /= scale
    w /= scale**2


@kernel
def _at(x: float, c0: float, c1: float, c2: float, c3: float) -> float:
    """The absolute value of a cubic at a place, or at the end of [0, 1] that is nearer."""
    x = min(max(x, 0.0), 1.0)
    return abs(c0 + x * (c1 + x * (c2 + x * c3)))


@kernel
def _largest_jerk(constant: float, linear: float, square: float) -> float:
    """The largest absolute value on [0, 1] of a parabola, which is at an end or at its vertex."""
    largest = max(abs(constant), abs(constant + linear + square))
    if square != 0.0:
        vertex = -linear / (2.0 * square)
        largest = max(largest, _at(vertex, constant, linear, square, 0.0))
    return largest


@kernel
def _largest_acceleration(c0: float, c1: float, c2: float, c3: float) -> float:
    """The largest absolute value on [0, 1] of a cubic: at an end, or where its derivative is 0."""
    largest = max(abs(c0), abs(c0 + c1 + c2 + c3))
    constant, linear, square = c1, 2.0 * c2, 3.0 * c3
    if linear != 0.0:
        largest = max(largest, _at(-constant / linear, c0, c1, c2, c3))
    discriminant = linear**2 - 4.0 * square * constant
    if square != 0.0 and discriminant >= 0.0:
        spread = math.sqrt(discriminant)
        for root in ((-linear - spread) / (2.0 * square), (-linear + spread) / (2.0 * square)):
            largest = max(largest, _at(root, c0, c1, c2, c3))
    return largest


@kernel
def interval_excess(
    times: FloatArray, knots: FloatArray, limits: FloatArray, envelope: FloatArray
) -> FloatArray:
    """By how much each interval is too short: above 1 where a limit is broken inside it.

    Acceleration and jerk are taken where they are largest, velocity at ``SPEED_SAMPLES`` times.

    Args:
        times: (N + 1,) s.
        knots: (3, N + 1, J); quintic in between.
        limits: (3, J) of velocity, acceleration and jerk.
        envelope: (4, J) offset, gain, position_min and position_max of a
            :class:`~vla_reasoner_ros.control.robots.VelocityEnvelope`; (0, J) where there is none.

    Returns:
        (N,); NaN where a knot is not finite, or not later than the one before.
    """
    positions, velocities, accelerations = knots
    count, joints = positions.shape[0] - 1, positions.shape[1]
    found = np.zeros(count)
    for k in range(count):
        h = times[k + 1] - times[k]
        if not h > 0.0:
            found[k] = np.nan
            continue
        for joint in range(joints):
            c0, change = positions[k, joint], positions[k + 1, joint] - positions[k, joint]
            v0, v1 = velocities[k, joint] * h, velocities[k + 1, joint] * h
            a0, a1 = accelerations[k, joint] * h**2, accelerations[k + 1, joint] * h**2
            c3 = 10.0 * change - 6.0 * v0 - 4.0 * v1 - 1.5 * a0 + 0.5 * a1
            c4 = -15.0 * change + 8.0 * v0 + 7.0 * v1 + 1.5 * a0 - a1
            c5 = 6.0 * change - 3.0 * (v0 + v1) - 0.5 * (a0 - a1)
            if not math.isfinite(c0 + v0 + a0 + c3 + c4 + c5):
                found[k] = np.nan
                break
            acceleration = _largest_acceleration(a0, 6.0 * c3, 12.0 * c4, 20.0 * c5) / h**2
            jerk = _largest_jerk(6.0 * c3, 24.0 * c4, 60.0 * c5) / h**3
            worst = max(
                found[k],
                math.sqrt(acceleration / limits[1, joint]),
                (jerk / limits[2, joint]) ** (1.0 / 3.0),
            )
            for sample in range(SPEED_SAMPLES):
                x = sample / (SPEED_SAMPLES - 1.0)
                rate = v0 + x * (a0 + x * (3.0 * c3 + x * (4.0 * c4 + x * 5.0 * c5)))
                bound = limits[0, joint]
                if envelope.shape[0]:
                    place = c0 + x * (v0 + x * (0.5 * a0 + x * (c3 + x * (c4 + x * c5))))
                    left = envelope[3, joint] - place if rate > 0.0 else place - envelope[2, joint]
                    most = math.sqrt(envelope[1, joint] * max(left, 0.0)) - envelope[0, joint]
                    bound = max(min(bound, most), STOPPED)
                worst = max(worst, abs(rate) / (h * bound))
            found[k] = worst
    return found
