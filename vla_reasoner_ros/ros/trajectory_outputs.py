"""Motions as whole joint trajectories: on a topic, or as goals of an action."""

from __future__ import annotations

import time
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.task import Future
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.commands import TimedTrajectory
from vla_reasoner_ros.control.goals import Failure, Goals
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import (
    is_playable,
    trajectory_from_message,
    trajectory_to_message,
)
from vla_reasoner_ros.ros.output import ArmAdapter, MotionTopic, action_type

STATUSES = {GoalStatus.STATUS_CANCELED: "CANCELED", GoalStatus.STATUS_ABORTED: "ABORTED"}
ERRORS = (
    "INVALID_GOAL",
    "INVALID_JOINTS",
    "OLD_HEADER_TIMESTAMP",
    "PATH_TOLERANCE_VIOLATED",
    "GOAL_TOLERANCE_VIOLATED",
)
"""Error codes of FollowJointTrajectory, by which a stop is named."""


class TrajectoryTopic(ArmAdapter):
    """Publishes on ``joint_trajectory``, as joint_trajectory_controller takes it.

    A message replaces the running one. What others publish there stops the arm.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._publisher = self.node.create_lifecycle_publisher(
            JointTrajectory, "joint_trajectory", qos.COMMAND
        )
        listen_to_trajectories(self)

    def send(self, motion: TimedTrajectory) -> None:
        """Publish it."""
        self._publisher.publish(trajectory_to_message(motion.told, motion.start_ns))


def listen_to_trajectories(adapter: ArmAdapter) -> None:
    """Tell the executor of every message on the controller's topic.

    One without velocities or accelerations, which the controller may play all the same, stops the
    arm like any other that is not the executor's own.
    """

    def heard(message: JointTrajectory) -> None:
        now_ns = adapter.node.now_ns()
        try:
            points = trajectory_from_message(message)
        except TrajectoryError:
            played = is_playable(message, adapter.executor.robot.joint_names)
            adapter.publish(adapter.executor.intruded(now_ns, played))
            raise
        stamp_ns = to_nanoseconds(message.header.stamp)
        adapter.publish(adapter.executor.heard(points, stamp_ns, now_ns))

    adapter.node.create_subscription(
        JointTrajectory,
        "joint_trajectory",
        adapter.node.guarded("joint_trajectory", heard),
        qos.HEARD,
        callback_group=adapter.node.work,
    )


class TrajectoryAction(ArmAdapter):
    """Sends goals of control_msgs/action/FollowJointTrajectory.

    A goal replaces the running one, which joint_trajectory_controller does without a stop; so a
    hold is a goal that decelerates, limited in jerk as a cancelled goal is not. Where the server
    refuses even that, what it still does is cancelled. A goal that is refused, aborted, cancelled
    by others or not answered stops the arm by the name of its error, until a reset; so does a
    server that goes away with a goal under way.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        given = self.parameters
        self._type = action_type("follow_joint_trajectory", "FollowJointTrajectory")
        self._goals = Goals("FollowJointTrajectory", given.answer_timeout, given.result_timeout)
        self._handles: dict[int, Any] = {}
        self._client = ActionClient(
            self.node, self._type, given.trajectory_action, callback_group=self.node.work
        )
        # Others may command the controller on its topic, which takes it from the action.
        listen_to_trajectories(self)
        self._motions = MotionTopic(self.node)

    def send(self, motion: TimedTrajectory) -> None:
        """Send it as a goal."""
        message = trajectory_to_message(motion.told, motion.start_ns)
        if not self._client.server_is_ready():
            name = self.parameters.trajectory_action
            self._fail(self._goals.lost(f"nobody serves the action {name!r}"))
            return
        number = self._goals.sent(motion, time.monotonic())
        future = self._client.send_goal_async(self._type.Goal(trajectory=message))
        answered = self.node.guarded("goal", self._answered)
        future.add_done_callback(lambda done: answered(number, done))
        self._motions.publish(message)

    def look(self) -> None:
        """Hold when the server is gone, or has not said what it should have said by now."""
        if self._handles and not self._client.server_is_ready():
            self.finish()
            name = self.parameters.trajectory_action
            self._fail(self._goals.lost(f"the server of the action {name!r} is gone"))
        self._fail(self._goals.look(self.node.now_ns(), time.monotonic()))

    def finish(self) -> None:
        """Nothing that the server says is of interest any more; it ends the motion by itself."""
        self._goals.forget()
        self._handles.clear()

    def close(self) -> None:
        """Destroy the client."""
        self.finish()
        self._client.destroy()

    def _answered(self, number: int, future: Future) -> None:
        handle = future.result()
        if not handle.accepted:
            self._fail(self._goals.rejected(number))
            return
        if not self._goals.accepted(number):
            handle.cancel_goal_async()
            return
        self._handles[number] = handle
        ended = self.node.guarded("result", self._ended)
        handle.get_result_async().add_done_callback(lambda done: ended(number, done))

    def _ended(self, number: int, future: Future) -> None:
        self._handles.pop(number, None)
        response = future.result()
        code = self._name_of(response.result.error_code) or STATUSES.get(response.status, "")
        self._fail(self._goals.ended(number, code, response.result.error_string))

    def _name_of(self, code: int) -> str:
        """Name of an error code; empty for success."""
        names = {getattr(self._type.Result, name): name for name in ERRORS}
        return "" if code == self._type.Result.SUCCESSFUL else names.get(code, f"error {code}")

    def _fail(self, failure: Failure | None) -> None:
        if failure is None:
            return
        self.node.get_logger().error(f"the arm is stopped: {failure.reason}")
        number, motion = failure.playing or (0, None)
        commands = self.executor.failed(failure.reason, motion, self.node.now_ns())
        if commands.trajectory is None and number in self._handles:
            self._handles[number].cancel_goal_async()
        self.publish(commands)
