"""The outputs of the arm controller over real DDS: a driver of each kind, played by the test."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from arm_bench import FORWARD, NODE, ROBOT, Bench
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from scipy.spatial.transform import Rotation
from std_srvs.srv import SetBool, Trigger

from vla_reasoner_ros.control.executor import ControllerState
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import pose_from_message
from vla_reasoner_ros.ros.graph import GraphError
from vla_reasoner_ros.ros.output import action_type

ARM = Kinematics(ROBOT)
ROOT = Path(__file__).resolve().parent.parent


def started(folder, **settings):
    # On a busy machine a joint state may wait for its turn; what that does is tested elsewhere.
    bench = Bench(folder, settings={"watchdog.max_joint_state_age": 2.0, **settings})
    bench.start()
    return bench


def test_what_control_msgs_is_needed_for_says_so_by_name(monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setitem(sys.modules, "control_msgs.action", None)
    with pytest.raises(
        ConfigurationError,
        match=r"control_msgs/action/GripperCommand, .* sudo apt install ros-jazzy-control-msgs",
    ):
        action_type("gripper_command", "GripperCommand")


def test_an_output_that_the_robot_file_does_not_declare_refuses_to_configure(tmp_path):
    without = tmp_path / "arm.yaml"
    text = (ROOT / "config/robots/fr3.yaml").read_text()
    before, after = text.split("    twist:\n")
    without.write_text(before + after.split("\n", 2)[2])
    bench = Bench(tmp_path)
    try:
        client = bench.client
        client.change(NODE, lifecycle.CLEANUP)
        client.set_parameters(NODE, {"robot": str(without), "output": "twist"})
        with pytest.raises(GraphError, match=r"failed to configure"):
            client.change(NODE, lifecycle.CONFIGURE)
        words = (
            "does not declare 'twist'; it declares joint_trajectory, follow_joint_trajectory, pose"
        )
        bench.wait(lambda: words in bench.graph.log(NODE).read_text(), "the reason")
    finally:
        bench.graph.stop()


class Stream:
    """A driver that takes a stream: what it heard, and an arm that is where it was told."""

    def __init__(self, bench, kind, topic):
        self.bench, self.heard = bench, []
        self.state = MotionState.at_rest(ROBOT.home)
        bench.client.node.create_subscription(kind, topic, self.take, 100)
        self.publisher = bench.client.node.create_publisher(kind, topic, qos.STATE)
        bench.wait(lambda: self.publisher.get_subscription_count() >= 2, "the subscriptions")

    def take(self, message):
        self.bench.commands.append(message)  # an answer to a chunk, for the bench
        self.heard.append(message)
        self.follow(message)

    def run(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.bench.step(0.01, joints=self.state)
            self.bench.wait(self.bench.caught_up, "status")

    def stop_within(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.run(0.01)
            if not self.state.velocity.any():
                return True
        return False


class Servo(Stream):
    """Moves as MoveIt Servo would: by the velocity that it heard last, until it is zero."""

    def follow(self, message):
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        turn = Rotation.from_quat(ARM.forward(self.state.position)[1])
        lever = turn.apply(ARM.fixed_to_tcp("fr3_link8")[0])
        jacobian = ARM.jacobian(self.state.position)
        jacobian[:3] += np.cross(jacobian[3:].T, lever).T
        velocity = np.linalg.pinv(jacobian) @ twist
        last = self.heard[-2].header.stamp if len(self.heard) > 1 else message.header.stamp
        now = message.header.stamp
        elapsed = min(now.sec - last.sec + 1e-9 * (now.nanosec - last.nanosec), 0.02)
        self.state = MotionState(self.state.position + elapsed * velocity, velocity, 0 * velocity)


class CartesianController(Stream):
    """Is where the last pose was."""

    def follow(self, message):
        reached = ARM.inverse(*pose_from_message(message.pose), self.state.position).joints
        velocity = 100.0 * (reached - self.state.position)
        self.state = MotionState(
            reached, np.where(np.abs(velocity) < 1e-9, 0.0, velocity), 0 * velocity
        )


@pytest.fixture(params=["twist", "pose"], scope="module")
def stream(request, tmp_path_factory):
    kind, topic, driver = {
        "twist": (TwistStamped, "twist_command", Servo),
        "pose": (PoseStamped, "pose_command", CartesianController),
    }[request.param]
    bench = started(tmp_path_factory.mktemp("log"), output=request.param)
    yield driver(bench, kind, topic)
    bench.graph.stop()


def moving(stream):
    bench = stream.bench
    bench.send(bench.chunk())
    stream.run(0.3)
    assert bench.status.state == ControllerState.EXECUTING, bench.status
    assert np.abs(stream.state.velocity).max() > 0.1


def test_a_chunk_becomes_a_stream_that_takes_the_arm_there_and_ends(stream):
    stream.run(0.2)
    before, _ = ARM.forward(stream.state.position)
    moving(stream)
    stream.run(1.2)
    after, _ = ARM.forward(stream.state.position)
    np.testing.assert_allclose(after - before, FORWARD[:, :3].sum(axis=0), atol=4e-3)
    assert {message.header.frame_id for message in stream.heard} == {"base"}
    silent = len(stream.heard)
    stream.run(0.1)
    assert len(stream.heard) == silent
    assert stream.bench.status.reason == "no new chunk"


def test_a_hold_is_a_stream_that_decelerates(stream):
    stream.run(0.3)
    moving(stream)
    bench = stream.bench
    assert bench.call(SetBool, "hold", data=True).success
    assert stream.stop_within(0.6)
    bench.call(SetBool, "hold", data=False)


def test_what_someone_else_sends_stops_the_arm(stream):
    stream.run(0.3)
    moving(stream)
    bench = stream.bench
    foreign = copy.deepcopy(stream.heard[-1])
    foreign.header.stamp.nanosec += 1
    stream.publisher.publish(foreign)
    bench.wait(lambda: "someone else commands" in bench.status.reason, "the hold")
    stream.run(0.7)
    bench.wait(lambda: bench.call(Trigger, "reset").success, "the reset")


class Controller:
    """An action server that does what joint_trajectory_controller of Jazzy does with goals."""

    def __init__(self, bench):
        from control_msgs.action import FollowJointTrajectory

        self.bench, self.type = bench, FollowJointTrajectory
        self.accepts, self.goals, self.canceled = True, [], 0
        self.active = None
        self.server = ActionServer(
            bench.client.node,
            FollowJointTrajectory,
            "follow_joint_trajectory",
            self.execute,
            goal_callback=self.asked,
            cancel_callback=self.cancel,
        )

    def asked(self, goal):
        self.goals.append(goal.trajectory)
        self.bench.refuses = not self.accepts
        self.bench._command(goal.trajectory)
        return GoalResponse.ACCEPT if self.accepts else GoalResponse.REJECT

    def cancel(self, handle):
        self.canceled += 1
        return CancelResponse.ACCEPT

    async def execute(self, handle):
        if self.active is not None:
            self.active.set_result("INVALID_GOAL")  # preempted
        ended = self.active = Future()
        code = await ended
        result = self.type.Result()
        if code:
            result.error_code = getattr(self.type.Result, code)
            result.error_string = "said by the test"
            handle.abort()
        else:
            handle.succeed()
        return result

    def end(self, code=""):
        ended, self.active = self.active, None
        ended.set_result(code)


@pytest.fixture(scope="module")
def action(tmp_path_factory):
    pytest.importorskip("control_msgs", reason="control_msgs is not importable: source a ROS 2")
    bench = started(tmp_path_factory.mktemp("log"), output="follow_joint_trajectory")
    controller = Controller(bench)
    bench.run(0.5)
    yield controller
    bench.graph.stop()


@pytest.fixture
def controller(action):
    bench = action.bench
    bench.start()
    action.accepts, action.goals, action.canceled = True, [], 0
    yield action
    bench.run(1.0)
    bench.judge()


def test_a_chunk_is_a_goal_and_the_next_one_replaces_it_without_a_stop(controller):
    bench = controller.bench
    bench.move()
    bench.send(bench.chunk(0.5 * FORWARD))
    bench.run(0.1)
    assert not bench.at_rest()
    assert len(controller.goals) == 2
    bench.run(1.2)
    controller.end()
    bench.run(0.05)
    assert bench.status.reason == "no new chunk"
    assert bench.status.chunks_rejected == 0


def test_a_hold_is_a_goal_that_decelerates(controller):
    bench = controller.bench
    bench.move()
    assert bench.call(SetBool, "hold", data=True).success
    bench.run(0.4)
    assert bench.at_rest()
    assert len(controller.goals) == 2
    assert controller.canceled == 0
    controller.end()
    bench.call(SetBool, "hold", data=False)


def test_an_aborted_goal_stops_the_arm_by_the_name_of_its_error_until_a_reset(controller):
    bench = controller.bench
    bench.move()
    bench.arm.hold(bench.arm.state.position, bench.now)  # as the controller does
    controller.end("PATH_TOLERANCE_VIOLATED")
    bench.wait(lambda: "PATH_TOLERANCE_VIOLATED: said by" in bench.status.reason, "the reason")
    bench.run(0.3)
    bench.send(bench.chunk())
    assert "PATH_TOLERANCE_VIOLATED" in bench.status.last_rejection
    assert bench.call(Trigger, "reset").success
    bench.run(0.05)
    bench.send(bench.chunk())
    assert bench.status.state == ControllerState.EXECUTING
    bench.run(1.2)
    controller.end()


def test_a_rejected_goal_brakes_what_the_arm_does_and_cancels_it_when_that_is_rejected_too(
    controller,
):
    bench = controller.bench
    bench.move()
    controller.accepts = False
    bench.send(bench.chunk(0.5 * FORWARD))
    bench.wait(lambda: "a goal was rejected" in bench.status.reason, "the reason")
    bench.wait(lambda: controller.canceled == 1, "the cancellation")
    assert len(controller.goals) == 3
    controller.end()
    bench.run(1.0)
    assert bench.at_rest()


def test_without_a_server_nothing_moves_and_the_action_is_named(controller):
    bench = controller.bench
    bench.client.change(NODE, lifecycle.DEACTIVATE)
    bench.client.change(NODE, lifecycle.CLEANUP)
    bench.client.set_parameters(NODE, {"command.trajectory_action": "elsewhere"})
    bench.client.change(NODE, lifecycle.CONFIGURE)
    bench.start()
    bench.chunks.publish(bench.chunk())
    bench.wait(lambda: "nobody serves the action 'elsewhere'" in bench.status.reason, "the reason")
