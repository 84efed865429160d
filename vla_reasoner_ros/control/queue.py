"""Which chunk is taken, and which of its actions are past: measured on the commanded time line.

A chunk was planned from an observation some time ago. What the arm did meanwhile is not estimated
from a delay but read off the waypoints that were commanded: while an arm stands still, no action is
consumed, however long the planner thought.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from vla_reasoner_ros.control.commands import NANOSECONDS
from vla_reasoner_ros.control.parameters import ChunkParameters
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray

EPSILON = 1e-6  # of an action


class RejectionReason(str, Enum):
    """Why a chunk was not taken."""

    STALE_OBSERVATION = "stale_observation"
    FUTURE_OBSERVATION = "future_observation"
    BEFORE_RESET = "before_reset"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out_of_order"
    ALL_PAST = "all_past"
    LATE = "late"
    CONVENTION = "convention"
    TIME_STEP = "time_step"
    TOO_LONG = "too_long"
    CONTENT = "content"
    UNREACHABLE = "unreachable"
    JUMP = "jump"
    LIMIT = "limit"
    WORKSPACE = "workspace"
    SELF_COLLISION = "self_collision"
    JOINT_STATE = "joint_state"
    HOLDING = "holding"
    STOPPED = "stopped"


class ChunkRejected(VlaReasonerError):
    """A chunk that is not executed; the motion that was running goes on to its rest.

    Attributes:
        reason: which rule refused it.
    """

    def __init__(self, reason: RejectionReason, text: str) -> None:
        super().__init__(f"{reason.value}: {text}")
        self.reason = reason


@dataclass(frozen=True)
class Trimmed:
    """What is left of a chunk.

    Attributes:
        first: index of the first action that is still ahead; as many are past.
        due: (H - first,) s from now to the end of each action that is left.
        consumed: actions that ran while the planner thought, with their fraction.
    """

    first: int
    due: FloatArray
    consumed: float


class ChunkQueue:
    """Orders chunks and counts the actions that the arm has been commanded through.

    The time line is a list of (time, actions commanded so far); between its points the count rises
    linearly, after the last it stands.
    """

    def __init__(self, parameters: ChunkParameters) -> None:
        self.parameters = parameters
        self.clear(None)

    def clear(self, not_before_ns: int | None) -> None:
        """Forget chunks and time line.

        Args:
            not_before_ns: chunks from older observations are refused, ns; None takes any.
        """
        self._spec: ActionSpec | None = None
        self._sequence = 0
        self._observation_ns: int | None = None
        self._chunk_start = 0.0
        self._times: list[int] = []
        self._counts: list[float] = []
        self._not_before_ns = not_before_ns

    def interrupt(self, now_ns: int) -> None:
        """The motion ends here: nothing more is consumed, and older observations are refused."""
        self._cut(now_ns)
        self._not_before_ns = now_ns

    @property
    def sequence(self) -> int:
        """The sequence number of the newest chunk taken; 0 before the first."""
        return self._sequence

    def actions_consumed(self, now_ns: int) -> int:
        """Whole actions of the newest chunk that are past, those trimmed included.

        None is at a time before all that is known: the clock has jumped back.
        """
        if not self._times:
            return 0
        return max(0, int(self._count(now_ns) - self._chunk_start + EPSILON))

    def actions_frozen(self, switch_ns: int) -> int:
        """Actions of the newest chunk that one which takes over at a time would count as past."""
        if not self._times:
            return 0
        passed = self._count(switch_ns) - self._chunk_start
        return max(0, math.ceil(passed + self.parameters.min_remaining - EPSILON) - 1)

    def require_acceptable(self, chunk: ActionChunk, now_ns: int) -> None:
        """Refuse a chunk that is out of time, order or convention.

        Raises:
            ChunkRejected: with the rule that it breaks.
        """
        p = self.parameters
        if chunk.steps > p.max_steps:
            raise ChunkRejected(
                RejectionReason.TOO_LONG,
                f"{chunk.steps} actions, at most {p.max_steps} are taken",
            )
        dt = chunk.spec.dt
        if not p.min_dt <= dt <= p.max_dt:
            raise ChunkRejected(
                RejectionReason.TIME_STEP,
                f"dt is {dt:g} s, expected {p.min_dt:g} to {p.max_dt:g} s",
            )
        age = (now_ns - chunk.observation_stamp_ns) / NANOSECONDS
        if age > p.max_observation_age:
            raise ChunkRejected(
                RejectionReason.STALE_OBSERVATION,
                f"planned from an observation {age:.3f} s old, allowed are "
                f"{p.max_observation_age:g} s",
            )
        if age < -p.max_clock_lead:
            raise ChunkRejected(
                RejectionReason.FUTURE_OBSERVATION,
                f"planned from an observation {-age:.3f} s ahead of the clock, allowed are "
                f"{p.max_clock_lead:g} s",
            )
        if self._not_before_ns is not None and chunk.observation_stamp_ns < self._not_before_ns:
            raise ChunkRejected(
                RejectionReason.BEFORE_RESET,
                f"planned from an observation "
                f"{(self._not_before_ns - chunk.observation_stamp_ns) / NANOSECONDS:.3f} s before "
                "the last stop or reset",
            )
        self._require_order(chunk, now_ns)
        self._require_same_spec(chunk.spec)

    def trim(self, chunk: ActionChunk, now_ns: int) -> Trimmed:
        """Take away the actions that ran, in whatever chunk, since the observation was made.

        Raises:
            ChunkRejected: nothing is left.
        """
        consumed = self._count(now_ns) - self._count(chunk.observation_stamp_ns)
        remaining = np.arange(1.0, chunk.steps + 1.0) - consumed
        ahead = remaining >= self.parameters.min_remaining - EPSILON
        first = int(np.argmax(ahead))
        if not ahead.any():
            raise ChunkRejected(
                RejectionReason.ALL_PAST,
                f"{consumed:.2f} actions ran while {chunk.steps} were planned",
            )
        return Trimmed(first, remaining[first:] * chunk.spec.dt, consumed)

    def commit(self, chunk: ActionChunk, trimmed: Trimmed, now_ns: int, ends_ns: list[int]) -> None:
        """Take a chunk: its actions from ``trimmed.first`` on end at ``ends_ns``.

        Args:
            chunk: the chunk.
            trimmed: what :meth:`trim` left of it.
            now_ns: when it takes over.
            ends_ns: when each action that is left will have been commanded; ascending.
        """
        now_count = self._count(now_ns)
        self._cut(now_ns)
        self._times.append(now_ns)
        self._counts.append(now_count)
        self._chunk_start = now_count - trimmed.consumed
        for index, end in enumerate(ends_ns, start=trimmed.first + 1):
            self._times.append(end)
            self._counts.append(self._chunk_start + index)
        self._forget(now_ns)
        self._spec = chunk.spec
        self._sequence = chunk.sequence
        self._observation_ns = chunk.observation_stamp_ns

    def _require_order(self, chunk: ActionChunk, now_ns: int) -> None:
        if self._observation_ns is None:
            return
        newer = chunk.observation_stamp_ns > self._observation_ns
        if chunk.sequence <= self._sequence and newer and self._silent(now_ns):
            return  # a planner that was started anew counts from 1
        if chunk.sequence == self._sequence:
            raise ChunkRejected(
                RejectionReason.DUPLICATE, f"sequence {chunk.sequence} was taken already"
            )
        if chunk.sequence < self._sequence:
            raise ChunkRejected(
                RejectionReason.OUT_OF_ORDER,
                f"sequence {chunk.sequence} after {self._sequence}",
            )
        if chunk.observation_stamp_ns < self._observation_ns:
            raise ChunkRejected(
                RejectionReason.OUT_OF_ORDER,
                f"sequence {chunk.sequence} has an older observation than {self._sequence}",
            )

    def _silent(self, now_ns: int) -> bool:
        """Whether the last motion has ended so long ago that its chunks would be stale."""
        age = int(self.parameters.max_observation_age * NANOSECONDS)
        return not self._times or now_ns - self._times[-1] > age

    def _require_same_spec(self, spec: ActionSpec) -> None:
        if self._spec is None or spec == self._spec:
            return
        reason = RejectionReason.CONVENTION
        if abs(spec.dt - self._spec.dt) > 1e-6 * self._spec.dt:
            reason = RejectionReason.TIME_STEP
        raise ChunkRejected(reason, f"the running stream has {self._spec}, this chunk {spec}")

    def _count(self, time_ns: int) -> float:
        """Actions commanded until a time."""
        if not self._times:
            return 0.0
        origin = self._times[0]
        offsets = [time - origin for time in self._times]
        return float(np.interp(time_ns - origin, offsets, self._counts))

    def _cut(self, now_ns: int) -> None:
        """Let the time line end at a time."""
        count = self._count(now_ns)
        while self._times and self._times[-1] >= now_ns:
            self._times.pop()
            self._counts.pop()
        if self._times:
            self._times.append(now_ns)
            self._counts.append(count)

    def _forget(self, now_ns: int) -> None:
        """Drop what is older than any observation that could still be taken."""
        horizon = now_ns - int((self.parameters.max_observation_age + 1.0) * NANOSECONDS)
        while len(self._times) > 2 and self._times[1] < horizon:
            self._times.pop(0)
            self._counts.pop(0)
