"""From a chunk of any representation to joint waypoints and gripper openings."""

from __future__ import annotations

import numpy as np
import pinocchio as pin

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.parameters import ChunkParameters, GripperParameters
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, Representation


class JumpError(ActionChunkError):
    """One action asks for a larger step than is allowed."""


EE_NAMES = {
    Representation.EE_DELTA: ("x", "y", "z", "rx", "ry", "rz"),
    Representation.EE_POSE: ("x", "y", "z", "qx", "qy", "qz", "qw"),
}
QUATERNION_TOLERANCE = 1e-2  # of the norm from 1; beyond, the numbers are no rotation


def require_convention(spec: ActionSpec, robot: Robot) -> None:
    """Refuse a convention that this robot cannot follow.

    Raises:
        ConfigurationError: the motion dimensions are not the robot's joints in order, or not an
            end-effector pose in the robot's base frame by its usual names.
    """
    names = tuple(spec.names[index] for index in spec.motion_indices)
    expected = EE_NAMES.get(spec.representation, robot.joint_names)
    if names != expected:
        raise ConfigurationError(
            f"action convention {spec.representation.value}: {robot.name} takes {expected}, the "
            f"chunk has {names}"
        )
    if spec.representation in EE_NAMES and spec.frame != robot.base_frame:
        raise ConfigurationError(
            f"action convention {spec.representation.value}: {robot.name} takes the frame "
            f"{robot.base_frame!r}, the chunk has {spec.frame!r}"
        )
    if spec.gripper is not None and robot.gripper_opening is None:
        raise ConfigurationError(
            f"action convention: the chunk commands a gripper and {robot.name} has none"
        )


def joint_waypoints(
    chunk: ActionChunk,
    kinematics: Kinematics,
    base: FloatArray,
    first: int,
    parameters: ChunkParameters,
    margin: float = 0.0,
) -> FloatArray:
    """The joint positions that actions ``first`` to ``H - 1`` lead to.

    Displacements add up from ``base``, the joints where the observation was made, over ALL actions
    of the chunk, those before ``first`` included: a delta chunk is decoded once, against what the
    policy saw. An end-effector displacement gives the target
    ``(p_{i+1}, R_{i+1}) = (p_i + dp, exp(dr) R_i)``.

    Args:
        chunk: the actions; its convention has been checked.
        kinematics: the arm's.
        base: (J,) rad, commanded (or measured) joints at the observation's stamp; inverse
            kinematics starts from them.
        first: the first action that is still ahead.
        parameters: tolerances and largest steps.
        margin: distance that inverse kinematics keeps from the position limits, rad.

    Returns:
        (H - first, J) rad.

    Raises:
        JumpError: a step larger than the parameters allow.
        ActionChunkError: a quaternion that is none.
        KinematicsError: a pose that the arm does not reach.
    """
    motion = chunk.actions[:, chunk.spec.motion_indices]
    representation = chunk.spec.representation
    if representation is Representation.JOINT_POSITION:
        return motion[first:].copy()
    if representation is Representation.JOINT_DELTA:
        _require_steps(chunk, np.abs(motion).max(axis=1), parameters.max_joint_step, "joint", "rad")
        return (base + np.cumsum(motion, axis=0))[first:]
    if representation is Representation.EE_DELTA:
        positions, quaternions = _displaced(chunk, motion, kinematics, base, parameters)
    else:
        positions, quaternions = motion[:, :3], _unit_quaternions(chunk, motion[:, 3:])
    # A chunk that holds must not creep home in the null space.
    still = representation is Representation.EE_DELTA and not motion.any()
    path = kinematics.inverse_path(
        positions,
        quaternions,
        base,
        0.0 if still else parameters.posture_gain,
        parameters.position_tolerance,
        parameters.rotation_tolerance,
        margin,
    )
    return path[first:]


def gripper_openings(chunk: ActionChunk, parameters: GripperParameters) -> FloatArray | None:
    """The opening fraction that each action commands, (H,) in [0, 1]; None without a gripper.

    Raises:
        ActionChunkError: an opening further outside of [0, 1] than the tolerance.
    """
    gripper = chunk.spec.gripper
    if gripper is None:
        return None
    values = chunk.actions[:, gripper.index]
    openings = (values - gripper.closed) / (gripper.open - gripper.closed)
    outside = np.abs(openings - 0.5) > 0.5 + parameters.tolerance
    if outside.any():
        step = int(np.argmax(outside))
        raise ActionChunkError(
            f"action chunk: gripper at step {step} is {values[step]:g}, expected "
            f"{gripper.closed:g} (closed) to {gripper.open:g} (open)"
        )
    if gripper.binary:
        return (openings >= parameters.threshold).astype(np.float64)
    return np.clip(openings, 0.0, 1.0)


def _displaced(
    chunk: ActionChunk,
    motion: FloatArray,
    kinematics: Kinematics,
    base: FloatArray,
    parameters: ChunkParameters,
) -> tuple[FloatArray, FloatArray]:
    """Target poses (H, 3) and (H, 4) of displacements (H, 6) from the pose at ``base``."""
    with np.errstate(over="ignore"):
        distances = np.linalg.norm(motion[:, :3], axis=1)
        angles = np.linalg.norm(motion[:, 3:], axis=1)
    _require_steps(chunk, distances, parameters.max_translation_step, "translation", "m")
    _require_steps(chunk, angles, parameters.max_rotation_step, "rotation", "rad")
    position, quaternion = kinematics.forward(base)
    rotation = pin.Quaternion(quaternion).toRotationMatrix()
    quaternions = np.empty((len(motion), 4))
    for index, turn in enumerate(motion[:, 3:]):
        rotation = pin.exp3(turn) @ rotation
        quaternions[index] = pin.Quaternion(rotation).coeffs()
    return position + np.cumsum(motion[:, :3], axis=0), quaternions


def _unit_quaternions(chunk: ActionChunk, quaternions: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(quaternions, axis=1)
    wrong = ~(np.abs(norms - 1.0) <= QUATERNION_TOLERANCE)
    if wrong.any():
        step = int(np.argmax(wrong))
        raise ActionChunkError(
            f"action chunk: quaternion at step {step} has norm {norms[step]:g}, expected 1"
        )
    return quaternions / norms[:, None]


def _require_steps(
    chunk: ActionChunk, sizes: FloatArray, largest: float, what: str, unit: str
) -> None:
    large = ~(sizes <= largest)
    if large.any():
        step = int(np.argmax(large))
        raise JumpError(
            f"action chunk {chunk.sequence}: {what} step {step} is {sizes[step]:.4g} {unit}, "
            f"allowed is {largest:g} {unit}"
        )
