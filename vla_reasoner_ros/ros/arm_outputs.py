"""What leaves the arm controller for the arm: one way, after every gate."""

from __future__ import annotations

from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.commands import Commands, ControllerState, ExecutorStatus
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import trajectory_to_message
from vla_reasoner_ros.ros.diagnostics import Level, Report
from vla_reasoner_ros.ros.lifecycle import LifecycleNode

_LEVELS = {ControllerState.HOLDING: Level.WARN, ControllerState.STOPPED: Level.ERROR}


class ArmOutputs:
    """The publishers of one arm's commands.

    Args:
        node: has them as managed publishers, which say nothing unless it is active.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._trajectories = node.create_lifecycle_publisher(
            JointTrajectory, "joint_trajectory", qos.COMMAND
        )
        self._grippers = node.create_lifecycle_publisher(Float64, "gripper_command", qos.COMMAND)

    def send(self, commands: Commands) -> None:
        """Publish what there is."""
        if commands.trajectory is not None:
            motion = commands.trajectory
            self._trajectories.publish(trajectory_to_message(motion.trajectory, motion.start_ns))
        if commands.gripper is not None:
            self._grippers.publish(Float64(data=commands.gripper))


def arm_report(status: ExecutorStatus, lead: float) -> Report:
    """The controller's diagnostics.

    Args:
        status: what it does and why.
        lead: how far ahead of now the next motion starts, s.
    """
    values = {
        "state": status.state.name,
        "chunks accepted": status.chunks_accepted,
        "chunks rejected": status.chunks_rejected,
        "last rejection": status.last_rejection,
        "tracking error rad": status.tracking_error,
        "lead s": lead,
    }
    return Report(_LEVELS.get(status.state, Level.OK), status.reason or "moving", values)
