"""``franka.launch.py`` and ``ur.launch.py`` without a robot: active, dry, cleanly ended."""

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
from rcl_interfaces.srv import GetParameters
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.msg import ControllerStatus
from vla_reasoner_ros.paths import share_directory

sys.path.insert(0, str(Path(__file__).resolve().parent))
from client import Client

NODES = ("camera_node", "arm_controller_node", "deadman_node", "planner_node")


@pytest.mark.launch_test
@launch_testing.parametrize("robot, file", [("panda", "franka"), ("ur10e", "ur")])
def generate_test_description(robot, file):
    path = share_directory() / "launch" / f"{file}.launch.py"
    arm = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(path)),
        launch_arguments={"namespace": "arm", "robot": robot, "policy": "small_vla"}.items(),
    )
    return launch.LaunchDescription([arm, launch_testing.actions.ReadyToTest()])


class TestArmLaunch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = Client("arm")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def test_every_node_is_active_and_nothing_is_commanded(self, robot):
        self.client.wait_until_active(*NODES)
        request = GetParameters.Request(names=["robot", "enable_control"])
        answer = self.client.call(GetParameters, "arm_controller_node/get_parameters", request)
        assert answer.values[0].string_value == robot
        assert answer.values[1].bool_value is False
        status = self.client.receive(ControllerStatus, "arm_controller_node/status")
        assert status.state == ControllerStatus.DRY_RUN
        for controller in ("joint_trajectory_controller", "scaled_joint_trajectory_controller"):
            topic = f"{controller}/joint_trajectory"
            assert self.client.receive(JointTrajectory, topic, timeout=1.0) is None


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    def test_every_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
