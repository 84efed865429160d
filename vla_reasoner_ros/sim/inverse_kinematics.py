"""Differential inverse kinematics on the simulator's own model."""

from __future__ import annotations

import numpy as np

from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.types import FloatArray


class DifferentialInverseKinematics:
    """Damped least squares from a seed, so that the answer moves continuously with the target.

    ``dq = J^T (J J^T + lambda^2 I)^-1 e + (I - J^+ J) k (home - q)``: the redundant joint is drawn
    toward the home posture (Buss, "Introduction to inverse kinematics", 2004). It works on scratch
    data and never touches the simulated state.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        robot: Robot,
        damping: float = 0.02,
        posture_gain: float = 0.05,
        iterations: int = 8,
    ) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._joints = robot.joints
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "tcp")
        self._home = robot.home
        self._low = robot.limits.position_min
        self._high = robot.limits.position_max
        self._damping = damping**2 * np.eye(6)
        self._gain = posture_gain
        self._iterations = iterations
        self._jacobian = np.zeros((6, model.nv))

    def forward(self, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """TCP position (3,) m and quaternion (4,) w x y z at joint positions (7,) rad."""
        self._place(joints)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self._data.site_xmat[self._site])
        return self._data.site_xpos[self._site].copy(), quaternion

    def solve(
        self, seed: FloatArray, position: FloatArray, quaternion: FloatArray
    ) -> tuple[FloatArray, float]:
        """Joint positions for a TCP pose.

        Args:
            seed: (7,) rad, where to start.
            position: (3,) m.
            quaternion: (4,) w x y z.

        Returns:
            Joint positions (7,) inside the robot's position limits, and the pose error that is
            left: m and rad, in one norm.
        """
        joints = np.array(seed)
        error = self._error(joints, position, quaternion)
        for _ in range(self._iterations):
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(
                self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site
            )
            jacobian = self._jacobian[:, : self._joints]
            inverse = np.linalg.solve(jacobian @ jacobian.T + self._damping, jacobian).T
            posture = self._gain * (self._home - joints)
            joints = joints + inverse @ error + posture - inverse @ (jacobian @ posture)
            np.clip(joints, self._low, self._high, out=joints)
            error = self._error(joints, position, quaternion)
            if np.abs(error).max() < 1e-4:
                break
        return joints, float(np.linalg.norm(error))

    def _place(self, joints: FloatArray) -> None:
        self._data.qpos[: self._joints] = joints
        mujoco.mj_kinematics(self._model, self._data)

    def _error(
        self, joints: FloatArray, position: FloatArray, quaternion: FloatArray
    ) -> FloatArray:
        self._place(joints)
        error = np.empty(6)
        error[:3] = position - self._data.site_xpos[self._site]
        actual = np.empty(4)
        mujoco.mju_mat2Quat(actual, self._data.site_xmat[self._site])
        error[3:] = rotation_between(actual, quaternion)
        return error


def rotation_between(start: FloatArray, end: FloatArray) -> FloatArray:
    """(3,) rotation vector in the world frame that turns quaternion start into end, w x y z."""
    inverse, difference, vector = np.empty(4), np.empty(4), np.empty(3)
    mujoco.mju_negQuat(inverse, start)
    mujoco.mju_mulQuat(difference, end, inverse)
    mujoco.mju_quat2Vel(vector, difference, 1.0)
    return vector


def rotate(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    """(4,) quaternion w x y z turned by a world-frame rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.array(quaternion)
    turn, result = np.empty(4), np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, vector / angle, angle)
    mujoco.mju_mulQuat(result, turn, quaternion)
    mujoco.mju_normalize4(result)
    return result
