import numpy as np
import pinocchio as pin
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control import kinematics_kernels as kernels
from vla_reasoner_ros.control import spline_kernels
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.parameters import MotionParameters
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.trajectory import MotionState

FULL = load_robot("fr3", "full")
seeds = st.integers(0, 10_000)


def turned(seed, angle):
    axis = np.random.default_rng(seed).normal(size=3)
    return angle * axis / np.linalg.norm(axis)


@given(seeds, st.floats(0.0, np.pi - 1e-9) | st.floats(0.0, 1e-6))
def test_the_vector_of_a_rotation_is_its_axis_times_its_angle(seed, angle):
    vector = turned(seed, angle)
    found = kernels.rotation_vector(Rotation.from_rotvec(vector).as_matrix())
    np.testing.assert_allclose(found, vector, atol=1e-12)


@given(seeds, st.floats(-1e-9, 1e-9))
def test_the_vector_of_half_a_turn_points_one_way_or_the_other(seed, beyond):
    rotation = Rotation.from_rotvec(turned(seed, np.pi + beyond)).as_matrix()
    found = kernels.rotation_vector(rotation)
    assert np.linalg.norm(found) <= np.pi + 1e-12
    np.testing.assert_allclose(Rotation.from_rotvec(found).as_matrix(), rotation, atol=1e-12)


@given(seeds, st.floats(0.1, 3.0))
def test_far_from_singularities_nothing_is_damped(seed, smallest):
    rng = np.random.default_rng(seed)
    left, right = np.linalg.qr(rng.normal(size=(6, 6)))[0], np.linalg.qr(rng.normal(size=(7, 7)))[0]
    jacobian = np.ascontiguousarray((left * np.linspace(smallest, 4.0, 6)) @ right[:6])
    error = rng.normal(size=6)
    found = jacobian.T @ kernels.damped_solve(jacobian, error)
    np.testing.assert_allclose(jacobian @ found, error, atol=1e-9)
    np.testing.assert_allclose(found, np.linalg.pinv(jacobian) @ error, atol=1e-9)


@given(seeds, st.floats(0.0, 1e-3))
def test_at_a_singularity_the_step_stays_in_proportion_to_the_error(seed, smallest):
    rng = np.random.default_rng(seed)
    left, right = np.linalg.qr(rng.normal(size=(6, 6)))[0], np.linalg.qr(rng.normal(size=(7, 7)))[0]
    values = np.array([smallest, 0.3, 0.5, 1.0, 1.5, 2.0])
    jacobian = np.ascontiguousarray((left * values) @ right[:6])
    error = rng.normal(size=6)
    found = jacobian.T @ kernels.damped_solve(jacobian, error)
    # s / (s^2 + d^2) is at most 1 / (2 d), for a damping d of 0.95 of the largest or more.
    assert np.linalg.norm(found) <= np.linalg.norm(error) * max(1 / 0.3, 1 / (1.9 * 0.04))


def test_numbers_that_are_none_reach_nothing():
    robot = load_robot("ur5e")
    chain = Kinematics(robot).chain
    limits, rotation = robot.limits, np.full((3, 3), np.nan)
    for place in (np.zeros(3), np.full(3, np.nan)):
        _, distance, angle, _ = kernels.reach(
            chain, place, rotation, robot.home, limits.position_min, limits.position_max
        )
        assert np.isinf([distance, angle]).all()


def test_the_chain_of_a_tool_that_is_turned_is_pinocchios():
    robot = load_robot("fr3")
    kinematics = Kinematics(robot)
    position, rotation, linear, angular = kernels.place(kinematics.chain, robot.home)
    expected = kinematics.forward(robot.home)
    np.testing.assert_allclose(position, expected[0], atol=1e-12)
    np.testing.assert_allclose(rotation, pin.Quaternion(expected[1]).matrix(), atol=1e-12)
    jacobian = kinematics.jacobian(robot.home)
    np.testing.assert_allclose(np.vstack([linear, angular]), jacobian, atol=1e-12)


def test_no_motion_of_a_planner_waits_for_the_compiler():
    compiled = (
        spline_kernels.spline_knots,
        spline_kernels.kicked_spline_knots,
        spline_kernels.interval_excess,
        kernels.twists,
        kernels.toward_home,
        kernels.reach,
        kernels.damped_solve,
    )
    for robot in (FULL, load_robot("ur5e")):
        kinematics = Kinematics(robot)
        planner = MotionPlanner(robot, kinematics, MotionParameters())
        before = [list(kernel.signatures) for kernel in compiled]
        assert all(before)
        frozen = robot.home.copy()
        frozen.setflags(write=False)
        way = np.asfortranarray(np.tile(robot.home, (4, 1)) + 0.02 * np.arange(1.0, 5.0)[:, None])
        moving = MotionState(frozen, 0.1 * np.ones(robot.joints), np.zeros(robot.joints))
        for start in (MotionState.at_rest(robot.home), moving):
            planner.through(start, way, np.full(4, 0.1))
        position, quaternion = kinematics.forward(frozen)
        quaternion.setflags(write=False)
        poses = np.asfortranarray(position + np.zeros((3, 3))), [quaternion] * 3
        kinematics.inverse_path(*poses, frozen, posture_gain=0.1)
        kinematics.closing(frozen, list(frozen))
        assert [list(kernel.signatures) for kernel in compiled] == before
