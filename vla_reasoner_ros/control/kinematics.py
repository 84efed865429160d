"""Forward and differential inverse kinematics on Pinocchio, for the arm as a robot file states it.

Poses are those of the TCP in the robot's base frame: position in m, quaternion ``x y z w``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ConfigurationError, KinematicsError
from vla_reasoner_ros.types import FloatArray

MAX_ITERATIONS = 40
STAGNATION = 6  # iterations without progress after which the pose counts as out of reach
CONVERGED_POSITION = 1e-6  # m
CONVERGED_ROTATION = 1e-5  # rad
MAX_ITERATION_STEP = 0.3  # rad, keeps Newton steps inside the linearisation
DAMPING_THRESHOLD = 0.04  # smallest singular value of the Jacobian below which damping sets in
DAMPING = 0.04  # largest damping factor, reached at the singularity


@dataclass(frozen=True)
class InverseSolution:
    """Joint positions for one pose.

    Attributes:
        joints: (J,) rad.
        position_error: distance left to the target, m.
        rotation_error: angle left to the target, rad.
        iterations: Newton steps taken.
    """

    joints: FloatArray
    position_error: float
    rotation_error: float
    iterations: int


class Kinematics:
    """Kinematics of one robot's TCP.

    Args:
        robot: the robot; its Denavit-Hartenberg table makes the model.
        urdf: text of a URDF (``robot_description``) whose kinematics replace the table's; joints
            and TCP are found in it by the robot's names, all other joints are locked at zero. When
            it has a frame named ``robot.base_frame``, poses are relative to that, else to its root.

    Raises:
        ConfigurationError: the URDF is broken or lacks a joint or the TCP frame.
    """

    def __init__(self, robot: Robot, urdf: str = "") -> None:
        self.robot = robot
        self._model = _model_from_urdf(robot, urdf) if urdf else _model_from_table(robot)
        self._data = self._model.createData()
        self._frame = self._model.getFrameId(robot.tcp_frame)
        self._base = _base_placement(self._model, self._data, robot.base_frame)
        self._base_rotation = self._base.rotation.T.copy()
        self._lower = robot.limits.position_min
        self._upper = robot.limits.position_max
        self._chain = _chain(self._model, self._data, self._frame, self._base)
        _, offsets, _, tool = self._chain
        self._reach = float(sum(np.linalg.norm(offset) for offset in (*offsets, tool)))

    def forward(self, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The TCP pose at joint positions (J,): position (3,) and quaternion (4,) x y z w."""
        pose = self._pose(np.asarray(joints, dtype=np.float64))
        return pose.translation.copy(), pin.Quaternion(pose.rotation).coeffs().copy()

    def jacobian(self, joints: FloatArray) -> FloatArray:
        """The (6, J) Jacobian of the TCP: linear over angular velocity, both in the base frame."""
        jacobian = pin.computeFrameJacobian(
            self._model,
            self._data,
            np.asarray(joints, dtype=np.float64),
            self._frame,
            pin.LOCAL_WORLD_ALIGNED,
        ).reshape(6, -1)
        return np.concatenate(
            [self._base_rotation @ jacobian[:3], self._base_rotation @ jacobian[3:]]
        )

    def twists(self, joints: FloatArray, velocities: FloatArray) -> tuple[FloatArray, FloatArray]:
        """TCP positions (M, 3) and twists (M, 6) for many states at once.

        Args:
            joints: (M, J) rad.
            velocities: (M, J) rad/s.

        Returns:
            Positions in m, and twists (linear m/s over angular rad/s) in the base frame.
        """
        rotations, offsets, axes, tool = self._chain
        count = len(joints)
        rotation = np.broadcast_to(np.eye(3), (count, 3, 3))
        position = np.zeros((count, 3))
        directions = np.empty((len(axes), count, 3))
        origins = np.empty((len(axes), count, 3))
        for index, axis in enumerate(axes):
            position = position + rotation @ offsets[index]
            rotation = rotation @ rotations[index]
            directions[index] = rotation @ axis
            origins[index] = position
            rotation = rotation @ _rotations(axis, joints[:, index])
        position = position + rotation @ tool
        rates = velocities.T[:, :, None]
        angular = (rates * directions).sum(axis=0)
        linear = (rates * np.cross(directions, position - origins)).sum(axis=0)
        return position, np.concatenate([linear, angular], axis=1)

    def inverse(
        self,
        position: FloatArray,
        quaternion: FloatArray,
        seed: FloatArray,
        posture_gain: float = 0.0,
        position_tolerance: float = 1e-3,
        rotation_tolerance: float = 5e-3,
    ) -> InverseSolution:
        """Joint positions near ``seed`` that put the TCP at a pose.

        Damped least squares (Nakamura and Hanafusa 1986) by Newton steps; damping sets in near
        singularities only. A joint that a step would take past its limit is put on the limit and
        the others make up for it. A redundant arm first moves ``posture_gain`` of the way home
        within the null space, once per call, so that it neither drifts nor jitters.

        Args:
            position: (3,) m.
            quaternion: (4,) x y z w.
            seed: (J,) rad, where to start; the solution on the same branch is found.
            posture_gain: fraction of the way toward home in the null space, [0, 1].
            position_tolerance: error that is still accepted, m.
            rotation_tolerance: error that is still accepted, rad.

        Raises:
            KinematicsError: the pose is not reached within the tolerances.
        """
        target_position = np.asarray(position, dtype=np.float64)
        if not np.abs(target_position).max() <= self._reach:
            raise KinematicsError(
                f"{self.robot.name}: position {target_position.tolist()} m is out of reach, which "
                f"is less than {self._reach:.3f} m"
            )
        target_rotation = pin.Quaternion(np.asarray(quaternion, dtype=np.float64)).normalized()
        target_rotation = target_rotation.toRotationMatrix()
        joints = np.clip(np.asarray(seed, dtype=np.float64), self._lower, self._upper)
        if posture_gain > 0.0:
            joints = self._toward_home(joints, posture_gain)
        best = InverseSolution(joints, np.inf, np.inf, 0)
        for iteration in range(MAX_ITERATIONS):
            pose = self._pose(joints)
            error = np.concatenate(
                [
                    target_position - pose.translation,
                    pin.log3(target_rotation @ pose.rotation.T),
                ]
            )
            solution = InverseSolution(
                joints,
                float(np.linalg.norm(error[:3])),
                float(np.linalg.norm(error[3:])),
                iteration,
            )
            if _total(solution) < 0.99 * _total(best):
                best = solution
            elif iteration - best.iterations > STAGNATION:
                break
            if (
                best.position_error < CONVERGED_POSITION
                and best.rotation_error < CONVERGED_ROTATION
            ):
                break
            step = self._step(joints, error)
            if np.max(np.abs(step)) < 1e-12:
                break
            joints = joints + step
        if best.position_error > position_tolerance or best.rotation_error > rotation_tolerance:
            raise KinematicsError(
                f"{self.robot.name}: pose at {np.round(target_position, 4).tolist()} m, "
                f"quaternion {np.round(quaternion, 4).tolist()} is out of reach: "
                f"{1000.0 * best.position_error:.1f} mm and {best.rotation_error:.4f} rad remain, "
                f"allowed are {1000.0 * position_tolerance:.1f} mm and {rotation_tolerance} rad"
            )
        return best

    def inverse_path(
        self,
        positions: FloatArray,
        quaternions: FloatArray,
        seed: FloatArray,
        posture_gain: float = 0.0,
        position_tolerance: float = 1e-3,
        rotation_tolerance: float = 5e-3,
    ) -> FloatArray:
        """Joint positions (N, J) along poses, each solved from the one before: one branch.

        Args:
            positions: (N, 3) m.
            quaternions: (N, 4) x y z w.
            seed: (J,) rad, the configuration before the first pose.
            posture_gain: as for :meth:`inverse`, once per pose.
            position_tolerance: error that is still accepted, m.
            rotation_tolerance: error that is still accepted, rad.

        Raises:
            KinematicsError: a pose is not reached within the tolerances; the message counts it.
        """
        path = np.empty((len(positions), self.robot.joints))
        joints = np.asarray(seed, dtype=np.float64)
        for index, (position, quaternion) in enumerate(zip(positions, quaternions, strict=True)):
            try:
                solution = self.inverse(
                    position,
                    quaternion,
                    joints,
                    posture_gain,
                    position_tolerance,
                    rotation_tolerance,
                )
            except KinematicsError as error:
                raise KinematicsError(f"pose {index} of {len(positions)}: {error}") from None
            path[index] = joints = solution.joints
        return path

    def _pose(self, joints: FloatArray) -> pin.SE3:
        pin.forwardKinematics(self._model, self._data, joints)
        pose = pin.updateFramePlacement(self._model, self._data, self._frame)
        return self._base.actInv(pose)

    def _step(self, joints: FloatArray, error: FloatArray) -> FloatArray:
        """One damped Newton step (J,) that stays within the position limits."""
        jacobian = self.jacobian(joints)
        step = np.zeros(len(joints))
        free = np.ones(len(joints), dtype=bool)
        while free.any():
            columns = jacobian[:, free]
            step[free] = columns.T @ _damped_solve(
                columns, error - jacobian[:, ~free] @ step[~free]
            )
            largest = np.max(np.abs(step))
            if largest > MAX_ITERATION_STEP:
                step *= MAX_ITERATION_STEP / largest
            moved = joints + step
            outside = free & ((moved < self._lower) | (moved > self._upper))
            if not outside.any():
                break
            step[outside] = np.clip(moved, self._lower, self._upper)[outside] - joints[outside]
            free &= ~outside
        return step

    def _toward_home(self, joints: FloatArray, gain: float) -> FloatArray:
        jacobian = self.jacobian(joints)
        wish = gain * (self.robot.home - joints)
        wish -= jacobian.T @ _damped_solve(jacobian, jacobian @ wish)
        return np.clip(joints + wish, self._lower, self._upper)


def _total(solution: InverseSolution) -> float:
    """One number to compare solutions by; a radian weighs as much as a metre."""
    return solution.position_error + solution.rotation_error


def _damped_solve(jacobian: FloatArray, error: FloatArray) -> FloatArray:
    """``(J J^T + damping^2 I)^-1 e``, damped along the directions that are nearly singular."""
    squares, vectors = np.linalg.eigh(jacobian @ jacobian.T)
    squares = np.maximum(squares, 0.0)
    lack = np.maximum(1.0 - np.sqrt(squares) / DAMPING_THRESHOLD, 0.0)
    return vectors @ ((vectors.T @ error) / (squares + (DAMPING * lack) ** 2 + 1e-15))


def _rotations(axis: FloatArray, angles: FloatArray) -> FloatArray:
    """Rotation matrices (M, 3, 3) about one axis (3,) by angles (M,): Rodrigues' formula."""
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    sine = np.sin(angles)[:, None, None]
    versine = (1.0 - np.cos(angles))[:, None, None]
    return np.eye(3) + sine * cross + versine * (cross @ cross)


def _model_from_table(robot: Robot) -> pin.Model:
    """A Pinocchio model of a Denavit-Hartenberg table.

    Modified (Craig): ``T_i = Rx(alpha_i) Tx(a_i) Rz(q_i) Tz(d_i)``. Standard (distal):
    ``T_i = Rz(q_i) Tz(d_i) Tx(a_i) Rx(alpha_i)``.
    """
    model = pin.Model()
    model.name = robot.name
    parent, trailing = 0, pin.SE3.Identity()
    for name, (a, d, alpha) in zip(robot.joint_names, robot.dh, strict=True):
        tilt = pin.utils.rotate("x", alpha)
        if robot.convention == "modified":
            placement = pin.SE3(tilt, tilt @ np.array([a, 0.0, d]))
        else:
            placement, trailing = trailing, pin.SE3(tilt, np.array([a, 0.0, d]))
        parent = model.addJoint(parent, pin.JointModelRZ(), placement, name)
    pose = trailing
    for frame in robot.tool_frames:
        pose = pose * pin.SE3(pin.rpy.rpyToMatrix(*frame.rpy), frame.translation)
        model.addFrame(pin.Frame(frame.name, parent, 0, pose, pin.FrameType.OP_FRAME))
    return model


def _model_from_urdf(robot: Robot, urdf: str) -> pin.Model:
    try:
        full = pin.buildModelFromXML(urdf)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"robot_description of {robot.name}: {error}") from error
    names = list(full.names)[1:]
    missing = [name for name in robot.joint_names if name not in names]
    if missing or not full.existFrame(robot.tcp_frame):
        lacking = missing or [f"frame {robot.tcp_frame}"]
        raise ConfigurationError(
            f"robot_description of {robot.name}: expected joints {list(robot.joint_names)} and "
            f"frame {robot.tcp_frame}, found no {', '.join(lacking)}"
        )
    locked = [full.getJointId(name) for name in names if name not in robot.joint_names]
    model = pin.buildReducedModel(full, locked, pin.neutral(full))
    order = tuple(list(model.names)[1:])
    if order != robot.joint_names or model.nq != robot.joints:
        raise ConfigurationError(
            f"robot_description of {robot.name}: expected the revolute joints "
            f"{robot.joint_names} in this order, found {order}"
        )
    return model


def _base_placement(model: pin.Model, data: pin.Data, base: str) -> pin.SE3:
    if not model.existFrame(base):
        return pin.SE3.Identity()
    pin.framesForwardKinematics(model, data, pin.neutral(model))
    return data.oMf[model.getFrameId(base)].copy()


Chain = tuple[list[FloatArray], list[FloatArray], list[FloatArray], FloatArray]


def _chain(model: pin.Model, data: pin.Data, frame: int, base: pin.SE3) -> Chain:
    """The serial chain as fixed rotations, offsets, joint axes and the TCP's offset."""
    neutral = pin.neutral(model)
    pin.computeJointJacobians(model, data, neutral)
    rotations, offsets, axes = [], [], []
    for joint in range(1, model.njoints):
        placement = model.jointPlacements[joint]
        if joint == 1:
            placement = base.inverse() * placement
        rotations.append(placement.rotation.copy())
        offsets.append(placement.translation.copy())
        local = pin.getJointJacobian(model, data, joint, pin.ReferenceFrame.LOCAL)
        axes.append(local.reshape(6, -1)[3:, joint - 1].copy())
    return rotations, offsets, axes, model.frames[frame].placement.translation.copy()
