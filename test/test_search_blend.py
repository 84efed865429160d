"""Blending a searched plan into the policy's chunk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.rotations import from_rotation_vector, to_rotation_vector
from vla_reasoner_ros.search.blend import blend
from vla_reasoner_ros.types import ActionSpec, GripperSpec, Representation

DELTA = ActionSpec(
    "end_effector_delta", ("x", "y", "z", "rx", "ry", "rz", "g"), "base", 0.1, GripperSpec(6)
)
POSE = ActionSpec(
    "end_effector_pose",
    ("g", "x", "y", "z", "qx", "qy", "qz", "qw"),
    "base",
    0.1,
    GripperSpec(0, open=-1.0, closed=1.0),
)
JOINTS = ActionSpec(Representation.JOINT_POSITION, ("a", "b"), "", 0.1)
WIDTH = ActionSpec("joint_delta", ("a", "g"), "", 0.1, GripperSpec(1, binary=False))

alphas = st.floats(0.0, 1.0)
rotation_vectors = arrays(np.float64, 3, elements=st.floats(-1.8, 1.8))


def chunk(spec, steps, seed):
    rng = np.random.default_rng(seed)
    actions = 0.3 * rng.standard_normal((steps, spec.dimensions))
    if spec is POSE:
        actions[:, 4:] = Rotation.random(steps, random_state=seed).as_quat()
    if spec.gripper and spec.gripper.binary:
        both = np.array([spec.gripper.open, spec.gripper.closed])
        actions[:, spec.gripper.index] = both[rng.integers(2, size=steps)]
    return actions


@pytest.mark.parametrize("spec", [DELTA, POSE, JOINTS, WIDTH])
@pytest.mark.parametrize("rule", ["winner", "policy", "nearest"])
@given(seed=st.integers(0, 1000))
def test_alpha_one_is_the_policy_bit_for_bit(spec, rule, seed):
    policy, plan = chunk(spec, 8, seed), chunk(spec, 4, seed + 1)
    np.testing.assert_array_equal(blend(spec, policy, plan, 1.0, rule), policy)


@pytest.mark.parametrize("spec", [DELTA, POSE, JOINTS, WIDTH])
@given(seed=st.integers(0, 1000))
def test_alpha_zero_is_the_plan_and_then_the_policy(spec, seed):
    policy, plan = chunk(spec, 8, seed), chunk(spec, 4, seed + 1)
    blended = blend(spec, policy, plan, 0.0)
    np.testing.assert_array_equal(blended[:4], plan)
    if spec.is_delta:
        np.testing.assert_array_equal(blended[4:], policy[4:])
    else:
        assert len(blended) == 4


@given(alphas, st.integers(0, 1000))
def test_translations_are_linear_and_rotations_take_the_short_way(alpha, seed):
    policy, plan = chunk(DELTA, 4, seed), chunk(DELTA, 4, seed + 1)
    blended = blend(DELTA, policy, plan, alpha)
    np.testing.assert_allclose(
        blended[:, :3], alpha * policy[:, :3] + (1 - alpha) * plan[:, :3], atol=1e-12
    )
    start, end = Rotation.from_rotvec(plan[:, 3:6]), Rotation.from_rotvec(policy[:, 3:6])
    exact = start * Rotation.from_rotvec(alpha * (start.inv() * end).as_rotvec())
    np.testing.assert_allclose(blended[:, 3:6], exact.as_rotvec(), atol=1e-9)


@given(rotation_vectors, rotation_vectors, alphas)
def test_blended_quaternions_stay_unit_and_take_the_short_way(first, second, fraction):
    start, end = (Rotation.from_rotvec(v).as_quat() for v in (first, second))
    for sign in (1.0, -1.0):
        policy, plan = (np.array([[1.0, 0, 0, 0, *q]]) for q in (sign * end, start))
        middle = blend(POSE, policy, plan, fraction)[0, 4:]
        assert np.linalg.norm(middle) == pytest.approx(1.0, abs=1e-12)
        whole = (Rotation.from_quat(start).inv() * Rotation.from_quat(end)).magnitude()
        part = (Rotation.from_quat(start).inv() * Rotation.from_quat(middle)).magnitude()
        assert part == pytest.approx(fraction * whole, abs=1e-6)


@given(rotation_vectors)
def test_rotation_vectors_and_quaternions_are_inverse(vector):
    quaternion = from_rotation_vector(vector)
    turn = Rotation.from_rotvec(vector) * Rotation.from_quat(quaternion).inv()
    assert turn.magnitude() == pytest.approx(0.0, abs=1e-7)
    back = Rotation.from_rotvec(to_rotation_vector(quaternion)) * Rotation.from_rotvec(vector).inv()
    assert back.magnitude() == pytest.approx(0.0, abs=1e-7)


@given(alphas, st.integers(0, 1000))
def test_a_binary_gripper_is_never_blended(alpha, seed):
    policy, plan = chunk(POSE, 4, seed), chunk(POSE, 4, seed + 1)
    for rule, exact in (("winner", plan), ("policy", policy)):
        blended = blend(POSE, policy, plan, alpha, rule)
        expected = policy if alpha == 1.0 else exact
        np.testing.assert_array_equal(blended[:, 0], expected[:, 0])
    nearest = blend(POSE, policy, plan, alpha, "nearest")[:, 0]
    assert set(nearest) <= {-1.0, 1.0}
    if alpha > 0.5:
        np.testing.assert_array_equal(nearest, policy[:, 0])
    if alpha < 0.5:
        np.testing.assert_array_equal(nearest, plan[:, 0])


def test_a_continuous_gripper_is_blended():
    policy, plan = np.array([[0.0, 1.0]]), np.array([[0.0, 0.0]])
    assert blend(WIDTH, policy, plan, 0.25)[0, 1] == pytest.approx(0.25)


@given(alphas, st.integers(0, 1000))
def test_nothing_but_finite_numbers_comes_out(alpha, seed):
    for spec in (DELTA, POSE, JOINTS, WIDTH):
        blended = blend(spec, chunk(spec, 8, seed), chunk(spec, 4, seed + 1), alpha)
        assert np.isfinite(blended).all()
    opposite = np.array([[1.0, 0, 0, 0, 1.0, 0, 0, 0]]), np.array([[1.0, 0, 0, 0, 0, 0, 0, 1.0]])
    assert np.isfinite(blend(POSE, *opposite, alpha)).all()
