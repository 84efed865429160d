"""Stops the arm when the arm controller or the planner goes silent: a process apart from both."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.commands import NANOSECONDS, ControllerState
from vla_reasoner_ros.control.deadman import Deadman, DeadmanParameters
from vla_reasoner_ros.control.executor import ResetRefused
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.msg import ActionChunk, ControllerStatus
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import (
    chunk_from_message,
    joints_from_message,
    status_from_message,
    status_to_message,
    trajectory_from_message,
)
from vla_reasoner_ros.ros.deadman_outputs import STOPS, StopParameters
from vla_reasoner_ros.ros.diagnostics import Level, Report
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode, run

UNHEARD_NS = NANOSECONDS // 2
"""For so long the arm controller may say that it moves the arm before its motion is heard."""
BLIND = (
    "blind: the arm controller moves the arm, and no motion is heard; is the parameter output the "
    "same here and there, and is its topic remapped alike?"
)


@dataclass(frozen=True)
class DeadmanNodeParameters(DeadmanParameters, StopParameters, BaseParameters):
    """The deadman's parameters and those of every node."""

    status_period: float = parameter(
        0.5,
        "Time between two messages on ~/status, by a clock that nothing stops.",
        unit="s",
        minimum=0.01,
        maximum=10.0,
        read_only=True,
    )


class DeadmanNode(LifecycleNode[DeadmanNodeParameters]):
    """Wires a :class:`Deadman` to topics, a service and two clocks."""

    parameters_class = DeadmanNodeParameters

    def configure(self) -> None:
        """Read the robot's limits and listen."""
        given = self.parameters
        self._robot = load_robot(given.robot, given.limits)
        self._robot.outputs.for_arm(given.output, self._robot.name)
        self._deadman = Deadman(self._robot, given)
        self._stop = STOPS[given.output](self, self._robot, given)
        self._unheard_ns: int | None = None
        if self._stop.warning:
            self.get_logger().warning(self._stop.warning)
        self._statuses = self.create_lifecycle_publisher(ControllerStatus, "~/status", qos.LATCHED)
        streams = [
            (ControllerStatus, f"{given.controller}/status", self._controller_spoke, qos.STATE),
            (ActionChunk, "action_chunk", self._planner_spoke, qos.COMMAND),
            (JointState, "joint_states", self._joints_came, qos.sensor("best_effort", 10)),
        ]
        if self._stop.by_topic:
            streams.append((JointTrajectory, "joint_trajectory", self._commanded, qos.HEARD))
        if given.output != "joint_trajectory":
            motion = f"{given.controller}/motion"
            streams.append((JointTrajectory, motion, self._announced, qos.HEARD))
        for kind, topic, callback, profile in streams:
            self.create_subscription(
                kind, topic, self.guarded(topic, callback), profile, callback_group=self.work
            )
        self.create_service(Trigger, "~/reset", self._reset, callback_group=self.work)
        # One look by each clock: the node's may be simulated, and stop.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        for clock in (self.get_clock(), steady):
            self.create_timer(
                given.period,
                self.guarded("look", self._look),
                callback_group=self.work,
                clock=clock,
            )
        self.create_timer(
            given.status_period,
            self.guarded("status", self._publish_status),
            callback_group=self.work,
            clock=steady,
        )
        self.diagnostics.hardware_id = self._robot.name
        self.diagnostics.add("deadman", self._report)

    def activate(self) -> None:
        """Watch, with nothing known of the time before."""
        self._deadman = Deadman(self._robot, self.parameters)
        self._stop.forget()
        self._unheard_ns = None
        self._publish_status()

    def teardown(self) -> None:
        """Let go of everything."""
        self.diagnostics.remove("deadman")
        stop = self.__dict__.pop("_stop", None)
        if stop is not None:
            stop.close()

    def parameters_changed(self, parameters: DeadmanNodeParameters) -> None:
        """The next look follows the new time-outs."""
        self._deadman.parameters = parameters

    def _commanded(self, message: JointTrajectory) -> None:
        self._deadman.commanded(
            trajectory_from_message(message),
            to_nanoseconds(message.header.stamp),
            self.now_ns(),
            time.monotonic(),
        )

    def _announced(self, message: JointTrajectory) -> None:
        self._commanded(message)
        self._stop.watch(message)

    def _controller_spoke(self, message: ControllerStatus) -> None:
        status = status_from_message(message)
        said_ns = to_nanoseconds(message.header.stamp)
        executing = status.state is ControllerState.EXECUTING
        now_ns = self.now_ns()
        self._deadman.controller_spoke(said_ns, now_ns, time.monotonic(), executing)
        if not executing or self._deadman.status(now_ns).state is not ControllerState.WAITING:
            self._unheard_ns = None
        elif self._unheard_ns is None:
            self._unheard_ns = now_ns

    def _planner_spoke(self, message: ActionChunk) -> None:
        chunk = chunk_from_message(message)
        self._deadman.planner_spoke(chunk.observation_stamp_ns, self.now_ns(), time.monotonic())

    def _joints_came(self, message: JointState) -> None:
        joints = joints_from_message(message, self._robot.joint_names)
        if joints is not None:
            self._deadman.measured(*joints, self.now_ns())

    def _look(self) -> None:
        stop = self._deadman.tick(self.now_ns(), time.monotonic())
        if stop is not None:
            self._stop.send(stop)
        problem = self._stop.look()
        if problem:
            self._deadman.latch(problem)
        if stop is not None or problem:
            self._publish_status()
            self.get_logger().error(f"the arm is stopped: {self._deadman.reason}")

    def _publish_status(self) -> None:
        now_ns = self.now_ns()
        self._statuses.publish(status_to_message(self._deadman.status(now_ns), now_ns))

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self.exclusive:
            try:
                self._deadman.reset(self.now_ns(), time.monotonic())
            except ResetRefused as refusal:
                response.message = str(refusal)
            else:
                response.success, response.message = True, "ready"
                self._publish_status()
        return response

    def _report(self) -> Report:
        with self.exclusive:
            reason, stops = self._deadman.reason, self._deadman.stops
            since_ns, now_ns = self._unheard_ns, self.now_ns()
        if not reason and since_ns is not None and now_ns - since_ns > UNHEARD_NS:
            reason = BLIND
        level = Level.ERROR if reason else Level.OK
        return Report(level, reason or "watching", {"stops": stops})


def main() -> None:
    """Run the node."""
    run(DeadmanNode, "deadman_node")


if __name__ == "__main__":
    main()
