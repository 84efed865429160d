"""What the launch files share: arguments, nodes, and a lifecycle start-up in order.

Imported by launch files only; needs ``launch`` and ``launch_ros``, which come with a ROS 2
installation. Nothing that moves an arm is ever respawned: a process that dies ends the launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from vla_reasoner_ros.paths import share_directory

PACKAGE = "vla_reasoner_ros"
TRUTH = ("true", "false")


def argument(
    name: str, default: str, description: str, choices: Sequence[str] = ()
) -> DeclareLaunchArgument:
    """A launch argument; with choices, anything else is refused by name."""
    return DeclareLaunchArgument(
        name, default_value=default, description=description, choices=list(choices) or None
    )


def common_arguments(*, use_sim_time: str = "false") -> list[DeclareLaunchArgument]:
    """The arguments that every launch file of this package takes."""
    return [
        argument(
            "namespace",
            "",
            "Namespace of all nodes and relative topics, for two arms in one graph.",
        ),
        argument("use_sim_time", use_sim_time, "Take the time from /clock.", TRUTH),
        argument("params_file", "", "YAML with parameters that override the files in config/."),
        argument(
            "log_level",
            "info",
            "Log level of the nodes.",
            ("debug", "info", "warn", "error", "fatal"),
        ),
        argument(
            "startup_timeout",
            "60.0",
            "Seconds a node may take for configure and activate before the launch is given up.",
        ),
    ]


def planner_arguments() -> list[DeclareLaunchArgument]:
    """The arguments of a launch file that starts the planner."""
    return [
        argument("policy", "small_vla", "Policy by its registered name."),
        argument(
            "world_model",
            "auto",
            "World model by its registered name; auto follows the report card.",
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
    return LifecycleNode(
        package=PACKAGE,
        executable=executable,
        name=executable,
        namespace=value(context, "namespace"),
        parameters=[layer for layer in layers if layer],
        remappings=list(remappings),
        arguments=["--ros-args", "--log-level", value(context, "log_level")],
        output="screen",
        emulate_tty=True,
        on_exit=Shutdown(reason=f"{executable} ended"),
    )


def ordered_startup(
    context: LaunchContext, nodes: Sequence[LifecycleNode]
) -> list[LaunchDescriptionEntity]:
    """Configure and activate the nodes one after another, each when the one before is active.

    A node that fails a transition, or is not active within ``startup_timeout`` of its turn, ends
    the launch with its name as the reason.
    """
    timeout = float(value(context, "startup_timeout"))
    entities: list[LaunchDescriptionEntity] = []
    turns = [_turn(node, timeout) for node in nodes]
    for index, node in enumerate(nodes):
        following = turns[index + 1] if index + 1 < len(nodes) else [LogInfo(msg="all active")]
        entities += [
            _on(node, "inactive", "configuring", [_change(node, Transition.TRANSITION_ACTIVATE)]),
            _on(node, "active", "activating", following),
            *(
                _on(
                    node,
                    goal,
                    start,
                    [Shutdown(reason=f"{node.node_executable} failed to {verb}; its log says why")],
                )
                for goal, start, verb in (
                    ("unconfigured", "configuring", "configure"),
                    ("inactive", "activating", "activate"),
                    ("finalized", "errorprocessing", "recover from an error"),
                )
            ),
        ]
    first, *_ = nodes
    entities.append(RegisterEventHandler(OnProcessStart(target_action=first, on_start=turns[0])))
    return [*entities, *nodes]


def _turn(node: LifecycleNode, timeout: float) -> list[LaunchDescriptionEntity]:
    active: list[bool] = []

    def give_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if active:
            return []
        return [Shutdown(reason=f"{node.node_executable} was not active after {timeout:g} s")]

    return [
        _on(node, "active", "activating", [OpaqueFunction(function=lambda _: active.append(True))]),
        _change(node, Transition.TRANSITION_CONFIGURE),
        TimerAction(period=timeout, actions=[OpaqueFunction(function=give_up)]),
    ]


def _change(node: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(
        event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
    )


def _on(
    node: LifecycleNode, goal: str, start: str, entities: list[LaunchDescriptionEntity]
) -> RegisterEventHandler:
    return RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node, goal_state=goal, start_state=start, entities=entities
        )
    )
