"""What an ingest says about itself on ``/diagnostics``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros.diagnostics import Level, Report, because, summary, too_high, too_low


@dataclass(frozen=True)
class StreamThresholds:
    """When a stream, or the observations made of all, are not well; 0 is off."""

    stale: float = parameter(
        2.0, "Wall-clock time without a sample after which a stream is STALE.", unit="s", minimum=0
    )
    rate_warn: float = parameter(
        0.0, "Samples per second below which is WARN.", unit="Hz", minimum=0.0
    )
    rate_error: float = parameter(
        0.0, "Samples per second below which is ERROR.", unit="Hz", minimum=0.0
    )
    age_warn: float = parameter(
        0.0, "Age of a sample in its observation above which is WARN.", unit="s", minimum=0.0
    )
    age_error: float = parameter(
        0.0, "Age of a sample in its observation above which is ERROR.", unit="s", minimum=0.0
    )
    dropped_warn: float = parameter(
        1e-6,
        "Share of the samples since the last report that was dropped, above which is WARN.",
        minimum=0.0,
        maximum=1.0,
    )
    dropped_error: float = parameter(
        0.5,
        "Share of the samples since the last report that was dropped, above which is ERROR.",
        minimum=0.0,
        maximum=1.0,
    )


class IngestDiagnostics:
    """Reports on the observations and on each stream, with rates since the report before.

    Args:
        ingest: the ingest to report on.
        thresholds: gives the newest thresholds.
        clock: wall-clock time, s.
    """

    def __init__(
        self,
        ingest: Ingest,
        thresholds: Callable[[], StreamThresholds],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ingest = ingest
        self._thresholds = thresholds
        self._moments = _Difference(clock)
        self._streams = {name: _Difference(clock) for name in ingest.statistics}

    def observations(self) -> Report:
        """How many observations were made, and why moments made none."""
        moments = self._ingest.moments
        change = self._moments.since(moments, moments["observed"])
        values: dict[str, Any] = {"rate [Hz]": change.rate, **moments}
        values["last reason"] = self._ingest.last_error
        missing = self._ingest.waiting_for()
        if missing:
            return Report(Level.WARN, f"waiting for {', '.join(missing)}", values)
        tried = change.came + change.refused
        return self._judge("observation", change, tried, self._ingest.last_error, values)

    def stream(self, name: str) -> Report:
        """What became of one stream's samples."""
        statistics = self._ingest.statistics[name]
        dropped = statistics.dropped
        change = self._streams[name].since(dropped, statistics.received)
        values = {
            "rate [Hz]": change.rate,
            "received": statistics.received,
            "used": statistics.used,
            **{f"dropped: {reason}": count for reason, count in dropped.items()},
            "age [s]": statistics.age,
            "last error": statistics.last_error,
        }
        return self._judge(name, change, change.came, statistics.last_error, values)

    def _judge(
        self, name: str, change: _Change, tried: int, reason: str, values: dict[str, Any]
    ) -> Report:
        limits = self._thresholds()
        if limits.stale and change.silent_s > limits.stale:
            return Report(Level.STALE, f"no {name} for {change.silent_s:.1f} s", values)
        share = change.refused / max(1, tried)
        age = values.get("age [s]", 0.0)
        findings = [
            because(too_high("dropped", share, limits.dropped_warn, limits.dropped_error), reason),
            too_low("rate", change.rate, limits.rate_warn, limits.rate_error, " Hz"),
            too_high("age", age, limits.age_warn, limits.age_error, " s"),
        ]
        return summary(findings, "receiving", values)


@dataclass(frozen=True)
class _Change:
    """What is new since the last report; ``silent_s`` is since when nothing came."""

    came: int
    refused: int
    rate: float
    silent_s: float


class _Difference:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._came = self._refused = 0
        self._time = self._heard = clock()

    def since(self, reasons: Counter[str], came: int) -> _Change:
        now = self._clock()
        refused = sum(count for reason, count in reasons.items() if reason != "observed")
        new, seconds = came - self._came, max(now - self._time, 1e-3)
        if new:
            self._heard = now
        change = _Change(new, refused - self._refused, new / seconds, now - self._heard)
        self._came, self._refused, self._time = came, refused, now
        return change
