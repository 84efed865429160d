"""Action chunks in, joint trajectories out: the only process that commands the arm."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64
from std_srvs.srv import SetBool, Trigger

from vla_reasoner_ros.control.executor import ChunkExecutor, ResetRefused
from vla_reasoner_ros.control.outputs import ARM_OUTPUTS
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.errors import ActionChunkError
from vla_reasoner_ros.msg import ActionChunk, ControllerStatus
from vla_reasoner_ros.parameters import group, parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.arm_diagnostics import ArmDiagnostics, ArmThresholds
from vla_reasoner_ros.ros.arm_outputs import ArmOutputs, OutputParameters
from vla_reasoner_ros.ros.conversions import (
    chunk_from_message,
    joints_from_message,
    status_to_message,
)
from vla_reasoner_ros.ros.diagnostics import Report
from vla_reasoner_ros.ros.lifecycle import ACTIVE, BaseParameters, LifecycleNode, run
from vla_reasoner_ros.types import ActionChunk as Chunk

WHILE_INACTIVE = ("estop", "speed_scaling")
"""What counts however long ago it was said."""


@dataclass(frozen=True)
class ArmControllerParameters(ControlParameters, OutputParameters, BaseParameters):
    """The controller's parameters, its outputs' and those of every node."""

    status_period: float = parameter(
        0.1,
        "Longest time between two messages on ~/status; each chunk is answered there at once too.",
        unit="s",
        minimum=0.01,
        maximum=10.0,
        read_only=True,
    )
    diagnostics: ArmThresholds = group(ArmThresholds)


class ArmControllerNode(LifecycleNode[ArmControllerParameters]):
    """Wires a :class:`ChunkExecutor` to topics, services and diagnostics."""

    parameters_class = ArmControllerParameters

    def configure(self) -> None:
        """Read the robot's limits; without them there is no controller."""
        parameters = self.parameters
        self._executor = ChunkExecutor(
            parameters,
            parameters.robot_description,
            clock=self.now_ns,
            tracking=ARM_OUTPUTS[parameters.output],
        )
        self._outputs = ArmOutputs(self, self._executor, parameters)
        self._statuses = self.create_lifecycle_publisher(ControllerStatus, "~/status", qos.STATE)
        for kind, topic, callback, profile in (
            (ActionChunk, "action_chunk", self._chunk_came, qos.COMMAND),
            (JointState, "joint_states", self._joints_came, qos.sensor("best_effort", 10)),
            (Float64, "speed_scaling", self._speed_scaled, qos.sensor("best_effort", 10)),
            *((Bool, "estop", self._emergency_stop, profile) for profile in qos.STOPS),
        ):
            self.create_subscription(
                kind,
                topic,
                self.guarded(topic, callback, while_inactive=topic in WHILE_INACTIVE),
                profile,
                callback_group=self.work,
            )
        self.create_service(SetBool, "~/hold", self._hold, callback_group=self.work)
        self.create_service(Trigger, "~/reset", self._reset, callback_group=self.work)
        for name, period, task in (
            ("watchdog", parameters.watchdog.period, self._tick),
            ("status", parameters.status_period, self._publish_status),
        ):
            self.create_timer(period, self.guarded(name, task), callback_group=self.work)
        self._said = 0.0
        self.create_timer(
            parameters.status_period,
            self.guarded("wall watchdog", self._wall_tick),
            callback_group=self.work,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self.diagnostics.hardware_id = self._executor.robot.name
        self._health = ArmDiagnostics(lambda: self.parameters.diagnostics)
        self.diagnostics.add("arm", self._report)

    def activate(self) -> None:
        """Take the arm as it stands."""
        self._executor.reset_reference(self.now_ns())
        enabled = self.parameters.enable_control
        said = "commands are sent" if enabled else "dry run, enable_control is false"
        self.get_logger().info(f"{self._executor.robot.name}: {said}")

    def deactivate(self) -> None:
        """Bring the arm to rest."""
        self._outputs.send(self._executor.stop(self.now_ns()))
        self._outputs.finish()

    def teardown(self) -> None:
        """Let go of the arm."""
        self.diagnostics.remove("arm")
        outputs = self.__dict__.pop("_outputs", None)
        if outputs is not None:
            outputs.close()
        self.__dict__.pop("_executor", None)

    def check_parameters(self, parameters: ArmControllerParameters) -> None:
        """What depends on the robot: its workspace."""
        self._executor.check_parameters(parameters)

    def clock_jumped_back(self, seconds: float) -> None:
        """A moving arm decelerates at once, before anything of the new time comes."""
        if self.state == ACTIVE:
            self._tick()

    def parameters_changed(self, parameters: ArmControllerParameters) -> None:
        """Motions from the next one on follow the new parameters."""
        self._outputs.send(self._executor.set_parameters(parameters, self.now_ns()))

    def _chunk_came(self, message: ActionChunk) -> None:
        now_ns = self.now_ns()
        try:
            self._outputs.send(self._executor.submit(self._read(message), now_ns).commands)
        except (ActionChunkError, ChunkRejected):
            if self.parameters.motion.repeat_on_rejection:
                self._outputs.send(self._executor.repeat(now_ns))
            raise
        finally:
            self._publish_status()

    def _read(self, message: ActionChunk) -> Chunk:
        """The chunk of a message; one that cannot be read counts as refused."""
        try:
            return chunk_from_message(message)
        except ActionChunkError as error:
            self._executor.reject(str(error))
            raise

    def _joints_came(self, message: JointState) -> None:
        joints = joints_from_message(message, self._executor.robot.joint_names)
        if joints is not None:
            self._executor.measured(*joints)

    def _emergency_stop(self, message: Bool) -> None:
        self._outputs.send(self._executor.emergency_stop(message.data, self.now_ns()))

    def _speed_scaled(self, message: Float64) -> None:
        self._executor.speed_scaled(message.data, self.now_ns())

    def _tick(self) -> None:
        self._outputs.look()
        self._outputs.send(self._executor.tick(self.now_ns()))

    def _wall_tick(self) -> None:
        """The look of a clock that nothing stops; it also keeps saying that this node lives."""
        wall = time.monotonic()
        self._outputs.look()
        self._outputs.send(self._executor.wall_tick(self.now_ns(), wall))
        if wall - self._said >= self.parameters.status_period:
            self._publish_status()

    def _publish_status(self) -> None:
        now_ns, self._said = self.now_ns(), time.monotonic()
        self._statuses.publish(status_to_message(self._executor.status(now_ns), now_ns))

    def _hold(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self.exclusive:
            if request.data:
                self._outputs.send(self._executor.hold(self.now_ns()))
            else:
                self._executor.release(self.now_ns())
        response.success = True
        response.message = "holding" if request.data else "released"
        return response

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self.exclusive:
            try:
                self._executor.reset(self.now_ns())
            except ResetRefused as refusal:
                response.message = str(refusal)
            else:
                response.success, response.message = True, "ready"
        return response

    def _report(self) -> Report:
        with self.exclusive:
            status = self._executor.status(self.now_ns())
            lead = self._executor.lead_time
        return self._health.report(status, lead)


def main() -> None:
    """Run the node."""
    run(ArmControllerNode, "arm_controller_node")


if __name__ == "__main__":
    main()
