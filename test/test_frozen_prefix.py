"""Through the nodes: what the controller has frozen reaches a policy that can continue it."""

import os

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from test_planner_node import PLANNER, Rig

from vla_reasoner_ros.msg import ControllerStatus
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

POLICY = '''
import numpy as np

from vla_reasoner_ros.policies.small_vla import SmallVla
from vla_reasoner_ros.types import ActionChunk


class Continuing:
    """Begins with what it is conditioned on, and tells each action by its number."""

    def __init__(self):
        self.spec = SmallVla().spec
        self._prefix, self._asked = None, 0

    def reset(self):
        self._prefix = None

    def condition_on_prefix(self, prefix):
        self._prefix = prefix

    def propose(self, observation, n=1):
        self._asked += 1
        actions = np.zeros((self.spec.horizon, 7))
        actions[:, 0] = 1e-3 * self._asked + 1e-6 * np.arange(self.spec.horizon)
        if self._prefix is not None:
            actions[: self._prefix.steps] = self._prefix.actions
        self._prefix = None
        return [ActionChunk(self.spec.action, actions, observation.stamp_ns)]
'''


@pytest.fixture
def rig(tmp_path, monkeypatch):
    (tmp_path / "continuing.py").write_text(POLICY)
    package = tmp_path / "continuing-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: continuing\nVersion: 1\n")
    entry = "[vla_reasoner_ros.policy]\ncontinuing = continuing:Continuing\n"
    (package / "entry_points.txt").write_text(entry)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    parameters = {"planner.policy": "continuing", "planner.world_model": "none"}
    with ProcessGraph(tmp_path) as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, {"autostart": False, **parameters}))
        with GraphClient(graph) as client:
            rig = Rig(client)
            rig.statuses = client.node.create_publisher(
                ControllerStatus, "arm_controller_node/status", qos.STATE
            )
            rig.activate()
            client.wait(rig.statuses.get_subscription_count, 120.0, "the subscription")
            yield rig


def test_a_policy_continues_what_the_controller_has_frozen(rig):
    _, before = rig.decide()

    def continued():
        """Whether a decision began with the frozen action; the status may come after it."""
        nonlocal before
        rig.statuses.publish(
            ControllerStatus(
                header=header(rig.now_ms * 1_000_000 + 400_000_000),
                state=ControllerStatus.EXECUTING,
                sequence=before.sequence,
                actions_consumed=4,
                actions_frozen=6,
            )
        )
        _, chunk = rig.decide()
        ran, now = (np.array(c.actions).reshape(-1, 7)[:, 0] for c in (before, chunk))
        before = chunk
        return np.array_equal(now[:2], ran[4:6]) and now[2] not in ran

    rig.client.wait(continued, 120.0, "a chunk that begins with the frozen actions")


def test_while_the_arm_holds_nothing_is_continued(rig):
    _, before = rig.decide()
    for _ in range(3):
        rig.statuses.publish(
            ControllerStatus(
                header=header(rig.now_ms * 1_000_000 + 400_000_000),
                state=ControllerStatus.HOLDING,
                sequence=before.sequence,
                actions_consumed=4,
                actions_frozen=6,
            )
        )
        _, chunk = rig.decide()
        ran, now = (np.array(c.actions).reshape(-1, 7)[:, 0] for c in (before, chunk))
        assert not set(now) & set(ran)
        before = chunk
