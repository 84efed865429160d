"""The outputs of the arm controller over real DDS: a driver of each kind, played by the test."""

import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from action_msgs.srv import CancelGoal
from arm_bench import DEADMAN, FORWARD, NODE, ROBOT, Bench, decelerated, reset
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from scipy.spatial.transform import Rotation
from std_srvs.srv import SetBool, Trigger

from vla_reasoner_ros.control.executor import ControllerState
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.conversions import pose_from_message
from vla_reasoner_ros.ros.graph import GraphError
from vla_reasoner_ros.ros.output import action_type

ARM = Kinematics(ROBOT)
ROOT = Path(__file__).resolve().parent.parent


WATCH = {  # longer than any message is on its way on a busy machine
    "controller_timeout": 2.0,
    "controller_wall_timeout": 0.0,
    "lead_time": 0.03,
    "stream_timeout": 0.5,
}
CONTROL_MSGS = importlib.util.find_spec("control_msgs") is not None
needs_control_msgs = pytest.mark.skipif(
    not CONTROL_MSGS, reason="control_msgs is not importable: source a ROS 2 that has it"
)


def started(folder, **settings):
    # On a busy machine a joint state may wait for its turn; what that does is tested elsewhere.
    settings = {"watchdog.max_joint_state_age": 2.0, **settings}
    # The driver that the test plays goes on with the last velocity for ever.
    watch = WATCH | {"output": settings["output"], "driver_timeout": 60.0}
    bench = Bench(folder, deadman=watch, settings=settings)
    bench.start()
    return bench


def falls_silent(bench):
    """The planner, in a motion of seconds, until the deadman stops the arm."""
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 0.5})
    bench.send(bench.chunk(np.tile(0.15 * FORWARD[0], (40, 1))))


def watched_again(bench, *nodes):
    """The deadman is patient again, and both are reset."""
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 2.0})
    for name in nodes:
        reset(bench, name)


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
        bench.wait(lambda: self.publisher.get_subscription_count() >= 3, "the subscriptions")

    def take(self, message):
        self.bench.commands.append(message)  # an answer to a chunk, for the bench
        self.heard.append(message)
        self.follow(message)

    def run(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.bench.step(0.01, joints=self.state)
            self.bench.wait(self.bench.caught_up, "status")

    def until(self, condition):
        for _ in range(200):
            if condition():
                return
            self.run(0.01)
        raise AssertionError((self.bench.status, self.bench.deadman))

    def stop_within(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.run(0.01)
            if not self.state.velocity.any():
                return True
        return False


def numbers(message):
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


class Servo(Stream):
    """Moves as MoveIt Servo would: by the velocity that it heard last, until it is zero."""

    def follow(self, message):
        twist = numbers(message)
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
    grip = {"gripper_output": "parallel_gripper_command"} if CONTROL_MSGS else {}
    bench = started(tmp_path_factory.mktemp("log"), output=request.param, **grip)
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


def test_when_the_planner_is_silent_the_deadman_makes_the_controller_stop_the_arm(stream):
    stream.run(0.3)
    bench = stream.bench
    falls_silent(bench)
    stream.run(0.5)
    stream.until(lambda: bench.deadman.state == ControllerState.STOPPED)
    assert bench.deadman.reason.startswith("the planner silent for 0.5")
    assert stream.stop_within(0.6)
    assert bench.status.reason.startswith("someone else commands the arm")
    stream.run(0.2)
    watched_again(bench, DEADMAN, NODE)
    stream.run(0.1)
    moving(stream)


@needs_control_msgs
def test_a_parallel_gripper_gets_goals_by_the_name_of_its_joint(stream):
    bench = stream.bench
    gripper = Gripper(bench, "ParallelGripperCommand")
    stream.run(0.3)
    for opening in (0.0, 1.0):
        motion = 0.1 * FORWARD
        motion[:, 6] = opening
        bench.send(bench.chunk(motion))
        stream.run(0.1)
    bench.wait(lambda: len(gripper.goals) == 2, "the goals")
    closing, opening = (goal.command for goal in gripper.goals)
    assert list(opening.name) == list(closing.name) == ["fr3_finger_joint1"]
    assert list(closing.position) == [0.0]
    assert list(opening.position) == [0.04]
    assert list(opening.effort) == [40.0]
    gripper.close()


def test_when_the_controller_is_killed_the_deadman_brings_the_stream_to_rest(stream):
    """The last test of each stream: the process is not started again."""
    stream.run(0.3)
    moving(stream)
    bench = stream.bench
    bench.graph.end(NODE)
    bench.client.spin(0.2)  # what is on its way
    last, before = stream.heard[-1], len(stream.heard)
    bench.nodes.remove(NODE)
    bench.client.set_parameters(DEADMAN, {"controller_timeout": 0.3})
    stream.until(lambda: bench.deadman.state == ControllerState.STOPPED)
    assert bench.deadman.reason.startswith("the arm controller silent for 0.3")
    stream.run(0.5)
    said = stream.heard[before:]
    assert said, "messages of the deadman"
    assert {message.header.frame_id for message in said} == {"base"}
    if isinstance(stream, Servo):
        speeds = [np.linalg.norm(numbers(message)) for message in said]
        assert speeds[0] == pytest.approx(np.linalg.norm(numbers(last)))
        assert np.all(np.diff(speeds) <= 0.0), "it only gets slower"
        assert 0.0 < speeds[len(speeds) // 4] < speeds[0]
        assert speeds[-5:] == [0.0] * 5
    else:
        assert all(message.pose == last.pose for message in said)
    silent = len(stream.heard)
    stream.run(0.1)
    assert len(stream.heard) == silent
    refused = bench.client.call(Trigger, f"{DEADMAN}/reset", Trigger.Request())
    assert "the arm controller silent" in refused.message
    if isinstance(stream, Servo):
        a_velocity_that_nothing_follows(stream, last)


def a_velocity_that_nothing_follows(stream, message):
    """As of a controller that died at the end of its motion: the deadman says zero."""
    stray = copy.deepcopy(message)
    stray.header.stamp = to_stamp(stream.bench.now)
    heard = len(stream.heard)
    stream.publisher.publish(stray)
    stream.until(lambda: len(stream.heard) > heard + 1)
    assert numbers(stream.heard[heard]).any()
    assert not numbers(stream.heard[heard + 1]).any()


class Controller:
    """An action server that does what joint_trajectory_controller of Jazzy does with goals."""

    def __init__(self, bench):
        from control_msgs.action import FollowJointTrajectory

        self.bench, self.type = bench, FollowJointTrajectory
        self.active = None
        self.begin()
        self.serve()

    def begin(self):
        self.accepts, self.answers, self.goals, self.canceled = True, Future(), [], 0
        self.answers.set_result(None)

    def serve(self):
        self.server = ActionServer(
            self.bench.client.node,
            self.type,
            "follow_joint_trajectory",
            self.execute,
            goal_callback=self.asked,
            cancel_callback=self.cancel,
            callback_group=ReentrantCallbackGroup(),  # one goal may wait for its answer
        )

    async def asked(self, goal):
        self.goals.append(goal.trajectory)
        self.bench.refuses = not self.accepts
        self.bench._command(goal.trajectory)
        await self.answers
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
        if code == "CANCELED":
            handle.canceled()
        elif code:
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
    bench = started(
        tmp_path_factory.mktemp("log"),
        output="follow_joint_trajectory",
        gripper_output="gripper_command",
    )
    controller = Controller(bench)
    bench.run(0.5)
    yield controller
    bench.graph.stop()


@pytest.fixture
def controller(action):
    bench = action.bench
    bench.start()
    action.begin()
    yield action
    bench.run(1.0)
    bench.judge()


def test_a_chunk_is_a_goal_and_the_next_one_replaces_it_without_a_stop(controller):
    bench = controller.bench
    rejected = bench.status.chunks_rejected
    bench.move()
    bench.send(bench.chunk(0.5 * FORWARD))
    bench.run(0.1)
    assert not bench.at_rest()
    assert len(controller.goals) == 2
    bench.run(1.2)
    controller.end()
    bench.run(0.05)
    assert bench.status.reason == "no new chunk"
    assert bench.status.chunks_rejected == rejected


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


def test_a_goal_that_someone_else_cancels_stops_the_arm_until_a_reset(controller):
    bench = controller.bench
    bench.move()
    name = "follow_joint_trajectory/_action/cancel_goal"
    bench.client.call(CancelGoal, name, CancelGoal.Request())
    assert controller.canceled == 1
    bench.arm.hold(bench.arm.state.position, bench.now)  # as the controller does
    controller.end("CANCELED")
    bench.wait(lambda: "CANCELED" in bench.status.reason, "the reason")
    bench.run(0.1)
    reset(bench, NODE)
    bench.run(0.05)
    bench.send(bench.chunk())
    assert bench.status.state == ControllerState.EXECUTING


def test_a_goal_that_is_not_answered_stops_the_arm(controller):
    bench = controller.bench
    bench.move()
    controller.answers = Future()
    bench.chunks.publish(bench.chunk(0.5 * FORWARD))
    bench.wait(lambda: "no answer to a goal for" in bench.status.reason, "the reason")
    controller.answers.set_result(None)
    bench.wait(lambda: len(controller.goals) == 3, "the goal that brakes")
    bench.run(0.6)
    assert bench.at_rest()
    reset(bench, NODE)


def test_a_server_that_dies_in_motion_stops_the_arm_by_its_name_and_may_come_back(controller):
    bench = controller.bench
    bench.move()
    controller.server.destroy()
    controller.active = None
    bench.arm.hold(bench.arm.state.position, bench.now)  # what was there does no longer move
    bench.wait(lambda: "'follow_joint_trajectory' is gone" in bench.status.reason, "the reason")
    bench.run(0.1)
    bench.chunks.publish(bench.chunk())
    bench.wait(lambda: "is gone" in bench.status.last_rejection, "the rejection")
    controller.serve()
    reset(bench, NODE)
    bench.run(0.05)
    taken = bench.status.chunks_accepted
    bench.wait(controller_is_seen(bench), "the server")
    bench.send(bench.chunk())
    assert bench.status.chunks_accepted == taken + 1
    assert len(controller.goals) == 2


def controller_is_seen(bench):
    """The arm controller has discovered the new server: it is one of its clients."""
    count = bench.client.node.count_clients
    return lambda: count("follow_joint_trajectory/_action/send_goal") >= 2


def test_when_the_planner_is_silent_the_deadman_stops_the_arm_by_a_goal(controller):
    bench = controller.bench
    falls_silent(bench)
    bench.run(0.4)
    goals = len(controller.goals)
    decelerated(bench, bench.now, allowed=0.5)
    assert len(controller.goals) == goals + 1
    assert bench.deadman.reason.startswith("the planner silent for 0.5")
    bench.wait(lambda: "INVALID_GOAL" in bench.status.reason, "the replaced goal's error")
    controller.end()
    watched_again(bench, DEADMAN, NODE)
    bench.run(0.05)
    bench.move()


def test_a_stop_of_the_deadman_that_is_rejected_cancels_every_goal(controller):
    bench = controller.bench
    falls_silent(bench)
    bench.run(0.4)
    controller.accepts = False
    bench.client.set_parameters(NODE, {"enable_control": True})
    for _ in range(40):
        bench.run(0.02)
        if controller.canceled:
            break
    assert controller.canceled == 1
    bench.wait(lambda: "rejected" in bench.graph.log(DEADMAN).read_text(), "the reason")
    bench.arm.hold(bench.arm.state.position, bench.now)
    controller.end("CANCELED")
    bench.wait(lambda: "CANCELED" in bench.status.reason, "the reason")
    bench.run(0.1)
    watched_again(bench, DEADMAN, NODE)


class Gripper:
    """An action server that takes a gripper's goals; the test ends them."""

    def __init__(self, bench, kind):
        import control_msgs.action

        self.bench, self.type = bench, getattr(control_msgs.action, kind)
        self.accepts, self.goals, self.ended = True, [], Future()
        self.server = ActionServer(
            bench.client.node,
            self.type,
            "gripper_cmd",
            self.execute,
            goal_callback=self.asked,
        )
        node = bench.client.node
        bench.wait(lambda: node.count_clients("gripper_cmd/_action/send_goal"), "the client")

    def asked(self, goal):
        self.goals.append(goal)
        return GoalResponse.ACCEPT if self.accepts else GoalResponse.REJECT

    async def execute(self, handle):
        if await self.ended:
            handle.succeed()
        else:
            handle.abort()
        return self.type.Result()

    def close(self):
        self.server.destroy()


def grasp(bench, close):
    """A chunk that closes or opens the gripper, once the one before has ended."""
    motion = 0.2 * FORWARD
    motion[:, 6] = 0.0 if close else 1.0
    bench.send(bench.chunk(motion))
    bench.until_it_moves()
    bench.run(0.1)


def dropped(bench, reason):
    """The diagnostics say it of the gripper, and the arm goes on."""

    def said():
        state = bench.diagnostics.get(f"{NODE}: state")
        values = {v.key: v.value for v in state.values} if state else {}
        return values.get("gripper_cmd: last reason") == reason

    bench.wait(said, reason)
    assert bench.status.state == ControllerState.EXECUTING
    assert not bench.at_rest()


def test_a_gripper_takes_goals_and_its_faults_are_said_without_stopping_the_arm(controller):
    bench = controller.bench
    grasp(bench, close=False)
    dropped(bench, "nobody serves this action")
    gripper = Gripper(bench, "GripperCommand")
    bench.run(1.0)
    grasp(bench, close=True)
    bench.wait(lambda: gripper.goals, "the goal")
    assert gripper.goals[0].command.position == 0.0
    assert gripper.goals[0].command.max_effort == 40.0
    gripper.ended.set_result(False)
    dropped(bench, "a goal was aborted")
    gripper.accepts = False
    grasp(bench, close=False)
    dropped(bench, "a goal was rejected")
    assert gripper.goals[1].command.position == 0.04
    gripper.accepts, gripper.ended = True, Future()
    grasp(bench, close=True)
    bench.wait(lambda: len(gripper.goals) == 3, "the goal")
    bench.client.spin(0.3)
    gripper.close()
    dropped(bench, "its server is gone, with a goal under way")


def test_without_a_server_nothing_moves_and_the_action_is_named(controller):
    bench = controller.bench
    bench.client.change(NODE, lifecycle.DEACTIVATE)
    bench.client.change(NODE, lifecycle.CLEANUP)
    bench.client.set_parameters(NODE, {"command.trajectory_action": "elsewhere"})
    bench.client.change(NODE, lifecycle.CONFIGURE)
    bench.start()
    bench.chunks.publish(bench.chunk())
    bench.wait(lambda: "nobody serves the action 'elsewhere'" in bench.status.reason, "the reason")
