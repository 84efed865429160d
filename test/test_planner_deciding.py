"""What is asked of the planner while a decision computes: each is heard, nothing is said too late.

The planner runs as a process with a policy that computes for as long as a file says.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from scripted_policy import WAYS, python_path
from std_srvs.srv import SetBool

from vla_reasoner_ros.msg import ActionChunk, Observation, SearchStatistics
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import observation_to_message
from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessDiedError, ProcessGraph
from vla_reasoner_ros.types import Observation as ObservationData

PLANNER = "planner_node"
PERIOD_NS = 400_000_000  # four actions of 0.1 s: then the next decision is due
LIMIT_S = 120.0


class Deciding:
    """The camera's place: observations in, chunks and statistics out."""

    def __init__(self, client, graph, script):
        self.client, self.graph, self.script = client, graph, script
        self.mark = Path(f"{script}.hangs")
        self.chunks, self.statistics = [], []
        node = client.node
        node.create_subscription(ActionChunk, "action_chunk", self.chunks.append, 100)
        node.create_subscription(SearchStatistics, "search_statistics", self.statistics.append, 100)
        self.publisher = node.create_publisher(Observation, "observation", qos.STATE)
        self.stamp_ns = time.time_ns()

    def activate(self):
        """Ready for the first observation of an episode, from inactive or unconfigured."""
        if self.client.state(PLANNER) != lifecycle.INACTIVE:
            self.client.change(PLANNER, lifecycle.CONFIGURE, timeout=LIMIT_S)
        self.client.change(PLANNER, lifecycle.ACTIVATE)
        count = self.client.node.count_publishers
        self.client.wait(
            lambda: self.publisher.get_subscription_count() and count("action_chunk"),
            LIMIT_S,
            "the connections",
        )

    def observe(self, instruction="go left"):
        """Publish an observation on which a decision is due; its stamp, ns."""
        self.stamp_ns += PERIOD_NS
        observation = ObservationData(
            stamp_ns=self.stamp_ns,
            images={"agent": np.full((96, 96, 3), 120, dtype=np.uint8)},
            joint_names=("joint1",),
            joint_positions=np.zeros(1),
            joint_velocities=np.zeros(1),
            ee_position=np.array([0.5, 0.0, 0.3]),
            ee_quaternion=np.array([1.0, 0.0, 0.0, 0.0]),
            gripper=1.0,
            instruction=instruction,
        )
        self.publisher.publish(observation_to_message(observation))
        return self.stamp_ns

    def think(self):
        """Let a decision begin that does not end before :meth:`wake`; its observation's stamp."""
        self.mark.unlink(missing_ok=True)
        self.script.write_text("hang")
        stamp_ns = self.observe()
        self.client.wait(self.mark.exists, LIMIT_S, "a decision that computes")
        return stamp_ns

    def wake(self):
        """Let the decision at hand end."""
        self.script.write_text("")

    def answer(self, stamp_ns):
        """The chunk and the statistics of the decision on an observation."""

        def found():
            chunk = [c for c in self.chunks if to_nanoseconds(c.observation_stamp) == stamp_ns]
            said = [s for s in self.statistics if to_nanoseconds(s.observation_stamp) == stamp_ns]
            return (chunk[0], said[0]) if chunk and said else None

        return self.client.wait(found, LIMIT_S, f"a decision on {stamp_ns}")

    def silent_about(self, stamp_ns):
        """No chunk was made of this observation, as one of a later observation shows."""
        chunk, _ = self.answer(self.observe())
        assert to_nanoseconds(chunk.observation_stamp) > stamp_ns
        assert stamp_ns not in [to_nanoseconds(c.observation_stamp) for c in self.chunks]


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Starts the planner; the graph ends with the test."""
    script, options = tmp_path / "script", tmp_path / "options.yaml"
    script.write_text("")
    options.write_text(yaml.safe_dump({"script": str(script)}))
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    parameters = {
        "planner.policy": "scripted",
        "planner.policy_options": str(options),
        "planner.world_model": "none",
        "search.deadline_ms": 0.0,
        "autostart": False,
    }
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, parameters))
        with GraphClient(graph) as client:
            deciding = Deciding(client, graph, script)
            deciding.activate()
            yield deciding


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly_and_nothing_is_said_any_more(begin, number):
    begin.answer(begin.observe())
    stamp_ns = begin.think()
    os.kill(begin.graph.pid(PLANNER), number)
    # Exit code 1 is that of a node that took longer than its limit, or was ended by force.
    with pytest.raises(ProcessDiedError, match=r"exit code 0\)"):
        begin.client.wait(lambda: False, LIMIT_S, "the end of the planner")
    assert stamp_ns not in [to_nanoseconds(c.observation_stamp) for c in begin.chunks]
    log = begin.graph.log(PLANNER).read_text()
    assert "a thread that was still at work ends with the process" in log
    assert "Traceback" not in log


def test_every_request_is_heard_and_the_decision_at_hand_says_nothing_too_late(begin):
    """One process for all of it, since the start of one takes the most time."""
    client = begin.client

    # Parameters: answered at once, in force from the next decision on.
    stamp_ns = begin.think()
    client.set_parameters(PLANNER, {"search.deadline_ms": 5000.0})
    begin.wake()
    assert begin.answer(stamp_ns)[1].budget_ms == 0.0
    assert begin.answer(begin.observe())[1].budget_ms == 5000.0

    # Another instruction: what was begun ends as what it was, and the next one follows the other.
    stamp_ns = begin.think()
    other_ns = begin.observe("go right")
    begin.wake()
    for stamp, instruction in ((stamp_ns, "go left"), (other_ns, "go right")):
        sideways = begin.answer(stamp)[0].actions[1]
        assert np.sign(sideways) == WAYS[instruction]

    # A pause: the decision at hand is dropped.
    stamp_ns = begin.think()
    for paused in (True, False):
        client.call(SetBool, f"{PLANNER}/pause", SetBool.Request(data=paused))
    begin.wake()
    begin.silent_about(stamp_ns)

    # Deactivation: waits for the decision, which is dropped; the next activation starts clean.
    stamp_ns = begin.think()
    with pytest.raises(lifecycle.GraphError):
        client.change(PLANNER, lifecycle.CLEANUP)  # not a transition of an active node
    assert client.state(PLANNER) == lifecycle.ACTIVE
    service = client.node.create_client(ChangeState, f"{PLANNER}/change_state")
    client.wait(service.service_is_ready, LIMIT_S, "the service")
    asked = service.call_async(ChangeState.Request(transition=Transition(id=lifecycle.DEACTIVATE)))
    client.wait(lambda: client.state(PLANNER) != lifecycle.ACTIVE, LIMIT_S, "its beginning")
    assert not asked.done()
    begin.wake()
    client.wait(asked.done, LIMIT_S, "its end")
    assert asked.result().success
    client.change(PLANNER, lifecycle.CLEANUP)
    begin.activate()
    begin.silent_about(stamp_ns)
    assert "Traceback" not in begin.graph.log(PLANNER).read_text()
