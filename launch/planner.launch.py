"""The planner alone, for a host with a GPU; cameras and controller run beside the robot.

Example: ``ros2 launch vla_reasoner_ros planner.launch.py policy:=my_vla namespace:=left``
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from vla_reasoner_ros.ros import bringup


def launch_nodes(context: LaunchContext) -> list:
    return bringup.startup(context, [bringup.planner_node(context)])


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *bringup.common_arguments(),
            *bringup.planner_arguments(),
            OpaqueFunction(function=launch_nodes),
        ]
    )
