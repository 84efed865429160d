"""Calls that are made one after another in a thread of their own, so that nobody waits for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class InOrder:
    """A thread that makes calls in the order in which they were given.

    After one that fails, none is made any more, and the next use raises its error.

    Args:
        name: of the thread.
        most: so many calls may wait, and what they hold be in memory; then the caller waits too.
    """

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=name, initializer=self._begin
        )
        self._most = most
        self._waiting: deque[Future[None]] = deque()
        self._failed = False
        self._clock: int | None = None

    @property
    def cpu_s(self) -> float:
        """Processor time that the thread has taken; 0 before its first call and after its end."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Make a call when those before it are made.

        Raises:
            BaseException: whatever one of them raised.
        """
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._most):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._make, function, arguments))

    def finish(self) -> None:
        """Wait until all calls are made.

        Raises:
            BaseException: whatever one of them raised.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End the thread after the call at hand; what waits behind it is never made."""
        self._clock = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def _make(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._failed = True
            raise
