"""``sim.launch.py`` under the real launch stack: active, flowing, tunable, cleanly ended."""

import time
import unittest

import pytest

pytest.importorskip("launch_testing", reason="needs the package launch_testing of a ROS 2")
pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from vla_reasoner_ros.msg import ActionChunk, Observation, SearchStatistics
from vla_reasoner_ros.paths import share_directory

NODES = ("sim_node", "camera_node", "arm_controller_node", "planner_node")
NAMESPACE = "launch_test"
STARTUP_S = 600.0  # the first search of a machine is compiled


@pytest.mark.launch_test
@pytest.mark.timeout(1200)
def generate_test_description():
    sim = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share_directory() / "launch" / "sim.launch.py")),
        launch_arguments={
            "namespace": NAMESPACE,
            "task": "lift_green",
            "seed": "0",
            "lockstep": "true",
            "startup_timeout": str(STARTUP_S),
        }.items(),
    )
    return launch.LaunchDescription([sim, launch_testing.actions.ReadyToTest()])


class TestSimLaunch(unittest.TestCase):
    """A client of the running graph."""

    @classmethod
    def setUpClass(cls):
        rclpy.init()
        cls.node = rclpy.create_node("client", namespace=NAMESPACE)

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy_node()
        rclpy.shutdown()

    def call(self, kind, name, request, timeout=STARTUP_S):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout), f"service {name} did not appear"
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self.node, future, timeout_sec=timeout)
        self.node.destroy_client(client)
        return future.result()

    def wait_until_active(self):
        deadline = time.monotonic() + STARTUP_S
        for name in NODES:
            while self.call(GetState, f"{name}/get_state", GetState.Request()).current_state.id != (
                State.PRIMARY_STATE_ACTIVE
            ):
                assert time.monotonic() < deadline, f"{name} did not become active"
                time.sleep(0.2)

    def receive(self, kind, topic, timeout=120.0):
        received = []
        subscription = self.node.create_subscription(kind, topic, received.append, 10)
        deadline = time.monotonic() + timeout
        while not received and time.monotonic() < deadline:
            rclpy.spin_once(self.node, timeout_sec=0.1)
        self.node.destroy_subscription(subscription)
        assert received, f"nothing came on {topic}"
        return received[0]

    def test_graph_decides_and_takes_a_new_budget(self):
        self.wait_until_active()
        observation = self.receive(Observation, "observation")
        assert sorted(observation.image_names) == ["agent", "wrist"]
        assert observation.instruction
        chunk = self.receive(ActionChunk, "action_chunk")
        assert len(chunk.actions) == chunk.steps * chunk.dimensions
        self.receive(DiagnosticArray, "/diagnostics")
        request = SetParameters.Request(
            parameters=[Parameter("search.simulations", value=8).to_parameter_msg()]
        )
        response = self.call(SetParameters, "planner_node/set_parameters", request)
        assert response.results[0].successful, response.results[0].reason
        deadline = time.monotonic() + 120.0
        while self.receive(SearchStatistics, "search_statistics").simulations_budget != 8:
            assert time.monotonic() < deadline, "the new budget was never used"

    def test_a_budget_out_of_range_is_refused_with_its_range(self):
        self.wait_until_active()
        request = SetParameters.Request(
            parameters=[Parameter("search.simulations", value=-1).to_parameter_msg()]
        )
        result = self.call(SetParameters, "planner_node/set_parameters", request).results[0]
        assert not result.successful
        assert "search.simulations" in result.reason


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    """After SIGINT."""

    def test_every_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
