"""What the adapters between validated motions and the arm's drivers have in common."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.commands import Commands, TimedTrajectory
from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.outputs import ArmOutput
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.lifecycle import LifecycleNode


@dataclass(frozen=True)
class GoalParameters:
    """How the arm is asked for a motion by an action."""

    trajectory_action: str = parameter(
        "follow_joint_trajectory",
        "Name of the action of the output follow_joint_trajectory.",
        read_only=True,
    )
    answer_timeout: float = parameter(
        0.2,
        "How long an action server may take to accept a goal, by a clock that nothing stops. Past "
        "it the arm controller holds, or says that the gripper is silent, and the deadman cancels "
        "all goals.",
        unit="s",
        minimum=0.01,
        maximum=10.0,
        read_only=True,
    )


@dataclass(frozen=True)
class CommandParameters(GoalParameters):
    """Details of the outputs."""

    rate: float = parameter(
        100.0,
        "Messages a second of the outputs twist and pose, by the node's clock.",
        unit="Hz",
        minimum=10.0,
        maximum=1000.0,
        read_only=True,
    )
    twist_frame: str = parameter(
        "base",
        "Along whose axes the output twist is: base is the robot's base frame, link that of the "
        "link that the robot file names for it.",
        choices=("base", "link"),
        read_only=True,
    )
    gripper_action: str = parameter(
        "gripper_cmd",
        "Name of the action of the gripper outputs gripper_command and parallel_gripper_command.",
        read_only=True,
    )
    result_timeout: float = parameter(
        2.0,
        "How long after the end of its motion a goal may still be under way, by the node's clock; "
        "longer than the goal_time of the arm's controller.",
        unit="s",
        minimum=0.05,
        maximum=60.0,
        read_only=True,
    )


class MotionTopic:
    """Tells deadman_node, on ``~/motion``, what the arm is told in another way than a trajectory.

    Args:
        node: whose motions they are.
    """

    def __init__(self, node: LifecycleNode[Any]) -> None:
        self._publisher = node.create_lifecycle_publisher(JointTrajectory, "~/motion", qos.COMMAND)

    def publish(self, message: JointTrajectory) -> None:
        """The arm makes this motion from now on."""
        self._publisher.publish(message)


class ArmAdapter:
    """Carries motions that have passed every gate to one kind of driver.

    Args:
        node: has the endpoints.
        executor: told of failures and of others' commands.
        declared: the output as the robot file declares it.
        parameters: details.
        publish: sends what the executor answers to these.
    """

    def __init__(
        self,
        node: LifecycleNode[Any],
        executor: ChunkExecutor,
        declared: ArmOutput,
        parameters: CommandParameters,
        publish: Callable[[Commands], None],
    ) -> None:
        self.node = node
        self.executor = executor
        self.declared = declared
        self.parameters = parameters
        self.publish = publish

    def send(self, motion: TimedTrajectory) -> None:
        """Replace what the arm does by a motion to rest, which continues it."""
        raise NotImplementedError

    def look(self) -> None:
        """Look after what was sent."""

    def finish(self) -> None:
        """See the last motion through, where it needs this process for that."""

    def close(self) -> None:
        """Let go of what the node does not let go of by itself."""


def action_type(output: str, name: str) -> Any:
    """An action of control_msgs.

    Raises:
        ConfigurationError: the package is not importable, or has no such action.
    """
    try:
        return getattr(importlib.import_module("control_msgs.action"), name)
    except (ImportError, AttributeError) as error:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        raise ConfigurationError(
            f"output {output!r} needs control_msgs/action/{name}, which is not importable "
            f"({error}): sudo apt install ros-{distribution}-control-msgs"
        ) from error
