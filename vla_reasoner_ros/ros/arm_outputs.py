"""What leaves the arm controller for the arm and its gripper: one way, after every gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_reasoner_ros.control.commands import Commands
from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.outputs import ARM_OUTPUTS, GRIPPER_OUTPUTS
from vla_reasoner_ros.parameters import group, parameter
from vla_reasoner_ros.ros.gripper_outputs import GripperAction, GripperAdapter, OpeningTopic
from vla_reasoner_ros.ros.lifecycle import LifecycleNode
from vla_reasoner_ros.ros.output import ArmAdapter, CommandParameters
from vla_reasoner_ros.ros.stream_outputs import PoseStream, TwistStream
from vla_reasoner_ros.ros.trajectory_outputs import TrajectoryAction, TrajectoryTopic

ADAPTERS: dict[str, type[ArmAdapter]] = {
    "joint_trajectory": TrajectoryTopic,
    "follow_joint_trajectory": TrajectoryAction,
    "twist": TwistStream,
    "pose": PoseStream,
}
"""Name of each output of :data:`~vla_reasoner_ros.control.outputs.ARM_OUTPUTS` to what makes it."""


@dataclass(frozen=True)
class OutputParameters:
    """How commands leave the arm controller."""

    output: str = parameter(
        "joint_trajectory",
        "How the arm is commanded: a JointTrajectory topic, a FollowJointTrajectory action, a "
        "TwistStamped topic for MoveIt Servo or a PoseStamped topic for a Cartesian controller. "
        "The robot file declares which are possible.",
        choices=tuple(ARM_OUTPUTS),
        read_only=True,
    )
    gripper_output: str = parameter(
        "opening",
        "How the gripper is commanded: a topic with the opening fraction, a GripperCommand action "
        "or a ParallelGripperCommand action. The robot file declares which are possible.",
        choices=GRIPPER_OUTPUTS,
        read_only=True,
    )
    command: CommandParameters = group(CommandParameters)


class ArmOutputs:
    """The adapters of one arm and its gripper, and the only caller of their ``send``.

    Args:
        node: has the endpoints; they say nothing unless it is active.
        executor: makes the commands, and is told when one could not be carried out.
        parameters: which adapters.

    Raises:
        ConfigurationError: the robot file does not declare the output, or it needs a package that
            is not importable.
    """

    def __init__(
        self, node: LifecycleNode[Any], executor: ChunkExecutor, parameters: OutputParameters
    ) -> None:
        robot, command = executor.robot, parameters.command
        declared = robot.outputs.for_arm(parameters.output, robot.name)
        self._gripper: GripperAdapter | None = None
        if robot.gripper_opening is not None:
            name = parameters.gripper_output
            grip = robot.outputs.for_gripper(name, robot.name)
            kind = OpeningTopic if name == "opening" else GripperAction
            self._gripper = kind(node, name, grip, command, executor.gripper_failed)
        adapter = ADAPTERS[parameters.output]
        self._arm = adapter(node, executor, declared, command, self.send)

    def send(self, commands: Commands) -> None:
        """Give the adapters what there is."""
        if commands.gripper is not None and self._gripper is not None:
            self._gripper.send(commands.gripper)
        if commands.trajectory is not None:
            self._arm.send(commands.trajectory)

    def look(self) -> None:
        """Look after what was sent; at least once every ``watchdog.period``."""
        self._arm.look()
        if self._gripper is not None:
            self._gripper.look()

    def finish(self) -> None:
        """See the last command through, as before a deactivation."""
        self._arm.finish()

    def close(self) -> None:
        """Let go of what the node does not let go of by itself."""
        self._arm.close()
        if self._gripper is not None:
            self._gripper.close()
