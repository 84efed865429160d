"""The base of all nodes: loud lifecycle transitions, one teardown path, and a clean end.

A node of this package subclasses :class:`LifecycleNode`, overrides ``configure``, ``activate``,
``deactivate`` and ``teardown`` (all optional, all free to raise) and is started by :func:`run`::

    class CameraNode(LifecycleNode[CameraParameters]):
        parameters_class = CameraParameters
        ...

    def main() -> None:
        run(CameraNode, "camera_node")
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros.clock import on_jump_back
from vla_reasoner_ros.ros.diagnostics import Level, Report, Updater
from vla_reasoner_ros.ros.endpoints import Endpoints
from vla_reasoner_ros.ros.middleware import use_shared_memory
from vla_reasoner_ros.ros.parameters import NodeParameters
from vla_reasoner_ros.ros.spinning import (
    STOP_TIMEOUT_S,
    SWITCH_INTERVAL_S,
    EndRequest,
    LifecycleExecutor,
    StuckTimer,
    WorkExecutor,
    keep_freed_memory,
)

EXECUTOR_THREADS = 5
"""Parameters, a lifecycle transition, one to answer about the state, and two actions: one that ends
while the next begins. The node's own work has a thread apart."""

GRACE_S = 0.5
"""Wall-clock seconds that all threads of the node's own together have to end when the process ends,
and that the last messages have to arrive."""

UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"


@dataclass(frozen=True)
class BaseParameters:
    """What every node takes."""

    autostart: bool = parameter(
        True,
        "Configure and activate by itself at the start. Set it to false where a lifecycle manager "
        "or a launch file does that. A node that cannot configure then ends with exit code 1.",
        read_only=True,
    )
    diagnostics_period: float = parameter(
        1.0,
        "Wall-clock time between two messages on /diagnostics.",
        unit="s",
        minimum=0.05,
        maximum=60.0,
        read_only=True,
    )


class ProcessEndingError(VlaReasonerError):
    """A transition was given up because the process was told to end."""


P = TypeVar("P", bound=BaseParameters)
T = TypeVar("T")


class LifecycleNode(LifecycleNodeMixin, Node, Generic[P]):
    """A managed node whose failures are said and whose resources are let go in one place.

    Exceptions in a transition are logged with their traceback and kept in :attr:`stop_reason`:
    a failed configure goes back to unconfigured, to be tried again after a parameter was corrected;
    any other failed transition tears the node down and leaves it unconfigured.

    Transitions, ``parameters_changed``, ``clock_jumped_back`` and callbacks wrapped by
    :meth:`guarded` never overlap: they hold :attr:`exclusive`.

    Class attributes:
        parameters_class: the node's parameter dataclass, a subclass of :class:`BaseParameters`.

    Attributes:
        diagnostics: tasks added here are published on ``/diagnostics``.
        work: callback group for the node's own subscriptions, timers and services, apart from
            that of parameters, lifecycle and diagnostics, which they therefore never hold up.
        exclusive: the lock that callbacks which are not :meth:`guarded` take.
        stop_reason: why the node is not active; empty when all is well.
        dropped: callback name to how many messages were dropped as unusable since configure, and
            the newest reason.
        ending: set when the process was told to end.
        abandoned: whether a thread was left at work because the process ends.
    """

    parameters_class: type[P]

    def __init__(self, name: str, **options: Any) -> None:
        Node.__init__(self, name, automatically_declare_parameters_from_overrides=True, **options)
        LifecycleNodeMixin.__init__(
            self, enable_communication_interface=True, callback_group=ReentrantCallbackGroup()
        )
        self.stop_reason = ""
        self.dropped: dict[str, tuple[int, str]] = {}
        self.work = MutuallyExclusiveCallbackGroup()
        self.exclusive = threading.RLock()
        self.ending = threading.Event()
        self.abandoned = False
        self._configured = False
        self._given_up = math.inf
        self._declared: NodeParameters[P] = NodeParameters(
            self,
            self.parameters_class,
            lambda: self.state != UNCONFIGURED,
            self._check_parameters,
            self._parameters_changed,
        )
        change_state = self._service_change_state
        change_state.callback = self._refusing_impossible(change_state.callback)
        self.diagnostics = Updater(
            self,
            self.parameters.diagnostics_period,
            hardware_id=self.get_fully_qualified_name(),
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        self.diagnostics.add("state", self._report_state)
        self._endpoints = Endpoints(self)
        self._jump_handle = on_jump_back(self.get_clock(), self._clock_jumped_back)
        self._permanent = self._entities()

    @property
    def parameters(self) -> P:
        """The newest valid parameters, one immutable snapshot."""
        return self._declared.value

    @property
    def state(self) -> str:
        """Label of the lifecycle state."""
        return str(self._state_machine.current_state[1])

    def now_ns(self) -> int:
        """The node's clock, nanoseconds."""
        return int(self.get_clock().now().nanoseconds)

    # What a node overrides.

    def configure(self) -> None:
        """Load, check and create everything; raise when it cannot work."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working; what moves is brought to rest."""

    def teardown(self) -> None:
        """Let go of what :meth:`configure` made, even where that failed half-way.

        Called once after every configure. Subscriptions, timers, services, clients, publishers and
        diagnostics made through the node are removed after it and need no mention.
        """

    def check_parameters(self, parameters: P) -> None:
        """Refuse parameters that cannot work with what was loaded; called before they are set.

        Raises:
            ConfigurationError: which, what was expected and what came.
        """

    def parameters_changed(self, parameters: P) -> None:
        """Take over changed parameters; called with a checked snapshot, configured nodes only."""

    def clock_jumped_back(self, seconds: float) -> None:
        """Forget what is dated by the old time; ``seconds`` is the jump, negative."""

    # Helpers for nodes.

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Any, qos_profile: Any, **options: Any
    ) -> Any:
        """Subscribe as :class:`rclpy.node.Node` does, with overrides of the quality of service."""
        options = self._with_overrides("subscription", topic, qos_profile, options)
        return super().create_subscription(msg_type, topic, callback, **options)

    def create_lifecycle_publisher(
        self, kind: Any, topic: str, profile: Any, **options: Any
    ) -> Any:
        """A managed publisher, with overrides of the quality of service."""
        options = self._with_overrides("publisher", topic, profile, options)
        return super().create_lifecycle_publisher(kind, topic, **options)

    def _with_overrides(
        self, role: str, topic: str, profile: Any, options: dict[str, Any]
    ) -> dict[str, Any]:
        endpoints = self.__dict__.get("_endpoints")
        if endpoints is None:  # one of rclpy's own, while the node is being made
            return {"qos_profile": profile, **options}
        return {**getattr(endpoints, role)(topic, profile), **options}

    def guarded(
        self, name: str, callback: Callable[..., None], *, while_inactive: bool = False
    ) -> Callable[..., None]:
        """Wrap a subscription's or timer's callback.

        It is left out unless the node is active, never overlaps a transition, and an unusable
        message is dropped, counted under ``name`` and said. Only errors that this package raises on
        purpose count as the message's fault; anything else is a defect and ends the node.

        Args:
            name: the topic, or what the timer does.
            callback: takes the message, or nothing.
            while_inactive: call it in the inactive state too, for latched topics.
        """
        states = (ACTIVE, INACTIVE) if while_inactive else (ACTIVE,)

        def call(*arguments: Any) -> None:
            with self.exclusive:
                if self.state not in states:
                    return
                try:
                    callback(*arguments)
                except VlaReasonerError as error:
                    self.drop(name, str(error))

        return call

    def drop(self, name: str, reason: str) -> None:
        """Count something that could not be used, and say it at most once a second."""
        count, _ = self.dropped.get(name, (0, ""))
        self.dropped[name] = (count + 1, reason)
        self.get_logger().warning(f"{name}: dropped: {reason}", throttle_duration_sec=1.0)

    def finished(self, work: Future[Any], timeout: float = math.inf) -> bool:
        """Wait for work in another thread, but not longer than a process that ends may.

        Args:
            work: what to wait for.
            timeout: wall-clock seconds while the process does not end.
        """
        end = time.monotonic() + timeout
        while not work.done():
            now = time.monotonic()
            if self.ending.is_set():
                self._given_up = min(self._given_up, now + GRACE_S)
                return not wait([work], max(0.0, self._given_up - now)).not_done
            if now >= end:
                return False
            wait([work], min(0.05, end - now))
        return True

    def result_of(self, work: Future[T]) -> T:
        """The result of work in another thread.

        Raises:
            ProcessEndingError: the process ends before.
        """
        if not self.finished(work):
            raise ProcessEndingError("the process is ending")
        return work.result()

    def end_thread(self, thread: ThreadPoolExecutor, last: Callable[[], None]) -> None:
        """Let a thread end, after ``last``; one that does not is left behind at the very end."""
        done = thread.submit(last)
        thread.shutdown(wait=False)
        self.abandoned = not self.finished(done) or self.abandoned

    def start(self) -> bool:
        """Configure and activate; whether both succeeded, else :attr:`stop_reason` says why."""
        with self.exclusive:
            return (
                self.trigger_configure() == TransitionCallbackReturn.SUCCESS
                and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
            )

    def stop(self) -> None:
        """Deactivate and tear down from whatever state the node is in."""
        with self.exclusive:
            if self.state in (UNCONFIGURED, INACTIVE, ACTIVE):
                self.trigger_shutdown()

    # Transitions, called by the lifecycle state machine.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Configure; a failure leaves the node unconfigured."""
        if self._attempt("configure", self._configure):
            # What was loaded stays. Looking through all of it for cycles takes Python a tenth of a
            # second in which nothing else runs: no watchdog, no joint state.
            gc.collect()
            gc.freeze()
            return TransitionCallbackReturn.SUCCESS
        self._release()
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the managed publishers, then activate."""
        super().on_activate(state)
        return _outcome(self._attempt("activate", self.activate))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate, then disable the managed publishers."""
        done = self._attempt("deactivate", self.deactivate)
        super().on_deactivate(state)
        return _outcome(done)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down."""
        return _outcome(self._release())

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Whatever is still to be done of deactivate and teardown."""
        done = self._attempt("deactivate", self.deactivate) if state.label == ACTIVE else True
        if state.label != UNCONFIGURED:
            done = self._release() and done
        return _outcome(done)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down after a failed transition; the node is unconfigured then."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self.stop_reason = ""
        self.dropped.clear()
        self._declared.require_valid()
        before = self.parameters
        self.configure()
        self._endpoints.require_used()
        self.diagnostics.add("topics", self._endpoints.report)
        self._configured = True
        if self.parameters is not before:  # models take long to load, and users do not wait
            self.parameters_changed(self.parameters)

    def _release(self) -> bool:
        """The one teardown path."""
        self._configured = False
        gc.unfreeze()
        done = self._attempt("tear down", self.teardown)
        self.diagnostics.keep("state")
        destroyers: dict[str, Callable[[Any], Any]] = {
            "timers": self.destroy_timer,
            "subscriptions": self.destroy_subscription,
            "services": self.destroy_service,
            "clients": self.destroy_client,
            "publishers": self.destroy_lifecycle_publisher,
        }
        mine = {kind: some - self._permanent[kind] for kind, some in self._entities().items()}
        self._deliver(mine["publishers"])
        for kind, entities in mine.items():
            for entity in entities:
                destroyers[kind](entity)
        self._endpoints.clear()
        return done

    @staticmethod
    def _deliver(publishers: set[Any]) -> None:
        """Let the last messages, a deceleration for one, arrive: they end with their publisher."""
        end = time.monotonic() + GRACE_S
        for publisher in publishers:
            left = max(0.0, end - time.monotonic())
            publisher.wait_for_all_acked(Duration(seconds=left))

    def _entities(self) -> dict[str, set[Any]]:
        kinds = ("timers", "subscriptions", "services", "clients", "publishers")
        return {kind: set(getattr(self, kind)) for kind in kinds}

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        with self.exclusive:
            try:
                action()
            except ProcessEndingError as error:
                self.get_logger().info(f"did not {what}: {error}")
                return False
            except Exception as error:
                reason = f"cannot {what}: {str(error) or repr(error)}"
                self.stop_reason = self.stop_reason or reason
                self.get_logger().error(f"{reason}\n{traceback.format_exc()}")
                return False
        return True

    def _refusing_impossible(self, change_state: Callable[..., Any]) -> Callable[..., Any]:
        """A request for a transition that this state has not must not end the node."""

        def call(request: Any, response: Any) -> Any:
            with self.exclusive:
                try:
                    return change_state(request, response)
                except RCLError as error:
                    self.get_logger().error(
                        f"transition {request.transition.label or request.transition.id} is not "
                        f"possible while {self.state}: {error}"
                    )
                    response.success = False
                    return response

        return call

    def _check_parameters(self, parameters: P) -> None:
        if self._configured:  # else configure says what is wrong
            with self.exclusive:
                if self._configured:
                    self.check_parameters(parameters)

    def _parameters_changed(self, parameters: P) -> None:
        if self._configured:  # else configure looks for itself, and nobody waits for it
            with self.exclusive:
                if self._configured:
                    self.parameters_changed(parameters)

    def _clock_jumped_back(self, seconds: float) -> None:
        if self._configured:
            self.get_logger().warning(f"the clock jumped back by {-seconds:.3f} s")
            with self.exclusive:
                if self._configured:
                    self.clock_jumped_back(seconds)

    def _report_state(self) -> Report:
        values: dict[str, Any] = {"state": self.state}
        for name, (count, reason) in list(self.dropped.items()):
            values |= {f"{name}: dropped": count, f"{name}: last reason": reason}
        if self.stop_reason:
            return Report(Level.ERROR, self.stop_reason, values)
        if self.dropped:
            return Report(Level.WARN, f"{self.state}; unusable input was dropped", values)
        return Report(Level.OK, self.state, values)


def _outcome(done: bool) -> TransitionCallbackReturn:
    return TransitionCallbackReturn.SUCCESS if done else TransitionCallbackReturn.ERROR


def run(node_class: Callable[[str], LifecycleNode[Any]], name: str) -> NoReturn:
    """Run a node as this process until SIGINT or SIGTERM, then exit.

    The node's own work runs in one thread, everything else in a pool of them; this thread waits for
    signals, so that the node can still publish while it deactivates. What gets stuck for
    :data:`STOP_TIMEOUT_S` is ended.

    The exit code is 0 after a signal, also one that comes while the node starts, and 1 when an
    autostarted node cannot start, a callback failed or the node got stuck.
    """
    keep_freed_memory()
    use_shared_memory(os.environ)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stuck = StuckTimer()
    well = _live(node_class, name, EndRequest(stuck.start), stuck)
    # The middleware gives its shared memory back with the last object that needs it, and parts of
    # the node refer to each other. What stays fills the machine's memory, some megabytes a node.
    gc.unfreeze()
    gc.collect()
    stuck.restart()
    rclpy.get_default_context().destroy()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: all is let go of, and what the interpreter would do now (join threads, take
    # apart torch, Numba, DDS and OpenGL in no certain order) takes seconds on a busy machine, can
    # hang, and makes a second Ctrl-C look like a crash.
    os._exit(0 if well else 1)


def _live(
    node_class: Callable[[str], LifecycleNode[Any]],
    name: str,
    stop: EndRequest,
    stuck: StuckTimer,
) -> bool:
    """A node's life until it is told to end; whether it began and nothing failed."""
    failures: list[BaseException] = []
    node = node_class(name)
    node.ending = stop.event
    work = WorkExecutor(node, node.work)
    executors = (work, LifecycleExecutor(node, work, num_threads=EXECUTOR_THREADS))

    def spin(executor: Executor) -> None:
        try:
            executor.spin()
        except Exception as error:
            if stop.event.is_set():  # it met what was being taken down
                node.get_logger().warning(f"while ending: {traceback.format_exc()}")
            else:
                failures.append(error)
                node.get_logger().fatal(f"a callback failed:\n{traceback.format_exc()}")
        finally:
            stop.set()

    spinners = [threading.Thread(target=spin, args=(each,)) for each in executors]
    for spinner in spinners:
        spinner.start()
    started = not node.parameters.autostart or node.start() or stop.event.is_set()
    if started:
        stop.wait()
    stuck.start()
    for step in (
        node.stop,
        *(lambda each=each: each.shutdown(timeout_sec=STOP_TIMEOUT_S) for each in executors),
        *(spinner.join for spinner in spinners),
        node.destroy_node,
        rclpy.try_shutdown,
    ):
        stuck.restart()
        step()
    stuck.restart()
    if node.abandoned:
        node.get_logger().info("a thread that was still at work ends with the process")
    return started and not failures
