import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.decode import (
    JumpError,
    gripper_openings,
    joint_waypoints,
    require_convention,
)
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.parameters import ChunkParameters, GripperParameters
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError, KinematicsError
from vla_reasoner_ros.types import ActionChunk, ActionSpec, GripperSpec, Representation

FR3 = load_robot("fr3")
ARM = Kinematics(FR3)
HOME = FR3.home
DELTA = ("x", "y", "z", "rx", "ry", "rz")
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
NAMES = {Representation.EE_DELTA: DELTA, Representation.EE_POSE: POSE}
PRECISE = ChunkParameters(posture_gain=0.0)


def make(representation, motion, gripper=None, values=None, frame="base", names=None):
    names = names or NAMES.get(representation, FR3.joint_names)
    actions = np.asarray(motion, dtype=float)
    if gripper is not None:
        actions = np.insert(actions, gripper.index, values, axis=1)
        names = (*names[: gripper.index], "gripper", *names[gripper.index :])
    frame = frame if representation in NAMES else ""
    return ActionChunk(ActionSpec(representation, names, frame, 0.1, gripper), actions, 0)


def decode(chunk, base=HOME, first=0, parameters=PRECISE):
    return joint_waypoints(chunk, ARM, base, first, parameters)


def test_joint_positions_are_taken_as_they_are_from_the_first_that_is_ahead():
    motion = HOME + np.arange(5.0)[:, None] * 0.01
    chunk = make(Representation.JOINT_POSITION, motion)
    np.testing.assert_array_equal(decode(chunk, first=2), motion[2:])


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_joint_deltas_add_up_from_the_observation_whatever_is_past(first, seed):
    motion = np.random.default_rng(seed).normal(size=(5, 7)) * 0.02
    base = HOME + 0.1
    chunk = make(Representation.JOINT_DELTA, motion)
    expected = base + np.cumsum(motion, axis=0)
    np.testing.assert_allclose(decode(chunk, base=base, first=first), expected[first:])


@given(st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_end_effector_deltas_displace_the_previous_target_in_the_base_frame(first, seed):
    motion = np.random.default_rng(seed).normal(size=(4, 6)) * 0.01
    position, quaternion = ARM.forward(HOME)
    rotation = Rotation.from_quat(quaternion)
    waypoints = decode(make(Representation.EE_DELTA, motion), first=first)
    for index, delta in enumerate(motion):
        position = position + delta[:3]
        rotation = Rotation.from_rotvec(delta[3:]) * rotation
        if index >= first:
            reached, turned = ARM.forward(waypoints[index - first])
            np.testing.assert_allclose(reached, position, atol=2e-4)
            assert (Rotation.from_quat(turned) * rotation.inv()).magnitude() < 2e-3


def test_end_effector_poses_are_reached_with_the_gripper_anywhere_in_the_action():
    position, quaternion = ARM.forward(HOME)
    target = position + np.array([0.01, 0.02, -0.03])
    motion = [[*target, *quaternion]]
    chunk = make(Representation.EE_POSE, motion, GripperSpec(0), 1.0)
    reached, _ = ARM.forward(decode(chunk)[0])
    np.testing.assert_allclose(reached, target, atol=1e-4)


def test_a_quaternion_and_its_negative_mean_the_same():
    position, quaternion = ARM.forward(HOME)
    both = [[*position, *quaternion], [*position, *-quaternion]]
    waypoints = decode(make(Representation.EE_POSE, both))
    np.testing.assert_allclose(waypoints[0], waypoints[1], atol=1e-4)


def test_decoding_twice_from_the_same_observation_gives_the_same_targets():
    motion = np.full((6, 6), 0.01)
    chunk = make(Representation.EE_DELTA, motion)
    whole = decode(chunk)
    later = decode(chunk, first=3)
    for early, late in zip(whole[3:], later, strict=True):
        np.testing.assert_allclose(ARM.forward(early)[0], ARM.forward(late)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("representation", "column", "value", "message"),
    [
        (Representation.EE_DELTA, 1, 0.5, r"translation step 2 is 0.5 m, allowed is 0.15 m"),
        (Representation.EE_DELTA, 4, -2.0, r"rotation step 2 is 2 rad"),
        (Representation.EE_DELTA, 0, 1e308, r"translation step 2 is"),
        (Representation.JOINT_DELTA, 6, 1.0, r"joint step 2 is 1 rad, allowed is 0.6 rad"),
        (Representation.JOINT_DELTA, 6, -1e300, r"joint step 2 is"),
    ],
)
def test_a_step_that_is_too_large_is_refused(representation, column, value, message):
    motion = np.zeros((4, 6 if representation is Representation.EE_DELTA else 7))
    motion[2, column] = value
    with pytest.raises(JumpError, match=message):
        decode(make(representation, motion))


@pytest.mark.parametrize("quaternion", [[0.0] * 4, [1.0, 1.0, 0.0, 0.0], [1e200] * 4])
def test_a_quaternion_that_is_none_is_refused(quaternion):
    with pytest.raises(ActionChunkError, match=r"quaternion at step 0 has norm"):
        decode(make(Representation.EE_POSE, [[0.3, 0.0, 0.5, *quaternion]]))


def test_a_pose_out_of_reach_is_refused_with_its_number():
    motion = np.zeros((3, 6))
    motion[:, 0] = 0.14
    with pytest.raises(KinematicsError, match=r"pose 2 of 3: fr3"):
        decode(make(Representation.EE_DELTA, motion))


# Conventions.


def test_the_robots_own_conventions_are_taken():
    for representation in Representation:
        width = len(NAMES.get(representation, FR3.joint_names))
        chunk = make(representation, np.zeros((1, width)), GripperSpec(width), 1.0)
        require_convention(chunk.spec, FR3)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (
            make(Representation.EE_DELTA, np.zeros((1, 6)), frame="camera"),
            r"takes the frame 'base', the chunk has 'camera'",
        ),
        (
            make(Representation.JOINT_DELTA, np.zeros((1, 2)), names=("a", "b")),
            r"fr3 takes \('fr3_joint1', .*, the chunk has \('a', 'b'\)",
        ),
        (
            make(Representation.JOINT_POSITION, np.zeros((1, 7)), names=FR3.joint_names[::-1]),
            r"the chunk has \('fr3_joint7'",
        ),
        (
            make(Representation.EE_DELTA, np.zeros((1, 6)), names=DELTA[3:] + DELTA[:3]),
            r"the chunk has \('rx'",
        ),
    ],
)
def test_another_convention_is_refused(chunk, message):
    with pytest.raises(ConfigurationError, match=message):
        require_convention(chunk.spec, FR3)


def test_a_gripper_command_for_an_arm_without_one_is_refused():
    ur5e = load_robot("ur5e")
    spec = ActionSpec(
        Representation.JOINT_POSITION, (*ur5e.joint_names, "gripper"), "", 0.1, GripperSpec(6)
    )
    with pytest.raises(ConfigurationError, match=r"commands a gripper and ur5e has none"):
        require_convention(spec, ur5e)


# The gripper.


def openings(values, gripper, **parameters):
    chunk = make(Representation.JOINT_DELTA, np.zeros((len(values), 7)), gripper, values)
    return gripper_openings(chunk, GripperParameters(**parameters)).tolist()


def test_a_binary_gripper_is_open_or_closed():
    assert openings([0.0, 0.4, 0.6, 1.0, 1.05], GripperSpec(7)) == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert openings([0.6, 0.8], GripperSpec(7), threshold=0.7) == [0.0, 1.0]


def test_the_policys_own_numbers_are_undone():
    inverted = GripperSpec(7, open=-1.0, closed=1.0, binary=False)
    assert openings([-1.0, 0.0, 1.0], inverted) == [1.0, 0.5, 0.0]


def test_an_opening_far_out_of_range_is_refused():
    with pytest.raises(ActionChunkError, match=r"gripper at step 1 is 1.2, expected 0 \(closed\)"):
        openings([0.5, 1.2], GripperSpec(7))
    with pytest.raises(ActionChunkError, match=r"gripper at step 0 is -3"):
        openings([-3.0], GripperSpec(7, binary=False))


def test_without_a_gripper_nothing_is_commanded():
    chunk = make(Representation.JOINT_DELTA, np.zeros((1, 7)))
    assert gripper_openings(chunk, GripperParameters()) is None
