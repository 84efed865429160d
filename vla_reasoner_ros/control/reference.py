"""Where the arm is told to be, where it is, and how far the two are apart."""

from __future__ import annotations

import numpy as np

from vla_reasoner_ros.control.commands import TimedTrajectory
from vla_reasoner_ros.control.joint_states import JointStateBuffer
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.outputs import Tracking
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.playback import Playback
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.types import FloatArray


class Reference:
    """The commanded motion and the measured joints of one arm.

    What they must have in common depends on what the arm's own controller follows. Where that is a
    pose, a redundant arm takes a posture of its own, and only what separates the poses is an error;
    where it is a velocity, the arm is also where its earlier errors have left it. In both cases
    :meth:`adopt` takes over what is measured while nothing moves.

    Args:
        kinematics: the arm's.
        parameters: all parameters.
        tracking: what the arm's own controller follows.

    Attributes:
        parameters: may be replaced at any time.
        tracking: as given.
        joints: the measured joints.
        playback: what was, is and will be commanded.
    """

    def __init__(
        self, kinematics: Kinematics, parameters: ControlParameters, tracking: Tracking
    ) -> None:
        self._kinematics = kinematics
        self.parameters = parameters
        self.tracking = tracking
        self.joints = JointStateBuffer(kinematics.robot)
        self.playback = Playback(kinematics.robot.joint_names)

    @property
    def motion(self) -> TimedTrajectory | None:
        """The newest motion, at its end perhaps; None before the first."""
        return self.playback.motion

    def moving(self, now_ns: int) -> bool:
        """Whether the commanded motion has not ended yet."""
        return self.playback.moving(now_ns)

    def clear(self, not_before_ns: int | None) -> None:
        """Forget everything; joint states measured before a time are ignored from now on."""
        self.joints.clear(not_before_ns)
        self.playback.clear()

    def starts_measured(self, now_ns: int) -> bool:
        """Whether the next motion starts where the arm is measured, which must stand then."""
        placed = self.motion is not None and self.tracking is not Tracking.TWIST
        return not placed and not self.moving(now_ns)

    def commanded(self, time_ns: int) -> MotionState:
        """The commanded state at a time; before the first motion the measured one, at rest."""
        state = self.playback.state(time_ns)
        return MotionState.at_rest(self.joints.newest.positions) if state is None else state

    def at_observation(self, stamp_ns: int) -> FloatArray:
        """The joints (J,) that displacements start from which were planned from an observation.

        The commanded ones while the arm followed, else the measured ones.
        """
        if self.playback.motion is None:
            return self.joints.newest.positions
        measured = self.joints.positions_at(stamp_ns)
        commanded = self.playback.position_then(stamp_ns)
        if commanded is None:
            return measured
        if self.tracking is not Tracking.JOINTS:
            return commanded  # the measured posture, or place, is not the one that goes on
        error = np.abs(commanded - measured).max()
        return commanded if error <= self.parameters.chunk.max_reference_error else measured

    def adopt(self) -> None:
        """Take over what is measured, as far as the arm's controller does; while nothing moves."""
        motion = self.playback.motion
        if motion is None or self.tracking is Tracking.JOINTS:
            return
        end, measured = motion.trajectory.end.position, self.joints.newest.positions
        if self.tracking is Tracking.TWIST:
            self.playback.shift(measured - end)
            return
        p = self.parameters.chunk
        position, quaternion = self._kinematics.forward(end)
        solution = self._kinematics.inverse(
            position,
            quaternion,
            measured,
            position_tolerance=p.position_tolerance,
            rotation_tolerance=p.rotation_tolerance,
        )
        self.playback.shift(solution.joints - end)

    def tracking_error(self) -> float:
        """How far the arm is behind the command, as the largest angle of any joint, rad.

        Where the arm's controller follows a pose or a velocity: of the smallest joint motion that
        would take the TCP to where it should be.
        """
        if not self.joints:
            return 0.0
        newest = self.joints.newest
        commanded = self.playback.position_then(newest.stamp_ns)
        if commanded is None:
            return 0.0
        behind = commanded - newest.positions
        if self.tracking is not Tracking.JOINTS:
            behind = self._kinematics.closing(newest.positions, commanded)
        return float(np.abs(behind).max())

    def trouble(self) -> str:
        """Why the arm cannot be doing what it is told, in words; empty when it may."""
        error, allowed = self.tracking_error(), self.parameters.watchdog.max_tracking_error
        if error > allowed:
            return (
                f"the arm does not follow: {error:.3f} rad behind the command, allowed are "
                f"{allowed:g} rad"
            )
        unseen, allowed = self._moved_unseen(), self.parameters.watchdog.max_unseen_motion
        if unseen > allowed > 0.0:
            return (
                f"joint states are frozen, or the arm does not move: the command moved by "
                f"{unseen:.3f} rad while they did not change by a bit, allowed are {allowed:g} rad"
            )
        return ""

    def _moved_unseen(self) -> float:
        """How far the command moved, rad, while measured positions did not change by a bit."""
        if not self.joints:
            return 0.0
        before = self.playback.position_then(self.joints.unchanged_since_ns)
        now = self.playback.position_then(self.joints.newest.stamp_ns)
        return 0.0 if before is None or now is None else float(np.abs(now - before).max())

    def problem(self, now_ns: int) -> str:
        """Why the joint states do not allow motion; empty when they do."""
        return self.joints.problem(
            now_ns,
            self.parameters.watchdog.max_joint_state_age,
            self.parameters.chunk.max_clock_lead,
        )
