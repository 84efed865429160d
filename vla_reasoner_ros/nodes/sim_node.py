"""MuJoCo in the place of cameras and arm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from rclpy.clock import Clock as RosClock
from rclpy.clock_type import ClockType
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError
from vla_reasoner_ros.msg import SimulatorState
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.conversions import compressed_to_message, image_to_message
from vla_reasoner_ros.ros.diagnostics import Report
from vla_reasoner_ros.ros.lifecycle import GRACE_S, BaseParameters, LifecycleNode, run
from vla_reasoner_ros.ros.simulation import (
    camera_to_message,
    joints_to_message,
    report,
    state_to_message,
    trajectory_from_message,
)
from vla_reasoner_ros.sim.loop import LoopParameters, SimulationLoop
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.srv import ResetEpisode

ANSWER_S = 20.0
"""Wall-clock seconds that the loop may take to answer."""
CAMERAS = ("overview", "wrist", "agent")
"""In the order they are published: the one that observations are timed by comes last."""


@dataclass(frozen=True)
class SimParameters(BaseParameters, LoopParameters):
    """The simulated robot and its scene."""

    image_width: int = parameter(
        96, "Width of agent and wrist images.", unit="px", minimum=16, maximum=1280, read_only=True
    )
    image_height: int = parameter(
        96, "Height of agent and wrist images.", unit="px", minimum=16, maximum=960, read_only=True
    )
    overview_width: int = parameter(
        480, "Width of overview images.", unit="px", minimum=16, maximum=1280, read_only=True
    )
    overview_height: int = parameter(
        360, "Height of overview images.", unit="px", minimum=16, maximum=960, read_only=True
    )
    finger_joints: tuple[str, ...] = parameter(
        ("fr3_finger_joint1", "fr3_finger_joint2"),
        "Names of the two fingers in joint_states.",
        read_only=True,
    )


class SimNode(LifecycleNode[SimParameters]):
    """Wires a :class:`SimulationLoop` to topics and a service."""

    parameters_class = SimParameters

    def configure(self) -> None:
        """Build the scene; time stands still until activation."""
        if len(self.parameters.finger_joints) != 2:
            raise ConfigurationError(
                f"parameter finger_joints: expected 2 names, got {self.parameters.finger_joints}"
            )
        self._refused = ""
        # Not a managed publisher: time is told in the inactive state too, where it stands still.
        self._time = self.create_publisher(Clock, "/clock", qos.CLOCK)
        self._joint_states = self.create_lifecycle_publisher(JointState, "joint_states", qos.STATE)
        self._states = self.create_lifecycle_publisher(SimulatorState, "simulator_state", qos.STATE)
        images = qos.sensor("reliable", 2)
        self._images, self._jpegs, self._infos = {}, {}, {}
        for name in CAMERAS:
            topic = f"{name}/image_raw"
            self._images[name] = self.create_lifecycle_publisher(Image, topic, images)
            self._jpegs[name] = self.create_lifecycle_publisher(
                CompressedImage, f"{topic}/compressed", images
            )
            self._infos[name] = self.create_lifecycle_publisher(
                CameraInfo, f"{name}/camera_info", images
            )
        self._loop = SimulationLoop(self.parameters, self)
        self.result_of(self._loop.begin())
        for kind, topic, take in (
            (JointTrajectory, "joint_trajectory", self._command),
            (Float64, "gripper_command", self._grip),
        ):
            self.create_subscription(
                kind, topic, self.guarded(topic, take), qos.COMMAND, callback_group=self.work
            )
        self.create_service(ResetEpisode, "~/reset", self._reset, callback_group=self.work)
        self.diagnostics.add("simulation", self._report)

    def activate(self) -> None:
        """Let time pass."""
        self._loop.resume()

    def deactivate(self) -> None:
        """Let time stand still."""
        self._loop.pause()

    def teardown(self) -> None:
        """Free the scene."""
        self.diagnostics.remove("simulation")
        if hasattr(self, "_loop"):
            self._loop.stop(GRACE_S if self.ending.is_set() else ANSWER_S)
            del self._loop

    # Called by the loop, in its thread.

    def clock(self, stamp_ns: int) -> None:
        """Publish the time."""
        self._time.publish(Clock(clock=to_stamp(stamp_ns)))

    def joints(self, world: World, stamp_ns: int) -> None:
        """Publish joint states."""
        self._joint_states.publish(
            joints_to_message(world, self.parameters.finger_joints, stamp_ns)
        )

    def frames(self, world: World, stamp_ns: int) -> None:
        """Publish the state, and the images that someone listens to."""
        self._states.publish(state_to_message(world, self._loop.episode, stamp_ns))
        for name in CAMERAS:
            raw = self._images[name].get_subscription_count()
            compressed = self._jpegs[name].get_subscription_count()
            width, height = self._size(name)
            if raw or compressed:
                image = world.render(name, height, width)
                if raw:
                    self._images[name].publish(image_to_message(image, stamp_ns, name))
                if compressed:
                    self._jpegs[name].publish(compressed_to_message(image, stamp_ns, name))
            if self._infos[name].get_subscription_count():
                self._infos[name].publish(camera_to_message(world, name, width, height, stamp_ns))

    def failed(self, error: Exception) -> None:
        """The simulation broke: nothing may go on as if it had not."""

        def end() -> None:
            raise error  # in a callback it ends the process

        steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.01, end, callback_group=self.work, clock=steady)

    # Called by the executor.

    def _command(self, message: JointTrajectory) -> None:
        def accept(world: World) -> str:
            offset_ns = self._loop.time_ns - world.time_ns
            refused = world.controller.accept(trajectory_from_message(message, offset_ns))
            if refused is not None:
                return refused.value
            self._loop.trajectory_accepted()
            return ""

        self._refused = self._loop.submit(accept).result(ANSWER_S)
        if self._refused:
            raise VlaReasonerError(f"trajectory refused: {self._refused}")

    def _grip(self, message: Float64) -> None:
        self._loop.submit(lambda world: world.command_gripper(message.data)).result(ANSWER_S)

    def _reset(
        self, request: ResetEpisode.Request, response: ResetEpisode.Response
    ) -> ResetEpisode.Response:
        try:
            response.instruction = self._loop.reset(request.task, request.seed).result(ANSWER_S)
            response.success = True
        except (VlaReasonerError, TimeoutError) as error:
            response.message = str(error) or "the simulation does not answer"
        return response

    def _report(self) -> Report:
        return self._loop.submit(partial(report, self._loop)).result(ANSWER_S)

    def _size(self, camera: str) -> tuple[int, int]:
        given = self.parameters
        if camera == "overview":
            return given.overview_width, given.overview_height
        return given.image_width, given.image_height


def main() -> None:
    """Run the node."""
    run(SimNode, "sim_node")


if __name__ == "__main__":
    main()
