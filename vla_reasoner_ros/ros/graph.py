"""Talking to the nodes of a running graph: life cycle, parameters and services, with time-outs.

Every wait watches the processes too, so that a node that dies is named at once instead of after a
time-out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python

from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.ros.middleware import use_shared_memory
from vla_reasoner_ros.ros.processes import ProcessGraph

T = TypeVar("T")

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP
ACTIVE = State.PRIMARY_STATE_ACTIVE
INACTIVE = State.PRIMARY_STATE_INACTIVE
_VERBS = {
    CONFIGURE: "configure",
    ACTIVATE: "activate",
    DEACTIVATE: "deactivate",
    CLEANUP: "clean up",
}


class GraphError(VlaReasonerError, RuntimeError):
    """A node of the graph did not answer in time, or refused what it was asked."""


class GraphClient:
    """A node that manages the nodes of one graph; a context manager.

    Args:
        processes: the graph's processes, watched while waiting.
        name: the client's node name.

    Attributes:
        node: for publishers and subscriptions of the user's own.
    """

    def __init__(self, processes: ProcessGraph, name: str = "graph_client") -> None:
        self._processes = processes
        # The middleware reads the discovery range when the context is made.
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = processes.environment[
            "ROS_AUTOMATIC_DISCOVERY_RANGE"
        ]
        use_shared_memory(os.environ)
        self._context = rclpy.Context()
        rclpy.init(
            context=self._context,
            domain_id=processes.domain_id,
            signal_handler_options=rclpy.signals.SignalHandlerOptions.NO,
        )
        self.node = rclpy.create_node(name, context=self._context, use_global_arguments=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Any] = {}

    def wait(
        self, condition: Callable[[], T], timeout: float, what: str, *, period: float = 0.05
    ) -> T:
        """Handle messages until ``condition()`` is true, and return what it said.

        Raises:
            GraphError: it did not come true in ``timeout`` seconds; the message names ``what``.
            ProcessDiedError: a process ended meanwhile.
        """
        end = time.monotonic() + timeout
        next_check = 0.0
        while True:
            outcome = condition()
            if outcome:
                return outcome
            now = time.monotonic()
            if now >= next_check:
                self._processes.check()
                next_check = now + 0.2
            if now > end:
                raise GraphError(f"{what}: nothing after {timeout:g} s")
            self._executor.spin_once(timeout_sec=min(period, max(0.0, end - now)))

    def spin(self, seconds: float) -> None:
        """Handle messages for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._processes.check()
            self._executor.spin_once(timeout_sec=min(0.05, left))

    def call(self, kind: type, name: str, request: Any, timeout: float = 10.0) -> Any:
        """Call a service, waiting first for it to be there.

        Raises:
            GraphError: it is not there, or does not answer, in ``timeout`` seconds.
            ProcessDiedError: a process ended meanwhile.
        """
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.wait(client.service_is_ready, timeout, f"service {name}")
        future = client.call_async(request)
        try:
            self.wait(future.done, timeout, f"answer of service {name}")
        finally:
            if not future.done():
                client.remove_pending_request(future)
        return future.result()

    def state(self, node: str, timeout: float = 10.0) -> int:
        """The life-cycle state of a node, one of ``lifecycle_msgs/State``'s numbers."""
        answer = self.call(GetState, f"{node}/get_state", GetState.Request(), timeout)
        return int(answer.current_state.id)

    def change(self, node: str, transition: int, timeout: float = 60.0) -> None:
        """Take a node through a transition.

        Raises:
            GraphError: it failed or took too long; the message carries the node's last words.
            ProcessDiedError: a process ended meanwhile.
        """
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = self.call(ChangeState, f"{node}/change_state", request, timeout)
        if not answer.success:
            raise GraphError(
                f"{node} failed to {_VERBS.get(transition, str(transition))}; its last words:\n"
                + self._processes.last_words(node)
            )

    def set_parameters(self, node: str, values: Mapping[str, Any], timeout: float = 10.0) -> None:
        """Set parameters, all or none.

        Raises:
            GraphError: the node refused; the message is the node's.
        """
        request = SetParametersAtomically.Request(
            parameters=[Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        )
        name = f"{node}/set_parameters_atomically"
        answer = self.call(SetParametersAtomically, name, request, timeout)
        if not answer.result.successful:
            raise GraphError(f"{node} refused {dict(values)}: {answer.result.reason}")

    def get_parameters(self, node: str, names: list[str], timeout: float = 10.0) -> dict[str, Any]:
        """Parameters by name."""
        request = GetParameters.Request(names=names)
        answer = self.call(GetParameters, f"{node}/get_parameters", request, timeout)
        return {n: parameter_value_to_python(v) for n, v in zip(names, answer.values, strict=True)}

    def close(self) -> None:
        """Leave the graph."""
        if self._context.ok():
            self._executor.shutdown()
            self.node.destroy_node()
            rclpy.shutdown(context=self._context)

    def __enter__(self) -> GraphClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
