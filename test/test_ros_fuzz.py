"""Random and hostile messages against the active nodes; ``make fuzz`` sends many more."""

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import numpy as np
import rclpy
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from benchmark import fuzz_messages
from benchmark.fuzz_messages import Watch, fuzz
from benchmark.hostile_messages import CHANGES, HostileMessages, message
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
    for topic in (
        ("planner_node", "/observation"),
        ("camera_node", "/agent/image_raw"),
        ("view_node", "/search_tree"),
    ):
        assert 0 < dropped[topic] < 150, topic  # of those with an example some are still valid
    assert {c.node for c in counts} == set(QUICK)


@pytest.mark.parametrize("kind", [ActionChunk, Observation, Image])
def test_messages_repeat_from_their_seed_and_differ_without(kind):
    first, again, other = (str(message(kind, np.random.default_rng(s))) for s in (1, 1, 2))
    assert first == again != other


def test_an_example_goes_bad_field_by_field():
    example = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
    stream = HostileMessages(Image, np.random.default_rng(0), example)
    said = [str(stream.next(5_000_000_000)) for _ in range(2 * CHANGES)]
    example.header.stamp.sec = 5
    assert said[CHANGES] == str(example)
    assert said[CHANGES + 1] != str(example)
    assert len(set(said)) > CHANGES


def test_every_node_has_its_turn():
    folder = Path(fuzz_messages.__file__).parent.parent / "vla_reasoner_ros" / "nodes"
    assert set(fuzz_messages.NODES) == {path.stem for path in folder.glob("*_node.py")}


def test_a_command_would_be_noticed():
    watch = Watch()
    watch.heard("joint_trajectory", JointTrajectory())
    assert "a command was sent" in watch.problems[0]
