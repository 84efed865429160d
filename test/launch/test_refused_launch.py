"""A node that cannot configure ends the launch, and both say why."""

import unittest

import pytest

pytest.importorskip("launch_testing", reason="needs the package launch_testing of a ROS 2")
pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from vla_reasoner_ros.paths import share_directory


@pytest.mark.launch_test
def generate_test_description():
    path = share_directory() / "launch" / "planner.launch.py"
    planner = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(path)),
        launch_arguments={"policy": "no_such_policy"}.items(),
    )
    return launch.LaunchDescription([planner, launch_testing.actions.ReadyToTest()])


class TestRefused(unittest.TestCase):
    def test_the_node_says_what_is_wrong_and_is_ended(self, proc_output, proc_info):
        proc_output.assertWaitFor("policy 'no_such_policy' is unknown", timeout=240.0)
        for name in proc_info.process_names():
            proc_info.assertWaitForShutdown(name, timeout=60.0)


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    def test_the_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
