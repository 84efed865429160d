"""How deadman_node stops an arm from outside, for each way in which the arm controller moves it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from action_msgs.srv import CancelGoal
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from rclpy.action import ActionClient
from rclpy.task import Future
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory
from vla_reasoner_ros.control.echo import as_played
from vla_reasoner_ros.control.outputs import ARM_OUTPUTS
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.control.stopping import ease_out
from vla_reasoner_ros.control.trajectory import JointTrajectory as Motion
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds, to_stamp
from vla_reasoner_ros.ros.conversions import trajectory_from_message, trajectory_to_message
from vla_reasoner_ros.ros.lifecycle import LifecycleNode
from vla_reasoner_ros.ros.output import GoalParameters, action_type
from vla_reasoner_ros.ros.stream_outputs import REMEMBERED, REST_NS

OWN_NS = 1
"""A stop in a stream is stamped so much after the time, which no one else's message is."""


@dataclass(frozen=True)
class StopParameters(GoalParameters):
    """How the arm is commanded, and so stopped."""

    output: str = parameter(
        "joint_trajectory",
        "How the arm is commanded: the parameter output of the arm controller.",
        choices=tuple(ARM_OUTPUTS),
        read_only=True,
    )
    driver_timeout: float = parameter(
        0.1,
        "How long the driver of the output twist goes on with the last message that it got: "
        "incoming_command_timeout of MoveIt Servo. An arm that the driver has halted is not moved "
        "again to slow it down.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
        read_only=True,
    )
    stream_timeout: float = parameter(
        0.2,
        "How long the output twist may say nothing after a velocity that is not zero, by the "
        "node's clock.",
        unit="s",
        minimum=0.02,
        maximum=10.0,
        read_only=True,
    )


class StopAdapter:
    """Carries the deadman's stops to one kind of driver.

    Args:
        node: has the endpoints; they say nothing unless it is active.
        robot: the arm with the limits in force.
        parameters: details.

    Attributes:
        by_topic: whether the motions to be watched come on ``joint_trajectory`` too; those of every
            other output come on ``~/motion`` of the arm controller only.
        warning: what cannot be done for this kind of driver; empty when nothing.
    """

    by_topic = True
    warning = ""

    def __init__(self, node: LifecycleNode[Any], robot: Robot, parameters: StopParameters) -> None:
        self.node = node
        self.robot = robot
        self.parameters = parameters

    def forget(self) -> None:
        """Nothing is known of the time before now."""

    def watch(self, message: JointTrajectory) -> None:
        """The arm controller tells of a motion."""

    def send(self, stop: TimedTrajectory) -> None:
        """Stop the arm: by this deceleration, where the driver takes one."""
        raise NotImplementedError

    def look(self) -> str:
        """Look after a stop under way; called at every look of the deadman.

        Returns:
            Why the arm had to be stopped here and now; empty when it had not.
        """
        return ""

    def close(self) -> None:
        """Let go of what the node does not let go of by itself."""


class TopicStop(StopAdapter):
    """Publishes the deceleration on ``joint_trajectory``, where it replaces the running motion."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._publisher = self.node.create_lifecycle_publisher(
            JointTrajectory, "joint_trajectory", qos.COMMAND
        )

    def send(self, stop: TimedTrajectory) -> None:
        """Publish it."""
        self._publisher.publish(trajectory_to_message(stop.told, stop.start_ns))


class GoalStop(StopAdapter):
    """Sends the deceleration as a goal of FollowJointTrajectory, in place of the running one.

    Where the server rejects it or does not answer in time, all its goals are cancelled: how the arm
    then stops is the server's doing (``decelerate_on_cancel`` of joint_trajectory_controller).
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        name = self.parameters.trajectory_action
        self._type = action_type("follow_joint_trajectory", "FollowJointTrajectory")
        self._client = ActionClient(self.node, self._type, name, callback_group=self.node.work)
        self._cancel = self.node.create_client(
            CancelGoal, f"{name}/_action/cancel_goal", callback_group=self.node.work
        )
        self._asked_wall = 0.0
        self.forget()

    def forget(self) -> None:
        """No answer is waited for."""
        self._asked: Future | None = None

    def send(self, stop: TimedTrajectory) -> None:
        """Send it as a goal."""
        if not self._client.server_is_ready():
            name = self.parameters.trajectory_action
            self.node.drop(name, "nobody serves this action: the arm cannot be stopped by it")
            return
        message = trajectory_to_message(stop.told, stop.start_ns)
        self._asked = self._client.send_goal_async(self._type.Goal(trajectory=message))
        self._asked_wall = time.monotonic()
        self._asked.add_done_callback(self.node.guarded("stop", self._answered))

    def look(self) -> str:
        """Cancel when there is no answer."""
        waited = time.monotonic() - self._asked_wall
        if self._asked is not None and waited > self.parameters.answer_timeout:
            self._cancel_all(f"no answer for {waited:.3f} s")
        return ""

    def close(self) -> None:
        """Destroy the action's client."""
        self._client.destroy()

    def _answered(self, future: Future) -> None:
        if future is not self._asked:
            return
        if future.result().accepted:
            self._asked = None
        else:
            self._cancel_all("rejected")

    def _cancel_all(self, reason: str) -> None:
        self._asked = None
        self.node.get_logger().error(f"the stop was not taken ({reason}): all goals are cancelled")
        self._cancel.call_async(CancelGoal.Request())  # no goal and no time named: all of them


class StreamStop(StopAdapter):
    """Stops an arm that follows a stream of messages, of which the driver needs the next one.

    It begins with the message that was heard last, so that nothing jumps. An arm controller that
    still lives hears that someone else commands the arm and decelerates within the limits; its
    stream is left to it. One that is dead says nothing more, and the stop goes on here.
    """

    topic: str
    kind: type
    by_topic = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._publisher = self.node.create_lifecycle_publisher(self.kind, self.topic, qos.STATE)
        self.node.create_subscription(
            self.kind,
            self.topic,
            self.node.guarded(self.topic, self._hear),
            qos.STATE,
            callback_group=self.node.work,
        )
        self._sent: deque[int] = deque(maxlen=REMEMBERED)
        self.forget()

    def forget(self) -> None:
        """Nothing was heard yet, and nothing is to be stopped."""
        self._last: Any = None
        self._heard_ns = 0
        self._stopping = False
        self._since_ns = self._said_ns = self._end_ns = 0

    def begin(self) -> float:
        """Get ready to stop; how long slowing down takes, s. The end is said for a while after."""
        return 0.0

    def message(self, last: Any, elapsed: float) -> Any:
        """What is to be said ``elapsed`` s after the stop began; the stamp is set by the caller."""
        raise NotImplementedError

    def send(self, stop: TimedTrajectory) -> None:
        """Begin to stop; the driver follows no joints, so the way is this adapter's own."""
        del stop
        if self._last is None:
            self.node.drop(self.topic, "nothing was heard on it: the arm cannot be stopped by it")
        elif not self._stopping:
            self._start()

    def look(self) -> str:
        """Say the next message of a stop under way, once for each moment of the node's clock."""
        now_ns = self.node.now_ns()
        if self._stopping and now_ns != self._said_ns:
            self._stopping = self._since_ns <= now_ns <= self._end_ns
            self._say(now_ns)
        return ""

    @property
    def silent(self) -> float:
        """How long ago the arm controller's last message was heard, s of the node's clock."""
        return (self.node.now_ns() - self._heard_ns) / NANOSECONDS

    def _start(self) -> None:
        now_ns = self.node.now_ns()
        self._stopping, self._since_ns = True, now_ns
        self._end_ns = now_ns + round(self.begin() * NANOSECONDS) + REST_NS
        self._say(now_ns)

    def _say(self, now_ns: int) -> None:
        self._said_ns = now_ns
        # Where the clock jumped, either way, what is said is the end.
        said_ns = now_ns if self._stopping else self._end_ns
        message = self.message(self._last, (said_ns - self._since_ns) / NANOSECONDS)
        message.header.frame_id = self._last.header.frame_id
        message.header.stamp = to_stamp(now_ns + OWN_NS)
        self._sent.append(now_ns + OWN_NS)
        self._publisher.publish(message)

    def heard(self) -> None:
        """The arm controller has said something."""

    def _hear(self, message: Any) -> None:
        if to_nanoseconds(message.header.stamp) in self._sent:
            return
        self._last, self._heard_ns = message, self.node.now_ns()
        self._stopping = False  # who speaks stops the arm itself, having heard this node
        self.heard()


class TwistStop(StreamStop):
    """Slows the last velocity down to zero, says zero for a while, and then nothing.

    Where the driver has halted the arm by then, it says zero at once.
    """

    topic = "twist_command"
    kind = TwistStamped

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.warning = (
            "output twist: an arm controller that dies is noticed later than its stream ends; the "
            f"driver must halt by itself {self.parameters.driver_timeout:g} s after the last "
            "message, as MoveIt Servo does (incoming_command_timeout)"
        )

    def forget(self) -> None:
        """No motion is known either."""
        super().forget()
        self._motion: TimedTrajectory | None = None
        self._moving = False
        self._velocity = np.zeros(self.robot.joints)
        self._ease: Motion | None = None

    def watch(self, message: JointTrajectory) -> None:
        """Know how fast the joints are."""
        self._motion = as_played(
            self.robot.joint_names,
            trajectory_from_message(message),
            to_nanoseconds(message.header.stamp),
            self.node.now_ns(),
            lambda time_ns: None if self._motion is None else self._motion.at(time_ns),
        )

    def heard(self) -> None:
        """Remember whether the arm moves, and how fast the joints do."""
        self._moving = self._last.twist != Twist()
        if self._motion is not None:
            self._velocity = self._motion.at(self._heard_ns).velocity

    def look(self) -> str:
        """Stop as well where the stream ended in motion, whatever was to come."""
        silent, problem = self.silent, ""
        if self._moving and not self._stopping and silent > self.parameters.stream_timeout:
            self._start()
            problem = (
                f"{self.topic} silent in motion for {silent:.3f} s, allowed are "
                f"{self.parameters.stream_timeout:g} s"
            )
        super().look()
        return problem

    def begin(self) -> float:
        """The speed falls as in a gentle stop of the joints, by the same share for all."""
        self._moving, self._ease = False, None
        if self.silent > self.parameters.driver_timeout or not self._velocity.any():
            return 0.0
        state = MotionState(self.robot.home, self._velocity, np.zeros(self.robot.joints))
        self._ease = ease_out(self.robot.joint_names, state, self.robot.limits)
        return self._ease.duration

    def message(self, last: TwistStamped, elapsed: float) -> TwistStamped:
        """A share of the last velocity."""
        share = 0.0
        if self._ease is not None:
            fastest = int(np.argmax(np.abs(self._velocity)))
            velocity = self._ease.sample(elapsed).velocity
            share = float(velocity[fastest] / self._velocity[fastest])
        linear, angular = (_scaled(v, share) for v in (last.twist.linear, last.twist.angular))
        return TwistStamped(twist=Twist(linear=linear, angular=angular))


class PoseStop(StreamStop):
    """Repeats the last pose for a while: a Cartesian controller is on its way there already."""

    topic = "pose_command"
    kind = PoseStamped
    warning = (
        "output pose: an arm controller that dies leaves the arm at the pose that it sent last; "
        "how softly it comes to rest there is the driver's doing and cannot be changed from outside"
    )

    def message(self, last: PoseStamped, elapsed: float) -> PoseStamped:
        """The last pose."""
        del elapsed
        return PoseStamped(pose=last.pose)


STOPS: dict[str, type[StopAdapter]] = {
    "joint_trajectory": TopicStop,
    "follow_joint_trajectory": GoalStop,
    "twist": TwistStop,
    "pose": PoseStop,
}
"""Name of each output of the arm controller to what stops an arm that is commanded by it."""


def _scaled(vector: Vector3, share: float) -> Vector3:
    return Vector3(x=share * vector.x, y=share * vector.y, z=share * vector.z)
