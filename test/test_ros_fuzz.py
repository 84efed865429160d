"""Random and hostile messages against the active nodes; ``make fuzz`` sends many more."""

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import numpy as np
import rclpy
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from benchmark import fuzz_messages
from benchmark.fuzz_messages import Watch, fuzz, message
from vla_reasoner_ros.msg import ActionChunk, Observation

QUICK = ("camera_node", "arm_controller_node", "deadman_node", "view_node", "planner_node")


@pytest.fixture
def ros(monkeypatch):
    monkeypatch.setitem(
        fuzz_messages.NODES, "planner_node", ("PlannerNode", {"planner.world_model": "none"})
    )
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.mark.timeout(600)
def test_no_message_crashes_a_node_or_moves_the_arm_and_all_are_counted(ros):
    counts, problems = fuzz(QUICK, 150, seed=0)
    assert problems == []
    dropped = {(c.node, c.topic): c.dropped for c in counts}
    assert dropped["arm_controller_node", "/action_chunk"] == 150
    assert dropped["arm_controller_node", "/joint_trajectory"] == 150
    assert dropped["planner_node", "/observation"] == 150
    assert dropped["camera_node", "/agent/image_raw"] == 150
    assert {c.node for c in counts} == set(QUICK)


@pytest.mark.parametrize("kind", [ActionChunk, Observation, Image])
def test_messages_repeat_from_their_seed_and_differ_without(kind):
    first, again, other = (str(message(kind, np.random.default_rng(s))) for s in (1, 1, 2))
    assert first == again != other


def test_every_node_has_its_turn():
    folder = Path(fuzz_messages.__file__).parent.parent / "vla_reasoner_ros" / "nodes"
    assert set(fuzz_messages.NODES) == {path.stem for path in folder.glob("*_node.py")}


def test_a_command_would_be_noticed():
    watch = Watch()
    watch.heard("joint_trajectory", JointTrajectory())
    assert "a command was sent" in watch.problems[0]
