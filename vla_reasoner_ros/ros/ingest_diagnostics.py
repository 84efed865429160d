"""What an ingest says about itself on ``/diagnostics``."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.ros.diagnostics import Level, Report


class IngestDiagnostics:
    """Reports on the observations and on each stream, with rates since the report before.

    Args:
        ingest: the ingest to report on.
    """

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._moments = _Difference()
        self._streams = {name: _Difference() for name in ingest.statistics}

    def observations(self) -> Report:
        """How many observations were made, and why moments made none."""
        moments = self._ingest.moments
        new, seconds = self._moments.since(moments)
        values: dict[str, Any] = {"rate [Hz]": new["observed"] / seconds, **moments}
        values["last reason"] = self._ingest.last_error
        missing = self._ingest.waiting_for()
        if missing:
            return Report(Level.WARN, f"waiting for {', '.join(missing)}", values)
        if not new["observed"]:
            return Report(Level.STALE, "no observation since the last report", values)
        if new.total() > new["observed"]:
            return Report(Level.WARN, self._ingest.last_error, values)
        return Report(Level.OK, "observing", values)

    def stream(self, name: str) -> Report:
        """What became of one stream's samples."""
        statistics = self._ingest.statistics[name]
        counts = Counter({"received": statistics.received, **statistics.dropped})
        new, seconds = self._streams[name].since(counts)
        values = {
            "rate [Hz]": new["received"] / seconds,
            "received": statistics.received,
            "used": statistics.used,
            **{f"dropped: {reason}": count for reason, count in statistics.dropped.items()},
            "age [s]": statistics.age,
            "last error": statistics.last_error,
        }
        if not new["received"]:
            return Report(Level.STALE, "nothing received since the last report", values)
        if new.total() > new["received"]:
            return Report(Level.WARN, statistics.last_error, values)
        return Report(Level.OK, "receiving", values)


class _Difference:
    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._time = time.monotonic()

    def since(self, counts: Counter[str]) -> tuple[Counter[str], float]:
        now = time.monotonic()
        new, seconds = counts - self._counts, max(now - self._time, 1e-3)
        self._counts, self._time = Counter(counts), now
        return new, seconds
