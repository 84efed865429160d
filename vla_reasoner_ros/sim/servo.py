"""From end-effector deltas to joint commands: what the simulated arm is told, physics apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.sim.inverse_kinematics import (
    DifferentialInverseKinematics,
    Problem,
    forward,
    multiply,
    solve,
)
from vla_reasoner_ros.types import FloatArray

TOLERANCE = 2e-3
"""Pose error, m and rad in one norm, above which a target counts as out of reach."""


@dataclass(frozen=True)
class ServoState:
    """Where the arm was told to be.

    Attributes:
        joints: (7,) rad at the end of the last action.
        rate: (7,) rad/s at the end of the last action.
        position: (3,) m of the target pose that the next action displaces.
        quaternion: (4,) w x y z of the same.
    """

    joints: FloatArray
    rate: FloatArray
    position: FloatArray
    quaternion: FloatArray


class Servo:
    """Displaces a target pose and follows it.

    The joints go to the inverse kinematics of the target along a cubic whose end velocity is the
    mean velocity of the action, with as much lead as the joint servos' damping makes them lag.

    Args:
        model: the simulated scene.
        robot: the arm in it.
        dt: time of one action, s.
        time_step: of the physics, s.

    Raises:
        ConfigurationError: a time step that does not divide dt, or another arm in the scene.
    """

    def __init__(self, model: mujoco.MjModel, robot: Robot, dt: float, time_step: float) -> None:
        self.substeps = round(dt / time_step) if time_step > 0 else 0
        if self.substeps < 1 or abs(self.substeps * time_step - dt) > 1e-9:
            raise ConfigurationError(
                f"time_step: expected a positive divisor of {dt} s, got {time_step} s"
            )
        self.kinematics = DifferentialInverseKinematics(model, robot)
        self._dt = dt
        self._reach = robot.limits.velocity * dt
        arm = [model.actuator(name).id for name in robot.joint_names]
        stiffness, damping = -model.actuator_biasprm[arm, 1], -model.actuator_biasprm[arm, 2]
        self.lead = damping / stiffness
        """(7,) s: the servo's damping acts on the whole velocity; this takes its lag away."""
        fractions = np.arange(1, self.substeps + 1) / self.substeps
        self._hermite, self._hermite_rate = _hermite_basis(fractions, dt)

    def at(self, joints: FloatArray, rate: FloatArray) -> ServoState:
        """The state of a servo whose target is where these joints are."""
        position, quaternion = self.kinematics.forward(joints)
        return ServoState(np.array(joints), np.array(rate), position, quaternion)

    def follow(self, state: ServoState, motion: FloatArray) -> tuple[ServoState, FloatArray, bool]:
        """One action.

        A target that the arm cannot reach within its position and velocity limits is moved to what
        it can reach, so that targets do not wind up.

        Args:
            state: at its beginning.
            motion: (6,) displacement of the target, m and rad.

        Returns:
            The state at its end, (substeps, 7) joint commands, and whether the target was reached.
        """
        goal, rate, position, quaternion, commands, reached = _follow(
            self.kinematics.problem,
            state.joints,
            state.rate,
            state.position,
            state.quaternion,
            np.asarray(motion, dtype=np.float64),
            self._reach,
            self._dt,
            self.lead,
            self._hermite,
            self._hermite_rate,
        )
        return ServoState(goal, rate, position, quaternion), commands, bool(reached)


@kernel
def _follow(
    problem: Problem,
    joints: FloatArray,
    rate: FloatArray,
    position: FloatArray,
    quaternion: FloatArray,
    motion: FloatArray,
    reach: FloatArray,
    dt: float,
    lead: FloatArray,
    hermite: FloatArray,
    hermite_rate: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, bool]:
    """Compiled :meth:`Servo.follow`: joints, rate and pose at the end, commands, reached."""
    position = position + motion[:3]
    angle = np.sqrt(np.sum(motion[3:6] * motion[3:6]))
    turned = quaternion.copy()
    if angle > 1e-12:
        turn = np.empty(4)
        turn[0] = np.cos(0.5 * angle)
        turn[1:] = motion[3:6] * (np.sin(0.5 * angle) / angle)
        turned = multiply(turn, quaternion)
        turned /= np.sqrt(np.sum(turned * turned))
    goal = joints.copy()
    error = solve(problem, goal, position, turned)
    excess = np.max(np.abs(goal - joints) / reach)
    if excess > 1.0:
        goal = joints + (goal - joints) / excess
    reached = excess <= 1.0 and error <= TOLERANCE
    if not reached:
        position, turned, _ = forward(problem.chain, goal)
    new_rate = (goal - joints) / dt
    commands = np.empty((len(hermite), len(joints)))
    for i in range(len(hermite)):
        for j in range(len(joints)):
            place = hermite[i, 0] * joints[j] + hermite[i, 1] * rate[j]
            place += hermite[i, 2] * goal[j] + hermite[i, 3] * new_rate[j]
            speed = hermite_rate[i, 0] * joints[j] + hermite_rate[i, 1] * rate[j]
            speed += hermite_rate[i, 2] * goal[j] + hermite_rate[i, 3] * new_rate[j]
            commands[i, j] = place + lead[j] * speed
    return goal, new_rate, position, turned, commands, reached


def _hermite_basis(s: FloatArray, dt: float) -> tuple[FloatArray, FloatArray]:
    """Cubic Hermite basis at fractions s (N,): (N, 4) weights of q0, v0, q1, v1, and their rates.

    ``[q0, v0, q1, v1]`` are in units of q and q/s; the rates are per second.
    """
    position = np.stack(
        [
            2 * s**3 - 3 * s**2 + 1,
            (s**3 - 2 * s**2 + s) * dt,
            -2 * s**3 + 3 * s**2,
            (s**3 - s**2) * dt,
        ],
        axis=1,
    )
    rate = np.stack(
        [
            (6 * s**2 - 6 * s) / dt,
            3 * s**2 - 4 * s + 1,
            (-6 * s**2 + 6 * s) / dt,
            3 * s**2 - 2 * s,
        ],
        axis=1,
    )
    return position, rate
