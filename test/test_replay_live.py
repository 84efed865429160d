"""What a replay makes of the arm: the actions that were executed whatever was decided live."""

import numpy as np
import pytest
import recordings
from recordings import START

from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.messages import (
    ACTION_CHUNK,
    SEARCH_STATISTICS,
    chunk_fields,
    statistics_fields,
)
from vla_reasoner_ros.evaluation.replay import replay_bag
from vla_reasoner_ros.evaluation.replay_live import CONTROLLER_STATUS, recorded_decisions
from vla_reasoner_ros.evaluation.replay_settings import read_settings
from vla_reasoner_ros.policies.small_vla import SmallVla
from vla_reasoner_ros.search.statistics import SearchStatistics
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Representation

MS = 1_000_000
EXECUTING, HOLDING = 2, 3
SPEC = ActionSpec(Representation.EE_DELTA, ("x", "y", "z", "rx", "ry", "rz"), "base", 0.1)
TOPICS = recordings.TOPICS | {
    "/action_chunk": ACTION_CHUNK,
    "/search_statistics": SEARCH_STATISTICS,
    "/arm_controller_node/status": CONTROLLER_STATUS,
}


def at(ms):
    return START + ms * MS


def decided(sequence, seen_ms, published_ms, took_ms):
    """A chunk whose actions are known by their numbers, and what is said of it."""
    actions = np.tile(np.arange(8.0)[:, None] + 100.0 * sequence, (1, 6))
    chunk = ActionChunk(SPEC, actions, at(seen_ms), sequence)
    said = SearchStatistics(
        observation_stamp_ns=at(seen_ms), sequence=sequence, time_ms=float(took_ms)
    )
    return [
        ("/action_chunk", at(published_ms), chunk_fields(chunk, at(published_ms))),
        ("/search_statistics", at(published_ms), statistics_fields(said, at(published_ms))),
    ]


def told(ms, sequence, consumed, frozen, state=EXECUTING):
    return (
        "/arm_controller_node/status",
        at(ms),
        {
            "header": {"stamp": at(ms)},
            "state": state,
            "sequence": sequence,
            "actions_consumed": consumed,
            "actions_frozen": frozen,
        },
    )


def happened(*events):
    flat = [event for part in events for event in (part if isinstance(part, list) else [part])]
    return recordings.events(2.0) + flat


RUN = happened(
    told(0, 0, 0, 0, HOLDING),
    decided(1, 100, 200, took_ms=80),
    told(250, 1, 0, 1),
    told(500, 1, 2, 3),  # heard before the second decision begins
    told(560, 1, 3, 4),  # while it is made
    decided(2, 500, 600, took_ms=80),
    told(650, 2, 1, 2),
    told(900, 2, 3, 4),
    decided(3, 900, 1000, took_ms=80),
    decided(1, 1300, 1400, took_ms=80),  # a new episode
)


@pytest.fixture
def bag(tmp_path):
    return recordings.record(tmp_path / "bag", sorted(RUN, key=lambda e: e[1]), TOPICS)


def decisions(path):
    with BagReader(path) as reader:
        found = recorded_decisions(reader, BagIngest(reader, recordings.contract()))
        assert reader.problems == []
    return [found[stamp_ns] for stamp_ns in sorted(found)]


def numbers(prefix):
    return None if prefix is None else prefix.actions[:, 0].tolist()


def test_what_the_controller_had_frozen_is_found_again(bag):
    first, second, third, anew = decisions(bag)
    assert first.controlled is anew.controlled is False  # an episode begins: nothing runs
    assert first.frozen is anew.frozen is None
    assert numbers(second.frozen) == [102.0]  # the status told while it was made comes too late
    assert numbers(third.frozen) == [203.0]  # one action passed during the second decision


def test_without_a_recorded_controller_nothing_is_known_of_the_arm(tmp_path):
    kept = [event for event in RUN if event[0] != "/arm_controller_node/status"]
    path = recordings.record(tmp_path / "bag", sorted(kept, key=lambda e: e[1]), TOPICS)
    assert [live.controlled for live in decisions(path)] == [False] * 4


def test_a_policy_that_continues_chunks_is_given_the_recorded_prefixes(bag, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        SmallVla,
        "condition_on_prefix",
        lambda self, prefix: given.append(numbers(prefix)),
        raising=False,
    )
    contract = tmp_path / "contract.yaml"
    contract.write_text(
        recordings.CONTRACT.replace("height: 24, width: 32", "height: 96, width: 96")
    )
    with BagReader(bag) as reader:
        settings = read_settings(
            reader, contract=str(contract), overrides={"planner.world_model": "none"}
        )
        rows = replay_bag(reader, settings, tmp_path / "replay").rows()
    assert [row["stamp_ns"] for row in rows] == [at(100), at(500), at(900), at(1300)]
    assert given[-4:] == [None, [102.0], [203.0], None]
