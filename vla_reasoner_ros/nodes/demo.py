"""The demonstration: a simulated Franka obeys, with and without search, through real ROS topics.

Starts simulator, cameras, planner, arm controller and deadman as processes of their own, runs every
task on the same seeds in each way of deciding, prints a table and writes a report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_reasoner_ros import __version__
from vla_reasoner_ros.arguments import POSITIVE, WHOLE, Parser
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.evaluate import chosen_tasks, parse_overrides, table
from vla_reasoner_ros.evaluation.records import EpisodeRecord, RunRecord, camera_projection
from vla_reasoner_ros.evaluation.report import write_report
from vla_reasoner_ros.evaluation.summary import paired, summarise
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.ros.campaign import CAMERA, Campaign
from vla_reasoner_ros.ros.episodes import CONTROLLER, PLANNER, SIMULATOR
from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.sim.scene import compile_scene
from vla_reasoner_ros.sim.tasks import TASKS

PICTURE_SIZE = (800, 600)
MANAGED = {"autostart": False, "use_sim_time": True}
LOCKSTEP = {
    "lockstep": True,
    "camera_rate": 2.5,
    # As fast as possible would outrun the gripper's commands, which carry no stamp.
    "real_time_factor": 4.0,
    "overview_width": PICTURE_SIZE[0],
    "overview_height": PICTURE_SIZE[1],
}
# Simulated time runs much faster than real time here and waits for no message: ages in it say
# little, and a refused chunk must be answered or time would wait for the next trajectory.
CONTROL = {
    "enable_control": True,
    "watchdog.max_joint_state_age": 1.0,
    "chunk.max_clock_lead": 0.5,
    "motion.repeat_on_rejection": True,
    "motion.lead_time": 0.0,
    "motion.stop_lead_time": 0.0,
    "motion.settle_time": 0.0,
    "watchdog.max_clock_standstill": 0.0,
}
# Simulated time that waits for the planner says nothing about silence on the wall clock.
WATCH = {
    "use_sim_time": True,
    "period": 0.05,
    "controller_timeout": 5.0,
    "controller_wall_timeout": 0.0,
    "planner_timeout": 5.0,
}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="names with commas between")
    parser.add_argument(
        "--seeds", type=WHOLE, default=0, help="seeds per task (default: what fits)"
    )
    parser.add_argument("--seed-start", type=WHOLE, default=1000, help="first seed")
    parser.add_argument("--minutes", type=POSITIVE, default=4.5, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a search parameter"
    )
    return parser.parse_args(words)


def fallbacks(episodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be said when an arm that should search did not always do so."""
    found: dict[tuple[str, str], int] = {}
    for episode in episodes:
        for reason in episode["fallbacks"] if episode["arm"] != "policy" else ():
            found[episode["arm"], reason] = found.get((episode["arm"], reason), 0) + 1
    return [
        f"{arm} fell back to the policy in {count} episodes: {reason}."
        for (arm, reason), count in found.items()
    ]


def finish(
    records: Sequence[EpisodeRecord], arms: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Write report and numbers, print the table."""
    episodes = [record.summary() for record in records]
    results = summarise(episodes, arms)
    model = compile_scene()
    camera = model.camera("overview").id
    width, height = PICTURE_SIZE
    cases = paired(episodes, arms)
    given = shlex.join(sys.argv[1:])
    record = RunRecord(
        title="A simulated Franka, with and without search",
        facts=[
            ("command", "make demo" + (f" ARGS={shlex.quote(given)}" if given else "")),
            ("date", datetime.date.today().isoformat()),
            ("version", __version__),
            ("scenes", f"{len(cases)}: seeds from {arguments.seed_start} of each task"),
            ("machine", f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"),
            ("time", "lockstep: simulated time stands still while the planner thinks"),
        ],
        notes=arm_table.notes(list(arms)) + fallbacks(episodes),
        arms=[arm_table.describe(arm) for arm in arms],
        episodes=episodes,
        shown=[r for r in records if any(d.picture for d in r.decisions)],
        projection=camera_projection(
            model.cam_pos[camera],
            model.cam_mat0[camera].reshape(3, 3),
            math.radians(model.cam_fovy[camera]),
            width,
            height,
        ),
        picture_size=PICTURE_SIZE,
    )
    report = arguments.out / "report.html"
    left_out = write_report(report, record)
    numbers = json.dumps(results | {"episodes": episodes}, indent=1)
    write_atomically(arguments.out / "results.json", numbers.encode())
    print("\n" + table(results, arms))
    for note in (*record.notes, *filter(None, [left_out])):
        print(f"note: {note}")
    print(f"report: {report.resolve()}")


def main(words: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only when everything ran to its end."""
    arguments = parse(words)
    try:
        tasks = chosen_tasks(arguments.tasks)
        overrides = parse_overrides(arguments.set)
        arm_table.search_parameters("search", overrides)  # a typing error is said before the start
        with ProcessGraph(arguments.out / "log") as graph:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, graph.interrupt)
            for name, parameters in (
                (SIMULATOR, {"autostart": False, **LOCKSTEP}),
                (CAMERA, MANAGED),
                (CONTROLLER, MANAGED | CONTROL),
                ("deadman_node", WATCH),
                (PLANNER, MANAGED),
            ):
                graph.start(NodeProcess(name, name, parameters))
            with GraphClient(graph, "demo") as client:
                campaign = Campaign(
                    client,
                    tasks,
                    arguments.seed_start,
                    arguments.seeds,
                    arguments.minutes,
                    overrides,
                )
                campaign.run()
        finish(campaign.records, campaign.arms, arguments)
    except VlaReasonerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not error.filename:
            raise
        print(f"demo: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
