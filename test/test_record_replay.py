"""A live graph of processes is recorded, and its bag replayed to what was seen and decided."""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import recordings

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from vla_reasoner_ros import cli
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.messages import observation_from_message, statistics_from_message
from vla_reasoner_ros.evaluation.replay import read_replay
from vla_reasoner_ros.nodes.demo import CONTROL, LOCKSTEP, MANAGED
from vla_reasoner_ros.ros.campaign import CAMERA
from vla_reasoner_ros.ros.episodes import CONTROLLER, PLANNER, SIMULATOR, EpisodeRunner
from vla_reasoner_ros.ros.graph import ACTIVATE, CONFIGURE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.search.statistics import SearchStatistics

# Four processes and two recorders start, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

NODES = (SIMULATOR, CAMERA, CONTROLLER, PLANNER)
SEARCH = {"planner.world_model": "latent", "search.simulations": 16}
RECORDED = (
    "instruction",
    "joint_states",
    "agent/image_raw",
    "wrist/image_raw",
    "simulator_state",
    "observation",
    "action_chunk",
    "search_statistics",
    "search_tree",
    "/clock",
)
TIMES = {"time_ms", "stage_ms"}
RESENT_S = 4.0
"""What a busy machine lost is sent again with a heartbeat; Fast DDS sends one every 3 s."""
# What `ros2 launch` does, without its command line. A shell may have switched SIGINT off.
LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from vla_reasoner_ros.paths import share_directory
file = PythonLaunchDescriptionSource(str(share_directory() / "launch" / "record.launch.py"))
recording = IncludeLaunchDescription(file, launch_arguments={"out": sys.argv[1]}.items())
service = LaunchService()
service.include_launch_description(LaunchDescription([recording]))
sys.exit(service.run())
"""


def recorders(folder):
    """Command lines that record, by the bag that they write; the launch file's where ROS has it."""
    verb = [sys.executable, "-m", "vla_reasoner_ros.cli", "record", "--measure", "5.0"]
    found = {folder / "verb": [*verb, "--out", str(folder / "verb")]}
    if importlib.util.find_spec("launch_ros"):
        found[folder / "launch"] = [sys.executable, "-c", LAUNCH, str(folder / "launch")]
    return found


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Two short episodes of the learned search on a live graph, as each recorder wrote them."""
    folder = tmp_path_factory.mktemp("recorded")
    commands = recorders(folder)
    running = []
    with ProcessGraph(folder / "log") as graph:
        for name, parameters in (
            (SIMULATOR, {"autostart": False, **LOCKSTEP}),
            (CAMERA, MANAGED),
            (CONTROLLER, MANAGED | CONTROL),
            (PLANNER, MANAGED | SEARCH),
        ):
            graph.start(NodeProcess(name, name, parameters))
        try:
            with GraphClient(graph, "runner") as client:
                for name in NODES:
                    client.change(name, CONFIGURE, timeout=240.0)
                client.change(CAMERA, ACTIVATE)
                runner = EpisodeRunner(client, limit_s=1.6)
                for path, command in commands.items():
                    log = (folder / f"{path.name}.log").open("wb")
                    environment = os.environ | graph.environment
                    running.append(
                        subprocess.Popen(
                            command,
                            env=environment,
                            stdout=log,
                            stderr=log,
                            start_new_session=True,
                        )
                    )
                client.wait(lambda: all_recorded(client, len(commands)), 120.0, "recorders")
                for path in commands:
                    said = folder / f"{path.name}.log"
                    client.wait(lambda s=said: b"recording to" in s.read_bytes(), 120.0, str(said))
                for name in NODES:  # who answers has heard of the subscriptions before it
                    client.state(name)
                # Both are told the same: an instruction has no stamp, and camera and recorder may
                # hear another one on different sides of a picture.
                for seed in (3, 7):
                    assert runner.run("lift_green", seed, "search").decisions
                time.sleep(RESENT_S)
        finally:
            end(running)
    return list(commands)


def end(recording):
    """End what records as Ctrl-C in a terminal does: the launch and its recorder hear it."""
    try:
        for process in recording:
            os.killpg(process.pid, signal.SIGINT)
        for process in recording:
            process.wait(120.0)
    finally:
        for process in recording:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def all_recorded(client, count):
    return all(
        sum(i.node_name == "recorder" for i in client.node.get_subscriptions_info_by_topic(topic))
        == count
        for topic in map(client.node.resolve_topic_name, RECORDED)
    )


def live(path):
    """Observations and statistics of the live graph, by the observation's stamp."""
    with BagReader(path) as bag:
        assert bag.problems == []
        seen = [
            observation_from_message(bag.deserialize(m)) for m in bag.messages(["/observation"])
        ]
        said = [
            statistics_from_message(bag.deserialize(m))
            for m in bag.messages(["/search_statistics"])
        ]
    return {o.stamp_ns: o for o in seen}, {s.observation_stamp_ns: s for s in said}


@pytest.fixture(params=["verb", "launch"])
def recorded(request, bags):
    """A recording, and the replay of it."""
    path = next((bag for bag in bags if bag.name == request.param), None)
    if path is None:
        pytest.skip("record.launch.py needs the package launch_ros of a ROS 2")
    out = path.with_name(f"{path.name}_replayed")
    if not out.exists():
        assert cli.main(["replay", str(path), "--out", str(out)]) == 0
    return path, read_replay(out)


def test_a_replay_of_a_live_run_sees_what_was_seen_bit_for_bit(recorded):
    path, replay = recorded
    seen, said = live(path)
    rows = replay.rows()
    assert replay.info["parameters_from"] == "the bag"
    assert [row["stamp_ns"] for row in rows] == list(said)
    assert len(rows) >= 8
    assert {row["episode"] for row in rows} == {0, 1}
    for stamp_ns in said:
        recordings.assert_same(aged(replay.observation(stamp_ns)), aged(seen[stamp_ns]))


def test_a_replay_of_a_live_run_decides_what_was_decided_bit_for_bit(recorded):
    path, replay = recorded
    _, said = live(path)
    rows = replay.rows()
    assert {row["source"] for row in rows} & {"search", "blend"}
    assert [row["live_equal"] for row in rows] == [True] * len(rows)
    with BagReader(replay.path / "bag") as bag:
        for message in bag.messages(["/search_statistics"]):
            again = statistics_from_message(bag.deserialize(message))
            alike(said[again.observation_stamp_ns], again)


def aged(observation):
    """Without the instruction's age: it has no stamp, and who hears it before the clock differs."""
    ages = {name: age for name, age in observation.ages.items() if name != "instruction"}
    return dataclasses.replace(observation, ages=ages)


def alike(first, second):
    for field in dataclasses.fields(SearchStatistics):
        if field.name not in TIMES:
            one, other = getattr(first, field.name), getattr(second, field.name)
            np.testing.assert_equal(one, other, err_msg=field.name)
