"""The planner's process is told to end while its models load."""

import os
import signal
import stat
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessDiedError, ProcessGraph

PLANNER = "planner_node"
# An interpreter that never gets as far as the policy; it ends when the planner lets go of it.
LOADING = """#!{python}
import pathlib, socket, sys
pathlib.Path({begun!r}).touch()
planner = socket.socket(fileno=int(sys.argv[4]))
while planner.recv(4096):
    pass
"""


@pytest.fixture
def graph(tmp_path):
    with ProcessGraph(tmp_path / "log") as graph:
        yield graph


def end(graph, client, number):
    """Signal the planner, and see it end by itself."""
    os.kill(graph.pid(PLANNER), number)
    with pytest.raises(ProcessDiedError, match=r"exit code 0\)"):
        client.wait(lambda: False, 60.0, "the end of the planner")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_planner_whose_models_load_ends_cleanly(graph, tmp_path, number):
    begun, python, options = tmp_path / "begun", tmp_path / "python", tmp_path / "options.yaml"
    python.write_text(LOADING.format(python=sys.executable, begun=str(begun)))
    python.chmod(stat.S_IRWXU)
    options.write_text(f"python: {python}\npolicy: small_vla\nstart_s: 600.0\n")
    parameters = {"planner.policy": "process", "planner.policy_options": str(options)}
    graph.start(NodeProcess(PLANNER, PLANNER, parameters))
    with GraphClient(graph) as client:
        client.wait(begun.exists, 120.0, "the loading of the policy")
        end(graph, client, number)
    log = graph.log(PLANNER).read_text()
    assert "did not configure: the process is ending" in log
    assert "Traceback" not in log
