"""A node that cannot activate ends the launch at once, not when its time for it is over."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

# What `ros2 launch` does, without its command line.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch_ros.actions import LifecycleNode
from vla_reasoner_ros.ros.startup import ordered_startup
node = LifecycleNode(
    executable=sys.executable,
    arguments=sys.argv[1:],
    name="failing_node",
    namespace="",
    parameters=[{"autostart": False}],
    output="screen",
)
service = LaunchService(noninteractive=True)
# The launch would also end when this time is over, which is longer than a test may take.
service.include_launch_description(LaunchDescription(ordered_startup([node], timeout=3600.0)))
sys.exit(service.run())
"""


def test_a_node_that_cannot_activate_ends_the_launch_by_its_name():
    node = Path(__file__).with_name("failing_node.py")
    command = [sys.executable, "-c", LAUNCH, str(node)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "cannot activate: the arm is not there" in said
    assert "failed to activate; its log says why" in said
