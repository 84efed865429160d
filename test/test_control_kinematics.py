import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ConfigurationError, KinematicsError

ROBOTS = {name: load_robot(name) for name in ("fr3", "panda", "ur5e", "ur10e")}
ARMS = {name: Kinematics(robot) for name, robot in ROBOTS.items()}
RIGHT = np.pi / 2


def franka_zero():
    """Stretched up, the flange turned down: heights add and subtract, the hand is turned by 45."""
    height = 0.333 + 0.316 + 0.384 - 0.107 - 0.1034
    return [0.088, 0.0, height], Rotation.from_euler("x", np.pi) * Rotation.from_euler(
        "z", -np.pi / 4
    )


def franka_bent():
    """Upper arm up, forearm forward, hand down."""
    forward = 0.0825 + 0.384 + 0.088
    height = 0.333 + 0.316 + 0.0825 - 0.107 - 0.1034
    return [forward, 0.0, height], franka_zero()[1]


def ur_zero(d1, a2, a3, d4, d5, d6):
    """Stretched along -x, the tool along -y."""
    return [a2 + a3, -(d4 + d6), d1 - d5], Rotation.from_euler("x", RIGHT)


def ur_up(d1, a2, a3, d4, d5, d6):
    """The shoulder lifted: stretched up, the wrist's offset backward."""
    place = [-d5, -(d4 + d6), d1 - a2 - a3]
    return place, Rotation.from_euler("y", RIGHT) * Rotation.from_euler("x", RIGHT)


UR5E = (0.1625, -0.425, -0.3922, 0.1333, 0.0997, 0.0996)
UR10E = (0.1807, -0.6127, -0.57155, 0.17415, 0.11985, 0.11655)
BENT = [0.0, 0.0, 0.0, -RIGHT, 0.0, RIGHT, 0.0]
UP = [0.0, -RIGHT, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arm", "joints", "pose"),
    [
        ("fr3", [0.0] * 7, franka_zero()),
        ("fr3", BENT, franka_bent()),
        ("panda", [0.0] * 7, franka_zero()),
        ("panda", BENT, franka_bent()),
        ("ur5e", [0.0] * 6, ur_zero(*UR5E)),
        ("ur5e", UP, ur_up(*UR5E)),
        ("ur10e", [0.0] * 6, ur_zero(*UR10E)),
        ("ur10e", UP, ur_up(*UR10E)),
    ],
)
def test_poses_computed_by_hand_from_the_makers_tables(arm, joints, pose):
    position, quaternion = ARMS[arm].forward(np.array(joints))
    np.testing.assert_allclose(position, pose[0], atol=1e-9)
    assert (Rotation.from_quat(quaternion).inv() * pose[1]).magnitude() < 1e-9


@pytest.mark.parametrize("arm", ROBOTS)
def test_at_home_the_tool_points_down(arm):
    _, quaternion = ARMS[arm].forward(ROBOTS[arm].home)
    tool = Rotation.from_quat(quaternion).apply([0.0, 0.0, 1.0])
    np.testing.assert_allclose(tool, [0.0, 0.0, -1.0], atol=1e-3)


def within(robot, fraction):
    """Joint positions from fractions of the range."""
    low, high = robot.limits.position_min, robot.limits.position_max
    return low + np.array(fraction[: robot.joints]) * (high - low)


fractions = st.lists(st.floats(0.02, 0.98), min_size=7, max_size=7)
arms = st.sampled_from(sorted(ROBOTS))


@given(arms, fractions, st.integers(0, 6))
def test_the_jacobian_is_the_derivative_of_the_pose(arm, fraction, joint):
    robot, kinematics = ROBOTS[arm], ARMS[arm]
    joints = within(robot, fraction)
    joint %= robot.joints
    step = np.zeros(robot.joints)
    step[joint] = 1e-6
    before, after = kinematics.forward(joints - step), kinematics.forward(joints + step)
    column = kinematics.jacobian(joints)[:, joint]
    np.testing.assert_allclose((after[0] - before[0]) / 2e-6, column[:3], atol=1e-6)
    turn = Rotation.from_quat(after[1]) * Rotation.from_quat(before[1]).inv()
    np.testing.assert_allclose(turn.as_rotvec() / 2e-6, column[3:], atol=1e-6)


@given(arms, fractions, st.integers(0, 2**32 - 1))
def test_many_states_at_once_give_the_same_positions_and_twists(arm, fraction, seed):
    robot, kinematics = ROBOTS[arm], ARMS[arm]
    joints = within(robot, fraction)
    rates = np.random.default_rng(seed).normal(size=robot.joints)
    positions, twists = kinematics.twists(np.stack([robot.home, joints]), np.stack([rates, rates]))
    np.testing.assert_allclose(positions[1], kinematics.forward(joints)[0], atol=1e-12)
    np.testing.assert_allclose(twists[1], kinematics.jacobian(joints) @ rates, atol=1e-12)


@given(arms, fractions, st.integers(0, 2**32 - 1))
def test_inverse_returns_to_a_pose_that_the_arm_can_take(arm, fraction, seed):
    robot, kinematics = ROBOTS[arm], ARMS[arm]
    seed_joints = within(robot, fraction)
    moved = seed_joints + np.random.default_rng(seed).normal(size=robot.joints) * 0.02
    target = kinematics.forward(
        np.clip(moved, robot.limits.position_min, robot.limits.position_max)
    )
    solution = kinematics.inverse(*target, seed_joints)
    position, quaternion = kinematics.forward(solution.joints)
    assert np.linalg.norm(position - target[0]) <= 1e-3
    turn = Rotation.from_quat(quaternion).inv() * Rotation.from_quat(target[1])
    assert turn.magnitude() <= 5e-3 + 1e-9
    assert np.all(solution.joints >= robot.limits.position_min)
    assert np.all(solution.joints <= robot.limits.position_max)


@pytest.mark.parametrize("arm", ROBOTS)
def test_a_straight_line_is_followed_without_a_jump(arm):
    robot, kinematics = ROBOTS[arm], ARMS[arm]
    position, quaternion = kinematics.forward(robot.home)
    steps = 40
    positions = position + np.linspace(0.005, 0.2, steps)[:, None] * [0.0, 0.6, -0.8]
    path = kinematics.inverse_path(
        positions, np.repeat(quaternion[None], steps, axis=0), robot.home, posture_gain=0.02
    )
    changes = np.diff(path, axis=0, prepend=robot.home[None])
    assert np.abs(changes).max() < 0.05
    assert np.abs(np.diff(changes[1:], axis=0)).max() < 0.005


def test_a_redundant_arm_goes_back_toward_home_without_moving_the_tool():
    robot, kinematics = ROBOTS["fr3"], ARMS["fr3"]
    jacobian = kinematics.jacobian(robot.home)
    still = np.linalg.svd(jacobian)[2][-1]
    joints = robot.home + 0.3 * still
    pose = kinematics.forward(joints)
    away = kinematics.inverse(*pose, joints).joints
    for _ in range(50):
        joints = kinematics.inverse(*pose, joints, posture_gain=0.1).joints
    assert np.linalg.norm(joints - robot.home) < 0.5 * np.linalg.norm(away - robot.home)
    np.testing.assert_allclose(kinematics.forward(joints)[0], pose[0], atol=1e-3)


@pytest.mark.parametrize(
    "place", [[3.0, 0.0, 0.5], [0.0, 0.0, 1e300], [np.nan, 0.0, 0.0], [0.05, 0.0, 0.35]]
)
def test_a_pose_out_of_reach_is_refused_by_name(place):
    kinematics = ARMS["fr3"]
    _, quaternion = kinematics.forward(ROBOTS["fr3"].home)
    with pytest.raises(KinematicsError, match=r"fr3: .* out of reach"):
        kinematics.inverse(np.array(place), quaternion, ROBOTS["fr3"].home)


def test_at_a_singularity_steps_stay_small():
    kinematics = ARMS["ur5e"]
    stretched = np.array([0.0, -0.5, 1e-4, 0.0, 0.3, 0.0])
    position, quaternion = kinematics.forward(stretched)
    inward = position * (1.0 - 0.002 / np.linalg.norm(position))
    solution = kinematics.inverse(inward, quaternion, stretched, position_tolerance=0.005)
    assert np.abs(solution.joints - stretched).max() < 0.5
    assert np.isfinite(solution.joints).all()


URDF = """<robot name="arm">
  <link name="base"/><link name="upper"/><link name="lower"/><link name="tip"/>
  <joint name="first" type="revolute">
    <parent link="base"/><child link="upper"/><origin xyz="0 0 {height}"/><axis xyz="0 1 0"/>
    <limit lower="-3" upper="3" effort="1" velocity="1"/>
  </joint>
  <joint name="finger" type="prismatic">
    <parent link="upper"/><child link="lower"/><origin xyz="0 0 0.4"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="1" effort="1" velocity="1"/>
  </joint>
  <joint name="fixed" type="fixed">
    <parent link="lower"/><child link="tip"/><origin xyz="0 0 0.1"/>
  </joint>
</robot>"""


def one_joint_robot(tcp="tip"):
    from dataclasses import replace

    from vla_reasoner_ros.control.robots import FixedFrame

    fr3 = ROBOTS["fr3"]
    limits = replace(
        fr3.limits,
        **{
            name: getattr(fr3.limits, name)[:1]
            for name in ("position_min", "position_max", "velocity", "acceleration", "jerk")
        },
    )
    frame = FixedFrame(tcp, np.zeros(3), np.zeros(3))
    return replace(
        fr3, joint_names=("first",), dh=fr3.dh[:1], home=np.zeros(1), limits=limits,
        tool_frames=(frame,),
    )  # fmt: skip


def test_a_urdf_replaces_the_table_and_other_joints_are_locked():
    kinematics = Kinematics(one_joint_robot(), URDF.format(height=0.7))
    position, _ = kinematics.forward(np.array([RIGHT]))
    np.testing.assert_allclose(position, [0.5, 0.0, 0.7], atol=1e-12)
    positions, twists = kinematics.twists(np.array([[RIGHT]]), np.array([[1.0]]))
    np.testing.assert_allclose(positions[0], position, atol=1e-12)
    np.testing.assert_allclose(twists[0], [0.0, 0.0, -0.5, 0.0, 1.0, 0.0], atol=1e-12)


def test_a_urdf_without_the_joints_or_the_tool_is_refused():
    with pytest.raises(ConfigurationError, match=r"found no fr3_joint1"):
        Kinematics(ROBOTS["fr3"], URDF.format(height=0.7))
    with pytest.raises(ConfigurationError, match=r"found no frame hand"):
        Kinematics(one_joint_robot("hand"), URDF.format(height=0.7))
    with pytest.raises(ConfigurationError, match=r"robot_description of fr3"):
        Kinematics(ROBOTS["fr3"], "<robot")
