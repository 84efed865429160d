"""What docs/policies/remote_planner.md says of bandwidth, against the messages that travel."""

import re

import numpy as np
import pytest
import tiny_policies as tiny
from rclpy.serialization import serialize_message

from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.ros.conversions import chunk_to_message, observation_to_message
from vla_reasoner_ros.types import ActionChunk

PAGE = (share_directory() / "docs" / "policies" / "remote_planner.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| (\d) of (\d+)x(\d+).*?\| ([\d.]+) (kB|MB) \| ([\d.]+) Mbit/s \|")


def test_the_table_of_observations_is_what_the_messages_measure():
    rows = ROW.findall(PAGE)
    assert len(rows) == 4
    for count, height, width, size, unit, rate in rows:
        shape = (int(height), int(width), 3)
        images = {f"camera{i}": np.zeros(shape, np.uint8) for i in range(int(count))}
        measured = len(serialize_message(observation_to_message(tiny.seen(images=images))))
        assert float(size) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(measured, rel=0.02)
        assert float(rate) == pytest.approx(80e-6 * measured, rel=0.02)


def test_a_chunk_of_fifty_actions_is_under_five_kilobytes():
    assert "under 5 kB" in PAGE
    chunk = ActionChunk(DEFAULT_SPEC, np.zeros((50, 7)), 1)
    assert len(serialize_message(chunk_to_message(chunk, 2))) < 5000
