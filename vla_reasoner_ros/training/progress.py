"""Progress of long work on the terminal: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """One line now and then, and a last one.

    Args:
        title: what is being done.
        total: the number of units of work.
        unit: their name, plural.
        done: units that were there already; they do not count for the rate.
        interval_s: seconds between lines.
        stream: where to write; None is standard error.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int = 0,
        interval_s: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._already = done
        self._interval_s = interval_s
        self._stream = sys.stderr if stream is None else stream
        self._started = time.monotonic()
        self._next = self._started + interval_s

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def update(self, done: int, detail: str = "", force: bool = False) -> None:
        """Say that ``done`` units are done; writes when it is time, at the end, or if forced."""
        now = time.monotonic()
        if now < self._next and done < self._total and not force:
            return
        self._next = now + self._interval_s
        rate = (done - self._already) / max(now - self._started, 1e-9)
        left = (self._total - done) / rate if rate > 0.0 else float("inf")
        line = (
            f"{self._title}: {done}/{self._total} {self._unit}, {rate:.2f}/s, {duration(left)} left"
        )
        print(f"{line}, {detail}" if detail else line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 5 min."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
