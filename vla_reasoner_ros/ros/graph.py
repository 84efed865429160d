"""Talking to the nodes of a running graph: life cycle, parameters and services, with time-outs.

Every wait watches the processes too, so that a node that dies is named at once instead of after a
time-out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
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
ANSWER_S = 30.0
"""Seconds that a node may take to answer what takes it none, on a machine with no time to spare."""
PATIENCE = 3.0
"""Seconds without an answer after which a service is asked again, where that does no harm."""
_TRANSITIONS = {
    CONFIGURE: ("configure", INACTIVE),
    ACTIVATE: ("activate", ACTIVE),
    DEACTIVATE: ("deactivate", INACTIVE),
    CLEANUP: ("clean up", State.PRIMARY_STATE_UNCONFIGURED),
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

    def call(
        self,
        kind: type,
        name: str,
        request: Any,
        timeout: float = ANSWER_S,
        *,
        repeat: bool = False,
    ) -> Any:
        """Call a service, waiting first for it to be there.

        On a loaded machine a service can lose its first answer to a client that it has not
        discovered yet, so what may be done twice is asked again.

        Args:
            kind: the service's type.
            name: its name.
            request: what to ask.
            timeout: seconds to wait, for the service to be there and for the answer each.
            repeat: ask again after :data:`PATIENCE` seconds of silence.

        Raises:
            GraphError: it is not there, or does not answer, in ``timeout`` seconds.
            ProcessDiedError: a process ended meanwhile.
        """
        client = self._client(kind, name, timeout)
        futures = [client.call_async(request)]
        end = time.monotonic() + timeout
        while not self._answered(futures, min(PATIENCE, end - time.monotonic())):
            if time.monotonic() > end:
                raise GraphError(f"service {name}: no answer after {timeout:g} s")
            if repeat:
                futures.append(client.call_async(request))
        return self._answer(client, futures)

    def state(self, node: str, timeout: float = ANSWER_S) -> int:
        """The life-cycle state of a node, one of ``lifecycle_msgs/State``'s numbers."""
        request = GetState.Request()
        answer = self.call(GetState, f"{node}/get_state", request, timeout, repeat=True)
        return int(answer.current_state.id)

    def change(self, node: str, transition: int, timeout: float = 60.0) -> None:
        """Take a node through a transition.

        When no answer comes, the node's state tells whether to wait, to ask again or that it is
        done.

        Raises:
            GraphError: it failed or took too long; the message carries the node's last words.
            ProcessDiedError: a process ended meanwhile.
        """
        verb, goal = _TRANSITIONS[transition]
        before = self.state(node, timeout)
        client = self._client(ChangeState, f"{node}/change_state", timeout)
        request = ChangeState.Request(transition=Transition(id=transition))
        futures = [client.call_async(request)]
        end = time.monotonic() + timeout
        while not self._answered(futures, min(PATIENCE, end - time.monotonic())):
            state = self.state(node, timeout)
            if state == goal:
                return
            if time.monotonic() > end:
                raise GraphError(f"{node} did not {verb} in {timeout:g} s")
            if state == before:
                futures.append(client.call_async(request))
        if not self._answer(client, futures).success:
            raise GraphError(
                f"{node} failed to {verb}; its last words:\n" + self._processes.last_words(node)
            )

    def _client(self, kind: type, name: str, timeout: float) -> Any:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.wait(client.service_is_ready, timeout, f"service {name}")
        return client

    def _answered(self, futures: list[Any], timeout: float) -> bool:
        try:
            return self.wait(lambda: any(f.done() for f in futures), timeout, "answer")
        except GraphError:
            return False

    @staticmethod
    def _answer(client: Any, futures: list[Any]) -> Any:
        for future in futures:
            if not future.done():
                client.remove_pending_request(future)
        return next(future.result() for future in futures if future.done())

    def set_parameters(
        self, node: str, values: Mapping[str, Any], timeout: float = ANSWER_S
    ) -> None:
        """Set parameters, all or none.

        Raises:
            GraphError: the node refused; the message is the node's.
        """
        request = SetParametersAtomically.Request(
            parameters=[Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        )
        name = f"{node}/set_parameters_atomically"
        answer = self.call(SetParametersAtomically, name, request, timeout, repeat=True)
        if not answer.result.successful:
            raise GraphError(f"{node} refused {dict(values)}: {answer.result.reason}")

    def get_parameters(
        self, node: str, names: list[str], timeout: float = ANSWER_S
    ) -> dict[str, Any]:
        """Parameters by name."""
        request = GetParameters.Request(names=names)
        answer = self.call(GetParameters, f"{node}/get_parameters", request, timeout, repeat=True)
        return {n: parameter_value_to_python(v) for n, v in zip(names, answer.values, strict=True)}

    def close(self) -> None:
        """Leave the graph."""
        if self._context.ok():
            self._executor.shutdown()
            self.node.destroy_node()
            rclpy.shutdown(context=self._context)

    def __enter__(self) -> GraphClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
