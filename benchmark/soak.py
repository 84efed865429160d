"""Endurance: load, lifecycle cycles and hostile messages for long enough that a leak shows.

``python -m benchmark.soak --minutes 30 --cycles 100 --messages 100000`` tells how far it is on
standard error and prints JSON lines, with ``ok`` for what has a limit; the last one is the verdict
and names what failed. The exit code is 1 when a limit is broken or the run was cut short. Ctrl-C or
SIGTERM ends the part at hand, which is judged as far as it came, and the run; a second one ends it
without a result. A part that is given 0 is left out.

Limits: no frame lost or dropped, warming up included; after it the planner at 95 % of its rate and
memory of every node within 5 % from the first tenth of the time to the last; after the cycles
memory within 5 % of that after the first ten, no more open files or endpoints, and no more threads
than the executor's pool has. What other programs take of the machine is told with it.
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

from benchmark.process_watch import FEWEST, Watch, growth, resident_mib
from benchmark.ros_load import CAMERAS, NODES, RATE, Load
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, GraphClient
from vla_reasoner_ros.ros.lifecycle import EXECUTOR_THREADS
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

GROWTH = 5.0
"""Percent by which memory may grow."""
ON_TIME = 0.95
"""Share of the decisions due that must be made, and, of the pictures, sent."""
SAMPLE_S = 1.0
TELL_S = 15.0
"""Seconds between two lines about how far it is."""
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
    """Prints lines and remembers what was not well.

    Attributes:
        stopped: set when the user wants no more.
        failed: names of the limits that were broken.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.stopped = threading.Event()

    def say(self, name: str, value: float, unit: str, ok: bool | None, detail: str) -> None:
        """Print one line; ``ok`` is None where there is no limit."""
        line = {"name": f"soak.{name}", "value": round(value, 3), "unit": unit}
        print(json.dumps({**line, "ok": ok, "detail": detail}), flush=True)
        if ok is False:
            self.failed.append(name)

    def conclude(self) -> bool:
        """Print the last line; whether all was well."""
        failed = list(self.failed)
        detail = f"failed: {', '.join(failed)}" if failed else "all limits are kept"
        self.say("verdict", len(failed), "limits broken", not failed, detail)
        return not failed

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


def soak(folder: Path, warm_up: float, minutes: float, world_model: str, verdict: Verdict) -> None:
    """Load for some minutes to warm up and for ``minutes`` that are judged."""
    progress(f"load: starting {', '.join(NODES)}")
    with Load(folder, world_model) as load:
        load.start()
        _flow(load, warm_up, "warming up", verdict)
        watch = Watch({name: load.graph.pid(name) for name in NODES})
        decided, sent = len(load.heard.chunks), load.sent
        seconds = _flow(load, minutes, "measuring", verdict, watch)
        decided, sent = len(load.heard.chunks) - decided, load.sent - sent
        cores = watch.cores()
        load.stop()
    detail = f"{seconds / 60.0:.1f} min of two 640x480 cameras at 30 Hz, world model {world_model}"
    used = ", ".join(f"{name} {share:.2f}" for name, share in cores.items())
    busy = f"of {os.cpu_count()}; {used}; {detail}"
    verdict.say("minutes", seconds / 60.0, "min", None, f"of {minutes:g}")
    verdict.say("cores", sum(cores.values()), "1", None, busy)
    share = sent / max(1.0, seconds * RATE)
    verdict.say("pictures_sent", share, "share of due", share >= ON_TIME, detail)
    for name, count in (("lost", load.frames_lost()), ("dropped", load.frames_dropped())):
        of = f"expected 0 of {len(CAMERAS) * load.sent}, warming up included"
        verdict.say(f"frames_{name}", count, "1", count == 0, of)
    share = decided * DECISION_S / max(DECISION_S, seconds)
    expected = f"expected at least {ON_TIME:g}; {detail}"
    verdict.say("decision_rate", share, "share of due", share >= ON_TIME, expected)
    for name, samples in watch.memory.items():
        _judge_growth(f"memory.{name}", samples, verdict)


def _flow(
    load: Load, minutes: float, phase: str, verdict: Verdict, watch: Watch | None = None
) -> float:
    """Let it flow, watched or not; the seconds that it was."""
    begin, told = time.monotonic(), 0.0
    sent, decided = load.sent, len(load.heard.chunks)
    seconds = 0.0
    while seconds < 60.0 * minutes and not verdict.stopped.is_set():
        load.run(min(SAMPLE_S, max(0.01, 60.0 * minutes - seconds)))
        seconds = time.monotonic() - begin
        if watch is not None:
            watch.sample()
        if seconds < told + TELL_S:
            continue
        told = seconds
        sizes = "".join(
            f", {n} {s[-1]:.0f} MiB" for n, s in (watch.memory if watch else {}).items()
        )
        progress(
            f"load: {phase}, {seconds / 60.0:.1f} min, {max(0.0, minutes - seconds / 60.0):.1f} "
            f"left; {(load.sent - sent) / seconds:.1f} pictures/s of each camera, "
            f"{load.frames_lost()} not (yet) received, {load.frames_dropped()} dropped; "
            f"{(len(load.heard.chunks) - decided) / seconds:.2f} decisions/s of "
            f"{1.0 / DECISION_S:g}{sizes}"
        )
    return seconds


def _judge_growth(name: str, samples: list[float], verdict: Verdict) -> None:
    found = growth(samples)
    if found is None:
        verdict.say(name, 0.0, "%", False, f"{len(samples)} samples, expected at least {FEWEST}")
        return
    detail = (
        f"{found.early:.1f} to {found.late:.1f} MiB, peak {found.peak:.1f}, {len(samples)} "
        f"samples; expected at most {GROWTH:g} % more"
    )
    verdict.say(name, found.percent, "%", found.percent <= GROWTH, detail)


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
        times = options.warm_up, options.minutes
        yield "load", partial(soak, folder / "load", *times, options.world_model, verdict)
    if options.cycles:
        for node in options.node or CYCLED:
            yield f"cycles.{node}", partial(cycles, folder / node, node, options.cycles, verdict)
    if options.messages:
        yield "messages", partial(messages, options.messages, verdict)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of load; 0 leaves it out")
    parser.add_argument("--warm-up", type=float, default=1.0, help="minutes of load before them")
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
        if verdict.stopped.is_set():
            verdict.say("ended_early", 1.0, "signal", False, "judged as far as it came")
    return int(not verdict.conclude())


if __name__ == "__main__":
    sys.exit(main())
