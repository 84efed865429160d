"""What the launch files of real arms share: robot file, description, driver, nodes.

Imported by launch files only; needs ``launch`` and ``launch_ros``, which come with a ROS 2
installation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.logging import get_logger
from launch_ros.parameter_descriptions import ParameterValue

from vla_reasoner_ros.control.outputs import ARM_OUTPUTS, GRIPPER_OUTPUTS
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.bringup import (
    PACKAGE,
    TRUTH,
    argument,
    configuration_file,
    is_true,
    node,
    planner_node,
    required,
    rviz,
    rviz_argument,
    startup,
    value,
)
from vla_reasoner_ros.ros.parameter_files import nodes_that_set

ARM_NODES = ("camera_node", "arm_controller_node", "deadman_node")
"""The nodes that must have the same robot."""


@dataclass(frozen=True)
class Description:
    """Where a maker's package keeps the description of an arm.

    Attributes:
        package: the package.
        file: the xacro file in its share folder.
        mappings: arguments of the xacro file.
    """

    package: str
    file: str
    mappings: Mapping[str, str]


@dataclass(frozen=True)
class Maker:
    """The arms of one maker, as a launch file starts them.

    Attributes:
        robots: stock robots, by the names of their files in ``config/robots/``; the default first.
        controller: name of the joint trajectory controller that takes the commands.
        contract: file in ``config/`` used when the argument ``contract`` is empty.
        describe: the maker's description of a stock robot.
        speed_scaling: topic with the percentage at which the controller plays trajectories; empty
            where it always plays them as they are.
    """

    robots: Sequence[str]
    controller: str
    contract: str
    describe: Callable[[str], Description]
    speed_scaling: str = ""


def arm_arguments(maker: Maker) -> list[DeclareLaunchArgument]:
    """The arguments of a launch file that commands a real arm by a trajectory controller."""
    return [
        argument(
            "robot",
            maker.robots[0],
            f"{' or '.join(maker.robots)}, or the path of a robot file of your own (.yaml), for a "
            "tool, a calibration, other limits or other joint names.",
        ),
        argument(
            "robot_ip", "", "Address of the robot's controller; needed with start_driver:=true."
        ),
        argument(
            "start_driver",
            "false",
            "Include the maker's driver; false where it runs already.",
            TRUTH,
        ),
        argument(
            "enable_control",
            "false",
            "Send commands to the arm. While false everything is computed and checked, and "
            "nothing is sent. No params_file overrides it.",
            TRUTH,
        ),
        argument("output", "joint_trajectory", "How the arm is commanded.", tuple(ARM_OUTPUTS)),
        argument("gripper_output", "opening", "How the gripper is commanded.", GRIPPER_OUTPUTS),
        argument(
            "contract",
            "",
            "YAML that names the camera and joint state topics. Empty is the example of this robot "
            "in config/contract/.",
        ),
        argument("instruction", "", "What to do; the topic of this name replaces it."),
        argument(
            "robot_description",
            "auto",
            "Kinematics of the arm: path of a URDF or xacro file; auto is the maker's own for a "
            "stock robot, where its description package is installed, and that of the robot file "
            "for a path in robot; none is the robot file's.",
        ),
        argument(
            "controller",
            maker.controller,
            "Joint trajectory controller of ros2_control that takes the commands.",
        ),
        argument("joint_states", "joint_states", "Topic of the measured joint states."),
        *(
            [
                argument(
                    "speed_scaling",
                    maker.speed_scaling,
                    "Topic with the percentage of their speed at which the controller plays "
                    "trajectories; below 100 the arm is held.",
                )
            ]
            if maker.speed_scaling
            else []
        ),
        argument(
            "planner",
            "true",
            "Start the planner too; false where planner.launch.py runs on another computer. Then "
            "policy and world_model are said there and not used here.",
            TRUTH,
        ),
        rviz_argument(),
    ]


def arm_nodes(context: LaunchContext, maker: Maker) -> list[LaunchDescriptionEntity]:
    """Cameras, controller, deadman and the planner that is asked for, started in this order.

    Raises:
        RuntimeError: the robot is none of the maker's and no robot file, or ``params_file`` names
            one past the others.
    """
    robot = arm_robot(context, maker)
    states = ("joint_states", value(context, "joint_states"))
    commands = ("joint_trajectory", f"{value(context, 'controller')}/joint_trajectory")
    speed = [("speed_scaling", value(context, "speed_scaling"))] if maker.speed_scaling else []
    urdf = robot_description(context, maker)
    described = {"robot_description": ParameterValue(urdf, value_type=str)} if urdf else {}
    camera = node(
        context,
        "camera_node",
        parameters={
            "robot": robot,
            "contract": value(context, "contract") or configuration_file(maker.contract),
            "instruction": value(context, "instruction"),
            **described,
        },
        remappings=[states],
    )
    controller = node(
        context,
        "arm_controller_node",
        parameters={
            "robot": robot,
            "output": value(context, "output"),
            "gripper_output": value(context, "gripper_output"),
            "command.trajectory_action": f"{value(context, 'controller')}/follow_joint_trajectory",
            **described,
        },
        decided={"enable_control": is_true(context, "enable_control")},
        remappings=[states, commands, *speed],
    )
    deadman = node(
        context,
        "deadman_node",
        parameters={
            "robot": robot,
            "output": value(context, "output"),
            "trajectory_action": f"{value(context, 'controller')}/follow_joint_trajectory",
        },
        remappings=[states, commands],
    )
    nodes = [camera, controller, deadman]
    if is_true(context, "planner"):
        nodes.append(planner_node(context))
    return [*startup(context, nodes), *rviz(context)]


def arm_robot(context: LaunchContext, maker: Maker) -> str:
    """What the nodes take as ``robot``: a stock name, or the full path of a robot file.

    Raises:
        RuntimeError: it is neither, the file is refused, or ``params_file`` sets ``robot``, which
            would give the nodes different robots.
    """
    told = [
        name
        for name in nodes_that_set("robot", value(context, "params_file"))
        if name.rsplit("/")[-1] in (*ARM_NODES, "*", "**")
    ]
    if told:
        raise RuntimeError(
            f"params_file: robot is set for {', '.join(told)}; give robot:=PATH to the launch "
            "file instead, so that cameras, controller, deadman and kinematics agree"
        )
    robot = value(context, "robot")
    if robot in maker.robots:
        return robot
    if not robot.endswith((".yaml", ".yml")):
        raise RuntimeError(
            f"robot: expected {', '.join(maker.robots)} or the path of a robot file (.yaml), got "
            f"{robot!r}"
        )
    path = Path(robot).expanduser().resolve()
    try:
        load_robot(path)
    except ConfigurationError as error:
        raise RuntimeError(
            f"robot: {error}; expected {', '.join(maker.robots)} or the path of a robot file"
        ) from error
    return str(path)


def stock_robot(context: LaunchContext, maker: Maker) -> str:
    """The stock robot that the driver is started for.

    Raises:
        RuntimeError: ``robot`` is a file of the user's own, from which no driver can be chosen.
    """
    robot = value(context, "robot")
    if robot not in maker.robots:
        raise RuntimeError(
            f"start_driver: expected robot to be {' or '.join(maker.robots)}, got {robot!r}; start "
            "the driver yourself, with the type of your arm, and leave start_driver false"
        )
    return robot


def robot_description(context: LaunchContext, maker: Maker) -> str:
    """The URDF that the argument ``robot_description`` asks for; empty is the robot file's own.

    Raises:
        RuntimeError: a file that is not there, or xacro is needed and not installed.
    """
    wanted, robot = value(context, "robot_description"), value(context, "robot")
    stock = maker.describe(robot) if robot in maker.robots else None
    if wanted == "none":
        return ""
    path = Path(wanted)
    if wanted == "auto":
        if stock is None:
            get_logger(PACKAGE).info(
                f"robot_description: the kinematics are those of the robot file {robot}"
            )
            return ""
        try:
            path = Path(get_package_share_directory(stock.package)) / stock.file
        except PackageNotFoundError:
            get_logger(PACKAGE).info(
                f"robot_description: {stock.package} is not installed, the kinematics are those of "
                "the robot file"
            )
            return ""
    if not path.is_file():
        raise RuntimeError(f"robot_description: there is no file {str(path)!r}")
    if path.suffix != ".xacro":
        return path.read_text(encoding="utf-8")
    try:
        xacro = importlib.import_module("xacro")
    except ImportError as error:
        raise RuntimeError(
            "robot_description: package xacro is not installed; sudo apt install ros-jazzy-xacro"
        ) from error
    mappings = dict(stock.mappings) if stock else {}
    text: str = xacro.process_file(str(path), mappings=mappings).toxml()
    return text


def driver(
    context: LaunchContext,
    package: str,
    launch_file: str,
    arguments: Mapping[str, str],
    installation: str,
) -> IncludeLaunchDescription:
    """The maker's driver, at the address ``robot_ip``.

    Args:
        context: holds the launch arguments.
        package: the package that holds its launch file.
        launch_file: the file's name in ``launch/``.
        arguments: its launch arguments besides the address.
        installation: how to install it, said when it is missing.

    Raises:
        RuntimeError: there is no address, or the package is not installed.
    """
    address = {"robot_ip": required(context, "robot_ip", "the driver connects to it")}
    try:
        share = Path(get_package_share_directory(package))
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"start_driver: package {package} is not installed; {installation}"
        ) from error
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / "launch" / launch_file)),
        launch_arguments={**address, **arguments}.items(),
    )
