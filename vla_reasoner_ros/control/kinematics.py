"""Forward and differential inverse kinematics on Pinocchio, for the arm as a robot file states it.

Poses are those of the TCP in the robot's base frame: position in m, quaternion ``x y z w``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.kinematics_kernels import damped_solve, reach, toward_home, twists
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ConfigurationError, KinematicsError
from vla_reasoner_ros.types import FloatArray


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

    Attributes:
        robot: as given.
        chain: (J + 1, 3, 11), the joints up to the TCP as
            :mod:`vla_reasoner_ros.control.kinematics_kernels` takes them.

    Raises:
        ConfigurationError: the URDF is broken or lacks a joint or the TCP frame.
    """

    def __init__(self, robot: Robot, urdf: str = "") -> None:
        self.robot = robot
        self._model = _model_from_urdf(robot, urdf) if urdf else table_model(robot)
        self._data = self._model.createData()
        self._frame = self._model.getFrameId(robot.tcp_frame)
        self._base = _base_placement(self._model, self._data, robot.base_frame)
        self._base_rotation = self._base.rotation.T.copy()
        self.chain = _chain(self._model, self._data, self._frame, self._base)
        self._reach = float(np.linalg.norm(self.chain[:, :, 9], axis=1).sum())

    def compile(self) -> None:
        """Compile what is not compiled yet, so that no motion has to wait for it."""
        home = self.robot.home
        self.inverse(*self.forward(home), home, posture_gain=1.0)
        self.twists(home[None], home[None])
        self.closing(home, home)

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
        positions, moving = twists(self.chain, _floats(joints), _floats(velocities))
        return positions, moving

    def inverse(
        self,
        position: FloatArray,
        quaternion: FloatArray,
        seed: FloatArray,
        posture_gain: float = 0.0,
        position_tolerance: float = 1e-3,
        rotation_tolerance: float = 5e-3,
        margin: float = 0.0,
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
            margin: distance kept from the position limits, rad; a joint of the seed that is closer
                may stay as close.

        Raises:
            KinematicsError: the pose is not reached within the tolerances.
        """
        target_position = _floats(position)
        if not np.abs(target_position).max() <= self._reach:
            raise KinematicsError(
                f"{self.robot.name}: position {target_position.tolist()} m is out of reach, which "
                f"is less than {self._reach:.3f} m"
            )
        turn = pin.Quaternion(np.asarray(quaternion, dtype=np.float64)).normalized()
        target_rotation = _floats(turn.toRotationMatrix())
        limits = self.robot.limits
        joints = np.clip(
            np.asarray(seed, dtype=np.float64), limits.position_min, limits.position_max
        )
        lower = np.minimum(limits.position_min + margin, joints)
        upper = np.maximum(limits.position_max - margin, joints)
        if posture_gain > 0.0:
            wish = posture_gain * (self.robot.home - joints)
            joints = joints + toward_home(self.chain, joints, wish)
            joints = np.clip(joints, lower, upper)
        best = InverseSolution(
            *reach(self.chain, target_position, target_rotation, joints, lower, upper)
        )
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
        margin: float = 0.0,
    ) -> FloatArray:
        """Joint positions (N, J) along poses, each solved from the one before: one branch.

        Args:
            positions: (N, 3) m.
            quaternions: (N, 4) x y z w.
            seed: (J,) rad, the configuration before the first pose.
            posture_gain: as for :meth:`inverse`, once per pose.
            position_tolerance: error that is still accepted, m.
            rotation_tolerance: error that is still accepted, rad.
            margin: distance kept from the position limits, rad.

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
                    margin,
                )
            except KinematicsError as error:
                raise KinematicsError(f"pose {index} of {len(positions)}: {error}") from None
            path[index] = joints = solution.joints
        return path

    def closing(self, joints: FloatArray, target: FloatArray) -> FloatArray:
        """The smallest joint motion (J,), rad, that takes the TCP to where ``target`` puts it.

        To first order, from joint positions (J,); damped near singularities.
        """
        there = self._pose(np.asarray(target, dtype=np.float64)).copy()
        here = self._pose(np.asarray(joints, dtype=np.float64))
        turn = here.rotation @ pin.log3(here.rotation.T @ there.rotation)
        error = np.concatenate([there.translation - here.translation, turn])
        jacobian = self.jacobian(joints)
        return np.asarray(jacobian.T @ damped_solve(jacobian, error))

    def fixed_to_tcp(self, link: str) -> tuple[FloatArray, Rotation]:
        """Where a link is in the frame of the TCP: translation (3,), m, and rotation.

        Raises:
            ConfigurationError: there is no such link, or a joint is between the two.
        """
        if not self._model.existFrame(link):
            raise ConfigurationError(f"{self.robot.name}: there is no link {link!r}")
        frame = self._model.frames[self._model.getFrameId(link)]
        tcp = self._model.frames[self._frame]
        if frame.parentJoint != tcp.parentJoint:
            raise ConfigurationError(
                f"{self.robot.name}: {link!r} is not fixed to {self.robot.tcp_frame!r}"
            )
        placement = tcp.placement.actInv(frame.placement)
        return placement.translation.copy(), Rotation.from_matrix(placement.rotation)

    def _pose(self, joints: FloatArray) -> pin.SE3:
        pin.forwardKinematics(self._model, self._data, joints)
        pose = pin.updateFramePlacement(self._model, self._data, self._frame)
        return self._base.actInv(pose)


def table_model(robot: Robot) -> pin.Model:
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


def _chain(model: pin.Model, data: pin.Data, frame: int, base: pin.SE3) -> FloatArray:
    """The chain to the TCP as :mod:`vla_reasoner_ros.control.kinematics_kernels` takes it."""
    pin.computeJointJacobians(model, data, pin.neutral(model))
    chain = np.zeros((model.njoints, 3, 11))
    for joint in range(1, model.njoints):
        placement = model.jointPlacements[joint]
        if joint == 1:
            placement = base.inverse() * placement
        local = pin.getJointJacobian(model, data, joint, pin.ReferenceFrame.LOCAL)
        axis = local.reshape(6, -1)[3:, joint - 1]
        cross = pin.skew(axis)
        turns = [np.eye(3), cross, cross @ cross, np.zeros((3, 1)), axis[:, None]]
        chain[joint - 1] = placement.rotation @ np.hstack(turns)
        chain[joint - 1, :, 9] = placement.translation
    tool = model.frames[frame].placement
    chain[-1, :, :3], chain[-1, :, 9] = tool.rotation, tool.translation
    return chain


def _floats(values: FloatArray) -> FloatArray:
    """Of the one kind that the kernels are compiled for."""
    return np.array(values, dtype=np.float64, order="C")
