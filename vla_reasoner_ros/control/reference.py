"""Where the arm is told to be, where it is, and how far the two are apart."""

from __future__ import annotations

import numpy as np

from vla_reasoner_ros.control.commands import TimedTrajectory
from vla_reasoner_ros.control.joint_states import JointStateBuffer
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.playback import Playback
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.types import FloatArray


class Reference:
    """The commanded motion and the measured joints of one arm.

    Args:
        robot: the arm.
        parameters: all parameters.

    Attributes:
        parameters: may be replaced at any time.
        joints: the measured joints.
        playback: what was, is and will be commanded.
    """

    def __init__(self, robot: Robot, parameters: ControlParameters) -> None:
        self.parameters = parameters
        self.joints = JointStateBuffer(robot)
        self.playback = Playback(robot.joint_names)

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
        error = np.abs(commanded - measured).max()
        return commanded if error <= self.parameters.chunk.max_reference_error else measured

    def tracking_error(self) -> float:
        """The largest difference of commanded and measured position, rad."""
        if not self.joints:
            return 0.0
        newest = self.joints.newest
        commanded = self.playback.position_then(newest.stamp_ns)
        return 0.0 if commanded is None else float(np.abs(commanded - newest.positions).max())

    def problem(self, now_ns: int) -> str:
        """Why the joint states do not allow motion; empty when they do."""
        return self.joints.problem(
            now_ns,
            self.parameters.watchdog.max_joint_state_age,
            self.parameters.chunk.max_clock_lead,
        )
