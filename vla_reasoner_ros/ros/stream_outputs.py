"""Motions as a stream of poses or velocities of a link, sampled at a fixed rate."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3

from vla_reasoner_ros.control.commands import TimedTrajectory
from vla_reasoner_ros.control.resample import LinkSampler
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import header, pose_to_message, trajectory_to_message
from vla_reasoner_ros.ros.output import ArmAdapter, MotionTopic

REST_NS = 100_000_000
"""How long the end of a motion is repeated, so that it is not lost with one message; as long as
MoveIt Servo waits for a command."""
FINISH_S = 1.0
"""Wall-clock seconds that the last motion may take before a deactivation."""
REMEMBERED = 64  # of the messages sent last


class CartesianStream(ArmAdapter):
    """Samples the newest motion at ``command.rate`` until it is at rest, and says nothing then.

    A hold is a motion that decelerates; it is sampled like any other. What others publish on the
    topic stops the arm.
    """

    topic: str
    kind: type

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        node = self.node
        self.sampler = LinkSampler(self.executor.kinematics, self.declared.link)
        self._motion: TimedTrajectory | None = None
        self._sampled_ns = 0
        self._sent: deque[int] = deque(maxlen=REMEMBERED)
        self._period = 1.0 / self.parameters.rate
        self._motions = MotionTopic(node)
        self._publisher = node.create_lifecycle_publisher(self.kind, self.topic, qos.STATE)
        node.create_subscription(
            self.kind,
            self.topic,
            node.guarded(self.topic, self._heard),
            qos.STATE,
            callback_group=node.work,
        )
        node.create_timer(
            self._period, node.guarded(self.topic, self._sample), callback_group=node.work
        )

    def message(self, state: MotionState, now_ns: int) -> Any:
        """The message of a state."""
        raise NotImplementedError

    def send(self, motion: TimedTrajectory) -> None:
        """Sample this one from now on."""
        self._motion, self._sampled_ns = motion, motion.start_ns
        self._motions.publish(trajectory_to_message(motion.told, motion.start_ns))
        self._sample()

    def finish(self) -> None:
        """Go on until the arm is at rest."""
        end = time.monotonic() + FINISH_S
        while self._motion is not None and time.monotonic() < end:
            self._sample()
            time.sleep(self._period)
        self._motion = None

    def _sample(self) -> None:
        now_ns, motion, before_ns = self.node.now_ns(), self._motion, self._sampled_ns
        if motion is None:
            return
        rested = before_ns > motion.end_ns
        if now_ns < before_ns:  # the clock jumped back: it goes on from where it was
            motion = replace(motion, start_ns=motion.start_ns + now_ns - before_ns)
        over = now_ns > motion.end_ns + REST_NS
        self._motion, self._sampled_ns = None if over else motion, now_ns
        if over and rested:
            return  # else the clock jumped, and the end has not been said yet
        self._sent.append(now_ns)
        self._publisher.publish(self.message(motion.at(now_ns), now_ns))

    def _heard(self, message: Any) -> None:
        if to_nanoseconds(message.header.stamp) not in self._sent:
            self.publish(self.executor.intruded(self.node.now_ns()))


class TwistStream(CartesianStream):
    """Publishes the velocity of a link, for MoveIt Servo with ``command_in_type: speed_units``."""

    topic = "twist_command"
    kind = TwistStamped

    def message(self, state: MotionState, now_ns: int) -> TwistStamped:
        """Velocity of the link's origin and its angular velocity."""
        in_link = self.parameters.twist_frame == "link"
        numbers = self.sampler.twist(state, in_link).tolist()
        frame = self.declared.link if in_link else self.executor.robot.base_frame
        linear, angular = Vector3(), Vector3()
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = numbers
        return TwistStamped(
            header=header(now_ns, frame), twist=Twist(linear=linear, angular=angular)
        )


class PoseStream(CartesianStream):
    """Publishes the pose of a link in the robot's base frame, for Cartesian controllers."""

    topic = "pose_command"
    kind = PoseStamped

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._quaternion = np.zeros(4)

    def message(self, state: MotionState, now_ns: int) -> PoseStamped:
        """Pose of the link, its quaternion on the side of the last one.

        Both signs are the same rotation, but a driver may interpolate the numbers.
        """
        position, quaternion = self.sampler.pose(state)
        self._quaternion = -quaternion if quaternion @ self._quaternion < 0.0 else quaternion
        pose = pose_to_message(position, self._quaternion)
        return PoseStamped(header=header(now_ns, self.executor.robot.base_frame), pose=pose)
