"""Streams without DDS: what they say while the clock jumps."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from geometry_msgs.msg import TwistStamped

from vla_reasoner_ros.control.commands import TimedTrajectory
from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.outputs import Tracking
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.spline import spline_to_rest
from vla_reasoner_ros.control.stopping import ease_to
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.conversions import trajectory_to_message
from vla_reasoner_ros.ros.deadman_outputs import StopParameters, TwistStop
from vla_reasoner_ros.ros.output import CommandParameters
from vla_reasoner_ros.ros.stream_outputs import PoseStream, TwistStream

S = 1_000_000_000
MS = 1_000_000


class Publisher:
    """Keeps what is published."""

    def __init__(self):
        self.messages = []

    def publish(self, message):
        self.messages.append(message)


class Node:
    """A node whose clock the test sets, with a publisher and a timer by topic and order."""

    work = None

    def __init__(self):
        self.now, self.publishers, self.timers = 1000 * S, {}, []

    def now_ns(self):
        return self.now

    def guarded(self, name, callback, **options):
        return callback

    def create_lifecycle_publisher(self, kind, topic, profile):
        return self.publishers.setdefault(topic, Publisher())

    def create_subscription(self, *arguments, **options):
        return None

    def create_timer(self, period, callback, **options):
        self.timers.append(callback)

    def speeds(self):
        return [abs(m.twist.linear.x) for m in self.publishers["twist_command"].messages]


@pytest.fixture
def node():
    return Node()


def test_a_stream_whose_clock_jumps_back_goes_on_where_it_was_and_ends(node):
    stream, motion = twist_stream(node), one_second()
    stream.send(motion)
    half = lives(node, 50)
    node.now -= 10 * S
    lives(node, 1)
    assert node.speeds()[-1] == pytest.approx(half, rel=1e-6)
    assert lives(node, 60) == 0.0
    said = len(node.speeds())
    lives(node, 1200)
    assert len(node.speeds()) == said


def test_a_stream_that_has_ended_is_not_begun_anew_when_its_time_comes_again(node):
    stream = twist_stream(node)
    stream.send(one_second())
    lives(node, 105)
    node.now -= 10 * S
    said = len(node.speeds())
    lives(node, 1300)
    assert max(node.speeds()[said:], default=0.0) == 0.0


def test_a_stream_whose_clock_jumps_past_its_end_says_the_end(node):
    stream = twist_stream(node)
    stream.send(one_second())
    assert lives(node, 50) > 0.01
    node.now += 100 * S
    said = len(node.speeds())
    lives(node, 10)
    assert node.speeds()[said:] == [0.0]


def test_the_quaternions_of_a_motion_never_change_sides(node):
    stream = made(PoseStream, "pose", Tracking.POSE, node)
    limits = stream.executor.robot.limits
    rng = np.random.default_rng(0)
    for _ in range(40):
        start, end = rng.uniform(limits.position_min, limits.position_max, (2, 7))
        said = []
        for share in np.linspace(0.0, 1.0, 100):
            joints = start + share * (end - start)
            q = stream.message(MotionState.at_rest(joints), node.now).pose.orientation
            said.append([q.x, q.y, q.z, q.w])
        assert (np.sum(np.array(said[1:]) * said[:-1], axis=1) > 0.0).all()


@pytest.mark.parametrize("jump", [0, S, -100 * S], ids=["none", "ahead", "back"])
def test_a_stop_of_the_deadman_ends_in_zero_whatever_the_clock_does(node, jump):
    arm = twist_stream(node).executor.robot
    stop = TwistStop(node, arm, build(StopParameters, {"driver_timeout": 0.5}))
    motion = one_second()
    stop.watch(trajectory_to_message(motion.told, motion.start_ns))
    node.now += 500 * MS
    last = TwistStamped()
    last.header.stamp = to_stamp(node.now)
    last.twist.linear.x = 0.3
    stop._hear(last)
    stop.send(one_second())
    node.now += 10 * MS
    stop.look()
    assert node.speeds()[-1] > 0.1
    node.now += jump
    for _ in range(100):
        node.now += 10 * MS
        stop.look()
    assert node.speeds()[-1] == 0.0


def test_a_motion_of_one_point_is_known_to_the_deadman_too(node):
    """As after a jump of the clock, where the end alone is sent."""
    arm = twist_stream(node).executor.robot
    stop = TwistStop(node, arm, build(StopParameters, {}))
    motion = ease_to(arm.joint_names, arm.home, arm.home + 0.1, arm.limits)
    stop.watch(trajectory_to_message(motion.knots_from(motion.duration), node.now))
    stop._hear(TwistStamped())
    assert stop.silent == 0.0


def made(stream, output, tracking, node):
    executor = ChunkExecutor(build(ControlParameters, {}), tracking=tracking)
    declared = executor.robot.outputs.for_arm(output, "fr3")
    return stream(node, executor, declared, build(CommandParameters, {}), lambda _: None)


def twist_stream(node):
    return made(TwistStream, "twist", Tracking.TWIST, node)


def one_second():
    """The arm turns about its vertical axis, fastest in the middle; its first knot is not sent."""
    robot = ChunkExecutor(build(ControlParameters, {})).robot
    motion = spline_to_rest(
        robot.joint_names,
        MotionState.at_rest(robot.home),
        robot.home + np.outer([0.15, 0.3], [1, 0, 0, 0, 0, 0, 0]),
        np.array([0.5, 0.5]),
    )
    return TimedTrajectory(1000 * S, motion)


def lives(node, steps):
    """So many hundredths of a second; the last speed that was said, m/s along x."""
    for _ in range(steps):
        node.now += 10 * MS
        for timer in node.timers:
            timer()
    return node.speeds()[-1]
