"""Cameras, planner and arm controller for a Universal Robots UR5e or UR10e.

Dry run unless ``enable_control:=true``. Example, with the maker's driver::

    ros2 launch vla_reasoner_ros ur.launch.py robot:=ur5e start_driver:=true \
        robot_ip:=192.168.56.101 policy:=my_vla
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from vla_reasoner_ros.ros import arm_bringup, bringup

UR = arm_bringup.Maker(
    robots=("ur5e", "ur10e"),
    controller="scaled_joint_trajectory_controller",
    contract="contract/ur.yaml",
    describe=lambda robot: arm_bringup.Description(
        "ur_description", "urdf/ur.urdf.xacro", {"name": "ur", "ur_type": robot}
    ),
    speed_scaling="speed_scaling_state_broadcaster/speed_scaling",
)


def launch_nodes(context: LaunchContext) -> list:
    entities = arm_bringup.arm_nodes(context, UR)
    if not bringup.is_true(context, "start_driver"):
        return entities
    namespace = bringup.value(context, "namespace")
    if namespace:
        raise RuntimeError(
            f"start_driver: the driver of UR takes no namespace, so nothing in {namespace!r} would "
            f"reach it; start the driver yourself and name its topics from the root, controller:="
            f"/{UR.controller} joint_states:=/joint_states speed_scaling:=/{UR.speed_scaling}"
        )
    driver = arm_bringup.driver(
        context,
        "ur_robot_driver",
        "ur_control.launch.py",
        {
            "ur_type": arm_bringup.stock_robot(context, UR),
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
            *arm_bringup.arm_arguments(UR),
            *bringup.planner_arguments(),
            OpaqueFunction(function=launch_nodes),
        ]
    )
