"""A node that cannot activate ends the launch at once, not when its time for it is over."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

from launch import LaunchDescription, LaunchService
from launch_ros.actions import LifecycleNode

from vla_reasoner_ros.ros.startup import ordered_startup


def test_a_node_that_cannot_activate_ends_the_launch_by_its_name(capfd):
    node = LifecycleNode(
        executable=sys.executable,
        arguments=[str(Path(__file__).with_name("failing_node.py"))],
        name="failing_node",
        namespace="",
        parameters=[{"autostart": False}],
        output="screen",
    )
    service = LaunchService(noninteractive=True)
    # The launch would also end when this time is over, which is longer than a test may take.
    service.include_launch_description(LaunchDescription(ordered_startup([node], timeout=3600.0)))
    assert service.run() == 1
    said = "".join(capfd.readouterr())
    assert "cannot activate: the arm is not there" in said
    assert "failed to activate; its log says why" in said
