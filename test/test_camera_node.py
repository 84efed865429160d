"""The camera node as a process of its own, over real DDS."""

import array
import math

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from diagnostic_msgs.msg import DiagnosticArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.msg import Observation
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds, to_stamp
from vla_reasoner_ros.ros.conversions import (
    compressed_to_message,
    header,
    image_to_message,
    observation_from_message,
)
from vla_reasoner_ros.ros.graph import GraphClient, GraphError
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

ROBOT = load_robot("fr3")
JOINTS = [*ROBOT.joint_names, "fr3_finger_joint1", "fr3_finger_joint2"]
CONTRACT = {
    "robot": "fr3",
    "reference": "agent",
    "rate": 30.0,
    "max_age": 5.0,
    "joint_states": {"topic": "joint_states", "reliability": "reliable", "tolerance": 0.2},
    "gripper": {"joints": JOINTS[7:]},
    "cameras": {
        "agent": {"topic": "agent/image_raw", "reliability": "reliable"},
        "wrist": {
            "topic": "wrist/image_raw/compressed",
            "type": "compressed",
            "reliability": "reliable",
            "tolerance": 0.2,
        },
    },
}

PICTURE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)


class Cameras:
    """The node under test and everything that it listens to."""

    def __init__(self, folder, content, parameters):
        path = folder / "contract.yaml"
        path.write_text(yaml.safe_dump(content))
        self.graph = ProcessGraph(folder / "log")
        given = {"contract": str(path), "autostart": False, "diagnostics_period": 0.2}
        self.graph.start(NodeProcess("camera_node", "camera_node", given | parameters))
        self.client = GraphClient(self.graph)
        node = self.client.node
        self.agent = node.create_publisher(Image, "agent/image_raw", qos.STATE)
        self.wrist = node.create_publisher(CompressedImage, "wrist/image_raw/compressed", qos.STATE)
        self.joints = node.create_publisher(JointState, "joint_states", qos.STATE)
        self.instruction = node.create_publisher(String, "instruction", qos.LATCHED)
        self.clock = node.create_publisher(Clock, "/clock", qos.CLOCK)
        self.observations = []
        node.create_subscription(Observation, "observation", self.observations.append, 500)
        self.diagnostics = {}
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.instruction.publish(String(data="open the drawer"))

    def _on_diagnostics(self, message):
        for status in message.status:
            self.diagnostics[status.name] = status

    def start(self):
        self.client.change("camera_node", lifecycle.CONFIGURE)
        self.client.change("camera_node", lifecycle.ACTIVATE)
        publishers = (self.agent, self.wrist, self.joints, self.instruction)
        self.wait(
            lambda: (
                all(p.get_subscription_count() for p in publishers)
                and self.client.node.count_publishers("observation")
            ),
            "connections",
        )

    def now(self):
        return self.client.node.get_clock().now().nanoseconds

    def publish(self, stamp, picture, shade=80, **fields):
        state = {"name": JOINTS, "position": [*ROBOT.home, 0.04, 0.04], "velocity": [0.0] * 9}
        self.joints.publish(JointState(header=header(stamp), **(state | fields)))
        flat = np.full((48, 64, 3), shade, np.uint8)
        self.wrist.publish(compressed_to_message(flat, stamp, "wrist"))
        self.agent.publish(picture if isinstance(picture, Image) else image(picture, stamp))

    def observe(self, **fields):
        """Publish everything with one stamp until an observation is made of it.

        The first moments may pass before each stream has delivered once.
        """
        stamps = []

        def observed():
            stamps.append(self.now())
            self.publish(stamps[-1], PICTURE, **fields)
            self.client.spin(0.2)
            sent = [to_stamp(stamp) for stamp in stamps]
            return next((o for o in self.observations if o.header.stamp in sent), None)

        return self.wait(observed, "observation")

    def wait(self, condition, what, timeout=120.0):
        return self.client.wait(condition, timeout, what)

    def said(self, task):
        status = self.diagnostics.get(f"camera_node: {task}")
        return status.message if status else ""

    def value(self, task, key):
        status = self.diagnostics.get(f"camera_node: {task}")
        return next((v.value for v in status.values if v.key == key), "") if status else ""

    def close(self):
        self.client.close()
        self.graph.stop()


def image(picture, stamp):
    return image_to_message(picture, stamp, "agent")


@pytest.fixture
def cameras(tmp_path):
    opened = []

    def open_(content=CONTRACT, parameters=None):
        opened.append(Cameras(tmp_path, content, parameters or {}))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_observations_hold_what_was_sent(cameras):
    robot = cameras()
    robot.start()
    observation = observation_from_message(robot.observe())
    assert observation.images["agent"].shape == (96, 96, 3)
    assert abs(observation.images["wrist"].astype(int) - 80).max() <= 2
    np.testing.assert_allclose(observation.joint_positions, ROBOT.home)
    assert observation.joint_names == ROBOT.joint_names
    assert observation.gripper == pytest.approx(1.0)
    assert observation.instruction == "open the drawer"
    assert observation.ee_frame == "base"
    assert observation.ages["wrist"] == 0.0

    robot.instruction.publish(String(data="close it"))
    robot.wait(lambda: robot.observe().instruction == "close it", "new instruction")


def test_two_cameras_of_640x480_at_30_hz_are_observed_without_loss(cameras):
    ahead = 8  # pictures that the node may be behind before the cameras wait for it
    content = yaml.safe_load(yaml.safe_dump(CONTRACT))
    content["cameras"]["wrist"] |= {"topic": "wrist/image_raw", "type": "image"}
    content["max_age"] = 120.0
    for stream in (content["joint_states"], *content["cameras"].values()):
        stream["depth"] = 120
    robot = cameras(content)
    node = robot.client.node
    deep = qos.sensor("reliable", 120)
    wrist = robot.wrist = node.create_publisher(Image, "wrist/image_raw", deep)
    agent = node.create_publisher(Image, "agent/image_raw", deep)
    joints = node.create_publisher(JointState, "joint_states", deep)
    picture = image(PICTURE, 0)
    states = {"name": JOINTS, "position": [*ROBOT.home, 0.04, 0.04], "velocity": [0.0] * 9}
    sent = []
    begin = robot.now()

    def tick():
        stamp = begin + round(len(sent) * 1e9 / 30)
        joints.publish(JointState(header=header(stamp), **states))
        picture.header.stamp = to_stamp(stamp)
        wrist.publish(picture)
        agent.publish(picture)
        sent.append(stamp)

    robot.start()
    begin = robot.now()
    timer = node.create_timer(1 / 30, lambda: waiting() < ahead and tick())

    def waiting():
        seen = robot.observations
        return sum(stamp > to_nanoseconds(seen[-1].header.stamp) for stamp in sent) if seen else 0

    robot.wait(lambda: len(robot.observations) > 5, "first observations")
    first = len(sent)
    robot.wait(lambda: len(sent) >= first + 90, "sending", timeout=240.0)
    timer.cancel()
    wanted = [to_stamp(stamp) for stamp in sent[first:]]
    robot.wait(lambda: wanted[-1] in [o.header.stamp for o in robot.observations], "the last one")
    stamps = [o.header.stamp for o in robot.observations]
    assert stamps[stamps.index(wanted[0]) :] == wanted
    for camera in ("agent", "wrist"):
        robot.wait(lambda c=camera: robot.value(c, "received") == str(len(sent)), "counts")


def test_unusable_input_is_dropped_counted_and_said_and_the_node_lives_on(cameras):
    robot = cameras()
    robot.start()
    robot.observe()

    for encoding, step, data in (
        ("unheard_of", 1920, PICTURE.tobytes()),
        ("rgb8", 7, PICTURE.tobytes()),
        ("rgb8", 1920, PICTURE.tobytes()[:-1]),
        ("rgb8", 1920, b""),
    ):
        stamp = robot.now()
        broken = image(PICTURE, stamp)
        broken.encoding, broken.step = encoding, step
        broken.data = array.array("B", data)
        robot.publish(stamp, broken)
        robot.client.spin(0.15)
    robot.wait(lambda: robot.value("agent", "dropped: unusable") == "4", "broken pictures")
    assert "data has 0 bytes" in robot.value("agent", "last error")

    faults = (
        {"position": [math.nan] * 9},
        {"name": JOINTS[:-1], "position": [0.0] * 8, "velocity": [0.0] * 8},
        {"name": [*JOINTS[:-1], "stranger"]},
        {"velocity": []},
    )
    for fault in faults:
        robot.publish(robot.now(), PICTURE, **fault)
        robot.client.spin(0.05)
    robot.publish(robot.now() + 60 * 10**9, PICTURE)
    robot.wait(lambda: robot.value("joint_states", "dropped: unusable") == "4", "broken joints")
    for stream in ("agent", "wrist", "joint_states"):
        robot.wait(lambda s=stream: robot.value(s, "dropped: future") == "1", "stamps ahead")
    robot.instruction.publish(String(data=" "))
    robot.wait(
        lambda: (
            robot.value("state", "instruction: last reason")
            == "instruction: the instruction is empty"
        ),
        "empty instruction",
    )
    assert robot.observe().instruction == "open the drawer"


def test_a_stream_that_never_delivers_is_named(cameras):
    robot = cameras()
    robot.start()
    for _ in range(5):
        robot.agent.publish(image(PICTURE, robot.now()))
        robot.client.spin(0.1)
    robot.wait(
        lambda: robot.said("observations") == "waiting for joint_states, wrist",
        "diagnostics",
    )
    robot.wait(lambda: robot.diagnostics["camera_node: wrist"].level == b"\x03", "STALE")
    assert robot.observations == []


def test_when_the_clock_jumps_back_observations_go_on(cameras):
    robot = cameras(parameters={"use_sim_time": True})
    robot.start()
    robot.wait(lambda: robot.clock.get_subscription_count(), "clock")

    def at(seconds):
        stamps = []

        def observed():
            stamps.append(round((seconds + 0.1 * len(stamps)) * 1e9))
            robot.clock.publish(Clock(clock=to_stamp(stamps[-1])))
            robot.client.spin(0.1)
            robot.publish(stamps[-1], PICTURE)
            robot.client.spin(0.1)
            return any(o.header.stamp == to_stamp(s) for o in robot.observations for s in stamps)

        robot.wait(observed, f"observation at {seconds} s of simulated time")

    at(100.0)
    at(3.0)
    assert "the clock jumped back by 9" in robot.graph.last_words("camera_node")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"contract": "nowhere"}, "contract 'nowhere' is unknown; known are"),
        ({"robot": "r2d2"}, "robot 'r2d2' is unknown"),
        ({"contracts": "sim"}, "parameter contracts: there is none of this name; did you mean"),
        ({"diagnostics_period": 0.001}, "diagnostics_period: expected at least 0.05 s"),
    ],
)
def test_a_wrong_configuration_is_refused_and_said(cameras, change, complaint):
    robot = cameras(parameters=change)
    with pytest.raises(GraphError, match="camera_node failed to configure"):
        robot.client.change("camera_node", lifecycle.CONFIGURE)
    robot.wait(
        lambda: complaint in robot.said("state"),
        "stop reason",
    )
    assert complaint in robot.graph.last_words("camera_node")


def test_a_node_can_be_cleaned_up_and_configured_again(cameras):
    robot = cameras()
    robot.start()
    robot.observe()
    robot.client.change("camera_node", lifecycle.DEACTIVATE)
    robot.client.change("camera_node", lifecycle.CLEANUP)
    robot.wait(lambda: robot.agent.get_subscription_count() == 0, "subscriptions to go")
    robot.start()
    robot.observe()
