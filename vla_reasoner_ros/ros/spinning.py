"""How a node's process runs and ends: its executor, signals, and a limit for getting stuck."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import EventHandler
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node

STOP_TIMEOUT_S = 1.5
"""Wall-clock seconds that a node may take after a signal for each step of its end: to begin it, to
stop, to let its threads go and to leave the middleware. One that takes longer is ended."""


SWITCH_INTERVAL_S = 1e-4
"""Seconds after which a thread lets another one run Python. With Python's own 5 ms the thread that
takes messages waits that long for the pool, or for a model that computes: longer than it works."""


KEPT_BYTES = 32 * 2**20
"""Memory that is let go of and not given back: some pictures of each camera."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Have the C library keep the memory of pictures for the next ones.

    Else it may give every picture's memory back to the system and take it anew, page by page, which
    takes longer than to read the picture. Another C library than GNU's is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


class _Undisturbed(Executor):
    """An executor of rclpy, undisturbed by a cleanup in another thread.

    rclpy lists what to wait for and then waits. Of what is destroyed between, it leaves out
    everything but the events of publishers and subscriptions, which raise ``InvalidHandle`` and so
    would end the process. Here it lists anew. Errors of callbacks do not come this way.
    """

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """What is ready to be called; see :class:`rclpy.executors.Executor`."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **kwargs)
            except InvalidHandle:
                continue


class WorkExecutor(_Undisturbed, SingleThreadedExecutor):
    """Calls what belongs to one callback group of a node, in the thread that spins it.

    Whatever is ready is called in its turn before anything is looked at again. A pool of threads
    cannot call the second of two callbacks of an exclusive group while the first one runs, drops it
    and looks again, at the timers first: on a busy machine subscriptions are never served. What is
    listed for each wait is the group alone, not the services, events and guards of the whole node.

    Args:
        node: has another executor for everything else.
        group: what is called here.
    """

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        super().__init__()
        self._node, self._group = node, group

    def get_nodes(self) -> list[Node]:
        """The node, which belongs to its other executor."""
        return [self._node]

    def can_execute(self, entity: Any) -> bool:
        """Whether it is of the group and not being called."""
        return self.serves(entity) and super().can_execute(entity)

    def serves(self, entity: Any) -> bool:
        """Whether it is called here; events of the middleware are not, which only count."""
        return entity.callback_group is self._group and not isinstance(entity, EventHandler)


class LifecycleExecutor(_Undisturbed, MultiThreadedExecutor):
    """Runs, in a pool of threads, what of a node must not wait for its own work.

    Args:
        node: to be run.
        work: runs the rest of it, in a thread of its own.
        num_threads: of the pool.
    """

    def __init__(self, node: Node, work: WorkExecutor, num_threads: int) -> None:
        super().__init__(num_threads=num_threads)
        self._work = work
        self.add_node(node)

    def can_execute(self, entity: Any) -> bool:
        """Whether it is called here and may be now."""
        return not self._work.serves(entity) and super().can_execute(entity)

    def wake(self) -> None:
        """Have both executors list anew what they wait for."""
        super().wake()
        self._work.wake()


class EndRequest:
    """SIGINT, SIGTERM, or :meth:`set`: the process is to end.

    Python runs signal handlers in the main thread only, and a lock does not wake it where the
    system has given the signal to another thread: a node that waits for a lock would not hear it.
    So the main thread waits for a byte, which is written in whatever thread the signal arrives.
    Made and waited for in the main thread.

    Args:
        first: called, in the main thread, when a signal has come.

    Attributes:
        event: set when the process is to end; only the main thread must not wait for it.
    """

    def __init__(self, first: Callable[[], None]) -> None:
        self.event = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

        def told(*_: object) -> None:
            first()
            self.event.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, told)

    def set(self) -> None:
        """Ask for the end, from any thread."""
        self.event.set()
        with contextlib.suppress(BlockingIOError):  # bytes enough to wake up are there
            self._wake.send(b"\0")

    def wait(self) -> None:
        """Wait until the end is asked for."""
        while not self.event.is_set():
            self._woken.recv(64)


class StuckTimer:
    """Ends the process when :data:`STOP_TIMEOUT_S` pass between two calls of :meth:`restart`.

    It counts its own turns: seconds in which the machine runs nothing are not held against the
    node.
    """

    _TURN_S = 0.1

    def __init__(self) -> None:
        self._left = 0
        self._thread = threading.Thread(target=self._count, name="stuck timer", daemon=True)

    def start(self) -> None:
        """Begin to count, once."""
        if self._thread.ident is None:
            self.restart()
            with contextlib.suppress(RuntimeError):  # a signal between these lines has started it
                self._thread.start()

    def restart(self) -> None:
        """Something was done: count anew."""
        self._left = round(STOP_TIMEOUT_S / self._TURN_S)

    def _count(self) -> None:
        while self._left > 0:
            time.sleep(self._TURN_S)
            self._left -= 1
        print(f"not ended after {STOP_TIMEOUT_S} s; where the threads are:", file=sys.stderr)
        faulthandler.dump_traceback()
        os._exit(1)
