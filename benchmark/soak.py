"""Endurance: load, lifecycle cycles and hostile messages for long enough that a leak shows.

``python -m benchmark.soak --minutes 30 --cycles 100 --messages 100000`` prints JSON lines, with
``ok`` for what has a limit; the exit code is 1 when one is broken.

Limits: no frame lost, the planner at 95 % of its rate, memory of every node within 5 % from the
second tenth of the run to the last, and after the cycles within 5 % of that after the first ten.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmark.ros_load import NODES, Load
from vla_reasoner_ros.ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

GROWTH = 0.05
SAMPLE_S = 5.0
DECISION_S = 0.4
"""Simulated seconds that one decision's executed actions take."""
WARM_CYCLES = 10
"""Cycles after which caches and pools have their size."""


def resident_mib(pid: int) -> float:
    """Resident memory of a process that is its own, not shared with others, MiB."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Verdict:
    """Prints lines and remembers whether all were well."""

    def __init__(self) -> None:
        self.well = True

    def say(self, name: str, value: float, unit: str, ok: bool | None, detail: str) -> None:
        """Print one line; ``ok`` is None where there is no limit."""
        line = {"name": f"soak.{name}", "value": round(value, 3), "unit": unit}
        print(json.dumps({**line, "ok": ok, "detail": detail}), flush=True)
        self.well = self.well and ok is not False


def soak(folder: Path, minutes: float, world_model: str, verdict: Verdict) -> None:
    """Load for a while, with a look at the memory now and then."""
    memory: dict[str, list[float]] = {name: [] for name in NODES}
    with Load(folder, world_model) as load:
        load.start()
        begin = time.monotonic()
        while time.monotonic() - begin < 60.0 * minutes:
            load.run(SAMPLE_S)
            for name, samples in memory.items():
                samples.append(resident_mib(load.graph.pid(name)))
        seconds = time.monotonic() - begin
        load.stop()
    detail = f"{minutes:g} min of two 640x480 cameras at 30 Hz"
    verdict.say("frames_lost", load.frames_lost(), "1", load.frames_lost() == 0, detail)
    due = seconds / DECISION_S
    share = len(load.heard.chunks) / due
    verdict.say("decision_rate", share, "share of due", share >= 0.95, detail)
    for name, samples in memory.items():
        _judge_growth(f"memory.{name}", samples, verdict, detail)


def _judge_growth(name: str, samples: list[float], verdict: Verdict, detail: str) -> None:
    tenth = max(1, len(samples) // 10)
    early = float(np.mean(samples[tenth : 2 * tenth] or samples[:1]))
    late = float(np.mean(samples[-tenth:]))
    growth = late / early - 1.0
    verdict.say(name, growth, "share", growth <= GROWTH, f"{early:.1f} to {late:.1f} MiB, {detail}")


def cycles(folder: Path, count: int, verdict: Verdict) -> None:
    """Configure, activate, deactivate and clean up every node again and again."""
    for name in (*NODES, "deadman_node"):
        parameters = {"autostart": False}
        if name == "planner_node":
            parameters |= {"planner.world_model": "latent"}
        samples: list[float] = []
        with ProcessGraph(folder / name) as graph:
            graph.start(NodeProcess(name, name, parameters))
            with GraphClient(graph, "soak") as client:
                for _ in range(count):
                    for transition in (CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP):
                        client.change(name, transition, timeout=240.0)
                    samples.append(resident_mib(graph.pid(name)))
        warm = samples[min(WARM_CYCLES, len(samples) - 1)]
        growth = samples[-1] / warm - 1.0
        detail = f"{warm:.1f} to {samples[-1]:.1f} MiB in {count} cycles"
        verdict.say(f"cycles.{name}", growth, "share", growth <= GROWTH, detail)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--world-model", default="none")
    options = parser.parse_args()
    verdict = Verdict()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.minutes:
            soak(folder / "load", options.minutes, options.world_model, verdict)
        if options.cycles:
            cycles(folder / "cycles", options.cycles, verdict)
    if options.messages:
        command = [sys.executable, "-m", "benchmark.fuzz_messages", str(options.messages)]
        fuzz = subprocess.run(command, check=False)
        detail = f"{options.messages} messages on every subscription"
        verdict.say("fuzz", fuzz.returncode, "exit code", fuzz.returncode == 0, detail)
    return int(not verdict.well)


if __name__ == "__main__":
    sys.exit(main())
