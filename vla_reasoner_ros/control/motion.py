"""Plans motions that have passed every gate: through waypoints, slowly to a pose, and to a stop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_reasoner_ros.control.collision import SelfCollision
from vla_reasoner_ros.control.kinematics import Kinematics, table_model
from vla_reasoner_ros.control.parameters import MotionParameters
from vla_reasoner_ros.control.robots import JointLimits, Robot, Workspace
from vla_reasoner_ros.control.spline import (
    TimedSpline,
    compile_kernels,
    limited_spline_to_rest,
)
from vla_reasoner_ros.control.stopping import (
    EASE,
    HEADROOM,
    SOFTLY,
    brake,
    ease_out,
    ease_to,
    move_to,
)
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.control.validator import (
    LimitViolation,
    Violation,
    joint_violation,
    tcp_violation,
)
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.types import FloatArray

# Shares of the limits that splines are made for; the validator checks the limits themselves. The
# spline's largest acceleration and jerk are computed, its largest velocity is only sampled.
VELOCITY_USAGE = 0.98
ACCELERATION_USAGE = 0.998
COLLISION = "self-collision"
BRAKING_INTERVALS = 2.0  # the last waypoint gets twice its time: constant deceleration to rest
SPEED_ATTEMPTS = 5  # at keeping the TCP's speed limits
EASES = (EASE, 0.7, HEADROOM)  # shares of the limits for a stop from a state known roughly
SPEED_STEP = 1.02  # slower than the ratio of speed to limit asks for


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
        self._collision = SelfCollision(robot, table_model(robot))
        compile_kernels(robot.limits)
        kinematics.compile()
        self.set_parameters(parameters)

    def set_parameters(self, parameters: MotionParameters) -> None:
        """Use other parameters from the next motion on; on an error the old ones stay.

        Raises:
            ConfigurationError: the workspace is empty.
        """
        self._workspace = self.workspace(parameters)
        self._parameters = parameters

    def workspace(self, parameters: MotionParameters) -> Workspace:
        """The box that parameters leave the TCP: the robot file's where they name none.

        Raises:
            ConfigurationError: it is empty.
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
        return workspace

    def through(
        self, start: MotionState, waypoints: FloatArray, intervals: FloatArray
    ) -> tuple[TimedSpline, float]:
        """A motion through waypoints to rest.

        Args:
            start: the commanded state.
            waypoints: (N, J) rad.
            intervals: (N,) s, the time asked for to each waypoint from the one before. The last
                waypoint gets ``BRAKING_INTERVALS`` times its own.

        Returns:
            The motion, and its duration over the one asked for: 1 when no limit came near.

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
        intervals = np.array(intervals, dtype=np.float64)
        intervals[-1] *= BRAKING_INTERVALS
        asked = float(intervals.sum())
        longest = asked * self._parameters.max_stretch
        for _ in range(SPEED_ATTEMPTS):
            spline = limited_spline_to_rest(
                self._robot.joint_names,
                start,
                waypoints,
                intervals,
                spline_limits,
                longest,
                self._parameters.blend,
            )
            violation = joint_violation(spline.trajectory, allowed.joints)
            if violation is not None:
                break
            violation, ratio = self._tcp_violation(spline.trajectory, allowed)
            if violation is None:
                violation = self._collision_violation(spline.trajectory)
                if violation is None:
                    return spline, spline.trajectory.duration / asked
                break
            if violation.limit == "workspace":
                break
            intervals = SPEED_STEP * ratio * spline.intervals
        assert violation is not None  # the loop has no other way out
        raise LimitViolation(violation)

    def to(self, start: MotionState, target: FloatArray) -> JointTrajectory:
        """A slow motion (``first_motion_factor``) to rest at ``target`` (J,) rad.

        Raises:
            TrajectoryError: it would break a limit.
        """
        limits = self._slow(start).joints
        return self._checked(move_to(self._robot.joint_names, start, target, limits), start)

    def back(self, start: MotionState, target: FloatArray, least: float) -> JointTrajectory:
        """The same from rest, for a controller that may be anywhere between start and target.

        Args:
            start: at rest.
            target: (J,) rad.
            least: s, the shortest that it may take.

        Raises:
            TrajectoryError: it would break a limit.
        """
        limits = self._slow(start).joints
        motion = ease_to(self._robot.joint_names, start.position, target, limits, least)
        return self._checked(motion, start)

    def from_anywhere(self, position: FloatArray, target: FloatArray) -> JointTrajectory:
        """The quickest quintic from rest at ``position`` to rest at ``target``, each (J,) rad.

        It says how long a controller needs that may rest anywhere between the two.
        """
        return ease_to(self._robot.joint_names, position, target, self._robot.limits)

    def _slow(self, start: MotionState) -> _Allowed:
        factor = min(self._parameters.first_motion_factor, self._parameters.speed_factor)
        return self._allowed(factor, start)

    def _checked(self, trajectory: JointTrajectory, start: MotionState) -> JointTrajectory:
        """A slow motion as it is, if no limit breaks."""
        violation = joint_violation(trajectory, self._slow(start).joints)
        if violation is None:
            full = self._allowed(self._parameters.speed_factor, start)
            violation, _ = self._tcp_violation(trajectory, full)
        if violation is None:
            violation = self._collision_violation(trajectory)
        if violation is not None:
            raise LimitViolation(violation)
        return trajectory

    def stop(self, start: MotionState) -> JointTrajectory:
        """To rest as fast as the robot's own limits allow."""
        return brake(self._robot.joint_names, start, self._robot.limits)

    def ease_out(self, start: MotionState, least: float) -> JointTrajectory:
        """To rest gently in ``least`` s or more, from a state that is known roughly.

        Where that would take more room than there is before a position limit, less gently.
        """
        limits = self._robot.limits
        for share in EASES:
            motion = ease_out(self._robot.joint_names, start, limits, least, share)
            if joint_violation(motion, limits) is None:
                break
        return motion

    def ease_out_of_return(
        self, start: MotionState, measured: FloatArray, delay: float
    ) -> JointTrajectory:
        """To rest on the way back to where the arm is, which it may have begun late or never.

        Args:
            start: where it should be.
            measured: (J,) rad, where it is if it never began.
            delay: s, the longest that the command may take to the arm.
        """
        names, limits = self._robot.joint_names, self._robot.limits
        soonest = ease_out(names, start, limits)
        way = ease_to(names, measured, soonest.end.position, limits)
        least = max(2.0 * (delay + soonest.duration), delay + way.duration, SOFTLY)
        return ease_out(names, start, limits, least)

    def _tcp_violation(
        self, trajectory: JointTrajectory, allowed: _Allowed
    ) -> tuple[Violation | None, float]:
        return tcp_violation(
            trajectory, self._kinematics, self._workspace, allowed.linear, allowed.angular
        )

    def _collision_violation(self, trajectory: JointTrajectory) -> Violation | None:
        if not self._parameters.self_collision:
            return None
        found = self._collision.closest(trajectory, self._parameters.collision_margin)
        if found is None:
            return None
        first, second = found.links
        return Violation(
            f"{first} to {second}", COLLISION, found.time, found.distance, found.bound, "m"
        )

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
