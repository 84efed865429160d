"""Temporal ensembling: where chunks overlap in time, the arm goes through their weighted mean.

Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", 2023, section
IV-A: predictions of the same moment are averaged with weights ``exp(-m i)``, the oldest first.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_reasoner_ros.types import FloatArray

CHUNKS = 16  # that are remembered at most


class TemporalEnsemble:
    """The waypoints of the chunks taken last, and their mean at any moment."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=CHUNKS)

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()

    def mean(self, due_ns: FloatArray, waypoints: FloatArray, decay: float) -> FloatArray:
        """What a new chunk's waypoints become.

        Args:
            due_ns: (N,) when each is due, ns, ascending.
            waypoints: (N, J) rad, of the new chunk.
            decay: m; 0 weighs all chunks alike, larger values trust the oldest more.

        Returns:
            (N, J) rad: for each moment the mean over the chunks that reach it.
        """
        total = np.zeros_like(waypoints)
        weights = np.zeros((len(due_ns), 1))
        for index, (times, positions) in enumerate([*self._chunks, (due_ns, waypoints)]):
            inside = (due_ns >= times[0]) & (due_ns <= times[-1])
            weight = np.exp(-decay * index) * inside[:, None]
            at = [np.interp(due_ns - times[0], times - times[0], joint) for joint in positions.T]
            total += weight * np.column_stack(at)
            weights += weight
        return np.asarray(total / weights)

    def add(self, due_ns: FloatArray, waypoints: FloatArray) -> None:
        """Remember a chunk that was taken, its waypoints as the policy meant them.

        Args:
            due_ns: (N,) when each waypoint is due, ns, ascending.
            waypoints: (N, J) rad.
        """
        self._chunks.append((due_ns, waypoints))
        while self._chunks[0][0][-1] < due_ns[0]:
            self._chunks.popleft()
