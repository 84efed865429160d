"""One stream's newest samples in the order of their stamps, and what became of all of them."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from vla_reasoner_ros.data.contract import CameraStream, Contract, Stream
from vla_reasoner_ros.errors import ObservationError

NANOSECONDS = 1_000_000_000
BACKWARD_LIMIT = 5
"""So many samples in a row that are older than the last one mean that the sender's clock was set
back: the stream begins anew."""
RETENTION = 0.5
"""Samples that are older than the newest by more than this and the tolerance, s, are forgotten."""


@dataclass
class StreamStatistics:
    """What became of one stream's samples since the start.

    Attributes:
        received: samples that came in.
        used: samples that an observation was made of.
        dropped: samples that were refused, by reason.
        last_error: text of the newest refusal.
        age: age of the sample in the newest observation, s; NaN before the first.
        delivered: whether an acceptable sample has come since the start or the last reset.
    """

    received: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    age: float = math.nan
    delivered: bool = False


@dataclass
class Sample:
    """What came at one time, as it was read."""

    stamp_ns: int
    payload: Any
    moments: int = 0  # how many observations were made of it


class StreamBuffer:
    """The newest samples of one stream, by stamp."""

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.stream = stream
        self.statistics = StreamStatistics()
        self._samples: deque[Sample] = deque()
        self._retention_ns = round((RETENTION + stream.tolerance) * NANOSECONDS)
        self._backward = 0

    def push(self, stamp_ns: int, now_ns: int, limits: Contract, payload: Any) -> None:
        """Take a sample, or raise the ObservationError that says why not."""
        moments = limits.moments
        stamp_ns -= round(self.stream.latency * NANOSECONDS)
        ahead = (stamp_ns - now_ns) / NANOSECONDS
        if ahead > moments.future_tolerance:
            raise Refused(
                "future",
                f"{self.stream.topic}: stamp is {ahead:.3f} s ahead of the clock, expected at "
                f"most {moments.future_tolerance} s",
            )
        if -ahead > moments.max_age:
            raise Refused(
                "too old",
                f"{self.stream.topic}: stamp is {-ahead:.3f} s old on arrival, expected at most "
                f"{moments.max_age} s",
            )
        self._require_increase(stamp_ns)
        self._samples.append(Sample(stamp_ns, payload))
        self.statistics.delivered = True
        while len(self._samples) > 2 and self._samples[1].stamp_ns < stamp_ns - self._retention_ns:
            self._samples.popleft()

    def _require_increase(self, stamp_ns: int) -> None:
        last_ns = self._samples[-1].stamp_ns if self._samples else None
        if last_ns is None or stamp_ns > last_ns:
            self._backward = 0
            return
        if stamp_ns == last_ns:
            raise Refused("repeated", f"{self.stream.topic}: stamp {stamp_ns} ns came twice")
        self._backward += 1
        if self._backward < BACKWARD_LIMIT:
            raise Refused(
                "backward",
                f"{self.stream.topic}: stamp is {(last_ns - stamp_ns) / NANOSECONDS:.3f} s before "
                "the last one",
            )
        self._samples.clear()
        self._backward = 0

    def newest(self) -> Sample:
        """The newest sample; there must be one."""
        return self._samples[-1]

    def find(self, moment_ns: int) -> tuple[Sample | None, bool]:
        """The newest sample up to a moment, and whether no better one can come any more.

        There is none for a moment before those that were settled, as come when the clock of the
        reference camera was set back.
        """
        final = False
        for sample in reversed(self._samples):
            if sample.stamp_ns <= moment_ns:
                if sample.payload is None:
                    return None, True
                return sample, final or sample.stamp_ns == moment_ns
            final = True
        return None, final

    def previous(self, sample: Sample) -> Sample | None:
        """The sample before another one."""
        return next((s for s in reversed(self._samples) if s.stamp_ns < sample.stamp_ns), None)

    def settle(self, sample: Sample) -> None:
        """Forget what came before a sample that a moment took: moments come in their order.

        The one before it stays for its stamp and what it measured; of pictures the stamp alone.
        """
        samples = self._samples
        if not any(kept is sample for kept in samples):
            return  # the stream began anew after it
        while samples[0] is not sample and samples[1] is not sample:
            samples.popleft()
        if isinstance(self.stream, CameraStream) and samples[0] is not sample:
            samples[0].payload = None

    def clear(self) -> None:
        """Forget all samples; the counts stay."""
        self._samples.clear()
        self._backward = 0
        self.statistics.delivered = False


class Refused(ObservationError):
    """A sample or moment that is not used.

    Attributes:
        reason: one or two words to count it under.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
