"""Tasks of the planner: the action, its endings, and the services."""

import math

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from rclpy.action import ActionClient
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from test_planner_node import PLANNER, SEARCHING, Rig

from vla_reasoner_ros.action import RunTask
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.graph import ACTIVATE, DEACTIVATE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

ENDED = {
    GoalStatus.STATUS_SUCCEEDED: "succeeded",
    GoalStatus.STATUS_ABORTED: "aborted",
    GoalStatus.STATUS_CANCELED: "canceled",
}
TASK = {"task__patience": 0.0, "task__time_limit": 0.0}


class TaskRig(Rig):
    """Also a client of the action."""

    def __init__(self, client):
        super().__init__(client)
        self.actions = ActionClient(client.node, RunTask, f"{PLANNER}/run_task")
        self.instructions, self.feedback = [], []
        client.node.create_subscription(
            String, "instruction", lambda m: self.instructions.append(m.data), qos.LATCHED
        )

    def send(self, **goal):
        """Send a goal; its handle, None when it was refused."""
        self.client.wait(self.actions.server_is_ready, 30.0, "the action server")
        self.instructions.clear()
        self.feedback.clear()
        future = self.actions.send_goal_async(
            RunTask.Goal(**{"instruction": self.instruction, **goal}),
            feedback_callback=lambda message: self.feedback.append(message.feedback),
        )
        self.client.wait(future.done, 30.0, "the goal's answer")
        handle = future.result()
        if not handle.accepted:
            return None
        handle.outcome = handle.get_result_async()
        return handle

    def result(self, handle):
        self.client.wait(handle.outcome.done, 30.0, "the result")
        answer = handle.outcome.result()
        return ENDED[answer.status], answer.result

    def service(self, kind, name, request):
        return self.client.call(kind, f"{PLANNER}/{name}", request)

    def decided_on(self, message, offers=3):
        """Whether an observation leads to a decision, offered until a later one is answered."""
        before = len(self.chunks)
        for _ in range(offers):
            self.publisher.publish(message)
            self.client.spin(0.1)
        return len(self.chunks) > before


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    parameters = {"autostart": False, "diagnostics_period": 0.2}
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, parameters))
        with GraphClient(graph) as client:
            rig = TaskRig(client)
            rig.activate(**SEARCHING, **TASK)
            yield rig


def test_a_task_publishes_its_instruction_and_tells_its_progress(rig):
    handle = rig.send(time_limit=1e6)
    rig.client.wait(lambda: rig.instructions == [rig.instruction], 30.0, "the instruction")
    rig.decide()
    rig.decide()
    rig.client.wait(lambda: rig.feedback and rig.feedback[-1].decisions == 2, 30.0, "the feedback")
    newest = rig.feedback[-1]
    assert newest.state == "deciding"
    assert 0.0 <= newest.progress <= 1.0
    assert newest.time > 0.0
    handle.cancel_goal_async()
    status, result = rig.result(handle)
    assert (status, result.reason) == ("canceled", RunTask.Result.CANCELED)
    assert (result.reason_name, result.decisions) == ("canceled", 2)


def test_after_a_task_nothing_is_decided_until_start(rig):
    handle = rig.send()
    rig.decide()
    handle.cancel_goal_async()
    rig.result(handle)
    assert not rig.decided_on(rig.message())
    assert rig.service(Trigger, "start", Trigger.Request()).success
    rig.decide()


def test_a_value_that_stays_high_is_success(rig):
    handle = rig.send(success_value=1e-6)
    end = 0
    while not handle.outcome.done() and end < 50:
        rig.publisher.publish(rig.message())
        rig.client.spin(0.1)
        end += 1
    status, result = rig.result(handle)
    assert (status, result.reason_name) == ("succeeded", "succeeded")
    assert not math.isnan(result.progress)


def test_time_is_limited(rig):
    status, result = rig.result(rig.send(time_limit=0.2))
    assert (status, result.reason_name) == ("aborted", "time_limit")
    assert result.time >= 0.2


def test_a_new_goal_takes_the_place_of_the_running_one(rig):
    first = rig.send()
    second = rig.send()
    assert rig.result(first)[1].reason_name == "preempted"
    rig.decide()
    second.cancel_goal_async()
    assert rig.result(second)[1].decisions == 1


def test_another_instruction_takes_over(rig):
    handle = rig.send()
    assert not rig.decided_on(rig.message(instruction="something from before"))
    rig.decide()
    rig.publisher.publish(rig.message(instruction="something else"))
    _, result = rig.result(handle)
    assert result.reason_name == "instruction_replaced"
    assert "something else" in result.message


@pytest.mark.parametrize("profile", [qos.LATCHED, qos.COMMAND], ids=["latched", "volatile"])
def test_an_emergency_stop_ends_the_task(rig, profile):
    handle = rig.send()
    publisher = rig.client.node.create_publisher(Bool, "estop", profile)
    rig.client.wait(publisher.get_subscription_count, 30.0, "the planner")
    publisher.publish(Bool(data=True))
    assert rig.result(handle)[1].reason_name == "emergency_stop"
    rig.client.node.destroy_publisher(publisher)


def test_a_reset_ends_the_task(rig):
    handle = rig.send()
    answer = rig.service(Trigger, "reset", Trigger.Request())
    assert (answer.success, answer.message) == (True, "the task was ended")
    assert rig.result(handle)[1].reason_name == "reset"


def test_a_clock_that_jumps_back_ends_the_task(rig):
    clock = rig.client.node.create_publisher(Clock, "/clock", qos.CLOCK)
    rig.client.set_parameters(PLANNER, {"use_sim_time": True})

    def tell(second):
        clock.publish(Clock(clock=Time(sec=second)))
        rig.client.spin(0.05)

    rig.client.wait(clock.get_subscription_count, 30.0, "the planner")
    tell(2000)
    handle = rig.send(time_limit=1e6)
    rig.client.wait(lambda: tell(2003) or rig.feedback, 30.0, "the feedback")
    rig.client.wait(lambda: tell(1000) or handle.outcome.done(), 30.0, "the end of the task")
    result = rig.result(handle)[1]
    rig.client.set_parameters(PLANNER, {"use_sim_time": False})
    rig.client.node.destroy_publisher(clock)
    assert (result.reason_name, result.message) == ("reset", "the clock jumped back by 1e+03 s")
    assert 0.0 <= result.time <= 3.0


def test_a_pause_holds_the_task_up_and_ends_it_not(rig):
    handle = rig.send()
    rig.service(SetBool, "pause", SetBool.Request(data=True))
    assert not rig.decided_on(rig.message())
    rig.client.wait(
        lambda: rig.feedback and rig.feedback[-1].state == "paused", 30.0, "the feedback"
    )
    rig.service(SetBool, "pause", SetBool.Request(data=False))
    rig.decide()
    handle.cancel_goal_async()
    rig.result(handle)


def test_silence_ends_a_task(rig):
    rig.client.set_parameters(PLANNER, {"task.patience": 0.3})
    _, result = rig.result(rig.send())
    rig.client.set_parameters(PLANNER, {"task.patience": 0.0})
    assert result.reason_name == "no_decision"


@pytest.mark.parametrize(
    "goal", [{"instruction": " "}, {"time_limit": -1.0}, {"success_value": math.nan}]
)
def test_a_goal_that_means_nothing_is_refused(rig, goal):
    assert rig.send(**goal) is None


def test_deactivation_ends_the_task_and_no_goal_is_taken_while_inactive(rig):
    handle = rig.send()
    rig.client.change(PLANNER, DEACTIVATE)
    assert rig.result(handle)[1].reason_name == "deactivated"
    assert rig.send() is None
    assert not rig.service(Trigger, "start", Trigger.Request()).success
    rig.client.set_parameters(PLANNER, {"task.wait": True})
    rig.client.change(PLANNER, ACTIVATE)
    assert not rig.decided_on(rig.message())
    assert rig.service(Trigger, "start", Trigger.Request()).success
    rig.decide()
