"""Which actions the arm will take whatever is decided now: read off what its controller says."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from vla_reasoner_ros.control.commands import ControllerState, ExecutorStatus
from vla_reasoner_ros.types import ActionChunk

CHUNKS = 8  # remembered; the running one is among the newest
REPORTS = 256  # remembered, some seconds


@dataclass(frozen=True)
class _Report:
    stamp_ns: int
    status: ExecutorStatus


class RunningChunks:
    """The chunks that were published last, and how far the arm is in them; thread-safe.

    A new chunk takes over only after it was decided, sent and planned. The actions of the running
    one that pass meanwhile are its frozen prefix (real-time chunking; Black et al., arXiv
    2506.07339): those that the controller has frozen already, and as many more as passed while the
    last decision was made. All are counted by the controller, so that an arm that moves slower than
    asked, or stands, freezes fewer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """A new episode: nothing runs."""
        with self._lock:
            self._chunks: OrderedDict[int, ActionChunk] = OrderedDict()
            self._reports: deque[_Report] = deque(maxlen=REPORTS)
            self._passed = 0

    def reported(self, status: ExecutorStatus, stamp_ns: int) -> None:
        """The controller said how far it is.

        Args:
            status: what it said.
            stamp_ns: when, ns; one that is older than the last clears those after it.
        """
        with self._lock:
            while self._reports and self._reports[-1].stamp_ns > stamp_ns:
                self._reports.pop()
            self._reports.append(_Report(stamp_ns, status))

    def published(self, chunk: ActionChunk) -> None:
        """A decision on an observation has become this chunk and is sent."""
        with self._lock:
            if self._reports:
                now = self._reports[-1].status
                self._passed = now.actions_consumed - self._consumed(
                    now.sequence, chunk.observation_stamp_ns
                )
            self._chunks[chunk.sequence] = chunk
            while len(self._chunks) > CHUNKS:
                self._chunks.popitem(last=False)

    @property
    def known(self) -> bool:
        """Whether a controller has said anything."""
        return bool(self._reports)

    def frozen(self, observation_ns: int) -> ActionChunk | None:
        """The actions that are executed from an observation on before a new chunk takes over.

        Args:
            observation_ns: stamp of the observation that is decided on.

        Returns:
            A part of the running chunk; None when nothing runs.
        """
        with self._lock:
            if not self._reports:
                return None
            status = self._reports[-1].status
            chunk = self._chunks.get(status.sequence)
            if chunk is None or status.state is not ControllerState.EXECUTING:
                return None
            first = self._consumed(status.sequence, observation_ns)
            last = max(status.actions_frozen, status.actions_consumed + self._passed)
            actions = chunk.actions[first:last]
        return replace(chunk, actions=actions) if len(actions) else None

    def _consumed(self, sequence: int, time_ns: int) -> int:
        """Actions of a chunk that had passed at a time, as far as it was told."""
        for report in reversed(self._reports):
            if report.stamp_ns <= time_ns:
                same = report.status.sequence == sequence
                return report.status.actions_consumed if same else 0
        return 0
