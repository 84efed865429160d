import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.control.parameters import ChunkParameters
from vla_reasoner_ros.control.queue import ChunkQueue, ChunkRejected, RejectionReason
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Representation

S = 1_000_000_000
START = 1_000 * S
NAMES = tuple(f"joint{i}" for i in range(7))


def spec(dt=0.1, names=NAMES):
    return ActionSpec(Representation.JOINT_POSITION, names, "", dt)


def chunk(sequence, stamp_ns, steps=8, dt=0.1, names=NAMES):
    return ActionChunk(spec(dt, names), np.zeros((steps, len(names))), stamp_ns, sequence)


def take(queue, new, now_ns, stretch=1.0):
    """What the executor does with a chunk whose motion is ``stretch`` times as long."""
    queue.require_acceptable(new, now_ns)
    trimmed = queue.trim(new, now_ns)
    queue.commit(new, trimmed, now_ns, [now_ns + round(stretch * t * S) for t in trimmed.due])
    return trimmed


def rejection(queue, new, now_ns):
    with pytest.raises(ChunkRejected) as caught:
        take(queue, new, now_ns)
    return caught.value.reason


@pytest.fixture
def queue():
    return ChunkQueue(ChunkParameters())


@given(st.floats(0.0, 1.9))
def test_the_first_chunk_loses_nothing_however_long_the_planner_thought(delay):
    trimmed = take(ChunkQueue(ChunkParameters()), chunk(1, START), START + round(delay * S))
    assert trimmed.first == 0
    assert trimmed.consumed == 0.0
    np.testing.assert_allclose(trimmed.due, 0.1 * np.arange(1, 9))


@given(st.integers(0, 7), st.integers(0, 7))
def test_the_next_chunk_loses_exactly_what_ran_since_its_observation(seen, thought):
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=20), START)
    observed = START + seen * S // 10
    now = observed + thought * S // 10
    trimmed = take(queue, chunk(2, observed), now)
    assert trimmed.first == thought
    assert trimmed.consumed == pytest.approx(thought)
    np.testing.assert_allclose(trimmed.due, 0.1 * np.arange(1, 9 - thought), atol=1e-9)


@given(st.floats(0.0, 0.75))
def test_half_an_action_is_trimmed_by_what_remains_of_it(thought):
    queue = ChunkQueue(ChunkParameters(min_remaining=0.5))
    take(queue, chunk(1, START, steps=20), START)
    trimmed = take(queue, chunk(2, START), START + round(thought * S))
    assert trimmed.due[0] >= 0.05 - 1e-6
    assert trimmed.due[0] < 0.15
    assert trimmed.first == len(np.flatnonzero(0.1 * np.arange(1, 9) - thought < 0.05 - 1e-7))


def test_a_motion_that_was_slowed_consumes_slower():
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=8), START, stretch=2.0)
    trimmed = take(queue, chunk(2, START), START + 4 * S // 10)
    assert trimmed.consumed == pytest.approx(2.0)
    assert trimmed.first == 2


def test_while_the_arm_rests_nothing_is_consumed():
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=4), START)
    observed = START + S
    trimmed = take(queue, chunk(2, observed), observed + S // 2)
    assert (trimmed.first, trimmed.consumed) == (0, 0.0)


def test_a_motion_that_ends_while_the_planner_thinks_counts_until_its_end():
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=4), START)
    trimmed = take(queue, chunk(2, START + 2 * S // 10), START + S)
    assert trimmed.consumed == pytest.approx(2.0)


def test_no_action_is_past_before_a_clock_that_jumped_back(queue):
    for sequence in range(1, 30):  # the time line begins after the first ones
        take(queue, chunk(sequence, START + sequence * S // 2), START + sequence * S // 2)
    before = START - 70 * S
    assert queue.actions_consumed(before) == 0
    assert queue.actions_frozen(before) == 0


def test_an_interruption_stops_the_count():
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=20), START)
    queue.interrupt(START + S // 2)
    assert queue.actions_consumed(START + S) == 5


def test_replacement_keeps_the_count_of_what_ran_before():
    queue = ChunkQueue(ChunkParameters())
    take(queue, chunk(1, START, steps=20), START)
    take(queue, chunk(2, START + 3 * S // 10, steps=20), START + 5 * S // 10)
    assert queue.actions_consumed(START + 5 * S // 10) == 2
    third = take(queue, chunk(3, START + 4 * S // 10, steps=20), START + 9 * S // 10)
    assert third.consumed == pytest.approx(5.0)


@given(st.lists(st.tuples(st.floats(0.0, 0.6), st.floats(0.0, 0.6)), min_size=1, max_size=30))
def test_actions_of_the_newest_chunk_are_counted_on_and_on(gaps):
    queue = ChunkQueue(ChunkParameters())
    now, observed = START, START
    for sequence, (thought, pause) in enumerate(gaps, start=1):
        observed, now = now, now + round(thought * S)
        trimmed = take(queue, chunk(sequence, observed), now)
        assert queue.actions_consumed(now) == int(trimmed.consumed + 1e-6)
        now += round(pause * S)
        assert (
            queue.actions_consumed(now) == int(min(trimmed.consumed + 10.0 * pause, 8.0) + 1e-5)
            or abs(10.0 * pause % 1.0) < 1e-5
        )


# What is refused.


def test_an_old_observation(queue):
    limit = queue.parameters.max_observation_age
    reason = rejection(queue, chunk(1, START), START + round((limit + 0.01) * S))
    assert reason is RejectionReason.STALE_OBSERVATION


def test_an_observation_from_the_future(queue):
    assert rejection(queue, chunk(1, START + S), START) is RejectionReason.FUTURE_OBSERVATION


def test_the_same_sequence_twice(queue):
    take(queue, chunk(1, START), START)
    assert rejection(queue, chunk(1, START), START + 1000) is RejectionReason.DUPLICATE


def test_a_smaller_sequence_or_an_older_observation(queue):
    take(queue, chunk(5, START), START)
    late = chunk(4, START + 1000)
    assert rejection(queue, late, START + 2000) is RejectionReason.OUT_OF_ORDER
    older = chunk(6, START - 1000)
    assert rejection(queue, older, START + 2000) is RejectionReason.OUT_OF_ORDER


def test_a_planner_that_was_started_anew_is_heard_once_the_old_one_is_silent(queue):
    take(queue, chunk(50, START), START)
    assert rejection(queue, chunk(1, START + S), START + S) is RejectionReason.OUT_OF_ORDER
    later = START + 5 * S
    take(queue, chunk(1, later), later)
    assert rejection(queue, chunk(1, later), later) is RejectionReason.DUPLICATE


def test_a_chunk_of_which_all_is_past(queue):
    take(queue, chunk(1, START, steps=20), START)
    assert rejection(queue, chunk(2, START, steps=3), START + S) is RejectionReason.ALL_PAST


def test_another_time_step_or_convention_than_the_running_stream(queue):
    take(queue, chunk(1, START), START)
    assert rejection(queue, chunk(2, START, dt=0.05), START) is RejectionReason.TIME_STEP
    other = chunk(2, START, names=("a", "b"))
    assert rejection(queue, other, START) is RejectionReason.CONVENTION


@pytest.mark.parametrize("dt", [5e-324, 1e-9, 1e-3, 3.0, 1e300])
def test_a_time_step_out_of_range(queue, dt):
    assert rejection(queue, chunk(1, START, dt=dt), START) is RejectionReason.TIME_STEP


def test_more_steps_than_are_taken(queue):
    steps = queue.parameters.max_steps + 1
    assert rejection(queue, chunk(1, START, steps=steps), START) is RejectionReason.TOO_LONG


def test_what_was_seen_before_a_stop_or_a_reset(queue):
    take(queue, chunk(1, START), START)
    queue.interrupt(START + S)
    assert rejection(queue, chunk(2, START + S - 1), START + S) is RejectionReason.BEFORE_RESET
    take(queue, chunk(2, START + S), START + S)
    queue.clear(START + 2 * S)
    old = chunk(1, START + 2 * S - 1)
    assert rejection(queue, old, START + 2 * S) is RejectionReason.BEFORE_RESET
    assert take(queue, chunk(1, START + 2 * S), START + 2 * S).first == 0
