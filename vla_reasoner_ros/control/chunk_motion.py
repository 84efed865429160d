"""From a chunk to a motion that has passed every gate, or to the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.commands import NANOSECONDS
from vla_reasoner_ros.control.decode import (
    JumpError,
    gripper_openings,
    joint_waypoints,
    require_convention,
)
from vla_reasoner_ros.control.ensemble import TemporalEnsemble
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.motion import COLLISION, MotionPlanner
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected, RejectionReason, Trimmed
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.control.validator import LimitViolation
from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    KinematicsError,
    TrajectoryError,
)
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, Representation

RAMP_DISTANCE = 0.05  # rad; a first absolute waypoint farther away is approached slowly
OVERSHOOT = 0.02  # rad; room beyond the margin for a spline that swings past its waypoints

_VIOLATIONS = {
    "workspace": RejectionReason.WORKSPACE,
    COLLISION: RejectionReason.SELF_COLLISION,
}


@dataclass(frozen=True)
class ChunkMotion:
    """What a chunk becomes.

    Attributes:
        trajectory: to rest, from the state that it was planned from.
        arrivals: s, at each waypoint; none in a slow approach, which skips the chunk.
        stretch: duration over the duration asked for.
        openings: (H,) gripper openings of the chunk; None when it commands no gripper.
        meant: (N, J) rad, the waypoints as the policy means them, before any ensemble.
    """

    trajectory: JointTrajectory
    arrivals: FloatArray
    stretch: float
    openings: FloatArray | None
    meant: FloatArray


class ChunkMotionMaker:
    """Decodes chunks, joins them with those before where asked for, and plans their motion.

    Args:
        kinematics: of the robot with the limits in force.
        parameters: all parameters.
        action_spec: the only convention to take; None takes any that the robot can follow.

    Attributes:
        planner: of motions that are no chunk's, too.

    Raises:
        ConfigurationError: a convention that the robot cannot follow, or an empty workspace.
    """

    def __init__(
        self,
        kinematics: Kinematics,
        parameters: ControlParameters,
        action_spec: ActionSpec | None = None,
    ) -> None:
        self._robot = kinematics.robot
        self._kinematics = kinematics
        if action_spec is not None:
            require_convention(action_spec, self._robot)
        self._spec = action_spec
        self._parameters = parameters
        self._ensemble = TemporalEnsemble()
        self._approaching = True
        self.planner = MotionPlanner(self._robot, kinematics, parameters.motion)

    def set_parameters(self, parameters: ControlParameters) -> None:
        """Use other parameters from now on; on an error the old ones stay.

        Raises:
            ConfigurationError: the workspace is empty.
        """
        self.planner.set_parameters(parameters.motion)
        self._parameters = parameters

    def check_parameters(self, parameters: ControlParameters) -> None:
        """Refuse what :meth:`set_parameters` would refuse.

        Raises:
            ConfigurationError: the workspace is empty.
        """
        self.planner.workspace(parameters.motion)

    def clear(self) -> None:
        """Forget the chunks that the next one would be joined with; it is approached slowly."""
        self._ensemble.clear()
        self._approaching = True

    def require_convention(self, spec: ActionSpec) -> None:
        """Refuse a convention that is not the one to take.

        Raises:
            ChunkRejected: it, and what was expected.
        """
        try:
            require_convention(spec, self._robot)
            if self._spec is not None:
                self._spec.require_same(spec, "the controller", "the chunk")
        except ConfigurationError as error:
            raise ChunkRejected(RejectionReason.CONVENTION, str(error)) from error

    def make(
        self,
        chunk: ActionChunk,
        trimmed: Trimmed,
        base: FloatArray,
        start: MotionState,
        switch_ns: int,
    ) -> ChunkMotion:
        """Plan what is left of a chunk.

        After a start or a stop, far absolute waypoints are approached slowly, until a chunk begins
        near the arm.

        Args:
            chunk: the chunk.
            trimmed: what is left of it.
            base: (J,) rad, the joints that displacements are added to.
            start: what is commanded when the motion starts.
            switch_ns: when that is, ns.

        Raises:
            ChunkRejected: the gate that refuses it.
        """
        try:
            return self._make(chunk, trimmed, base, start, switch_ns)
        except JumpError as error:
            raise ChunkRejected(RejectionReason.JUMP, str(error)) from error
        except ActionChunkError as error:
            raise ChunkRejected(RejectionReason.CONTENT, str(error)) from error
        except KinematicsError as error:
            raise ChunkRejected(RejectionReason.UNREACHABLE, str(error)) from error
        except LimitViolation as error:
            reason = _VIOLATIONS.get(error.violation.limit, RejectionReason.LIMIT)
            raise ChunkRejected(reason, str(error)) from error
        except TrajectoryError as error:
            raise ChunkRejected(RejectionReason.LIMIT, str(error)) from error

    def taken(self, motion: ChunkMotion, trimmed: Trimmed, switch_ns: int) -> None:
        """The motion runs: remember it for the ensemble where there is one."""
        self._approaching = not len(motion.arrivals)
        if len(motion.arrivals) and self._parameters.chunk.ensemble:
            self._ensemble.add(_due_ns(switch_ns, trimmed), motion.meant)

    def _make(
        self,
        chunk: ActionChunk,
        trimmed: Trimmed,
        base: FloatArray,
        start: MotionState,
        switch_ns: int,
    ) -> ChunkMotion:
        p = self._parameters
        openings = gripper_openings(chunk, p.gripper)
        waypoints = joint_waypoints(
            chunk,
            self._kinematics,
            base,
            trimmed.first,
            p.chunk,
            p.motion.position_margin + OVERSHOOT,
        )
        if self._approaching and _is_far(chunk.spec, start, waypoints[0]):
            approach = self.planner.to(start, waypoints[0])
            return ChunkMotion(approach, np.empty(0), 1.0, openings, waypoints)
        meant = waypoints
        if p.chunk.ensemble:
            due_ns = _due_ns(switch_ns, trimmed)
            waypoints = self._ensemble.mean(due_ns, meant, p.chunk.ensemble_decay)
        self._require_steps(start, waypoints)
        asked = np.diff(trimmed.due, prepend=0.0)
        spline, stretch = self.planner.through(start, waypoints, asked)
        return ChunkMotion(spline.trajectory, spline.arrivals, stretch, openings, meant)

    def _require_steps(self, start: MotionState, waypoints: FloatArray) -> None:
        steps = np.abs(np.diff(waypoints, axis=0, prepend=start.position[None]))
        largest = self._parameters.chunk.max_joint_step
        if steps.max() > largest:
            step, joint = np.unravel_index(int(np.argmax(steps)), steps.shape)
            raise JumpError(
                f"{self._robot.joint_names[joint]} jumps by {steps[step, joint]:.4g} rad at "
                f"waypoint {step}, allowed are {largest:g} rad"
            )


def _is_far(spec: ActionSpec, start: MotionState, waypoint: FloatArray) -> bool:
    """Whether an absolute waypoint is farther away than a policy's next step would be."""
    absolute = spec.representation in (Representation.JOINT_POSITION, Representation.EE_POSE)
    return absolute and bool(np.abs(waypoint - start.position).max() > RAMP_DISTANCE)


def _due_ns(switch_ns: int, trimmed: Trimmed) -> FloatArray:
    """When the actions that are left are due, (N,) whole ns."""
    return switch_ns + np.round(trimmed.due * NANOSECONDS)
