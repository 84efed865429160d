from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import Workspace, load_robot
from vla_reasoner_ros.control.spline import limited_spline_to_rest, spline_to_rest
from vla_reasoner_ros.control.stopping import brake, move_to
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState, resting
from vla_reasoner_ros.control.validator import (
    LimitViolation,
    joint_violation,
    require_valid,
    tcp_violation,
)
from vla_reasoner_ros.errors import TrajectoryError

FR3 = load_robot("fr3")
ROBOTS = [FR3, load_robot("fr3", "full"), load_robot("panda"), load_robot("ur5e")]
NAMES = FR3.joint_names
unit = st.floats(-1.0, 1.0)


def states(robot, share=0.4):
    """Commanded states with room to stop."""

    def make(values):
        position, velocity, acceleration = np.split(np.array(values), 3)
        limits = robot.limits
        return MotionState(
            robot.home + 0.1 * position,
            share * limits.velocity * velocity,
            share * limits.acceleration * acceleration,
        )

    return st.lists(unit, min_size=3 * robot.joints, max_size=3 * robot.joints).map(make)


def rows(robot, scale):
    steps = st.integers(1, 12)
    return steps.flatmap(lambda n: arrays(float, (n, robot.joints), elements=unit)).map(
        lambda values: robot.home + scale * np.cumsum(values, axis=0)
    )


robots = st.sampled_from(ROBOTS)


def differences(trajectory, order, step=1e-4):
    times = np.arange(0.0, trajectory.duration, step)
    return np.diff(trajectory.sample_positions(times), n=order, axis=0) / step**order


@given(robots.flatmap(lambda r: st.tuples(st.just(r), states(r), rows(r, 0.05))))
def test_the_spline_starts_as_commanded_passes_the_waypoints_and_ends_at_rest(case):
    robot, start, waypoints = case
    trajectory = spline_to_rest(robot.joint_names, start, waypoints, np.full(len(waypoints), 0.1))
    first = trajectory.sample(0.0)
    np.testing.assert_allclose(first.position, start.position, atol=1e-12)
    np.testing.assert_allclose(first.velocity, start.velocity, atol=1e-12)
    np.testing.assert_allclose(first.acceleration, start.acceleration, atol=1e-12)
    for index, waypoint in enumerate(waypoints):
        passed = trajectory.sample(0.1 * (index + 1)).position
        np.testing.assert_allclose(passed, waypoint, atol=1e-7)
    assert trajectory.end.resting


def test_jerk_and_snap_are_continuous_at_inner_knots():
    waypoints = FR3.home + np.random.default_rng(3).normal(size=(6, 7)) * 0.05
    intervals = np.array([0.05, 0.1, 0.1, 0.2, 0.1, 0.15])
    start = MotionState(FR3.home, 0.2 * np.ones(7), -np.ones(7))
    trajectory = spline_to_rest(NAMES, start, waypoints, intervals)
    h = 1e-3
    for knot in trajectory.times[1:-1]:
        offsets = np.arange(1.0, 7.0) * h
        before = np.polynomial.polynomial.polyfit(
            -offsets, trajectory.sample_positions(np.sort(knot - offsets))[::-1], 5
        )
        after = np.polynomial.polynomial.polyfit(
            offsets, trajectory.sample_positions(knot + offsets), 5
        )
        np.testing.assert_allclose(before[3], after[3], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(before[4], after[4], rtol=1e-2, atol=1.0)


def test_of_all_interpolants_the_spline_has_the_least_jerk():
    """Moving any inner velocity or acceleration away from the solution adds squared jerk."""
    waypoints = FR3.home + np.cumsum(np.random.default_rng(0).normal(size=(5, 7)), axis=0) * 0.03
    best = spline_to_rest(NAMES, MotionState.at_rest(FR3.home), waypoints, np.full(5, 0.1))

    def squared_jerk(trajectory):
        return float(np.square(differences(trajectory, 3)).sum())

    least = squared_jerk(best)
    for name in ("velocities", "accelerations"):
        for sign in (-1.0, 1.0):
            changed = getattr(best, name).copy()
            changed[2] += sign * 0.05 * np.abs(getattr(best, name)).max()
            assert squared_jerk(replace(best, **{name: changed})) > least


@given(robots.flatmap(lambda r: st.tuples(st.just(r), states(r), rows(r, 0.15))))
def test_a_limited_spline_keeps_the_waypoints_and_every_limit(case):
    robot, start, waypoints = case
    limits = replace(
        robot.limits,
        position_min=robot.limits.position_min - 10.0,
        position_max=robot.limits.position_max + 10.0,
        velocity_envelope=None,
    )
    spline = limited_spline_to_rest(
        robot.joint_names, start, waypoints, np.full(len(waypoints), 0.1), limits, 100.0
    )
    passed = spline.trajectory.sample_positions(spline.arrivals)
    np.testing.assert_allclose(passed, waypoints, atol=1e-7)
    assert np.all(spline.arrivals >= 0.1 * np.arange(1, len(waypoints) + 1) - 1e-8)
    barely = replace(
        limits,
        velocity=1.005 * limits.velocity,
        acceleration=1.005 * limits.acceleration,
        jerk=1.005 * limits.jerk,
    )
    assert joint_violation(spline.trajectory, barely) is None


def test_what_is_slow_enough_is_not_slowed():
    step = np.linspace(0.01, 0.03, 7)
    waypoints = FR3.home + step * np.arange(1.0, 9.0)[:, None] ** 1.2
    start = MotionState(FR3.home, step / 0.1, np.zeros(7))
    intervals = np.append(np.full(7, 0.1), 0.2)
    spline = limited_spline_to_rest(NAMES, start, waypoints, intervals, FR3.limits, 0.9)
    np.testing.assert_allclose(spline.intervals, intervals)


def test_time_that_is_lost_at_the_start_is_made_up_for():
    step = np.array([0.04, 0.0, -0.03, 0.03, 0.0, 0.02, 0.0])
    waypoints = FR3.home + step * np.arange(1.0, 9.0)[:, None]
    intervals = np.append(np.full(7, 0.1), 0.2)
    start = MotionState.at_rest(FR3.home)
    spline = limited_spline_to_rest(NAMES, start, waypoints, intervals, FR3.limits, 9.0)
    late = spline.arrivals - np.cumsum(intervals)
    assert late[0] > 0.005  # from rest the first waypoint is out of reach in time
    np.testing.assert_allclose(late[-4:], 0.0, atol=2e-6)
    passed = spline.trajectory.sample_positions(spline.arrivals)
    np.testing.assert_allclose(passed, waypoints, atol=1e-7)


def test_a_running_motion_passes_beside_a_waypoint_that_would_hold_it_up():
    velocity = np.array([1.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    start = MotionState(FR3.home, velocity, np.zeros(7))
    waypoints = np.repeat(FR3.home[None], 6, axis=0)
    waypoints[:, 0] += [0.05, 0.14, 0.2, 0.25, 0.28, 0.3]
    intervals = np.array([0.06, 0.1, 0.1, 0.1, 0.1, 0.2])

    def planned(blend):
        return limited_spline_to_rest(NAMES, start, waypoints, intervals, FR3.limits, 9.0, blend)

    through, beside = planned(0.0), planned(0.03)
    assert through.trajectory.duration > intervals.sum() + 0.01
    assert beside.trajectory.duration == pytest.approx(intervals.sum())
    missed = beside.trajectory.sample_positions(beside.arrivals) - waypoints
    assert 1e-4 < np.abs(missed[0]).max() <= 0.03
    np.testing.assert_allclose(missed[1:], 0.0, atol=1e-7)
    assert joint_violation(beside.trajectory, FR3.limits) is None


def test_only_the_intervals_around_a_fast_step_are_stretched():
    waypoints = np.repeat(FR3.home[None], 9, axis=0)
    waypoints[4:, 0] += 0.4
    spline = limited_spline_to_rest(
        NAMES, MotionState.at_rest(FR3.home), waypoints, np.full(9, 0.1), FR3.limits, 10.0
    )
    intervals = np.diff(spline.trajectory.times)
    assert intervals[4] > 0.25
    assert intervals[0] < 0.12
    assert intervals[7] < 0.12


def test_what_cannot_be_slowed_enough_names_joint_limit_time_and_value():
    waypoints = np.repeat(FR3.home[None], 3, axis=0)
    waypoints[1, 2] += 1.0
    pattern = r"fr3_joint3 breaks its \w+ limit of [\d.]+ rad/s\S* at \d\.\d+ s: -?[\d.]+ rad/s"
    with pytest.raises(TrajectoryError, match=pattern):
        limited_spline_to_rest(
            NAMES, MotionState.at_rest(FR3.home), waypoints, np.full(3, 0.1), FR3.limits, 2.0
        )


def test_a_start_beyond_the_limits_is_refused():
    start = MotionState(FR3.home, 1.2 * FR3.limits.velocity, np.zeros(7))
    with pytest.raises(TrajectoryError, match=r"breaks its velocity limit"):
        limited_spline_to_rest(NAMES, start, FR3.home[None], np.array([0.1]), FR3.limits, 100.0)


# Cutting and joining.


@given(states(FR3), st.floats(0.0, 0.99), st.floats(0.0, 1.0))
def test_what_is_left_of_a_motion_is_the_same_motion(start, share, later):
    motion = spline_to_rest(NAMES, start, FR3.home[None] + 0.1, np.array([0.5]))
    cut = round(share * motion.duration, 9)
    rest = motion.from_time(cut)
    time = later * rest.duration
    now, then = rest.sample(time), motion.sample(cut + time)
    np.testing.assert_allclose(now.position, then.position, atol=1e-9)
    np.testing.assert_allclose(now.velocity, then.velocity, atol=1e-6)
    np.testing.assert_allclose(now.acceleration, then.acceleration, atol=1e-3)


def test_a_motion_that_turns_into_another_is_continuous():
    first = spline_to_rest(
        NAMES, MotionState.at_rest(FR3.home), FR3.home[None] + 0.2, np.array([1.0])
    )
    second = brake(NAMES, first.sample(0.4), FR3.limits)
    joined = first.then(0.4, second)
    require_valid(joined, FR3.limits)
    np.testing.assert_allclose(joined.sample(0.3).position, first.sample(0.3).position)
    np.testing.assert_allclose(
        joined.sample(0.45).position, second.sample(0.05).position, atol=1e-9
    )
    assert np.all(np.diff(joined.times) > 0.0)


# Stopping.


@given(robots.flatmap(lambda r: st.tuples(st.just(r), states(r, share=0.97))))
def test_a_stop_decelerates_within_the_limits_and_ends_at_rest(case):
    robot, start = case
    limits = replace(
        robot.limits,
        position_min=robot.limits.position_min - 1.0,
        position_max=robot.limits.position_max + 1.0,
        velocity=robot.limits.velocity + robot.limits.acceleration**2 / robot.limits.jerk,
        velocity_envelope=None,
    )
    stop = brake(robot.joint_names, start, robot.limits)
    assert joint_violation(stop, limits) is None
    assert stop.end.resting
    slowest = np.max(np.abs(start.velocity) / limits.acceleration)
    easing = np.max(2.0 * limits.acceleration / limits.jerk)
    assert stop.duration < 1.1 * slowest + 3.0 * easing


def test_a_stop_slows_down_from_the_first_moment_on():
    start = MotionState(FR3.home, 0.9 * FR3.limits.velocity, np.zeros(7))
    stop = brake(NAMES, start, FR3.limits)
    speeds = np.stack([stop.sample(t).velocity for t in np.linspace(0.0, stop.duration, 200)])
    assert np.all(np.diff(speeds, axis=0) <= 1e-6)
    assert np.all(speeds >= -1e-6)


def test_an_arm_at_rest_has_nothing_to_stop():
    stop = brake(NAMES, MotionState.at_rest(FR3.home), FR3.limits)
    np.testing.assert_array_equal(stop.positions, [FR3.home, FR3.home])


@given(robots.flatmap(lambda r: st.tuples(st.just(r), states(r), rows(r, 0.3))))
def test_a_move_to_a_pose_respects_the_limits(case):
    robot, start, waypoints = case
    limits = replace(
        robot.limits,
        position_min=robot.limits.position_min - 5.0,
        position_max=robot.limits.position_max + 5.0,
        velocity_envelope=None,
    )
    motion = move_to(robot.joint_names, start, waypoints[-1], limits)
    np.testing.assert_allclose(motion.end.position, waypoints[-1], atol=1e-7)
    assert joint_violation(motion, limits) is None


def test_a_state_that_is_not_finite_has_no_stop():
    start = MotionState(FR3.home, np.full(7, np.nan), np.zeros(7))
    with pytest.raises(TrajectoryError):
        brake(NAMES, start, FR3.limits)


# The gate.


def slow_motion():
    return spline_to_rest(
        NAMES, MotionState.at_rest(FR3.home), FR3.home[None] + 0.1, np.array([1.0])
    )


def test_a_good_motion_passes():
    assert joint_violation(slow_motion(), FR3.limits) is None


@given(robots, st.integers(0, 5), st.sampled_from([-1.0, 1.0]), st.floats(1e-8, 1e-3))
def test_not_a_microradian_beyond_a_position_limit_passes(robot, joint, side, beyond):
    limits = replace(robot.limits, velocity_envelope=None)  # of position only
    limit = (limits.position_min if side < 0.0 else limits.position_max)[joint]
    start = robot.home.copy()
    start[joint] = limit - side * 0.1
    target = start.copy()
    for target[joint], passes in ((limit, True), (limit + side * beyond, False)):
        motion = spline_to_rest(
            robot.joint_names, MotionState.at_rest(start), target[None], np.array([2.0])
        )
        violation = joint_violation(motion, limits)
        assert (violation is None) is passes
        assert passes or (violation.what, violation.limit) == (robot.joint_names[joint], "position")


@pytest.mark.parametrize("limit", ["velocity", "acceleration", "jerk"])
def test_the_gate_names_the_limit_that_is_broken(limit):
    bounds = getattr(FR3.limits, limit).copy()
    bounds[4] = 1e-3
    violation = joint_violation(slow_motion(), replace(FR3.limits, **{limit: bounds}))
    assert (violation.what, violation.limit, violation.bound) == ("fr3_joint5", limit, 1e-3)
    assert abs(violation.value) > 1e-3
    assert 0.0 <= violation.time <= 1.0


def test_the_gate_sees_a_position_that_is_passed_between_the_knots():
    start = MotionState(FR3.home, np.array([1.5, 0, 0, 0, 0, 0, 0.0]), np.zeros(7))
    motion = spline_to_rest(NAMES, start, FR3.home[None], np.array([0.6]))
    low = replace(FR3.limits, position_max=FR3.home + 0.05)
    violation = joint_violation(motion, low)
    assert (violation.what, violation.limit) == ("fr3_joint1", "position")
    assert 0.0 < violation.time < 0.6


def test_the_gate_sees_a_limit_broken_at_the_last_step_only():
    knots = np.repeat(FR3.home[None], 3, axis=0)
    knots[2, 6] += 0.2
    motion = JointTrajectory(
        NAMES, np.array([0.0, 1.0, 1.02]), knots, np.zeros((3, 7)), np.zeros((3, 7))
    )
    violation = joint_violation(motion, FR3.limits)
    assert violation.what == "fr3_joint7"
    assert violation.time > 1.0


def test_the_gate_knows_that_the_fr3_is_slower_near_the_end_of_travel():
    full = load_robot("fr3", "full")
    near = full.limits.position_max - 0.08
    start = MotionState(near - 0.1, np.zeros(7), np.zeros(7))
    motion = spline_to_rest(NAMES, start, near[None], np.array([0.25]))
    violation = joint_violation(motion, full.limits)
    assert violation.limit == "velocity"
    assert violation.bound < full.limits.velocity.min()
    middle = MotionState(full.home - 0.1, np.zeros(7), np.zeros(7))
    motion = spline_to_rest(NAMES, middle, full.home[None], np.array([0.25]))
    assert joint_violation(motion, full.limits) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, positions=t.positions * [[1.0], [np.nan]]), "finite position"),
        (lambda t: replace(t, velocities=t.velocities + np.inf), "finite velocity"),
        (lambda t: replace(t, times=np.array([0.0, 0.0])), "ascending"),
        (lambda t: replace(t, times=np.array([0.0, -1.0])), "ascending"),
        (lambda t: replace(t, times=np.array([0.0, np.nan])), "ascending"),
        (lambda t: replace(t, times=np.array([0.0, 1e9])), "duration"),
        (
            lambda t: replace(t, velocities=t.velocities + np.array([[0.0], [1e-3]])),
            "rest velocity",
        ),
        (lambda t: replace(t, accelerations=t.accelerations + 1e-3), "rest acceleration"),
    ],
)
def test_what_the_controller_could_not_play_is_refused(change, message):
    with pytest.raises(LimitViolation, match=message):
        require_valid(change(slow_motion()), FR3.limits)


def test_the_tool_must_stay_in_the_workspace_and_below_its_speed():
    kinematics = Kinematics(FR3)
    motion = slow_motion()
    place = kinematics.forward(FR3.home)[0]
    wide = Workspace(place - 1.0, place + 1.0)
    violation, ratio = tcp_violation(motion, kinematics, wide, 10.0, 10.0)
    assert violation is None
    assert 0.0 < ratio < 0.1
    narrow = Workspace(place - 1.0, place + np.array([1.0, 1e-3, 1.0]))
    violation, _ = tcp_violation(motion, kinematics, narrow, 10.0, 10.0)
    assert (violation.what, violation.limit, violation.unit) == ("TCP y", "workspace", "m")
    violation, ratio = tcp_violation(motion, kinematics, wide, 0.01, 10.0)
    assert violation.limit == "speed"
    assert ratio == pytest.approx(violation.value / 0.01)
    violation, _ = tcp_violation(motion, kinematics, wide, 10.0, 0.01)
    assert violation.limit == "angular speed"


def test_rest_lasts():
    still = resting(NAMES, FR3.home, 0.5)
    assert still.duration == 0.5
    np.testing.assert_array_equal(still.sample(0.3).position, FR3.home)
