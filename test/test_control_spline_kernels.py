import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.spline_kernels import (
    interval_excess,
    kicked_spline_knots,
    spline_knots,
)
from vla_reasoner_ros.control.trajectory import JointTrajectory

FULL = load_robot("fr3", "full")
LIMITS = FULL.limits
BOUNDS = np.array([LIMITS.velocity, LIMITS.acceleration, LIMITS.jerk])
SHAPE = LIMITS.velocity_envelope
ENVELOPE = np.array([SHAPE.offset, SHAPE.gain, SHAPE.position_min, SHAPE.position_max])
NONE = np.empty((0, 7))
FINE = np.linspace(0.0, 1.0, 2001)
seeds = st.integers(0, 10_000)


def case(seed, count=6):
    """A start in motion, waypoints and intervals."""
    rng = np.random.default_rng(seed)
    start = np.array([FULL.home, *(0.3 * rng.uniform(-1.0, 1.0, (2, 7)) * BOUNDS[:2])])
    waypoints = FULL.home + np.cumsum(rng.normal(0.0, 0.05, (count, 7)), axis=0)
    return start, waypoints, rng.uniform(0.05, 0.3, count)


def sampled(times, knots, index):
    """Position, velocity, acceleration and jerk (4, M, J) inside one interval, finely."""
    h = times[index + 1] - times[index]
    trajectory = JointTrajectory(FULL.joint_names, np.array([0.0, h]), *knots[:, index : index + 2])
    coefficients = trajectory._coefficients[:, 0]
    values = []
    for _ in range(4):
        values.append(np.polynomial.polynomial.polyval(FINE * h, coefficients).T)
        coefficients = np.polynomial.polynomial.polyder(coefficients)
    return np.array(values)


@given(seeds)
def test_jerk_and_snap_do_not_jump_at_inner_knots(seed):
    start, waypoints, intervals = case(seed)
    times, knots = spline_knots(start, waypoints, intervals)
    np.testing.assert_allclose(np.diff(times), intervals, atol=2e-9)
    np.testing.assert_allclose(knots[:, 0], start)
    np.testing.assert_array_equal(knots[0, 1:], waypoints)
    assert not knots[1:, -1].any()
    for index in range(len(waypoints) - 1):
        before, after = (sampled(times, knots, i) for i in (index, index + 1))
        np.testing.assert_allclose(before[3, -1], after[3, 0], rtol=1e-6, atol=1e-4)
        steps = np.diff(times)[index : index + 2] / 2000.0
        snaps = (before[3, -1] - before[3, -2]) / steps[0], (after[3, 1] - after[3, 0]) / steps[1]
        np.testing.assert_allclose(*snaps, rtol=0.02, atol=0.02 * np.abs(snaps).max())


@given(seeds, st.booleans())
def test_the_excess_of_an_interval_is_what_fine_sampling_finds(seed, enveloped):
    times, knots = spline_knots(*case(seed))
    found = interval_excess(times, knots, BOUNDS, ENVELOPE if enveloped else NONE)
    for index, excess in enumerate(found):
        position, velocity, acceleration, jerk = sampled(times, knots, index)
        lower, upper = -BOUNDS[0], BOUNDS[0]
        if enveloped:
            lower, upper = LIMITS.velocity_bounds(position)
        speed = np.where(velocity > 0.0, velocity / upper, velocity / lower).max()
        others = max(
            np.sqrt(np.abs(acceleration / BOUNDS[1]).max()), np.cbrt(np.abs(jerk / BOUNDS[2]).max())
        )
        assert others <= excess * (1.0 + 1e-9)
        # Speed is looked at 12 times an interval; the others are exact.
        assert max(speed, others) <= 1.02 * excess
        assert excess <= max(speed, others) * (1.0 + 1e-5)


@given(seeds)
def test_a_kick_lasts_as_long_as_jerk_and_the_first_interval_ask_for(seed):
    start, waypoints, intervals = case(seed)
    times, knots = kicked_spline_knots(start, waypoints, intervals, 0.99 * BOUNDS, 0.3, 1e-3)
    np.testing.assert_allclose(times[2:], np.cumsum(intervals), atol=1e-8)
    assert 1e-3 - 1e-9 <= times[1] <= 0.3 * intervals[0] + 1e-9
    jerk = sampled(times, knots, 0)[3]
    np.testing.assert_allclose(jerk, np.broadcast_to(jerk[0], jerk.shape), rtol=1e-4, atol=1e-2)
    assert np.all(np.abs(knots[2, 1]) <= np.maximum(0.99 * BOUNDS[1], np.abs(start[2])) + 1e-9)
    if times[1] < 0.3 * intervals[0] - 1e-9:
        assert np.all(np.abs(jerk[0]) <= 0.99 * BOUNDS[2] * (1.0 + 1e-6))


def test_what_cannot_be_computed_is_not_a_number():
    start, waypoints, intervals = case(0)
    for changed in (0.0, 1e-20, -1.0, np.inf, np.nan):
        bad = intervals.copy()
        bad[2] = changed
        _, knots = kicked_spline_knots(start, waypoints, bad, BOUNDS, 0.3, 1e-3)
        assert not np.isfinite(knots[1:, 1:-1]).all()
    times, knots = spline_knots(start, waypoints, intervals)
    knots[0, 3, 4] = np.nan
    np.testing.assert_array_equal(
        np.isnan(interval_excess(times, knots, BOUNDS, NONE)), [0, 0, 1, 1, 0, 0]
    )
    times, knots = spline_knots(start, waypoints, intervals)
    times[2] = times[1]
    assert np.isnan(interval_excess(times, knots, BOUNDS, ENVELOPE)[1])
