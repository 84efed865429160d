"""The demonstration: a simulated Franka obeys, with and without search, through real ROS topics.

Starts simulator, cameras, planner and arm controller as processes of their own, runs every task on
the same seeds in each way of deciding, prints a table and writes a report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vla_reasoner_ros import __version__
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.evaluate import parse_overrides, table
from vla_reasoner_ros.evaluation.records import EpisodeRecord, RunRecord, camera_projection
from vla_reasoner_ros.evaluation.report import write_report
from vla_reasoner_ros.evaluation.summary import paired, summarise
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.ros.episodes import CONTROLLER, PLANNER, SIMULATOR, EpisodeRunner
from vla_reasoner_ros.ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.sim.scene import compile_scene
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.training.progress import duration

CAMERA = "camera_node"
PICTURE_SIZE = (480, 360)
# One world model per phase: changing it takes the planner through clean-up and configure.
PHASES = (("simulator", ("policy", "search_simulator")), ("latent", ("search_learned",)))
ARMS = [arm for _, arms in PHASES for arm in arms]
SIMULATIONS = {"policy": 0, "search_simulator": 32, "search_learned": 128}
"""Imagined macro-actions per decision; the true simulator is the slowest of the world models."""
MANAGED = {"autostart": False, "use_sim_time": True}
LOCKSTEP = {"lockstep": True, "camera_rate": 2.5, "real_time_factor": 0.0}
# Simulated time runs much faster than real time here and waits for no message: ages in it say
# little, and a refused chunk must be answered or time would wait for the next trajectory.
CONTROL = {
    "enable_control": True,
    "watchdog.max_joint_state_age": 1.0,
    "chunk.max_clock_lead": 0.5,
    "motion.repeat_on_rejection": True,
}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=0, help="seeds per task (default: what fits)")
    parser.add_argument("--seed-start", type=int, default=1000, help="first seed (default 1000)")
    parser.add_argument(
        "--minutes", type=float, default=4.5, help="time for all of it (default 4.5)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a search parameter"
    )
    return parser.parse_args(words)


class Demo:
    """One run of the demonstration."""

    def __init__(self, arguments: argparse.Namespace, client: GraphClient) -> None:
        self._started = time.monotonic()
        self._deadline = self._started + 60.0 * arguments.minutes
        self._arguments = arguments
        self._tasks = arguments.tasks.split(",")
        self._client = client
        self._runner = EpisodeRunner(client)
        self._phase = ""
        self.records: list[EpisodeRecord] = []
        self._spent: dict[str, list[float]] = {arm: [] for arm in ARMS}

    def run(self) -> None:
        """Bring the graph up, then one seed of everything, then as many more as there is time."""
        for name in (SIMULATOR, CAMERA, CONTROLLER):
            self._say(f"configuring {name}")
            self._client.change(name, CONFIGURE)
        self._client.change(CAMERA, ACTIVATE)
        first = self._arguments.seed_start
        for phase, _ in PHASES:
            self._run_phase(phase, [first], show=True)
        more = range(first + 1, first + self._seeds())
        for phase, _ in reversed(PHASES):
            self._run_phase(phase, list(more), show=False)

    def _seeds(self) -> int:
        """Seeds in all: those asked for, or those that fit, from the time that one took."""
        if self._arguments.seeds:
            return int(self._arguments.seeds)
        one = sum(sum(times) for times in self._spent.values())
        left = self._deadline - time.monotonic() - 15.0
        return 1 + max(0, int(left / max(one, 1e-3)))

    def _run_phase(self, phase: str, seeds: list[int], show: bool) -> None:
        if not seeds:
            return
        self._use_world_model(phase)
        arms = dict(PHASES)[phase]
        for seed in seeds:
            for task in self._tasks:
                for arm in arms:
                    if not show and not self._arguments.seeds and self._late(arm):
                        return
                    self._run_episode(task, seed, arm, show)

    def _late(self, arm: str) -> bool:
        return time.monotonic() + max(self._spent[arm], default=0.0) > self._deadline

    def _use_world_model(self, name: str) -> None:
        if self._phase == name:
            return
        if self._phase:
            self._client.change(PLANNER, DEACTIVATE)
            self._client.change(PLANNER, CLEANUP)
        self._say(f"configuring {PLANNER} with world model {name}")
        self._client.set_parameters(PLANNER, {"planner.world_model": name})
        self._client.change(PLANNER, CONFIGURE, timeout=180.0)
        self._phase = name

    def _run_episode(self, task: str, seed: int, arm: str, show: bool) -> None:
        overrides = parse_overrides(self._arguments.set)
        values = {"search.simulations": SIMULATIONS[arm]} | overrides
        if arm == "policy":
            values["search.simulations"] = 0
        self._client.set_parameters(PLANNER, values)
        began = time.monotonic()
        record = self._runner.run(task, seed, arm, show=show)
        self._spent[arm].append(time.monotonic() - began)
        self.records.append(record)
        verdict = "success" if record.success else f"failed ({record.ending})"
        self._say(f"{task}, seed {seed}, {arm}: {verdict} after {record.duration_s:.1f} s")

    def _say(self, text: str) -> None:
        now = time.monotonic()
        left = duration(max(0.0, self._deadline - now))
        print(f"[{now - self._started:5.0f} s, at most {left} left] {text}", flush=True)


def finish(demo: Demo, arguments: argparse.Namespace) -> None:
    """Write report and numbers, print the table."""
    episodes = [record.summary() for record in demo.records]
    results = summarise(episodes, ARMS)
    model = compile_scene()
    camera = model.camera("overview").id
    width, height = PICTURE_SIZE
    cases = paired(episodes, ARMS)
    record = RunRecord(
        title="A simulated Franka, with and without search",
        facts=[
            ("command", " ".join(["make demo", *sys.argv[1:]])),
            ("date", datetime.date.today().isoformat()),
            ("version", __version__),
            ("scenes", f"{len(cases)}: seeds from {arguments.seed_start} of each task"),
            ("machine", f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"),
            ("time", "lockstep: simulated time stands still while the planner thinks"),
        ],
        notes=arm_table.notes(ARMS),
        arms=[arm_table.describe(arm) for arm in ARMS],
        episodes=episodes,
        shown=[r for r in demo.records if any(d.picture for d in r.decisions)],
        projection=camera_projection(
            model.cam_pos[camera],
            model.cam_mat0[camera].reshape(3, 3),
            float(model.cam_fovy[camera]) * 3.141592653589793 / 180.0,
            width,
            height,
        ),
        picture_size=PICTURE_SIZE,
    )
    report = arguments.out / "report.html"
    write_report(report, record)
    numbers = json.dumps(results | {"episodes": episodes}, indent=1)
    write_atomically(arguments.out / "results.json", numbers.encode())
    print("\n" + table(results, ARMS))
    for note in record.notes:
        print(f"note: {note}")
    print(f"report: {report.resolve()}")


def main(words: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only when everything ran to its end."""
    arguments = parse(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ProcessGraph(arguments.out / "log") as graph:
            for name, parameters in (
                (SIMULATOR, {"autostart": False, **LOCKSTEP}),
                (CAMERA, MANAGED),
                (CONTROLLER, MANAGED | CONTROL),
                (PLANNER, MANAGED),
            ):
                graph.start(NodeProcess(name, name, parameters))
            with GraphClient(graph, "demo") as client:
                demo = Demo(arguments, client)
                demo.run()
        finish(demo, arguments)
    except VlaReasonerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
