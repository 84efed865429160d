"""What of a running graph belongs to an episode."""

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from vla_reasoner_ros.msg import SearchStatistics
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.episodes import decisions_until

START, SECOND = 7_000_000_000, 1_000_000_000


def decided(sequence, after_s):
    stamp = to_stamp(START + round(after_s * SECOND))
    return SearchStatistics(sequence=sequence, observation_stamp=stamp)


def test_what_was_decided_after_the_end_is_no_part_of_the_episode():
    said = [decided(1, 0.0), decided(2, 0.4), decided(3, 0.8), decided(4, 1.2)]
    found = decisions_until(0.8, START, said, {}, {})
    assert [decision.time_s for decision in found] == [0.0, 0.4, 0.8]
    assert [decision.statistics["sequence"] for decision in found] == [1, 2, 3]


def test_a_decision_has_its_own_tree_and_its_own_picture_as_far_as_they_came():
    said = [decided(1, 0.0), decided(2, 0.4)]
    tree, picture = {"nodes": 3}, b"jpeg"
    pictures = {START + round(0.4 * SECOND): picture}
    first, second = decisions_until(1.0, START, said, {1: tree}, pictures)
    assert (first.tree, first.picture) == (tree, None)
    assert (second.tree, second.picture) == (None, picture)
