"""What the launch files share: arguments, nodes, drivers.

Imported by launch files only; needs ``launch`` and ``launch_ros``, which come with a ROS 2
installation. Nothing that moves an arm is ever respawned: a process that dies ends the launch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from vla_reasoner_ros.control.outputs import ARM_OUTPUTS, GRIPPER_OUTPUTS
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.ros.startup import give_up, ordered_startup

PACKAGE = "vla_reasoner_ros"
TRUTH = ("true", "false")

T = TypeVar("T", int, float)


def argument(
    name: str, default: str, description: str, choices: Sequence[str] = ()
) -> DeclareLaunchArgument:
    """A launch argument; with choices, anything else is refused by name."""
    return DeclareLaunchArgument(
        name, default_value=default, description=description, choices=list(choices) or None
    )


def common_arguments(
    *, use_sim_time: str = "false", namespace: str = ""
) -> list[DeclareLaunchArgument]:
    """The arguments that every launch file of this package takes."""
    return [
        argument(
            "namespace",
            namespace,
            "Namespace of all nodes and relative topics, for two arms in one graph, as left or "
            "cell/left. Empty is none.",
        ),
        argument(
            "use_sim_time",
            use_sim_time,
            "Take the time from /clock: true with a simulator or a bag, false on a robot.",
            TRUTH,
        ),
        argument(
            "params_file",
            "",
            "YAML with parameters of any of the nodes. It overrides config/<node>.yaml and the "
            "arguments of this launch file; docs/parameters.md lists the names. Empty is none.",
        ),
        argument(
            "log_level",
            "info",
            "Log level of the nodes.",
            ("debug", "info", "warn", "error", "fatal"),
        ),
        argument(
            "enclave",
            "",
            "SROS2 enclave below which each node has its own, as /vla_reasoner_ros "
            "(docs/security.md). Empty is that of the environment.",
        ),
        argument(
            "startup_timeout",
            "180.0",
            "Seconds a node may take for configure and activate before the launch is given up.",
        ),
    ]


def planner_arguments(
    *, policy: str = "", world_model: str = "none"
) -> list[DeclareLaunchArgument]:
    """The arguments of a launch file that starts the planner.

    Args:
        policy: registered name used when none is given; empty refuses to start without one.
        world_model: likewise. The shipped one knows the simulated table only.
    """
    return [
        argument(
            "policy",
            policy,
            "Frozen policy by its registered name, shipped or of your own package "
            "(docs/your_own_vla.md).",
        ),
        argument("policy_options", "", "YAML file with options of the policy. Empty is none."),
        argument(
            "world_model",
            world_model,
            "World model by its registered name; none lets the policy drive alone, auto takes the "
            "shipped one where its report card is green.",
        ),
    ]


def configuration_file(name: str) -> str:
    """A file of ``config/``; FileNotFoundError names it when it is not installed."""
    path = share_directory() / "config" / name
    if not path.is_file():
        raise FileNotFoundError(f"configuration file {path} is not installed")
    return str(path)


def value(context: LaunchContext, name: str) -> str:
    """The text of a launch argument."""
    return LaunchConfiguration(name).perform(context)


def is_true(context: LaunchContext, name: str) -> bool:
    """Whether a true/false launch argument is true."""
    return value(context, name) == "true"


def number(
    context: LaunchContext, name: str, kind: type[T], low: float = 0.0, *, above: bool = False
) -> T:
    """A launch argument that is a number.

    Args:
        context: holds the launch arguments.
        name: of the argument.
        kind: int or float.
        low: the least that is allowed.
        above: ``low`` itself is not allowed.

    Raises:
        RuntimeError: it is none, not finite, or too small.
    """
    text = value(context, name)
    try:
        read = kind(text)
    except ValueError:
        read = kind(-1)
    if not math.isfinite(read) or read < low or (above and read == low):
        least = f"above {low:g}" if above else f"of at least {low:g}"
        noun = "a whole number" if kind is int else "a number"
        raise RuntimeError(f"{name}: expected {noun} {least}, got {text!r}")
    return read


def startup(
    context: LaunchContext, nodes: Sequence[LifecycleNode]
) -> list[LaunchDescriptionEntity]:
    """The nodes, brought up in order within ``startup_timeout`` each."""
    return ordered_startup(nodes, number(context, "startup_timeout", float, above=True))


def node(
    context: LaunchContext,
    executable: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    remappings: Sequence[tuple[str, str]] = (),
) -> LifecycleNode:
    """One of this package's lifecycle nodes, named as its executable.

    Its parameters are, later over earlier: ``config/<executable>.yaml``, ``parameters``, the user's
    ``params_file``, ``use_sim_time``.

    Raises:
        FileNotFoundError: ``params_file`` is not there.
    """
    layers: list[Any] = [configuration_file(f"{executable}.yaml"), dict(parameters or {})]
    params_file = value(context, "params_file")
    if params_file:
        if not Path(params_file).is_file():
            raise FileNotFoundError(f"params_file: there is no file {params_file!r}")
        layers.append(params_file)
    layers.append({"use_sim_time": is_true(context, "use_sim_time"), "autostart": False})
    prefix = value(context, "enclave").rstrip("/")
    enclave = ["--enclave", f"{prefix}/{executable}"] if prefix else []
    return LifecycleNode(
        package=PACKAGE,
        executable=executable,
        name=executable,
        namespace=value(context, "namespace"),
        parameters=[layer for layer in layers if layer],
        remappings=list(remappings),
        arguments=["--ros-args", "--log-level", value(context, "log_level"), *enclave],
        output="screen",
        emulate_tty=True,
        respawn=False,
        on_exit=lambda event, context: give_up(
            context, f"{executable} ended with exit code {event.returncode}"
        ),
    )


def planner_node(
    context: LaunchContext, remappings: Sequence[tuple[str, str]] = ()
) -> LifecycleNode:
    """The planner, with the components that the launch arguments name."""
    return node(
        context,
        "planner_node",
        parameters={
            "planner.policy": required(
                context, "policy", "name a policy that was made for this robot"
            ),
            "planner.policy_options": value(context, "policy_options"),
            "planner.world_model": value(context, "world_model"),
        },
        remappings=remappings,
    )


def arm_arguments(robots: Sequence[str], controller: str) -> list[DeclareLaunchArgument]:
    """The arguments of a launch file that commands a real arm by a trajectory controller.

    Args:
        robots: the robot files it may be started for, the default first.
        controller: name of the joint trajectory controller that takes the commands.
    """
    return [
        argument("robot", robots[0], "Robot file in config/robots/, without .yaml.", robots),
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
            "nothing is sent.",
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
            "Kinematics of the arm: path of a URDF or xacro file; auto is the maker's own where "
            "its description package is installed, as its driver publishes it; none is the robot "
            "file's.",
        ),
        argument(
            "controller",
            controller,
            "Joint trajectory controller of ros2_control that takes the commands.",
        ),
        argument("joint_states", "joint_states", "Topic of the measured joint states."),
        rviz_argument(),
    ]


def arm_nodes(
    context: LaunchContext, contract: str, description: Description
) -> list[LaunchDescriptionEntity]:
    """Cameras, controller, deadman and planner for a real arm, started in this order.

    Args:
        context: holds the launch arguments.
        contract: file in ``config/`` used when the argument of that name is empty.
        description: where the maker's description of the arm is.
    """
    robot = value(context, "robot")
    states = ("joint_states", value(context, "joint_states"))
    commands = ("joint_trajectory", f"{value(context, 'controller')}/joint_trajectory")
    urdf = robot_description(context, description)
    described = {"robot_description": ParameterValue(urdf, value_type=str)} if urdf else {}
    camera = node(
        context,
        "camera_node",
        parameters={
            "robot": robot,
            "contract": value(context, "contract") or configuration_file(contract),
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
            "enable_control": is_true(context, "enable_control"),
            "output": value(context, "output"),
            "gripper_output": value(context, "gripper_output"),
            "command.trajectory_action": f"{value(context, 'controller')}/follow_joint_trajectory",
            **described,
        },
        remappings=[states, commands],
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
    nodes = [camera, controller, deadman, planner_node(context)]
    return [*startup(context, nodes), *rviz(context)]


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


def robot_description(context: LaunchContext, maker: Description) -> str:
    """The URDF that the argument ``robot_description`` asks for; empty is the robot file's own.

    Raises:
        RuntimeError: a file that is not there, or xacro is needed and not installed.
    """
    wanted = value(context, "robot_description")
    if wanted == "none":
        return ""
    path, mappings = Path(wanted), dict(maker.mappings)
    if wanted == "auto":
        try:
            path = Path(get_package_share_directory(maker.package)) / maker.file
        except PackageNotFoundError:
            get_logger(PACKAGE).info(
                f"robot_description: {maker.package} is not installed, the kinematics are those of "
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
    text: str = xacro.process_file(str(path), mappings=mappings).toxml()
    return text


def rviz_argument() -> DeclareLaunchArgument:
    """The argument that :func:`rviz` reads."""
    return argument("rviz", "false", "Start RViz.", TRUTH)


def rviz(context: LaunchContext) -> list[Node]:
    """RViz where the argument of this name asks for it.

    Raises:
        RuntimeError: it is not installed.
    """
    if not is_true(context, "rviz"):
        return []
    try:
        get_package_share_directory("rviz2")
    except PackageNotFoundError as error:
        raise RuntimeError(
            "rviz: package rviz2 is not installed; sudo apt install ros-jazzy-rviz2"
        ) from error
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", configuration_file("rviz/vla_reasoner.rviz")],
            parameters=[{"use_sim_time": is_true(context, "use_sim_time")}],
            output="log",
        )
    ]


def driver(
    package: str, launch_file: str, arguments: Mapping[str, str], installation: str
) -> IncludeLaunchDescription:
    """The maker's driver.

    Args:
        package: the package that holds its launch file.
        launch_file: the file's name in ``launch/``.
        arguments: its launch arguments.
        installation: how to install it, said when it is missing.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        share = Path(get_package_share_directory(package))
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"start_driver: package {package} is not installed; {installation}"
        ) from error
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / "launch" / launch_file)),
        launch_arguments=dict(arguments).items(),
    )


def required(context: LaunchContext, name: str, why: str) -> str:
    """The text of a launch argument that must not be empty.

    Raises:
        RuntimeError: it is empty.
    """
    text = value(context, name)
    if not text:
        raise RuntimeError(f"{name}: an argument is expected, got nothing; {why}")
    return text
