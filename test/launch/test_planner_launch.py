"""``planner.launch.py``: every lifecycle path, and a task by its action."""

import sys
import unittest
from pathlib import Path

import pytest

pytest.importorskip("launch_testing", reason="needs the package launch_testing of a ROS 2")
pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
import rclpy
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.msg import State, Transition
from rclpy.action import ActionClient

from vla_reasoner_ros.action import RunTask
from vla_reasoner_ros.paths import share_directory

sys.path.insert(0, str(Path(__file__).resolve().parent))
from client import Client

PLANNER = "planner_node"


@pytest.mark.launch_test
def generate_test_description():
    path = share_directory() / "launch" / "planner.launch.py"
    planner = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(path)),
        launch_arguments={"namespace": "left", "policy": "small_vla"}.items(),
    )
    return launch.LaunchDescription([planner, launch_testing.actions.ReadyToTest()])


class TestPlannerLaunch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = Client("left")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def test_every_transition_and_a_task(self):
        client = self.client
        client.wait_until_active(PLANNER)
        for transition, state in (
            (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
            (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE),
            (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
            (Transition.TRANSITION_CLEANUP, State.PRIMARY_STATE_UNCONFIGURED),
            (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_INACTIVE),
            (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE),
        ):
            assert client.change(PLANNER, transition)
            assert client.state(PLANNER) == state
        assert not client.change(PLANNER, Transition.TRANSITION_CONFIGURE)
        action = ActionClient(client.node, RunTask, f"{PLANNER}/run_task")
        assert action.wait_for_server(60.0)
        goal = action.send_goal_async(RunTask.Goal(instruction="wait", time_limit=0.1))
        rclpy.spin_until_future_complete(client.node, goal, timeout_sec=60.0)
        result = goal.result().get_result_async()
        rclpy.spin_until_future_complete(client.node, result, timeout_sec=60.0)
        assert result.result().result.reason == RunTask.Result.TIME_LIMIT


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    def test_the_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
