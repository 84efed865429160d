"""The simulator as a process, over real topics."""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_reasoner_ros.msg import SimulatorState
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import image_from_bytes
from vla_reasoner_ros.ros.graph import (
    ACTIVATE,
    ACTIVE,
    CONFIGURE,
    DEACTIVATE,
    GraphClient,
    GraphError,
)
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.srv import ResetEpisode

ARM = [f"fr3_joint{i}" for i in range(1, 8)]
SECOND = 1_000_000_000


class Robot:
    """What a test does with the simulator's topics."""

    def __init__(self, client):
        self.client = client
        node = client.node
        self.heard = {}
        for kind, topic, profile in (
            (Clock, "/clock", qos.CLOCK),
            (JointState, "joint_states", qos.sensor("reliable", 100)),
            (SimulatorState, "simulator_state", qos.STATE),
            (Image, "agent/image_raw", qos.STATE),
            (CompressedImage, "overview/image_raw/compressed", qos.STATE),
            (CameraInfo, "agent/camera_info", qos.STATE),
            (DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS),
        ):
            self.heard[topic] = []
            node.create_subscription(kind, topic, self.heard[topic].append, profile)
        self.trajectories = node.create_publisher(JointTrajectory, "joint_trajectory", qos.COMMAND)
        self.grippers = node.create_publisher(Float64, "gripper_command", qos.COMMAND)
        client.change("sim_node", CONFIGURE)
        self.wait(self.trajectories.get_subscription_count, "the simulator's subscription")
        self.episode = 0

    def start(self, task="lift_green", seed=3):
        """Begin an episode and wait for its first images."""
        if self.client.state("sim_node") == ACTIVE:
            self.client.change("sim_node", DEACTIVATE)
        answer = self.reset(task, seed)
        assert answer.success, answer.message
        self.client.change("sim_node", ACTIVATE)
        self.wait(self.began, "the first state and images")
        return answer.instruction

    def began(self):
        """Whether the episode has begun; what is left of the last one is forgotten."""
        states = self.heard["simulator_state"]
        first = next((state for state in states if state.episode > self.episode), None)
        if first is None:
            return False
        begin = to_nanoseconds(first.header.stamp)
        for topic in ("simulator_state", "joint_states", "agent/image_raw", "agent/camera_info"):
            messages = self.heard[topic]
            messages[:] = [m for m in messages if to_nanoseconds(m.header.stamp) >= begin]
        if not (self.heard["agent/image_raw"] and self.heard["joint_states"]):
            return False
        self.episode = first.episode
        return True

    def reset(self, task, seed):
        request = ResetEpisode.Request(task=task, seed=seed)
        return self.client.call(ResetEpisode, "sim_node/reset", request)

    def wait(self, condition, what):
        return self.client.wait(condition, 120.0, what)

    def joints(self):
        return np.array(self.heard["joint_states"][-1].position)

    def now_ns(self):
        return to_nanoseconds(self.heard["simulator_state"][-1].header.stamp)

    def move(self, target, seconds=0.8, names=ARM, moving_end=False):
        """Publish a trajectory from here to target that starts at once."""
        start = self.joints()[:7]
        s = np.linspace(0.1, 1.0, 10)
        blend = 10 * s**3 - 15 * s**4 + 6 * s**5
        rate = (30 * s**2 - 60 * s**3 + 30 * s**4) / seconds
        message = JointTrajectory(joint_names=names)
        for fraction, b, r in zip(s, blend, rate, strict=True):
            point = JointTrajectoryPoint(
                positions=(start + b * (target - start)).tolist(),
                velocities=(r * (target - start) + 0.1 * moving_end).tolist(),
            )
            nanoseconds = round(fraction * seconds * SECOND)
            point.time_from_start.sec, point.time_from_start.nanosec = divmod(nanoseconds, SECOND)
            message.points.append(point)
        self.trajectories.publish(message)

    def diagnosed(self, key, task="simulation"):
        for array in reversed(self.heard["/diagnostics"]):
            for status in array.status:
                if status.name == f"sim_node: {task}":
                    return {pair.key: pair.value for pair in status.values}.get(key)
        return None


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    parameters = {
        "autostart": False,
        "lockstep": True,
        "lockstep_patience": 0.0,
        "real_time_factor": 0.0,
        "camera_rate": 5.0,
        "diagnostics_period": 0.2,
    }
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        graph.start(NodeProcess("sim_node", "sim_node", parameters))
        with GraphClient(graph) as client:
            yield Robot(client)


def test_an_episode_begins_with_frames_of_one_stamp_and_stands_still(robot):
    robot.start()
    robot.wait(lambda: robot.heard["overview/image_raw/compressed"], "the overview")
    robot.client.spin(0.5)
    (state,) = robot.heard["simulator_state"]
    (image,) = robot.heard["agent/image_raw"]
    assert image.header.stamp == state.header.stamp
    assert robot.heard["joint_states"][-1].header.stamp == state.header.stamp
    robot.wait(lambda: robot.heard["/clock"][-1].clock == state.header.stamp, "the clock")
    pixels = image_from_bytes(serialize_message(image), "image", "agent")
    assert pixels.shape == (96, 96, 3)
    assert pixels.std() > 10
    overview = serialize_message(robot.heard["overview/image_raw/compressed"][0])
    assert image_from_bytes(overview, "compressed", "overview").shape == (360, 480, 3)
    assert not state.success


def test_the_same_seed_gives_the_same_scene_and_the_clock_never_goes_back(robot):
    instruction = robot.start(seed=3)
    first = robot.heard["simulator_state"][0]
    assert robot.start(seed=3) == instruction
    again = robot.heard["simulator_state"][0]
    assert again.state == first.state
    assert again.episode == first.episode + 1
    assert to_nanoseconds(again.header.stamp) > to_nanoseconds(first.header.stamp)
    robot.start(seed=4)
    assert robot.heard["simulator_state"][0].state != first.state


def test_in_lockstep_an_accepted_trajectory_lets_exactly_one_period_pass(robot):
    robot.start()
    start_ns = robot.now_ns()
    goal = robot.joints()[:7] + 0.05
    robot.move(goal)
    end = start_ns + 0.4 * SECOND
    for topic in ("simulator_state", "joint_states", "agent/image_raw"):
        robot.wait(
            lambda t=topic: to_nanoseconds(robot.heard[t][-1].header.stamp) >= end,
            f"{topic} at the period's end",
        )
    robot.client.spin(0.3)
    assert robot.now_ns() == start_ns + 0.4 * SECOND
    stamps = [to_nanoseconds(m.header.stamp) for m in robot.heard["joint_states"]]
    assert np.diff(sorted(set(stamps))).tolist() == [10_000_000] * 40
    frames = [to_nanoseconds(m.header.stamp) - start_ns for m in robot.heard["agent/image_raw"]]
    assert frames == [0, 0.2 * SECOND, 0.4 * SECOND]
    half_way = robot.joints()[:7]
    assert 0.015 < np.abs(half_way - goal).max() < 0.045


def test_the_fingers_follow_the_gripper_command(robot):
    robot.start()
    assert robot.joints()[7:] == pytest.approx([0.04, 0.04], abs=2e-3)
    robot.grippers.publish(Float64(data=0.0))

    def closed():
        before = robot.now_ns()
        robot.move(robot.joints()[:7])
        robot.wait(lambda: robot.now_ns() > before + 0.3 * SECOND, "time to pass")
        return robot.joints()[7:] == pytest.approx([0.0, 0.0], abs=5e-3)

    robot.wait(closed, "closed fingers")


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ({"names": [*ARM[:6], "elbow"]}, "refused: joint names do not match"),
        ({"moving_end": True}, "refused: last velocity is not zero"),
    ],
)
def test_what_a_real_controller_refuses_is_refused_counted_and_moves_nothing(robot, fault, counter):
    robot.start()
    before_ns, before = robot.now_ns(), robot.joints()
    robot.move(before[:7] + 0.1, **fault)
    robot.wait(lambda: robot.diagnosed(counter), "the refusal in the diagnostics")
    assert robot.now_ns() == before_ns
    assert (robot.joints() == before).all()
    robot.move(before[:7])
    robot.wait(lambda: robot.now_ns() > before_ns, "the next good trajectory")


def test_a_gripper_command_out_of_range_is_refused_and_the_node_lives(robot):
    robot.start()
    robot.grippers.publish(Float64(data=7.0))
    robot.wait(lambda: robot.diagnosed("gripper_command: dropped", "state"), "the refusal")
    assert robot.client.state("sim_node") == ACTIVE


def test_an_unknown_task_is_refused_by_name(robot):
    answer = robot.reset("juggle", 0)
    assert not answer.success
    assert "juggle" in answer.message


def test_camera_info_fits_the_image(robot):
    robot.start()
    info = robot.wait(lambda: robot.heard["agent/camera_info"], "camera_info")[0]
    assert (info.width, info.height) == (96, 96)
    assert info.k[2] == 48.0
    assert info.k[0] == pytest.approx(48.0 / np.tan(np.radians(20.0)))


def test_a_broken_scene_hook_is_named_at_configure(tmp_path):
    hook = tmp_path / "hook.py"
    hook.write_text("def change(spec):\n    raise RuntimeError('no such light')\n")
    parameters = {"autostart": False, "scene_hook": f"{hook}:change"}
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(NodeProcess("sim_node", "sim_node", parameters))
        with GraphClient(graph) as client:
            with pytest.raises(GraphError, match="no such light"):
                client.change("sim_node", CONFIGURE)
            graph.check()


def test_real_time_passes_at_the_factor(tmp_path):
    parameters = {"autostart": False, "real_time_factor": 0.5, "camera_rate": 1.0}
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(NodeProcess("sim_node", "sim_node", parameters))
        with GraphClient(graph) as client:
            stamps = []
            client.node.create_subscription(
                Clock,
                "/clock",
                lambda m: stamps.append((time.monotonic(), to_nanoseconds(m.clock))),
                qos.CLOCK,
            )
            client.change("sim_node", CONFIGURE)
            client.wait(lambda: stamps, 60.0, "the clock, which stands still")
            begin_wall, (_, begin) = time.monotonic(), stamps[-1]
            client.change("sim_node", ACTIVATE)
            client.wait(lambda: stamps[-1][1] >= begin + 2 * SECOND, 120.0, "two seconds")
            wall, ns = stamps[-1]
            assert (ns - begin) / SECOND <= 0.5 * (wall - begin_wall) + 0.15
