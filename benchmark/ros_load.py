"""Two 640x480 cameras, joint states and an arm for the real nodes: the load of the ROS benchmarks.

Arm, things and what the cameras see are simulated (:mod:`benchmark.ros_cell`), so that the nodes do
what they do on an arm at work.
"""

from __future__ import annotations

import array
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, String
from trajectory_msgs.msg import JointTrajectory

from benchmark.ros_cell import LARGE, Cell
from vla_reasoner_ros.msg import ActionChunk, ControllerStatus, Observation, SearchStatistics
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.graph import ACTIVATE, CONFIGURE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.ros.simulation import joints_to_message, trajectory_from_message
from vla_reasoner_ros.ros.spinning import SWITCH_INTERVAL_S

CAMERAS = ("wrist", "agent")
FINGERS = ("fr3_finger_joint1", "fr3_finger_joint2")
NODES = ("camera_node", "arm_controller_node", "planner_node")
RATE = 30.0
JOINT_RATE = 100.0
QUEUE = 60
"""Pictures that wait on either side: two seconds in which a busy machine runs nothing."""
SETTLED_S = 3.0
"""Seconds without news after which no picture is under way: three reports of the diagnostics."""
PATIENCE_S = 60.0
CONTRACT = {
    "robot": "fr3",
    "reference": "agent",
    "rate": RATE,
    "joint_states": {"topic": "joint_states", "tolerance": 0.1, "depth": 50, "waited_for": False},
    "gripper": {"joints": list(FINGERS)},
    "cameras": {
        name: {
            "topic": f"{name}/image_raw",
            "tolerance": 0.1,
            "reliability": "reliable",
            "depth": QUEUE,
        }
        for name in CAMERAS
    },
}
_NS = 1_000_000_000


@dataclass
class Heard:
    """What the nodes said.

    Attributes:
        observations: stamp and time of reception of each, ns.
        decisions: stamp of the observation, ns, to the time that the decision took, ms.
        chunks: sequence to the stamp of its observation, ns.
        sent: sequence to when the arm controller said first that it executes it, ns.
    """

    observations: list[tuple[int, int]] = field(default_factory=list)
    decisions: dict[int, float] = field(default_factory=dict)
    chunks: dict[int, int] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    reports: int = 0
    received: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


class Load:
    """The nodes under load; a context manager.

    Args:
        folder: for logs and the contract.
        world_model: of the planner; ``none`` lets the policy drive.

    Attributes:
        heard: everything that the nodes said.
        sent: frames sent of each camera.
        refused: trajectories that the arm's driver refused.
    """

    def __init__(self, folder: Path, world_model: str = "none") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        contract = folder / "contract.yaml"
        contract.write_text(yaml.safe_dump(CONTRACT), encoding="utf-8")
        parameters: dict[str, dict[str, object]] = {
            "camera_node": {"contract": str(contract)},
            "arm_controller_node": {"enable_control": True},
            "planner_node": {"planner.world_model": world_model},
        }
        self.graph = ProcessGraph(folder / "log")
        for name in NODES:
            self.graph.start(NodeProcess(name, name, {"autostart": False, **parameters[name]}))
        self.client = GraphClient(self.graph, "load")
        self.heard = Heard()
        self.sent = 0
        self.refused = 0
        self._cell: Cell | None = None
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connect()

    def _connect(self) -> None:
        node = self.client.node
        reliable = qos.sensor("reliable", QUEUE)
        self._images = {
            name: node.create_publisher(Image, f"{name}/image_raw", reliable) for name in CAMERAS
        }
        self._joints = node.create_publisher(JointState, "joint_states", qos.STATE)
        self._instruction = node.create_publisher(String, "instruction", qos.LATCHED)
        for kind, topic, take, profile in (
            (Observation, "observation", self._observed, qos.STATE),
            (SearchStatistics, "search_statistics", self._decided, qos.STATE),
            (ActionChunk, "action_chunk", self._planned, qos.COMMAND),
            (JointTrajectory, "joint_trajectory", self._commanded, qos.COMMAND),
            (Float64, "gripper_command", self._gripped, qos.COMMAND),
            (ControllerStatus, "arm_controller_node/status", self._told, qos.STATE),
            (DiagnosticArray, "/diagnostics", self._diagnosed, qos.DIAGNOSTICS),
        ):
            node.create_subscription(kind, topic, take, profile)

    def start(self) -> None:
        """Bring the nodes up, then let cameras and joint states flow."""
        for name in NODES:
            self.client.change(name, CONFIGURE, timeout=240.0)
        publishers = (*self._images.values(), self._joints, self._instruction)
        self.client.wait(
            lambda: all(p.get_subscription_count() for p in publishers), 60.0, "the connections"
        )
        self._cell = Cell(self._now_ns())
        self._instruction.publish(String(data=self._cell.world.instruction))
        sys.setswitchinterval(SWITCH_INTERVAL_S)  # cameras and drivers are processes of their own
        for name in NODES:
            self.client.change(name, ACTIVATE)
        for work, rate in ((self._send_joints, JOINT_RATE), (self._send_images, RATE)):
            thread = threading.Thread(target=self._at_rate, args=(work, rate), daemon=True)
            thread.start()
            self._threads.append(thread)

    def run(self, seconds: float) -> None:
        """Let it flow for a while."""
        self.client.spin(seconds)

    def stop(self) -> None:
        """Stop the flow, and hear what is still under way, until nothing new comes."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        end = time.monotonic() + PATIENCE_S
        before: dict[str, int] = {}
        while time.monotonic() < end and (self.frames_lost() or not before):
            before = dict(self.heard.received)
            reports = self.heard.reports
            self.client.spin(SETTLED_S)
            if self.heard.received == before and self.heard.reports >= reports + 2:
                return

    def _now_ns(self) -> int:
        return int(self.client.node.get_clock().now().nanoseconds)

    def _at_rate(self, work: object, rate: float) -> None:
        assert callable(work)
        due = time.monotonic()
        while not self._ending.is_set():
            work()
            due = max(due + 1.0 / rate, time.monotonic() - 1.0)
            self._ending.wait(max(0.0, due - time.monotonic()))

    def _send_images(self) -> None:
        assert self._cell is not None
        height, width = LARGE
        pictures = [self._cell.picture(camera) for camera in CAMERAS]
        messages = [
            Image(
                height=height,
                width=width,
                encoding="rgb8",
                step=3 * width,
                data=array.array("B", picture.tobytes()),
            )
            for picture in pictures
        ]
        stamp = header(self._now_ns())
        for message, publisher in zip(messages, self._images.values(), strict=True):
            message.header = stamp
            publisher.publish(message)
        self.sent += 1

    def _send_joints(self) -> None:
        assert self._cell is not None
        now_ns = self._now_ns()
        with self._cell.lock:
            self._cell.advance(now_ns)
            message = joints_to_message(self._cell.world, FINGERS, now_ns)
        self._joints.publish(message)

    def _observed(self, message: Observation) -> None:
        self.heard.observations.append((to_nanoseconds(message.header.stamp), self._now_ns()))

    def _decided(self, message: SearchStatistics) -> None:
        self.heard.decisions[to_nanoseconds(message.observation_stamp)] = message.time_ms

    def _planned(self, message: ActionChunk) -> None:
        self.heard.chunks[message.sequence] = to_nanoseconds(message.observation_stamp)

    def _told(self, message: ControllerStatus) -> None:
        self.heard.sent.setdefault(message.sequence, to_nanoseconds(message.header.stamp))

    def _commanded(self, message: JointTrajectory) -> None:
        assert self._cell is not None
        with self._cell.lock:
            self._cell.advance(self._now_ns())
            trajectory = trajectory_from_message(message, self._cell.start_ns)
            self.refused += self._cell.world.controller.accept(trajectory) is not None

    def _gripped(self, message: Float64) -> None:
        assert self._cell is not None
        with self._cell.lock:
            self._cell.world.command_gripper(message.data)

    def _diagnosed(self, message: DiagnosticArray) -> None:
        self.heard.reports += any(s.name.startswith("camera_node") for s in message.status)
        for status in message.status:
            node, _, camera = status.name.partition(": ")
            if node == "camera_node" and camera in CAMERAS:
                values = {item.key: item.value for item in status.values}
                self.heard.received[camera] = int(values["received"])
                self.heard.dropped[camera] = sum(
                    int(value) for key, value in values.items() if key.startswith("dropped")
                )

    def frames_lost(self) -> int:
        """Frames sent that the camera node did not receive, of both cameras."""
        return sum(self.sent - self.heard.received.get(camera, 0) for camera in CAMERAS)

    def frames_dropped(self) -> int:
        """Frames that the camera node received and could not use, of both cameras."""
        return sum(self.heard.dropped.values())

    def image_to_observation_ms(self) -> np.ndarray:
        """Image stamp to the reception of its observation, ms, of every observation."""
        times = np.array(self.heard.observations, dtype=np.int64).reshape(-1, 2)
        return np.asarray((times[:, 1] - times[:, 0]) / 1e6)

    def overhead_ms(self) -> np.ndarray:
        """Image stamp to command less the decision's own time, ms, of every decision obeyed.

        The arm controller says that it executes a chunk as soon as it has sent the command; by its
        clock, so that the reception in this process, which is busy with pictures, does not count.
        """
        found = [
            (self.heard.sent[sequence] - stamp_ns) / 1e6 - self.heard.decisions[stamp_ns]
            for sequence, stamp_ns in self.heard.chunks.items()
            if sequence in self.heard.sent and stamp_ns in self.heard.decisions
        ]
        return np.array(found)

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self.client.close()
        self.graph.stop()
