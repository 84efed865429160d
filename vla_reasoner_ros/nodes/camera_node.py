"""Cameras, joint states and instruction in, aligned observations out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import INSTRUCTION, load_contract
from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.msg import Observation
from vla_reasoner_ros.parameters import group, parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import NANOSECONDS, to_nanoseconds
from vla_reasoner_ros.ros.conversions import (
    image_from_bytes,
    image_type,
    observation_to_message,
    prepare_images,
    stamp_from_bytes,
)
from vla_reasoner_ros.ros.ingest_diagnostics import IngestDiagnostics, StreamThresholds
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode, run

NEVER_S = 3600.0
"""Period of a timer with nothing to wake up for, s."""


@dataclass(frozen=True)
class CameraParameters(BaseParameters):
    """Parameters of camera_node."""

    contract: str = parameter(
        "sim",
        "Which streams make an observation: a name in config/contract/, or the path of such a "
        "file.",
        read_only=True,
    )
    robot: str = parameter(
        "",
        "Robot: a name in config/robots/, or the path of such a file. Empty: as the contract says.",
        read_only=True,
    )
    instruction: str = parameter(
        "",
        "Instruction at the start, for those who publish none; the topic replaces it.",
        read_only=True,
    )
    robot_description: str = parameter(
        "",
        "Text of a URDF whose kinematics replace the robot file's. Empty takes the robot file's.",
        read_only=True,
    )
    diagnostics: StreamThresholds = group(StreamThresholds)


class CameraNode(LifecycleNode[CameraParameters]):
    """Publishes ``observation``; which topics it takes is in the contract."""

    parameters_class = CameraParameters

    def configure(self) -> None:
        """Read contract and robot, subscribe to every stream."""
        contract = load_contract(self.parameters.contract)
        robot = load_robot(self.parameters.robot or contract.moments.robot)
        contract = replace(contract, moments=replace(contract.moments, robot=robot.name))
        self._ingest = Ingest(contract, Kinematics(robot, self.parameters.robot_description))
        if self.parameters.instruction:
            self._ingest.set_instruction(self.parameters.instruction, self.now_ns())
        prepare_images()
        self._publisher = self.create_lifecycle_publisher(Observation, "observation", qos.STATE)
        self._wake_at: float | None = None
        self._timer = self.create_timer(
            NEVER_S,
            self.guarded("waiting", self._publish_complete),
            callback_group=self.work,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        for name, stream in contract.cameras.items():
            self.create_subscription(
                image_type(stream.type),
                stream.topic,
                self.guarded(stream.topic, partial(self._on_image, name, stream.type)),
                qos.sensor(stream.reliability, stream.depth),
                callback_group=self.work,
                raw=True,
            )
        joints = contract.joint_states
        self.create_subscription(
            JointState,
            joints.topic,
            self.guarded(joints.topic, self._on_joints),
            qos.sensor(joints.reliability, joints.depth),
            callback_group=self.work,
        )
        topic = contract.moments.instruction
        self.create_subscription(
            String,
            topic,
            self.guarded(topic, self._on_instruction, while_inactive=True),
            qos.LATCHED,
            callback_group=self.work,
        )
        reports = IngestDiagnostics(self._ingest, lambda: self.parameters.diagnostics)
        self.diagnostics.hardware_id = robot.name
        self.diagnostics.add("observations", reports.observations)
        for name in self._ingest.statistics:
            if name != INSTRUCTION:
                self.diagnostics.add(name, partial(reports.stream, name))

    def deactivate(self) -> None:
        """Forget what was gathered; it will be old when the node is activated again."""
        self._wake(NEVER_S)
        self._ingest.reset()

    def clock_jumped_back(self, seconds: float) -> None:
        """Forget the samples of the old time."""
        self._ingest.reset()

    def _on_image(self, camera: str, kind: str, data: bytes) -> None:
        decode = partial(image_from_bytes, data, kind, camera)
        stamp_ns = stamp_from_bytes(data, camera)
        try:
            self._ingest.push_picture(camera, decode, stamp_ns, self.now_ns(), time.monotonic())
        finally:
            self._publish_complete()

    def _on_joints(self, message: JointState) -> None:
        stamp_ns = to_nanoseconds(message.header.stamp)
        try:
            self._ingest.push_joints(message, stamp_ns, self.now_ns(), time.monotonic())
        finally:
            self._publish_complete()

    def _on_instruction(self, message: String) -> None:
        self._ingest.set_instruction(message.data, self.now_ns())

    def _publish_complete(self) -> None:
        for observation in self._ingest.poll(time.monotonic()):
            self._publisher.publish(observation_to_message(observation))
        wake_at = self._ingest.wake_at()
        if wake_at == self._wake_at:
            return
        self._wake_at = wake_at
        self._wake(NEVER_S if wake_at is None else max(wake_at - time.monotonic(), 1e-4))

    def _wake(self, seconds: float) -> None:
        # A timer that is cancelled after the executor found it ready ends the process.
        self._timer.timer_period_ns = round(seconds * NANOSECONDS)
        self._timer.reset()


def main() -> None:
    """The executable."""
    run(CameraNode, "camera_node")


if __name__ == "__main__":
    main()
