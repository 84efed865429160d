"""Opening fractions to the gripper's driver: on a topic, or as goals of an action."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from vla_reasoner_ros.control.outputs import GripperOutput
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.lifecycle import LifecycleNode
from vla_reasoner_ros.ros.output import CommandParameters, action_type

ACTIONS = {
    "gripper_command": "GripperCommand",
    "parallel_gripper_command": "ParallelGripperCommand",
}
"""Name of each output that is an action to its type in control_msgs."""


class GripperAdapter:
    """Carries openings to one kind of driver.

    Args:
        node: has the endpoints.
        name: of the output.
        declared: the output as the robot file declares it.
        parameters: details.
        failed: to be called when the driver did not do what was sent last.
    """

    def __init__(
        self,
        node: LifecycleNode[Any],
        name: str,
        declared: GripperOutput,
        parameters: CommandParameters,
        failed: Callable[[], None],
    ) -> None:
        self.node = node
        self.name = name
        self.declared = declared
        self.parameters = parameters
        self.failed = failed

    def send(self, opening: float) -> None:
        """Command an opening fraction, 0 closed to 1 open."""
        raise NotImplementedError

    def look(self) -> None:
        """Look after what was sent."""

    def close(self) -> None:
        """Let go of what the node does not let go of by itself."""


class OpeningTopic(GripperAdapter):
    """Publishes the fraction on ``gripper_command``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._publisher = self.node.create_lifecycle_publisher(
            Float64, "gripper_command", qos.COMMAND
        )

    def send(self, opening: float) -> None:
        """Publish it."""
        self._publisher.publish(Float64(data=opening))


class GripperAction(GripperAdapter):
    """Sends goals of GripperCommand or ParallelGripperCommand; a new one replaces the last.

    A gripper that stalls has something between its fingers, which is what it is for. One that
    rejects or aborts a goal, does not answer or goes away is counted and said, and does not stop
    the arm; the next chunk commands it again.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._type = action_type(self.name, ACTIONS[self.name])
        self._action = self.parameters.gripper_action
        self._newest = 0
        self._unanswered_since: float | None = None
        self._under_way = False
        self._client = ActionClient(
            self.node, self._type, self._action, callback_group=self.node.work
        )

    def send(self, opening: float) -> None:
        """Send it as a goal."""
        if not self._client.server_is_ready():
            self._failed("nobody serves this action")
            return
        self._newest += 1
        number = self._newest
        self._unanswered_since, self._under_way = time.monotonic(), False
        future = self._client.send_goal_async(self._goal(self.declared.position(opening)))
        answered = self.node.guarded(self._action, self._answered)
        future.add_done_callback(lambda done: answered(number, done))

    def look(self) -> None:
        """Say it when the newest goal has no answer, or no server any more."""
        since = self._unanswered_since
        if since is not None and time.monotonic() - since > self.parameters.answer_timeout:
            self._unanswered_since = None
            self._failed("no answer to a goal")
        if self._under_way and not self._client.server_is_ready():
            self._under_way = False
            self._failed("its server is gone, with a goal under way")

    def close(self) -> None:
        """Destroy the client."""
        self._client.destroy()

    def _failed(self, problem: str) -> None:
        self.failed()
        self.node.drop(self._action, problem)

    def _goal(self, position: float) -> Any:
        goal, effort = self._type.Goal(), self.declared.max_effort
        if self.name == "gripper_command":
            goal.command.position = position
            goal.command.max_effort = effort
        else:
            goal.command = JointState(
                name=[self.declared.joint],
                position=[position],
                effort=[effort] if effort > 0.0 else [],
            )
        return goal

    def _answered(self, number: int, future: Future) -> None:
        handle = future.result()
        if number == self._newest:
            self._unanswered_since, self._under_way = None, handle.accepted
        if not handle.accepted:
            if number == self._newest:
                self.failed()
            self.node.drop(self._action, "a goal was rejected")
            return
        ended = self.node.guarded(self._action, self._ended)
        handle.get_result_async().add_done_callback(lambda done: ended(number, done))

    def _ended(self, number: int, future: Future) -> None:
        if number != self._newest:
            return  # it was replaced, and may well have been aborted for that
        self._under_way = False
        if future.result().status == GoalStatus.STATUS_ABORTED:
            self._failed("a goal was aborted")
