"""What the launch files share: arguments and nodes.

Imported by launch files only; needs ``launch`` and ``launch_ros``, which come with a ROS 2
installation. Nothing that moves an arm is ever respawned: a process that dies ends the launch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

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
            "YAML with parameters of any of the nodes; docs/parameters.md lists the names. Below "
            "the name of a node, as /**/planner_node, they override config/<node>.yaml and the "
            "arguments of this launch file; below /** those of config/<node>.yaml only. "
            "use_sim_time and enable_control are left to the arguments. Empty is none.",
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
            "SROS2 enclave below which each node has its own, as /vla_reasoner_ros; that of "
            "ROS_SECURITY_ENCLAVE_OVERRIDE is then the launch process's alone (docs/security.md). "
            "Empty is that of the environment.",
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
    decided: Mapping[str, Any] | None = None,
    remappings: Sequence[tuple[str, str]] = (),
) -> LifecycleNode:
    """One of this package's lifecycle nodes, named as its executable.

    Its parameters are, later over earlier: ``config/<executable>.yaml``, what the user's
    ``params_file`` has for all nodes (``/**``), ``parameters``, what it has for this node,
    ``use_sim_time`` and ``decided``.

    Args:
        context: holds the launch arguments.
        executable: which node.
        parameters: what the launch file gives it.
        decided: what the launch file gives it and no parameter file overrides.
        remappings: from name to name.

    Raises:
        FileNotFoundError: ``params_file`` is not there.
    """
    layers: list[Any] = [configuration_file(f"{executable}.yaml"), dict(parameters or {})]
    params_file = value(context, "params_file")
    if params_file:
        if not Path(params_file).is_file():
            raise FileNotFoundError(f"params_file: there is no file {params_file!r}")
        layers.append(params_file)
    last = {"use_sim_time": is_true(context, "use_sim_time"), "autostart": False}
    layers.append(last_layer(executable, last | dict(decided or {})))
    prefix = value(context, "enclave").rstrip("/")
    enclave = ["--enclave", f"{prefix}/{executable}"] if prefix else []
    # That of the launch process would be inherited, and holds over --enclave unless it is empty.
    environment = {"ROS_SECURITY_ENCLAVE_OVERRIDE": ""} if prefix else {}
    return LifecycleNode(
        package=PACKAGE,
        executable=executable,
        name=executable,
        namespace=value(context, "namespace"),
        parameters=[layer for layer in layers if layer],
        remappings=list(remappings),
        arguments=["--ros-args", "--log-level", value(context, "log_level"), *enclave],
        additional_env=environment,
        output="screen",
        emulate_tty=True,
        respawn=False,
        on_exit=lambda event, context: give_up(
            context, f"{executable} ended with exit code {event.returncode}"
        ),
    )


def last_layer(executable: str, parameters: Mapping[str, Any]) -> str:
    """A parameter file that overrides what stands in any file before it.

    ROS sorts by the pattern of the node's name first: a pattern that is met first gives way to one
    met later, whatever files they stand in. A dictionary of ``launch_ros`` is filed under the
    node's full name and gives way to a ``/**/<executable>`` of the user's. This pattern means the
    same and is written by nobody else.

    Returns:
        The path; like those of ``launch_ros`` it stays in the folder of temporary files.
    """
    with NamedTemporaryFile("w", prefix="launch_params_", suffix=".yaml", delete=False) as file:
        yaml.safe_dump({f"/**/**/{executable}": {"ros__parameters": dict(parameters)}}, file)
    return file.name


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


def required(context: LaunchContext, name: str, why: str) -> str:
    """The text of a launch argument that must not be empty.

    Raises:
        RuntimeError: it is empty.
    """
    text = value(context, name)
    if not text:
        raise RuntimeError(f"{name}: an argument is expected, got nothing; {why}")
    return text
