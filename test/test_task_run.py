import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.search.statistics import SearchStatistics, Status
from vla_reasoner_ros.task_run import Ending, TaskParameters, TaskRun

SECOND = 1_000_000_000
PARAMETERS = TaskParameters(time_limit=10.0, success_value=0.9, success_time=1.0, patience=5.0)


def task(instruction="lift", time_limit=0.0, success_value=0.0, parameters=PARAMETERS):
    return TaskRun(instruction, time_limit, success_value, parameters, now_ns=0, wall_s=0.0)


def said(value=0.5, **fields):
    return SearchStatistics(value="progress", root_visits=8, root_value=value, **fields)


def ending(run):
    return run.end_reason and run.end_reason[0]


@pytest.mark.parametrize(
    ("instruction", "time_limit", "success_value", "named"),
    [
        (" ", 0.0, 0.0, "instruction: expected a text"),
        ("lift", -1.0, 0.0, "time_limit"),
        ("lift", math.nan, 0.0, "time_limit"),
        ("lift", math.inf, 0.0, "time_limit"),
        ("lift", 0.0, 1.5, "success_value"),
        ("lift", 0.0, math.nan, "success_value"),
    ],
)
def test_a_goal_that_means_nothing_is_refused(instruction, time_limit, success_value, named):
    with pytest.raises(ConfigurationError, match=named):
        task(instruction, time_limit, success_value)


def test_only_observations_with_its_own_instruction_belong_to_it():
    run = task()
    assert not run.observed("push")
    assert run.waiting
    assert ending(run) is None
    assert run.observed("lift")
    assert not run.waiting


def test_another_instruction_after_its_own_ends_it():
    run = task()
    run.observed("lift")
    assert not run.observed("push")
    assert ending(run) is Ending.INSTRUCTION_REPLACED
    assert "'push'" in run.end_reason[1]
    assert not run.observed("lift")


def test_it_is_done_when_the_value_stays_high_long_enough():
    run = task()
    for second, value in ((1, 0.95), (2, 0.8), (3, 0.91)):
        run.decided(said(value), second * SECOND, second)
    assert ending(run) is None
    run.decided(said(0.93), 4 * SECOND, 4)
    assert ending(run) is Ending.SUCCEEDED


def test_a_value_that_is_no_number_is_never_high():
    run = task()
    for second, value in ((1, math.nan), (2, 0.95), (3, math.nan), (4, 0.95)):
        run.decided(said(value), second * SECOND, second)
    assert ending(run) is None


def test_without_a_value_it_is_never_done_and_progress_is_unknown():
    run = task()
    for second in range(5):
        run.decided(SearchStatistics(root_value=1.0), second * SECOND, second)
    assert ending(run) is None
    assert math.isnan(run.progress(SECOND).value)


def test_time_is_that_of_the_nodes_clock():
    run = task(time_limit=2.0)
    run.check(1 * SECOND, 4.0)
    assert ending(run) is None
    run.check(2 * SECOND, 4.0)
    assert ending(run) is Ending.TIME_LIMIT


def test_time_goes_on_when_the_clock_jumps_back():
    run = task(time_limit=2.0)
    run.clock_jumped(-100.0)
    assert run.progress(-99 * SECOND).time_s == 1.0
    run.check(-98 * SECOND, 4.0)
    assert ending(run) is Ending.TIME_LIMIT


def test_silence_ends_it_but_a_pause_does_not():
    run = task()
    run.check(0, 4.9)
    run.paused(4.9)
    run.check(0, 9.8)
    assert ending(run) is None
    run.check(0, 9.9)
    assert ending(run) is Ending.NO_DECISION
    assert "no observation with this instruction came for 5 s" in run.end_reason[1]


def test_holds_alone_end_it_with_their_reason():
    run = task()
    run.observed("lift")
    for second in range(1, 6):
        hold = SearchStatistics(status=Status.HOLD, fallback_reason="the camera is blind")
        run.decided(hold, 0, float(second))
        run.check(0, float(second))
    assert ending(run) is Ending.HELD
    assert "the camera is blind" in run.end_reason[1]
    assert run.progress(0).fallbacks == 5


def test_what_was_decided_is_counted():
    run = task()
    run.decided(said(0.2, deviated=True), 0, 0.0)
    run.decided(said(0.3, status=Status.POLICY, fallback_reason="late"), 0, 0.0)
    progress = run.progress(3 * SECOND)
    assert (progress.decisions, progress.deviations, progress.fallbacks) == (2, 1, 1)
    assert (progress.value, progress.time_s, progress.fallback_reason) == (0.3, 3.0, "late")


@given(st.lists(st.sampled_from(list(Ending)), min_size=1))
def test_the_first_ending_counts(endings):
    run = task()
    for each in endings:
        run.end(each, each.name)
    assert run.end_reason == (endings[0], endings[0].name)
    assert run.ended.is_set()
