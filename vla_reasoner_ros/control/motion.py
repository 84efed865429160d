"""Plans motions that have passed every gate: through waypoints, slowly to a pose, and to a stop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.parameters import MotionParameters
from vla_reasoner_ros.control.robots import JointLimits, Robot, Workspace
from vla_reasoner_ros.control.spline import TimedSpline, limited_spline_to_rest
from vla_reasoner_ros.control.stopping import brake, move_to
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.control.validator import LimitViolation, joint_violation, tcp_violation
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.types import FloatArray

# Shares of the limits that splines are made for; the validator checks the limits themselves. The
# spline's largest acceleration and jerk are computed, its largest velocity is only sampled.
VELOCITY_USAGE = 0.98
ACCELERATION_USAGE = 0.998


@dataclass(frozen=True)
class _Allowed:
    """What a motion may use: joint limits, TCP speed (m/s) and angular speed (rad/s)."""

    joints: JointLimits
    linear: float
    angular: float


class MotionPlanner:
    """Makes motions of one robot; whatever it returns respects all limits.

    Args:
        robot: the robot with the limits in force.
        kinematics: its kinematics.
        parameters: how it may move.

    Raises:
        ConfigurationError: the parameters' workspace is empty.
    """

    def __init__(self, robot: Robot, kinematics: Kinematics, parameters: MotionParameters) -> None:
        self._robot = robot
        self._kinematics = kinematics
        self.set_parameters(parameters)

    def set_parameters(self, parameters: MotionParameters) -> None:
        """Use other parameters from the next motion on; on an error the old ones stay.

        Raises:
            ConfigurationError: the workspace is empty.
        """
        box = self._robot.workspace
        workspace = Workspace(
            np.array(parameters.workspace_min or box.min),
            np.array(parameters.workspace_max or box.max),
        )
        if np.any(workspace.min >= workspace.max):
            raise ConfigurationError(
                f"parameters motion.workspace_min, motion.workspace_max: expected the first below "
                f"the second, got {workspace.min.tolist()} and {workspace.max.tolist()}"
            )
        self._parameters = parameters
        self._workspace = workspace

    def through(
        self, start: MotionState, waypoints: FloatArray, intervals: FloatArray
    ) -> TimedSpline:
        """A motion through waypoints to rest.

        Args:
            start: the commanded state.
            waypoints: (N, J) rad.
            intervals: (N,) s, the time asked for to each waypoint from the one before.

        Raises:
            TrajectoryError: no slower motion along them respects the limits;
                :class:`LimitViolation` when it is the position, the workspace or the rest.
        """
        allowed = self._allowed(self._parameters.speed_factor, start)
        spline_limits = replace(
            _scaled(allowed.joints, VELOCITY_USAGE),
            acceleration=ACCELERATION_USAGE * allowed.joints.acceleration,
            jerk=ACCELERATION_USAGE * allowed.joints.jerk,
        )
        slower = 1.0
        while True:
            spline = limited_spline_to_rest(
                self._robot.joint_names,
                start,
                waypoints,
                intervals * slower,
                spline_limits,
                self._parameters.max_stretch / slower,
            )
            violation = joint_violation(spline.trajectory, allowed.joints)
            if violation is not None:
                raise LimitViolation(violation)
            violation, ratio = tcp_violation(
                spline.trajectory,
                self._kinematics,
                self._workspace,
                allowed.linear,
                allowed.angular,
            )
            if violation is None:
                return TimedSpline(spline.trajectory, spline.arrivals, spline.stretch * slower)
            slower *= 1.02 * ratio
            if ratio <= 1.0 or slower > self._parameters.max_stretch:
                raise LimitViolation(violation)

    def to(self, start: MotionState, target: FloatArray) -> JointTrajectory:
        """A slow motion (``first_motion_factor``) to rest at ``target`` (J,) rad.

        Raises:
            TrajectoryError: it would break a limit.
        """
        factor = min(self._parameters.first_motion_factor, self._parameters.speed_factor)
        full = self._allowed(self._parameters.speed_factor, start)
        allowed = self._allowed(factor, start)
        trajectory = move_to(self._robot.joint_names, start, target, allowed.joints)
        violation = joint_violation(trajectory, allowed.joints)
        if violation is None:
            violation, _ = tcp_violation(
                trajectory, self._kinematics, self._workspace, full.linear, full.angular
            )
        if violation is not None:
            raise LimitViolation(violation)
        return trajectory

    def stop(self, start: MotionState) -> JointTrajectory:
        """To rest as fast as the robot's own limits allow."""
        return brake(self._robot.joint_names, start, self._robot.limits)

    def _allowed(self, factor: float, start: MotionState) -> _Allowed:
        """The limits at a speed factor; a start inside the margin may stay there."""
        limits = self._robot.limits
        margin = self._parameters.position_margin
        lower = np.maximum(
            np.minimum(limits.position_min + margin, start.position), limits.position_min
        )
        upper = np.minimum(
            np.maximum(limits.position_max - margin, start.position), limits.position_max
        )
        joints = replace(_scaled(limits, factor), position_min=lower, position_max=upper)
        cartesian = self._robot.cartesian
        return _Allowed(
            joints,
            factor * min(cartesian.linear_velocity, self._parameters.max_tcp_speed),
            factor * cartesian.angular_velocity,
        )


def _scaled(limits: JointLimits, factor: float) -> JointLimits:
    """The limits with velocity and acceleration at ``factor`` of theirs."""
    envelope = limits.velocity_envelope
    if envelope is not None:
        envelope = replace(
            envelope, offset=factor * envelope.offset, gain=factor**2 * envelope.gain
        )
    return replace(
        limits,
        velocity=factor * limits.velocity,
        acceleration=factor * limits.acceleration,
        velocity_envelope=envelope,
    )
