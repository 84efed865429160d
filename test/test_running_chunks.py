"""Which actions are executed whatever is decided: told by the controller, not guessed from time."""

import numpy as np
import pytest

from vla_reasoner_ros.control.commands import ControllerState, ExecutorStatus
from vla_reasoner_ros.control.parameters import ChunkParameters
from vla_reasoner_ros.control.queue import ChunkQueue, Trimmed
from vla_reasoner_ros.running_chunks import RunningChunks
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Representation

S, MS = 1_000_000_000, 1_000_000
SPEC = ActionSpec(Representation.EE_DELTA, ("x", "y", "z", "rx", "ry", "rz"), "base", 0.1)


def chunk(sequence, stamp_ms):
    """A chunk whose every action is known by its number."""
    actions = np.arange(8.0)[:, None] + 100.0 * sequence
    return ActionChunk(SPEC, np.tile(actions, (1, 6)), stamp_ms * MS, sequence)


def status(sequence, consumed, frozen, state=ControllerState.EXECUTING):
    return ExecutorStatus(state, "", sequence, consumed, 1, 0, "", 0.0, frozen)


def numbers(prefix):
    return [] if prefix is None else prefix.actions[:, 0].tolist()


@pytest.fixture
def running():
    running = RunningChunks()
    running.published(chunk(1, 1000))
    running.reported(status(1, 0, 1), 1000 * MS)
    running.reported(status(1, 1, 2), 1100 * MS)
    running.reported(status(1, 3, 4), 1300 * MS)
    return running


def test_what_the_controller_has_frozen_since_the_observation_is_the_prefix(running):
    assert numbers(running.frozen(1300 * MS)) == [103.0]
    assert numbers(running.frozen(1100 * MS)) == [101.0, 102.0, 103.0]


def test_as_many_more_as_passed_during_the_last_decision(running):
    running.published(chunk(2, 1100))  # two actions passed since its observation
    assert numbers(running.frozen(1300 * MS)) == [103.0, 104.0]


def test_an_arm_that_stands_freezes_nothing_however_much_time_passes(running):
    for state in (ControllerState.HOLDING, ControllerState.STOPPED, ControllerState.DRY_RUN):
        running.reported(status(1, 3, 4, state), 9000 * MS)
        assert running.frozen(9000 * MS) is None


def test_a_slow_arm_freezes_by_its_own_count(running):
    running.reported(status(1, 3, 4), 3000 * MS)
    assert numbers(running.frozen(3000 * MS)) == [103.0]


def test_a_chunk_that_was_never_published_here_is_no_prefix(running):
    running.reported(status(7, 1, 2), 1400 * MS)
    assert running.frozen(1400 * MS) is None


def test_a_new_episode_knows_nothing(running):
    assert running.known
    running.clear()
    assert not running.known
    assert running.frozen(1300 * MS) is None


def test_a_clock_that_jumps_back_takes_what_was_said_later_along(running):
    running.reported(status(1, 0, 1), 500 * MS)
    assert numbers(running.frozen(500 * MS)) == [100.0]


@pytest.mark.parametrize(
    ("ahead", "frozen"),
    [(0.0, 0), (0.04, 0), (0.06, 1), (0.14, 1), (0.16, 2), (0.79, 8), (5.0, 8)],
)
def test_frozen_are_those_that_a_chunk_taking_over_then_would_count_as_past(ahead, frozen):
    queue = ChunkQueue(ChunkParameters())
    first = chunk(1, 1000)
    ends = [S + round(0.1 * S * (i + 1)) for i in range(8)]
    queue.commit(first, Trimmed(0, 0.1 * np.arange(1.0, 9.0), 0.0), S, ends)
    now = S + round(ahead * S)
    assert queue.actions_frozen(now) == frozen
    if frozen < 8:
        assert queue.trim(chunk(2, 1000), now).first == frozen


def test_before_the_first_chunk_nothing_is_frozen():
    assert ChunkQueue(ChunkParameters()).actions_frozen(S) == 0
