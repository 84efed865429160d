"""A lifecycle start-up in order, and how a launch ends that cannot go on.

Imported by launch files only; needs ``launch`` and ``launch_ros``, which come with a ROS 2
installation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import (
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


class LaunchFailedError(RuntimeError):
    """What was launched cannot go on; the message names the node and what it did."""


def ordered_startup(
    nodes: Sequence[LifecycleNode], timeout: float
) -> list[LaunchDescriptionEntity]:
    """Configure and activate the nodes one after another, each when the one before is active.

    A node that fails a transition of the start-up, or is not active within ``timeout`` seconds
    of its turn, ends the launch with its name as the reason. Once a node has been active its
    lifecycle is the user's.
    """
    entities: list[LaunchDescriptionEntity] = []
    started: set[str] = set()
    turns = [_turn(node, timeout, started) for node in nodes]
    for index, node in enumerate(nodes):
        following = turns[index + 1] if index + 1 < len(nodes) else [LogInfo(msg="all active")]

        def at_start(
            goal: str, start: str, actions: list[LaunchDescriptionEntity], node: Any = node
        ) -> RegisterEventHandler:
            return _on(node, goal, start, [_until_started(node, started, actions)])

        entities += [
            at_start("inactive", "configuring", [_change(node, Transition.TRANSITION_ACTIVATE)]),
            at_start("active", "activating", [*_has_started(node, started), *following]),
            at_start("unconfigured", "configuring", [_failed(node, "configure")]),
            # A node that fails to activate is torn down by its handler of errors.
            at_start("unconfigured", "errorprocessing", [_failed(node, "activate")]),
            _on(node, "finalized", "errorprocessing", [_failed(node, "recover from an error")]),
        ]
    first, *_ = nodes
    entities.append(RegisterEventHandler(OnProcessStart(target_action=first, on_start=turns[0])))
    return [*entities, *nodes]


def give_up(context: LaunchContext, reason: str) -> list[LaunchDescriptionEntity]:
    """End the launch with an exit code that says so; nothing once it is ending.

    Raises:
        LaunchFailedError: always, unless the launch is ending. ``launch`` logs it, ends every
            process and returns 1.
    """
    if not context.is_shutdown:
        raise LaunchFailedError(reason)
    return []


def ends_launch(name: str, done: str) -> Callable[..., list[LaunchDescriptionEntity]]:
    """What happens on the exit of a process with whose work the launch is over.

    Args:
        name: of the process.
        done: the reason given when its exit code is 0.
    """

    def ended(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if event.returncode:
            return give_up(context, f"{name} ended with exit code {event.returncode}")
        return [Shutdown(reason=done)]

    return ended


def _turn(node: LifecycleNode, timeout: float, started: set[str]) -> list[LaunchDescriptionEntity]:
    def check(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if node.node_executable in started:
            return []
        return give_up(context, f"{node.node_executable} was not active after {timeout:g} s")

    return [
        _change(node, Transition.TRANSITION_CONFIGURE),
        TimerAction(period=timeout, actions=[OpaqueFunction(function=check)]),
    ]


def _until_started(
    node: LifecycleNode, started: set[str], actions: list[LaunchDescriptionEntity]
) -> OpaqueFunction:
    """Actions of the start-up only: after it the lifecycle is the user's."""
    return OpaqueFunction(
        function=lambda _: [] if node.node_executable in started else list(actions)
    )


def _has_started(node: LifecycleNode, started: set[str]) -> list[LaunchDescriptionEntity]:
    return [OpaqueFunction(function=lambda _: started.add(node.node_executable))]


def _failed(node: LifecycleNode, verb: str) -> OpaqueFunction:
    reason = f"{node.node_executable} failed to {verb}; its log says why"
    return OpaqueFunction(function=lambda context: give_up(context, reason))


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
