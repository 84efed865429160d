"""Endurance: load, lifecycle cycles and hostile messages for long enough that a leak shows.

``python -m benchmark.soak --minutes 30 --cycles 100 --messages 100000`` tells how far it is on
standard error and prints JSON lines, with ``ok`` for what has a limit; the exit code is 1 when one
is broken. Ctrl-C or SIGTERM ends the part at hand, which is judged as far as it came, and the run;
a second one ends it without a result. A part that is given 0 is left out.

Limits: no frame lost or dropped, the planner at 95 % of its rate, memory of every node within 5 %
from the second tenth of the run to the last; after the cycles memory within 5 % of that after the
first ten, no more open files or endpoints, and no more threads than the executor's pool has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.ros_load import CAMERAS, NODES, RATE, Load
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, GraphClient
from vla_reasoner_ros.ros.lifecycle import EXECUTOR_THREADS
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

GROWTH = 5.0
"""Percent by which memory may grow."""
SAMPLE_S = 5.0
DECISION_S = 0.4
"""Simulated seconds that one decision's executed actions take."""
SETTLE_S = 10.0
"""Seconds that discovery and threads which end may take after a transition."""
WARM_CYCLES = 10
"""Cycles after which caches and pools have their size."""
CYCLED: Mapping[str, Mapping[str, object]] = {
    "camera_node": {},
    "planner_node": {"planner.world_model": "latent"},
    "arm_controller_node": {},
    "deadman_node": {},
    "sim_node": {},
    "view_node": {"cameras": "sim"},
}
"""The nodes that are cycled, with parameters that make them load what they can load."""


def resident_mib(pid: int) -> float:
    """Resident memory of a process that is its own, not shared with others, MiB."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Holdings:
    """What a node holds while it is unconfigured.

    Attributes:
        memory: own resident memory, MiB.
        threads: of the process.
        files: open file descriptors, sockets among them.
        endpoints: publishers and subscriptions that others see, those of services among them.
    """

    memory: float
    threads: int
    files: int
    endpoints: int


def holdings(client: GraphClient, pid: int, name: str) -> Holdings:
    """What a node holds now."""
    process, node = Path(f"/proc/{pid}"), client.node
    endpoints = 0
    for topic, _ in node.get_topic_names_and_types():
        for found in (node.get_publishers_info_by_topic, node.get_subscriptions_info_by_topic):
            endpoints += sum(each.node_name == name for each in found(topic))
    services = node.get_service_names_and_types_by_node(name, "/")
    clients = node.get_client_names_and_types_by_node(name, "/")
    return Holdings(
        resident_mib(pid),
        len(list((process / "task").iterdir())),
        len(list((process / "fd").iterdir())),
        endpoints + len(services) + len(clients),
    )


class Verdict:
    """Prints lines and remembers whether all were well.

    Attributes:
        stopped: set when the user wants no more.
    """

    def __init__(self) -> None:
        self.well = True
        self.stopped = threading.Event()

    def say(self, name: str, value: float, unit: str, ok: bool | None, detail: str) -> None:
        """Print one line; ``ok`` is None where there is no limit."""
        line = {"name": f"soak.{name}", "value": round(value, 3), "unit": unit}
        print(json.dumps({**line, "ok": ok, "detail": detail}), flush=True)
        self.well = self.well and ok is not False

    def stop_on_signals(self) -> None:
        """The first SIGINT or SIGTERM ends the part at hand, the second everything."""

        def stop(*_: object) -> None:
            if self.stopped.is_set():
                raise KeyboardInterrupt
            self.stopped.set()
            progress("ending; once more for no result")

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)


def progress(text: str) -> None:
    """One line for whoever waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def soak(folder: Path, minutes: float, world_model: str, verdict: Verdict) -> None:
    """Load for a while, with a look at the memory now and then."""
    memory: dict[str, list[float]] = {name: [] for name in NODES}
    progress(f"load: starting {', '.join(NODES)}")
    with Load(folder, world_model) as load:
        load.start()
        begin = time.monotonic()
        while (seconds := time.monotonic() - begin) < 60.0 * minutes:
            if verdict.stopped.is_set():
                break
            load.run(SAMPLE_S)
            for name, samples in memory.items():
                samples.append(resident_mib(load.graph.pid(name)))
            if len(memory[NODES[0]]) % 2 == 0:
                _tell_load(load, seconds, minutes, memory)
        seconds = time.monotonic() - begin
        load.stop()
    detail = f"{seconds / 60.0:.1f} min of two 640x480 cameras at 30 Hz, world model {world_model}"
    due, cameras = seconds * RATE, len(CAMERAS)
    share = load.sent / due
    verdict.say("frames_sent", cameras * load.sent, "1", share >= 0.99, f"of {cameras * due:.0f}")
    for name, count in (("lost", load.frames_lost()), ("dropped", load.frames_dropped())):
        verdict.say(f"frames_{name}", count, "1", count == 0, detail)
    share = len(load.heard.chunks) * DECISION_S / seconds
    verdict.say("decision_rate", share, "share of due", share >= 0.95, detail)
    for name, samples in memory.items():
        _judge_growth(f"memory.{name}", samples, verdict, detail)


def _tell_load(
    load: Load, seconds: float, minutes: float, memory: Mapping[str, list[float]]
) -> None:
    heard = load.heard
    left = max(0.0, minutes - seconds / 60.0)
    sizes = ", ".join(f"{name} {samples[-1]:.0f} MiB" for name, samples in memory.items())
    progress(
        f"load: {seconds / 60.0:.1f} min, {left:.1f} min left; {load.sent / max(seconds, 1.0):.1f} "
        f"pictures/s of each camera, {load.frames_lost()} not (yet) received, "
        f"{load.frames_dropped()} dropped; {len(heard.chunks) / max(seconds, 1.0):.2f} decisions/s "
        f"of {1.0 / DECISION_S:g}; {sizes}"
    )


def _judge_growth(name: str, samples: list[float], verdict: Verdict, detail: str) -> None:
    if not samples:
        verdict.say(name, 0.0, "%", False, f"no sample, {detail}")
        return
    tenth = max(1, len(samples) // 10)
    early = float(np.mean(samples[tenth : 2 * tenth] or samples[:1]))
    late = float(np.mean(samples[-tenth:]))
    growth = 100.0 * (late / early - 1.0)
    verdict.say(name, growth, "%", growth <= GROWTH, f"{early:.1f} to {late:.1f} MiB, {detail}")


def cycles(folder: Path, name: str, count: int, verdict: Verdict) -> None:
    """Configure, activate, deactivate and clean up a node again and again."""
    found: list[Holdings] = []
    with ProcessGraph(folder) as graph:
        graph.start(NodeProcess(name, name, {"autostart": False, **CYCLED[name]}))
        with GraphClient(graph, "soak") as client:
            for number in range(1, count + 1):
                for transition in (CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP):
                    client.change(name, transition, timeout=240.0)
                last = number == count or verdict.stopped.is_set()
                if number == 1 or number % WARM_CYCLES == 0 or last:
                    found.append(_settled(client, graph.pid(name), name, found[-1:]))
                    progress(f"cycles: {name} {number} of {count}: {found[-1]}")
                if last:
                    break
    warm, end = found[1 if len(found) > 2 else 0], found[-1]
    detail = f"{warm.memory:.1f} to {end.memory:.1f} MiB in {number} cycles"
    growth = 100.0 * (end.memory / warm.memory - 1.0)
    verdict.say(f"cycles.{name}.memory", growth, "%", growth <= GROWTH, detail)
    for what, before, after, more in zip(
        ("threads", "files", "endpoints"),
        astuple(warm)[1:],
        astuple(end)[1:],
        (EXECUTOR_THREADS, 0, 0),  # a pool makes its threads when it needs them
        strict=True,
    ):
        verdict.say(
            f"cycles.{name}.{what}",
            after - before,
            "1",
            after <= before + more,
            f"{before} to {after} in {number} cycles",
        )


def _settled(client: GraphClient, pid: int, name: str, before: list[Holdings]) -> Holdings:
    """What is held when discovery and ending threads have caught up, or after ten seconds."""
    now = holdings(client, pid, name)
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and any(
        held > once
        for earlier in before
        for held, once in zip(astuple(now)[1:], astuple(earlier)[1:], strict=True)
    ):
        client.spin(0.5)
        now = holdings(client, pid, name)
    return now


def messages(count: int, verdict: Verdict) -> None:
    """Hostile messages, in a process of their own."""
    command = [sys.executable, "-m", "benchmark.fuzz_messages", str(count)]
    fuzz = subprocess.run(command, check=False)
    detail = f"{count} messages on every subscription"
    verdict.say("fuzz", fuzz.returncode, "exit code", fuzz.returncode == 0, detail)


def _parts(
    options: argparse.Namespace, folder: Path, verdict: Verdict
) -> Iterator[tuple[str, Callable[[], None]]]:
    if options.minutes:
        yield "load", partial(soak, folder / "load", options.minutes, options.world_model, verdict)
    if options.cycles:
        for node in options.node or CYCLED:
            yield f"cycles.{node}", partial(cycles, folder / node, node, options.cycles, verdict)
    if options.messages:
        yield "messages", partial(messages, options.messages, verdict)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of load; 0 leaves it out")
    parser.add_argument("--cycles", type=int, default=100, help="of each node; 0 leaves them out")
    parser.add_argument("--messages", type=int, default=100_000, help="on every subscription")
    parser.add_argument("--world-model", default="latent", help="none lets the policy drive")
    parser.add_argument("--node", choices=CYCLED, action="append", help="to cycle; all when none")
    options = parser.parse_args()
    verdict = Verdict()
    verdict.stop_on_signals()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, run in _parts(options, folder, verdict):
            if verdict.stopped.is_set():
                break
            try:
                run()
            except VlaReasonerError as error:
                verdict.say(part, 0.0, "failed", False, str(error))
    return int(not verdict.well)


if __name__ == "__main__":
    sys.exit(main())
