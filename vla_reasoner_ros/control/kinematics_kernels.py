"""The arithmetic of :mod:`vla_reasoner_ros.control.kinematics`, compiled: a chunk takes many steps.

A chain is an array (J + 1, 3, 11), for each joint what precedes it in the frame of the joint
before. The joint's rotation is ``constant + sin(q) sine + (1 - cos(q)) versine`` (Rodrigues'
formula); these three, the offset (m) and the axis stand side by side. The last row is the tool,
which has no axis and does not turn.
"""

from __future__ import annotations

import math

import numpy as np

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.types import FloatArray

MAX_ITERATIONS = 40
STAGNATION = 6
"""Iterations without progress after which the pose counts as out of reach."""
PROGRESS = 0.99
"""Share of the best error so far below which an error is progress."""
CONVERGED_POSITION = 1e-5
"""m"""
CONVERGED_ROTATION = 3e-5
"""rad"""
CONVERGED_STEP = 1e-12
"""rad"""
MAX_ITERATION_STEP = 0.3
"""rad, keeps Newton steps inside the linearisation."""
DAMPING_THRESHOLD = 0.04
"""Smallest singular value of the Jacobian below which damping sets in."""
DAMPING = 0.04
"""Largest damping factor, reached at the singularity."""
NEAR_HALF_TURN = -0.9
"""Cosine of the angle beyond which the skew part of a rotation says too little of its axis."""


@kernel
def _cross(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


@kernel
def _turn(rotation: FloatArray, columns: FloatArray, turned: FloatArray) -> None:
    """``turned = rotation @ columns``, which a library takes longer to begin than to compute."""
    for row in range(3):
        for column in range(columns.shape[1]):
            turned[row, column] = (
                rotation[row, 0] * columns[0, column]
                + rotation[row, 1] * columns[1, column]
                + rotation[row, 2] * columns[2, column]
            )


@kernel
def place(
    chain: FloatArray, joints: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Where the TCP is and how every joint moves it.

    Args:
        chain: (J + 1, 3, 11).
        joints: (J,) rad.

    Returns:
        Position (3,), m, rotation (3, 3), and the Jacobian's linear (3, J) and angular (3, J) part.
    """
    count = len(joints)
    origins, linear, angular = np.empty((count, 3)), np.empty((3, count)), np.empty((3, count))
    position, rotation, placed = np.zeros(3), np.eye(3), np.empty((3, 11))
    for joint in range(count + 1):
        _turn(rotation, chain[joint], placed)
        position += placed[:, 9]
        rotation[:] = placed[:, :3]
        if joint < count:
            origins[joint], angular[:, joint] = position, placed[:, 10]
            sine, versine = math.sin(joints[joint]), 1.0 - math.cos(joints[joint])
            rotation += sine * placed[:, 3:6] + versine * placed[:, 6:9]
    for joint in range(count):
        linear[:, joint] = _cross(angular[:, joint], position - origins[joint])
    return position, rotation, linear, angular


@kernel
def twists(
    chain: FloatArray, joints: FloatArray, velocities: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """TCP positions (M, 3), m, and twists (M, 6), linear over angular, of many states.

    Args:
        chain: (J + 1, 3, 11).
        joints: (M, J) rad.
        velocities: (M, J) rad/s.
    """
    positions, found = np.empty((len(joints), 3)), np.zeros((len(joints), 6))
    for state in range(len(joints)):
        position, _, linear, angular = place(chain, joints[state])
        positions[state] = position
        for joint in range(joints.shape[1]):
            found[state, :3] += velocities[state, joint] * linear[:, joint]
            found[state, 3:] += velocities[state, joint] * angular[:, joint]
    return positions, found


@kernel
def rotation_vector(rotation: FloatArray) -> FloatArray:
    """Axis times angle (3,), rad, at most half a turn, of a rotation matrix (3, 3)."""
    skew = 0.5 * np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine = math.sqrt(np.square(skew).sum())
    cosine = 0.5 * (rotation[0, 0] + rotation[1, 1] + rotation[2, 2] - 1.0)
    angle = math.atan2(sine, cosine)
    if cosine > NEAR_HALF_TURN:
        return skew * (angle / sine if sine > 0.0 else 1.0)
    # The symmetric part is cos(angle) I + (1 - cos(angle)) axis axis^T.
    outer = 0.5 * (rotation + rotation.T) - cosine * np.eye(3)
    largest = 0
    for row in range(1, 3):
        if outer[row, row] > outer[largest, largest]:
            largest = row
    axis = outer[largest] / math.sqrt(np.square(outer[largest]).sum())
    return axis * (-angle if (axis * skew).sum() < 0.0 else angle)


@kernel
def damped_solve(jacobian: FloatArray, error: FloatArray) -> FloatArray:
    """``(J J^T + damping^2 I)^-1 e``, damped along the directions that are nearly singular."""
    squares, vectors = np.linalg.eigh(jacobian @ jacobian.T)
    squares = np.maximum(squares, 0.0)
    lack = np.maximum(1.0 - np.sqrt(squares) / DAMPING_THRESHOLD, 0.0)
    return vectors @ ((vectors.T @ error) / (squares + (DAMPING * lack) ** 2 + 1e-15))


@kernel
def _shortened(step: FloatArray) -> FloatArray:
    """A step whose largest element is within what the linearisation bears."""
    largest = np.abs(step).max()
    return step * (MAX_ITERATION_STEP / largest) if largest > MAX_ITERATION_STEP else step


@kernel
def _bounded_step(
    jacobian: FloatArray,
    error: FloatArray,
    joints: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
) -> FloatArray:
    """One damped Newton step (J,): joints that it takes past a bound stop there, others make up."""
    free = np.ones(len(joints), np.bool_)
    step = _shortened(jacobian.T @ damped_solve(jacobian, error))
    while True:
        moved = joints + step
        outside = free & ((moved < lower) | (moved > upper))
        free &= ~outside
        if not outside.any() or not free.any():
            return np.minimum(np.maximum(moved, lower), upper) - joints
        step = np.where(outside, np.minimum(np.maximum(moved, lower), upper) - joints, step)
        columns = jacobian * free
        left = error - jacobian @ np.where(free, 0.0, step)
        step = _shortened(np.where(free, columns.T @ damped_solve(columns, left), step))


@kernel
def toward_home(chain: FloatArray, joints: FloatArray, wish: FloatArray) -> FloatArray:
    """The part (J,) of a joint motion that does not move the TCP."""
    _, _, linear, angular = place(chain, joints)
    jacobian = np.concatenate((linear, angular))
    return wish - jacobian.T @ damped_solve(jacobian, jacobian @ wish)


@kernel
def reach(
    chain: FloatArray,
    position: FloatArray,
    rotation: FloatArray,
    joints: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
) -> tuple[FloatArray, float, float, int]:
    """Newton's way to a pose.

    Args:
        chain: (J + 1, 3, 11).
        position: (3,) m.
        rotation: (3, 3).
        joints: (J,) rad, where to start.
        lower: (J,) rad, bounds that the start respects.
        upper: (J,) rad.

    Returns:
        The best joints (J,), rad, what is left to the pose in m and in rad, and the iteration that
        found them; infinite errors where numbers are none.
    """
    best, best_distance, best_angle, best_iteration = joints, np.inf, np.inf, 0
    error = np.empty(6)
    for iteration in range(MAX_ITERATIONS):
        at, turned, linear, angular = place(chain, joints)
        error[:3] = position - at
        error[3:] = rotation_vector(rotation @ turned.T)
        distance = math.sqrt(np.square(error[:3]).sum())
        angle = math.sqrt(np.square(error[3:]).sum())
        if not np.isfinite(distance + angle):
            break
        if distance + angle < PROGRESS * (best_distance + best_angle):
            best, best_distance, best_angle, best_iteration = joints, distance, angle, iteration
        elif iteration - best_iteration > STAGNATION:
            break
        if best_distance < CONVERGED_POSITION and best_angle < CONVERGED_ROTATION:
            break
        step = _bounded_step(np.concatenate((linear, angular)), error, joints, lower, upper)
        if np.abs(step).max() < CONVERGED_STEP:
            break
        joints = joints + step
    return best, best_distance, best_angle, best_iteration
