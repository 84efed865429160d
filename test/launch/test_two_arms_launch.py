"""``sim.launch.py`` twice in one graph: two arms, each with its own clock, apart from the other."""

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
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.msg import State, Transition

from vla_reasoner_ros.msg import ActionChunk
from vla_reasoner_ros.paths import share_directory

sys.path.insert(0, str(Path(__file__).resolve().parent))
from client import Client

ARMS = ("left", "right")
NODES = ("sim_node", "camera_node", "arm_controller_node", "deadman_node", "planner_node")


@pytest.mark.launch_test
@pytest.mark.timeout(1200)
def generate_test_description():
    path = share_directory() / "launch" / "sim.launch.py"
    arms = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(path)),
            launch_arguments={
                "namespace": arm,
                "clock": f"/{arm}/clock",
                "world_model": "none",
                "startup_timeout": "600.0",
            }.items(),
        )
        for arm in ARMS
    ]
    return launch.LaunchDescription([*arms, launch_testing.actions.ReadyToTest()])


class TestTwoArms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = Client()

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def test_one_goes_on_while_the_other_is_put_down(self):
        client = self.client
        client.wait_until_active(*(f"{arm}/{node}" for arm in ARMS for node in NODES))
        for arm in ARMS:
            assert client.node.count_publishers(f"/{arm}/clock") == 1
            assert client.receive(ActionChunk, f"{arm}/action_chunk", 120.0)
        assert client.node.count_publishers("/clock") == 0
        assert client.change("left/planner_node", Transition.TRANSITION_DEACTIVATE)
        assert client.state("left/planner_node") == State.PRIMARY_STATE_INACTIVE
        assert client.state("right/planner_node") == State.PRIMARY_STATE_ACTIVE
        assert client.receive(ActionChunk, "right/action_chunk", 120.0)


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    def test_every_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
