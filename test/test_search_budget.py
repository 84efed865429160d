"""Simulations and milliseconds, whichever ends first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.double_integrator import DoubleIntegrator
from vla_reasoner_ros.search.budget import Budget, Stop, WavePace
from vla_reasoner_ros.search.decide import candidates_of, choose_root
from vla_reasoner_ros.search.drift import DriftMonitor, commanded
from vla_reasoner_ros.search.gate import Verdict, ask
from vla_reasoner_ros.search.parameters import Drift, Gate, SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.types import ActionChunk, ActionSpec


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def search_with(budget, **values):
    problem = DoubleIntegrator(SearchParameters(**values), axes=2)
    outcome = problem.engine.search(
        problem.models, np.zeros((2, 2)), budget, np.random.default_rng(0), Stages()
    )
    return problem.engine, outcome


@given(
    st.lists(st.floats(0.001, 0.02), min_size=1, max_size=60),
    st.floats(0.0, 0.2),
    st.integers(1, 500),
)
def test_no_wave_starts_that_is_expected_to_overrun(durations, allowed, simulations):
    clock, pace = Clock(), WavePace()
    budget = Budget(simulations, clock.now + allowed, pace, clock=clock)
    for duration in durations:
        expected = pace.seconds
        size = budget.begin_wave(8)
        if not size:
            break
        assert clock.now + expected <= 100.0 + allowed
        assert size <= min(8, simulations - budget.done)
        clock.now += duration
        budget.end_wave(size)
    assert budget.done <= simulations


def test_a_steady_wave_never_misses_the_deadline_once_it_is_known():
    pace, clock = WavePace(), Clock()
    for decision in range(50):
        deadline = clock.now + 0.05
        budget = Budget(10_000, deadline, pace, clock=clock)
        while size := budget.begin_wave(32):
            clock.now += 0.004
            budget.end_wave(size)
        assert budget.stop is Stop.DEADLINE
        if decision > 2:
            assert clock.now <= deadline
            assert budget.done >= 10 * 32


def test_one_long_wave_does_not_stop_the_search_for_ever():
    pace, clock = WavePace(), Clock()
    pace.measured(10.0)
    started = 0
    for _ in range(20):
        budget = Budget(100, clock.now + 0.05, pace, clock=clock)
        while size := budget.begin_wave(32):
            clock.now += 0.004
            budget.end_wave(size)
            started += 1
    assert started > 0


def decide_again_and_again(pace, decisions, seconds, deadline=0.04, size=32):
    """Simulations done by each decision, and how often the deadline was missed.

    A wave of n simulations takes ``seconds(n)``.
    """
    clock, done, missed = Clock(), [], 0
    for _ in range(decisions):
        budget = Budget(100, clock.now + deadline, pace, clock=clock)
        until = clock.now + deadline
        while started := budget.begin_wave(size, 2):
            clock.now += seconds(started)
            budget.end_wave(started)
        done.append(budget.done)
        missed += clock.now > until
    return done, missed


def test_a_wave_that_never_fits_is_tried_once_in_about_twenty_decisions():
    _, missed = decide_again_and_again(WavePace(), 210, lambda size: 0.06)
    assert 8 <= missed <= 14


def test_a_wave_that_fits_again_after_a_long_time_is_found_out():
    pace = WavePace()
    decide_again_and_again(pace, 100, lambda size: 0.06)
    done, missed = decide_again_and_again(pace, 30, lambda size: 0.0001 * size)
    assert missed == 0
    assert done[-1] == 100


def test_a_wave_that_does_not_fit_is_made_smaller():
    done, missed = decide_again_and_again(WavePace(), 60, lambda size: 0.06 / 32 * size)
    assert missed == 1  # the first of all, which tells how long a wave takes
    assert all(simulations >= 16 for simulations in done[2:])


def test_waves_grow_again_where_there_is_time():
    pace = WavePace()
    decide_again_and_again(pace, 60, lambda size: 0.06 / 32 * size)
    assert pace.largest == 16
    sizes = []
    _, missed = decide_again_and_again(pace, 60, lambda size: sizes.append(size) or 0.001)
    assert missed == 0
    assert max(sizes) == 32


@given(st.integers(0, 12))
def test_an_interrupted_search_has_the_best_so_far(waves):
    polls = iter(range(1000))
    budget = Budget(400, interrupted=lambda: next(polls) >= waves)
    engine, outcome = search_with(budget, simulations=400)
    assert outcome.stop is Stop.INTERRUPTED
    assert engine.tree.nodes["in_flight"].sum() == 0
    if waves:
        choice = choose_root(engine, candidates_of(engine.tree, 0, 1.0))
        assert np.isfinite(choice.value)
        assert choice.value >= choice.policy_value
    else:
        assert outcome.simulations == 0


@pytest.mark.parametrize("method", ["tree", "best_of_n", "shooting", "cem", "mppi"])
def test_no_time_means_no_simulation(method):
    clock = Clock()
    budget = Budget(100, clock.now - 1.0, clock=clock)
    _, outcome = search_with(budget, simulations=100, method=method)
    assert outcome.simulations == 0
    assert outcome.stop is Stop.DEADLINE


def test_the_gate_skips_shortens_or_runs():
    gate = Gate(enabled=True, skip_slope=0.1, shorten_slope=0.05, agreement=0.05, trust=0.5)
    assert ask(Gate(), 1.0, 9.0) is Verdict.OFF
    assert ask(gate, 0.2, 0.01) is Verdict.SKIP
    assert ask(gate, 0.07, 0.01) is Verdict.SHORTEN
    assert ask(gate, 0.01, 0.01) is Verdict.RUN
    assert ask(gate, 0.2, 0.2) is Verdict.RUN
    assert ask(gate, -0.2, 0.6) is Verdict.SKIP


@pytest.mark.parametrize(
    ("slope", "verdict", "share"),
    [(-9.0, Verdict.SKIP, None), (9.0, Verdict.RUN, 1.0), (-9.5, Verdict.SHORTEN, 0.25)],
)
def test_the_gate_decides_after_the_policy_was_imagined(slope, verdict, share):
    skip = 10.0 if verdict is Verdict.SHORTEN else slope
    gate = Gate(enabled=True, skip_slope=skip, shorten_slope=slope)
    engine, outcome = search_with(Budget(200), simulations=200, gate=gate)
    assert outcome.verdict is verdict
    root = candidates_of(engine.tree, 0, 1.0)
    assert root.visits[0] >= 1
    if share is None:
        assert outcome.stop is Stop.GATE
        assert root.visits.sum() == 1
    else:
        assert outcome.allowed == 200 * share
        assert outcome.simulations == pytest.approx(outcome.allowed, abs=2)


def test_drift_needs_patience_and_recovers():
    monitor = DriftMonitor(Drift(threshold=1.0, patience=2))
    assert [monitor.update(d) for d in (2.0, 2.0, float("nan"), 0.5, 2.0)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    monitor.update(2.0)
    monitor.reset()
    assert not monitor.update(2.0)
    assert not DriftMonitor(Drift(threshold=0.0)).update(1e9)


def chunk(first, stamp_s, consumed=0, steps=8):
    spec = ActionSpec("joint_delta", ("a",), "", 0.1)
    actions = np.arange(first, first + steps, dtype=float)[:, None]
    return ActionChunk(spec, actions, int(stamp_s * 1e9), consumed=consumed)


def test_what_is_commanded_while_the_planner_thinks():
    previous, new = chunk(0, 0.0), chunk(100, 0.4)
    np.testing.assert_array_equal(commanded(previous, new, 4).ravel(), [100, 101, 102, 103])
    late = chunk(100, 0.4, consumed=2)
    np.testing.assert_array_equal(commanded(previous, late, 4).ravel(), [4, 5, 102, 103])
    assert commanded(None, late, 4) is None
    assert commanded(chunk(0, 0.0, steps=5), late, 4) is None
    assert commanded(previous, chunk(100, 0.4, steps=3), 4) is None
