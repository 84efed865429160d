"""Cameras, planner and arm controller for a Universal Robots UR5e or UR10e.

Dry run unless ``enable_control:=true``. Example, with the maker's driver::

    ros2 launch vla_reasoner_ros ur.launch.py robot:=ur5e start_driver:=true \
        robot_ip:=192.168.56.101 policy:=my_vla
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from vla_reasoner_ros.ros import bringup

CONTROLLER = "scaled_joint_trajectory_controller"


def launch_nodes(context: LaunchContext) -> list:
    robot = bringup.value(context, "robot")
    description = bringup.Description(
        "ur_description", "urdf/ur.urdf.xacro", {"name": "ur", "ur_type": robot}
    )
    entities = bringup.arm_nodes(context, "contract/ur.yaml", description)
    if not bringup.is_true(context, "start_driver"):
        return entities
    driver = bringup.driver(
        "ur_robot_driver",
        "ur_control.launch.py",
        {
            "ur_type": robot,
            "robot_ip": bringup.required(context, "robot_ip", "the driver connects to it"),
            "initial_joint_controller": bringup.value(context, "controller"),
            "launch_rviz": "false",
        },
        "sudo apt install ros-jazzy-ur-robot-driver",
    )
    return [driver, *entities]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *bringup.common_arguments(),
            *bringup.arm_arguments(["ur5e", "ur10e"], CONTROLLER),
            *bringup.planner_arguments(),
            OpaqueFunction(function=launch_nodes),
        ]
    )
