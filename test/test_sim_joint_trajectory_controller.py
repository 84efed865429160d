import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.joint_trajectory_controller import (
    JointTrajectoryController,
    Rejection,
    TrajectoryMessage,
    TrajectoryPoint,
)

MS = 1_000_000
FR3 = load_robot("fr3", limits="full")
HOME = np.array(FR3.home)
ZERO = np.zeros(7)


def controller(now_ns=0):
    return JointTrajectoryController(FR3.joint_names, FR3.limits, HOME, now_ns)


def point(ms, offset=0.0, velocity=0.0, acceleration=0.0):
    return TrajectoryPoint(
        ms * MS,
        HOME + offset,
        np.full(7, float(velocity)),
        np.full(7, float(acceleration)),
    )


def message(*points, stamp_ns=0, names=FR3.joint_names):
    return TrajectoryMessage(names, points, stamp_ns)


GOOD = (point(200, 0.01, 0.05), point(400, 0.02))


class TestAcceptance:
    def test_takes_a_trajectory_that_ends_at_rest(self):
        jtc = controller()
        assert jtc.accept(message(*GOOD)) is None
        assert jtc.accepted == 1
        assert jtc.active

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (message(), Rejection.EMPTY),
            (message(*GOOD, names=FR3.joint_names[:6]), Rejection.JOINTS),
            (message(*GOOD, names=(*FR3.joint_names[:6], "fr3_joint8")), Rejection.JOINTS),
            (message(*GOOD, names=(FR3.joint_names[0],) * 7), Rejection.JOINTS),
            (message(point(200, 0.0), point(400, 0.0, velocity=0.01)), Rejection.MOVING_END),
            (message(point(200), point(200)), Rejection.TIMES),
            (message(point(300), point(200)), Rejection.TIMES),
            (message(TrajectoryPoint(200 * MS, HOME[:6])), Rejection.FIELD_SIZE),
            (message(TrajectoryPoint(200 * MS, ())), Rejection.FIELD_SIZE),
            (message(TrajectoryPoint(200 * MS, HOME, ZERO[:3])), Rejection.FIELD_SIZE),
            (message(TrajectoryPoint(200 * MS, HOME, ZERO, ZERO[:3])), Rejection.FIELD_SIZE),
            (message(TrajectoryPoint(200 * MS, HOME, effort=ZERO)), Rejection.EFFORT),
            (message(TrajectoryPoint(200 * MS, HOME * np.nan)), Rejection.NOT_FINITE),
        ],
        ids=lambda value: value.name if isinstance(value, Rejection) else "",
    )
    def test_refuses_counts_and_goes_on(self, bad, reason):
        jtc = controller()
        jtc.accept(message(*GOOD))
        assert jtc.accept(bad) is reason
        assert jtc.rejections == {reason: 1}
        jtc.advance(500 * MS)
        np.testing.assert_allclose(jtc.state.position, HOME + 0.02)

    def test_an_end_in_the_past_counts_only_with_a_stamp(self):
        jtc = controller(now_ns=1000 * MS)
        assert jtc.accept(message(*GOOD, stamp_ns=599 * MS)) is Rejection.ENDS_IN_PAST
        assert jtc.accept(message(*GOOD, stamp_ns=601 * MS)) is None
        assert jtc.accept(message(*GOOD, stamp_ns=0)) is None

    def test_joints_may_come_in_any_order(self):
        jtc = controller()
        order = np.array([6, 2, 0, 1, 5, 4, 3])
        goal = HOME + np.linspace(0.01, 0.02, 7)
        names = [FR3.joint_names[i] for i in order]
        jtc.accept(message(TrajectoryPoint(400 * MS, goal[order]), names=names))
        jtc.advance(500 * MS)
        np.testing.assert_allclose(jtc.state.position, goal)


class TestStamps:
    def test_zero_starts_at_the_next_tick(self):
        jtc = controller(now_ns=1000 * MS)
        jtc.accept(message(*GOOD))
        jtc.advance(1200 * MS)
        assert abs(jtc.state.position[0] - HOME[0]) < 0.01
        jtc.advance(1201 * MS)
        np.testing.assert_allclose(jtc.state.position, HOME + 0.01)

    def test_a_future_stamp_blends_from_the_command_until_its_first_point(self):
        jtc = controller()
        jtc.accept(message(point(200, 0.01), stamp_ns=1000 * MS))
        jtc.advance(600 * MS)
        np.testing.assert_allclose(jtc.state.position, HOME + 0.005, atol=1e-5)
        jtc.advance(1200 * MS)
        np.testing.assert_allclose(jtc.state.position, HOME + 0.01)

    def test_points_that_are_past_are_skipped_without_a_blend(self):
        jtc = controller(now_ns=1000 * MS)
        jtc.accept(message(point(100, 0.1), point(300, 0.1), stamp_ns=800 * MS))
        jtc.advance(1001 * MS)
        np.testing.assert_allclose(jtc.state.position, HOME + 0.1)
        assert jtc.violations["velocity"] == 1

    @pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
    def test_a_new_trajectory_replaces_the_old_with_a_step_unless_told_the_state(self, told):
        jtc = controller()
        jtc.accept(message(*GOOD))
        jtc.advance(150 * MS)
        state = jtc.state
        here = TrajectoryPoint(0, state.position, state.velocity, state.acceleration)
        points = [here] * told + [point(300, -0.02)]
        jtc.accept(message(*points, stamp_ns=150 * MS))
        _, positions, _ = jtc.advance(800 * MS)
        assert np.abs(np.diff(positions, axis=0)).max() < 4e-4
        np.testing.assert_allclose(jtc.state.position, HOME - 0.02)
        assert bool(jtc.violations) is not told

    def test_holds_the_end(self):
        jtc = controller()
        jtc.accept(message(*GOOD))
        jtc.advance(2000 * MS)
        assert not jtc.active
        np.testing.assert_allclose(jtc.state.position, HOME + 0.02)
        assert not jtc.state.velocity.any()


class TestInterpolation:
    def run(self, *points):
        jtc = controller()
        jtc.accept(message(*points, stamp_ns=1))
        ticks, positions, velocities = jtc.advance(600 * MS)
        return ticks, positions - HOME, velocities

    def test_positions_alone_are_joined_by_lines(self):
        ticks, positions, velocities = self.run(
            TrajectoryPoint(200 * MS, HOME), TrajectoryPoint(400 * MS, HOME + 0.02)
        )
        inside = (ticks > 201 * MS) & (ticks < 400 * MS)
        np.testing.assert_allclose(velocities[inside], 0.1, rtol=1e-9)
        np.testing.assert_allclose(positions[ticks == 300 * MS], 0.01, rtol=1e-4)

    def test_with_velocities_by_cubics(self):
        ticks, positions, _ = self.run(
            TrajectoryPoint(200 * MS, HOME, ZERO), TrajectoryPoint(400 * MS, HOME + 0.02, ZERO)
        )
        s = (50 * MS - 1) / (200 * MS)
        expected = 0.02 * (3 * s**2 - 2 * s**3)
        np.testing.assert_allclose(positions[ticks == 250 * MS][0], expected)

    def test_with_accelerations_by_quintics(self):
        ticks, positions, _ = self.run(point(200), point(400, 0.02))
        s = (50 * MS - 1) / (200 * MS)
        expected = 0.02 * (10 * s**3 - 15 * s**4 + 6 * s**5)
        np.testing.assert_allclose(positions[ticks == 250 * MS][0], expected)

    @given(
        st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=5),
        st.lists(st.floats(-0.2, 0.2), min_size=5, max_size=5),
        st.integers(20, 300),
    )
    def test_passes_through_every_point_with_its_velocity(self, offsets, speeds, period):
        points = [
            point((i + 1) * period, offset, speeds[i] if i + 1 < len(offsets) else 0.0)
            for i, offset in enumerate(offsets)
        ]
        jtc = controller(now_ns=MS)
        jtc.accept(message(*points, stamp_ns=MS))
        for p in points:
            jtc.advance(MS + p.time_from_start_ns)
            np.testing.assert_allclose(jtc.state.position, p.positions, atol=1e-9)
            np.testing.assert_allclose(jtc.state.velocity, p.velocities, atol=1e-7)


class TestViolations:
    @pytest.mark.parametrize(
        ("points", "kind"),
        [
            ((point(10_000, 3.0),), "position"),
            ((TrajectoryPoint(100 * MS, HOME + 0.4, ZERO),), "velocity"),
            ((TrajectoryPoint(200 * MS, HOME + 0.1, ZERO),), "acceleration"),
            ((TrajectoryPoint(200 * MS, HOME + 0.02),), "jerk"),
        ],
    )
    def test_counts_the_kind_of_limit_that_is_broken(self, points, kind):
        jtc = controller()
        jtc.accept(message(*points))
        jtc.advance(10_500 * MS)
        assert jtc.violations[kind] > 0

    def test_a_gentle_motion_breaks_none(self):
        jtc = controller()
        jtc.accept(message(point(1000, 0.1)))
        jtc.advance(2000 * MS)
        assert not jtc.violations

    def test_sees_the_limit_that_depends_on_position(self):
        near_stop = HOME.copy()
        near_stop[0] = FR3.limits.position_max[0] - 0.04
        jtc = JointTrajectoryController(FR3.joint_names, FR3.limits, near_stop)
        end = near_stop.copy()
        end[0] += 0.03
        jtc.accept(message(TrajectoryPoint(100 * MS, end, ZERO)))
        jtc.advance(200 * MS)
        peak = 1.5 * 0.03 / 0.1  # of the cubic
        assert peak < FR3.limits.velocity[0]
        assert jtc.violations["velocity"] > 0


class TestState:
    def test_continues_bit_by_bit(self):
        jtc, other = controller(), controller()
        jtc.accept(message(*GOOD))
        jtc.advance(123 * MS)
        other.set_state(jtc.get_state())
        for a, b in zip(jtc.advance(500 * MS), other.advance(500 * MS), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_refuses_what_is_no_state(self):
        with pytest.raises(ConfigurationError, match="controller state"):
            controller().set_state(np.zeros(50))
