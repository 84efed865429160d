"""Cameras, planner and arm controller for a Franka FR3 or Panda.

Dry run unless ``enable_control:=true``. Example, with the driver of franka_ros2::

    ros2 launch vla_reasoner_ros franka.launch.py robot:=fr3 start_driver:=true \
        robot_ip:=172.16.0.2 policy:=my_vla
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from vla_reasoner_ros.ros import arm_bringup, bringup

FRANKA = arm_bringup.Maker(
    robots=("fr3", "panda"),
    controller="joint_trajectory_controller",
    contract="contract/franka.yaml",
    describe=lambda robot: arm_bringup.Description(
        "franka_description", f"robots/{robot}/{robot}.urdf.xacro", {"hand": "true"}
    ),
)


def launch_nodes(context: LaunchContext) -> list:
    entities = arm_bringup.arm_nodes(context, FRANKA)
    if not bringup.is_true(context, "start_driver"):
        return entities
    robot = arm_bringup.stock_robot(context, FRANKA)
    if robot != "fr3":
        raise RuntimeError(
            "start_driver: franka_ros2 for Jazzy drives the FR3 only; start the driver of a Panda "
            "yourself"
        )
    namespace = bringup.value(context, "namespace")
    driver = arm_bringup.driver(
        context,
        "franka_bringup",
        "franka.launch.py",
        {
            "robot_type": robot,
            "namespace": namespace,
            "load_gripper": "true",
            "controllers_yaml": bringup.configuration_file("ros2_control/franka.yaml"),
        },
        "build franka_ros2 (branch jazzy) from source, it is not released for apt",
    )
    spawner = Node(
        package="controller_manager",
        executable="spawner",
        namespace=namespace,
        arguments=[bringup.value(context, "controller")],
        output="screen",
    )
    return [driver, spawner, *entities]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *bringup.common_arguments(),
            *arm_bringup.arm_arguments(FRANKA),
            *bringup.planner_arguments(),
            OpaqueFunction(function=launch_nodes),
        ]
    )
