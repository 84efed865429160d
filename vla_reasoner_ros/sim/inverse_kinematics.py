"""Differential inverse kinematics of the simulator's own arm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.types import FloatArray

CONVERGED = 1e-4
"""Largest component of the pose error at which the iteration ends, m and rad."""


class Chain(NamedTuple):
    """The bodies from the base to the tool, L of them; each moves with at most one hinge.

    Attributes:
        positions: (L, 3) of each body in its parent, m.
        quaternions: (L, 4) of each body in its parent at joint position 0, w x y z.
        joints: (L,) index of the arm joint that turns the body, -1 for none.
        axes: (L, 3) unit axis of the hinge in the body.
        anchors: (L, 3) a point of this axis in the body, m.
        tool_position: (3,) of the tool in the last body, m.
        tool_quaternion: (4,) w x y z.
    """

    positions: FloatArray
    quaternions: FloatArray
    joints: NDArray[np.int64]
    axes: FloatArray
    anchors: FloatArray
    tool_position: FloatArray
    tool_quaternion: FloatArray


class Problem(NamedTuple):
    """A chain and how its inverse is sought; see :class:`DifferentialInverseKinematics`.

    Attributes:
        chain: the bodies.
        home: (J,) rad.
        low, high: (J,) position limits, rad.
        damping: lambda^2.
        gain: k.
        iterations: at most.
    """

    chain: Chain
    home: FloatArray
    low: FloatArray
    high: FloatArray
    damping: float
    gain: float
    iterations: int


def chain_to(model: mujoco.MjModel, site: str, joints: int) -> Chain:
    """Read the serial chain that carries a site.

    Args:
        model: whose first ``joints`` joints are the arm's.
        site: the tool.
        joints: number of arm joints.

    Raises:
        ConfigurationError: the site does not hang on exactly these joints, each of them a hinge on
            a body of its own.
    """
    found = model.site(site)
    body, bodies = int(model.site_bodyid[found.id]), []
    while body:
        bodies.append(body)
        body = int(model.body_parentid[body])
    bodies.reverse()
    first = [int(model.body_jntadr[b]) if model.body_jntnum[b] else -1 for b in bodies]
    moving = [joint for joint in first if joint >= 0]
    single = all(model.body_jntnum[b] <= 1 for b in bodies)
    hinges = all(model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE for j in moving)
    if moving != list(range(joints)) or not single or not hinges:
        raise ConfigurationError(
            f"scene: site {site!r} must hang on the arm's {joints} hinges, one a body; it hangs on "
            f"{[model.joint(joint).name for joint in moving]}"
        )
    place = np.maximum(first, 0)
    return Chain(
        model.body_pos[bodies].copy(),
        model.body_quat[bodies].copy(),
        np.array(first, dtype=np.int64),
        model.jnt_axis[place].copy(),
        model.jnt_pos[place].copy(),
        found.pos.copy(),
        found.quat.copy(),
    )


class DifferentialInverseKinematics:
    """Damped least squares from a seed, so that the answer moves continuously with the target.

    ``dq = J^T (J J^T + lambda^2 I)^-1 e + (I - J^+ J) k (home - q)``: the redundant joint is drawn
    toward the home posture (Buss, "Introduction to inverse kinematics", 2004). It never touches the
    simulated state.

    Raises:
        ConfigurationError: the model's tool does not hang on the robot's joints.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        robot: Robot,
        damping: float = 0.02,
        posture_gain: float = 0.05,
        iterations: int = 8,
    ) -> None:
        self.problem = Problem(
            chain_to(model, "tcp", robot.joints),
            np.array(robot.home, dtype=np.float64),
            np.array(robot.limits.position_min, dtype=np.float64),
            np.array(robot.limits.position_max, dtype=np.float64),
            damping**2,
            posture_gain,
            iterations,
        )
        """What the compiled functions of this module take."""

    def forward(self, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """TCP position (3,) m and quaternion (4,) w x y z at joint positions (7,) rad."""
        joints = np.asarray(joints, dtype=np.float64)
        position, quaternion, _ = forward(self.problem.chain, joints)
        return position, quaternion

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
        joints = np.array(seed, dtype=np.float64)
        return joints, float(solve(self.problem, joints, position, quaternion))


@kernel
def multiply(a: FloatArray, b: FloatArray) -> FloatArray:
    """(4,) product of two quaternions w x y z."""
    product = np.empty(4)
    product[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3]
    product[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2]
    product[2] = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1]
    product[3] = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0]
    return product


@kernel
def _turn(q: FloatArray, v: FloatArray) -> FloatArray:
    """(3,) vector turned by a unit quaternion w x y z."""
    # v + 2 w (u x v) + 2 u x (u x v)
    tx = 2.0 * (q[2] * v[2] - q[3] * v[1])
    ty = 2.0 * (q[3] * v[0] - q[1] * v[2])
    tz = 2.0 * (q[1] * v[1] - q[2] * v[0])
    turned = np.empty(3)
    turned[0] = v[0] + q[0] * tx + q[2] * tz - q[3] * ty
    turned[1] = v[1] + q[0] * ty + q[3] * tx - q[1] * tz
    turned[2] = v[2] + q[0] * tz + q[1] * ty - q[2] * tx
    return turned


@kernel
def forward(chain: Chain, joints: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """TCP position (3,), quaternion (4,), and its geometric Jacobian (6, J), linear rows first."""
    position, quaternion = np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
    axes, anchors = np.zeros((len(joints), 3)), np.zeros((len(joints), 3))
    for i in range(len(chain.joints)):
        position = position + _turn(quaternion, chain.positions[i])
        quaternion = multiply(quaternion, chain.quaternions[i])
        joint = chain.joints[i]
        if joint >= 0:
            axes[joint] = _turn(quaternion, chain.axes[i])
            anchors[joint] = position + _turn(quaternion, chain.anchors[i])
            half = 0.5 * joints[joint]
            hinge = np.empty(4)
            hinge[0] = np.cos(half)
            hinge[1:] = np.sin(half) * chain.axes[i]
            quaternion = multiply(quaternion, hinge)
            position = anchors[joint] - _turn(quaternion, chain.anchors[i])
    position = position + _turn(quaternion, chain.tool_position)
    quaternion = multiply(quaternion, chain.tool_quaternion)
    quaternion /= np.sqrt(np.sum(quaternion * quaternion))
    jacobian = np.empty((6, len(joints)))
    for j in range(len(joints)):
        arm = position - anchors[j]
        axis = axes[j]
        jacobian[0, j] = axis[1] * arm[2] - axis[2] * arm[1]
        jacobian[1, j] = axis[2] * arm[0] - axis[0] * arm[2]
        jacobian[2, j] = axis[0] * arm[1] - axis[1] * arm[0]
        jacobian[3:, j] = axis
    return position, quaternion, jacobian


@kernel
def solve(
    problem: Problem, joints: FloatArray, position: FloatArray, quaternion: FloatArray
) -> float:
    """Move ``joints`` (in place) to the pose; the norm of the error that is left."""
    chain, home, low, high, damping, gain, iterations = problem
    error = np.empty(6)
    for iteration in range(iterations + 1):
        reached, orientation, jacobian = forward(chain, joints)
        error[:3] = position - reached
        error[3:] = _rotation_between(orientation, quaternion)
        if iteration == iterations or (iteration and np.abs(error).max() < CONVERGED):
            break
        square = jacobian @ jacobian.T
        for i in range(6):
            square[i, i] += damping
        posture = gain * (home - joints)
        wanted = np.linalg.solve(square, error - jacobian @ posture)
        step = posture + jacobian.T @ wanted
        for j in range(len(joints)):
            joints[j] = min(max(joints[j] + step[j], low[j]), high[j])
    return np.sqrt(np.sum(error * error))


@kernel
def _rotation_between(start: FloatArray, end: FloatArray) -> FloatArray:
    inverse = np.array([start[0], -start[1], -start[2], -start[3]])
    difference = multiply(end, inverse)
    sine = np.sqrt(np.sum(difference[1:] * difference[1:]))
    if sine < 1e-15:
        return np.zeros(3)
    angle = 2.0 * np.arctan2(sine, difference[0])
    if angle > np.pi:
        angle -= 2.0 * np.pi
    return difference[1:] * (angle / sine)


def rotation_between(start: FloatArray, end: FloatArray) -> FloatArray:
    """(3,) rotation vector in the world frame that turns quaternion start into end, w x y z."""
    return _rotation_between(np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64))


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
