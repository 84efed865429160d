import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.processes import (
    DomainLease,
    NodeProcess,
    ProcessDiedError,
    ProcessGraph,
    executable,
)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Installs a program where ``ros2 run`` would find it."""
    folder = tmp_path / "install" / "lib" / "vla_reasoner_ros"
    folder.mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "install"))

    def install(name, body):
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
        path.chmod(0o755)
        return NodeProcess(name, name)

    return install


def wait_until(condition, timeout=120.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def test_a_process_that_dies_is_named_with_its_last_words(program, tmp_path):
    node = program("planner_node", "import sys; print('no weights'); sys.exit(3)")
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(program("sim_node", SLEEP))
        graph.check()
        graph.start(node)

        def died():
            try:
                graph.check()
            except ProcessDiedError as error:
                return str(error)
            return ""

        wait_until(died)
        assert "planner_node died (exit code 3)" in died()
        assert "no weights" in died()


def test_a_killed_process_is_named_with_the_signal(program, tmp_path):
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(program("sim_node", SLEEP))
        os.kill(graph.pid("sim_node"), signal.SIGKILL)
        wait_until(lambda: not alive(graph.pid("sim_node")))
        with pytest.raises(ProcessDiedError, match=r"sim_node died \(killed by SIGKILL\)"):
            graph.check()


def test_nothing_is_left_behind_not_even_of_the_stubborn(program, tmp_path):
    stubborn = program(
        "camera_node",
        """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
        """,
    )
    graph = ProcessGraph(tmp_path / "log")
    graph.start(stubborn)
    wait_until(lambda: graph.log("camera_node").read_text().endswith("\n"))
    parent, child = graph.pid("camera_node"), int(graph.log("camera_node").read_text())
    graph.stop(grace=0.3)
    wait_until(lambda: not alive(parent) and not alive(child))


def test_the_processes_end_when_their_starter_is_killed(program, tmp_path):
    program("sim_node", SLEEP)
    code = f"""
import time
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
graph = ProcessGraph({str(tmp_path / "log")!r})
graph.start(NodeProcess("sim_node", "sim_node"))
print(graph.pid("sim_node"), flush=True)
time.sleep(600)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    wait_until(lambda: not alive(pid))


def test_an_executable_that_cannot_run_is_named(program, tmp_path):
    node = program("sim_node", SLEEP)
    (tmp_path / "install/lib/vla_reasoner_ros/sim_node").chmod(0o644)
    with (
        ProcessGraph(tmp_path / "log") as graph,
        pytest.raises(ConfigurationError, match=r"process sim_node: .*Permission denied"),
    ):
        graph.start(node)


def test_two_graphs_get_two_domains(tmp_path):
    with ProcessGraph(tmp_path / "a") as first, ProcessGraph(tmp_path / "b") as second:
        assert first.domain_id != second.domain_id
        taken = {first.domain_id, second.domain_id}
        lease = DomainLease()
        lease.release()
        assert lease.domain_id not in taken


def test_parameters_are_written_as_ros_reads_them():
    node = NodeProcess(
        "sim",
        "sim_node",
        parameters={
            "flag": True,
            "rate": 2.0,
            "tiny": 1e-7,
            "bad": float("nan"),
            "count": 3,
            "text": "it's: a #name",
            "list": (1.0, 2.5),
        },
        remappings={"joint_states": "arm/joint_states"},
    )
    words = node.command()
    given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    assert given == [
        "flag:=true",
        "rate:=2.0",
        "tiny:=1e-07",
        "bad:=.nan",
        "count:=3",
        "text:='it''s: a #name'",
        "list:=[1.0, 2.5]",
    ]
    assert "joint_states:=arm/joint_states" in words
    assert "__node:=sim" in words


def test_without_an_installed_executable_the_module_is_run(monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/nowhere")
    assert executable("sim_node") == [sys.executable, "-m", "vla_reasoner_ros.nodes.sim_node"]
