"""Memory and processor time of processes, from Linux's ``/proc``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WINDOW = 0.1
"""Share of the samples, at either end, that a growth is taken between."""
LEVEL = 25.0
"""Percentile of a window's samples that counts as its level: what waits in queues while the machine
does something else comes and goes, what leaks stays."""
FEWEST = 20
"""Samples without which a growth says nothing."""
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 2**20


def resident_mib(pid: int) -> float:
    """Resident memory of a process that is its own, not shared with others, MiB."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / _MIB


def processor_s(pid: int) -> float:
    """Processor time that a process has taken, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / _TICKS


def machine_s() -> float:
    """Processor time that all of the machine's processes have taken, s."""
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / _TICKS


@dataclass(frozen=True)
class Growth:
    """How memory went.

    Attributes:
        early: level of the first tenth of the samples, MiB.
        late: of the last tenth.
        peak: the largest sample.
    """

    early: float
    late: float
    peak: float

    @property
    def percent(self) -> float:
        """The late level over the early one, percent more."""
        return 100.0 * (self.late / self.early - 1.0)


def growth(samples: Sequence[float]) -> Growth | None:
    """How memory went from sample to sample, MiB; None where there are fewer than :data:`FEWEST`.

    Take no samples of the start, in which caches and pools get their size.
    """
    if len(samples) < FEWEST:
        return None
    window = max(FEWEST // 4, round(WINDOW * len(samples)))
    early, late = (float(np.percentile(w, LEVEL)) for w in (samples[:window], samples[-window:]))
    return Growth(early, late, max(samples))


class Watch:
    """Samples of processes from now on.

    Args:
        pids: name to process id.

    Attributes:
        memory: name to its samples, MiB.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.memory: dict[str, list[float]] = {name: [] for name in pids}
        self._pids = dict(pids)
        self._begin = time.monotonic()
        self._machine = machine_s()
        self._counted = {**pids, "benchmark": os.getpid()}
        self._taken = {name: processor_s(pid) for name, pid in self._counted.items()}

    def sample(self) -> None:
        """Look at the memory now."""
        for name, pid in self._pids.items():
            self.memory[name].append(resident_mib(pid))

    def cores(self) -> dict[str, float]:
        """Processor cores that each process has kept busy on average.

        ``benchmark`` is this process, ``others`` the rest of the machine.
        """
        seconds = time.monotonic() - self._begin
        taken = {n: processor_s(pid) - self._taken[n] for n, pid in self._counted.items()}
        others = machine_s() - self._machine - sum(taken.values())
        return {name: used / seconds for name, used in {**taken, "others": others}.items()}
