"""The planner's process is told to end while its models load, and while it decides."""

import os
import signal
import stat
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.msg import Observation as ObservationMessage
from vla_reasoner_ros.policies.small_vla import SmallVla
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import observation_to_message
from vla_reasoner_ros.ros.graph import ACTIVE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessDiedError, ProcessGraph
from vla_reasoner_ros.types import Observation

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


def test_while_its_models_load(graph, tmp_path):
    begun, python, options = tmp_path / "begun", tmp_path / "python", tmp_path / "options.yaml"
    python.write_text(LOADING.format(python=sys.executable, begun=str(begun)))
    python.chmod(stat.S_IRWXU)
    options.write_text(f"python: {python}\npolicy: small_vla\nstart_s: 600.0\n")
    parameters = {"planner.policy": "process", "planner.policy_options": str(options)}
    graph.start(NodeProcess(PLANNER, PLANNER, parameters))
    with GraphClient(graph) as client:
        client.wait(begun.exists, 120.0, "the loading of the policy")
        end(graph, client, signal.SIGTERM)
    log = graph.log(PLANNER).read_text()
    assert "did not configure: the process is ending" in log
    assert "Traceback" not in log


def test_while_it_decides(graph):
    endless = {"search.simulations": 1_000_000, "search.deadline_ms": 0.0}
    parameters = {"planner.world_model": "latent", **endless}
    graph.start(NodeProcess(PLANNER, PLANNER, parameters))
    with GraphClient(graph) as client:
        publisher = client.node.create_publisher(ObservationMessage, "observation", qos.STATE)
        client.wait(publisher.get_subscription_count, 240.0, "the subscription")
        client.wait(lambda: client.state(PLANNER) == ACTIVE, 60.0, "activation")
        publisher.publish(observation_to_message(grey()))
        before = processor_s(graph)
        client.wait(lambda: processor_s(graph) > before + 3.0, 120.0, "a decision at work")
        end(graph, client, signal.SIGINT)
    log = graph.log(PLANNER).read_text()
    assert "a thread that was still at work ends with the process" in log
    assert "Traceback" not in log


def processor_s(graph):
    """Processor time that the planner has taken, s."""
    with open(f"/proc/{graph.pid(PLANNER)}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def grey():
    robot = load_robot("fr3")
    position, quaternion = Kinematics(robot).forward(np.array(robot.home))
    picture = np.full((96, 96, 3), 120, dtype=np.uint8)
    return Observation(
        stamp_ns=1_000_000_000,
        images={"agent": picture, "wrist": picture},
        joint_names=robot.joint_names,
        joint_positions=np.array(robot.home),
        joint_velocities=np.zeros(robot.joints),
        ee_position=position,
        ee_quaternion=quaternion,
        gripper=1.0,
        instruction=SmallVla().spec.example_instruction,
    )
