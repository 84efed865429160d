import math

import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.pacing import Pacer, PacingParameters

TICK = 10_000_000
SECOND = 1_000_000_000


def pacer(**parameters):
    return Pacer(PacingParameters(**parameters), TICK, time_ns=5 * SECOND, wall=100.0)


def run(pacer, walls, time_ns=5 * SECOND):
    for wall in walls:
        time_ns += pacer.ticks(time_ns, wall) * TICK
    return (time_ns - 5 * SECOND) / SECOND


def steps(start, stop, step=0.004):
    return [start + i * step for i in range(round((stop - start) / step) + 1)]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_time_passes_at_the_factor_of_the_wall_clock(factor):
    assert run(pacer(real_time_factor=factor), steps(100.0, 102.0)) == pytest.approx(
        2.0 * factor, abs=TICK / SECOND
    )


def test_without_a_factor_every_turn_computes_the_most():
    assert run(pacer(real_time_factor=0.0), [100.0] * 5) == pytest.approx(0.5)


def test_a_stall_of_the_machine_is_not_made_up_for():
    passed = run(pacer(), [*steps(100.0, 101.0), *steps(107.0, 108.0)])
    assert passed == pytest.approx(2.1, abs=0.02)


def test_the_wait_ends_when_the_next_tick_is_due():
    slow = pacer(real_time_factor=0.5)
    assert slow.ticks(5 * SECOND, 100.0) == 0
    assert slow.wait(5 * SECOND, 100.0) == pytest.approx(0.02)
    assert slow.wait(5 * SECOND, 100.015) == pytest.approx(0.005)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_lockstep_passes_one_period_for_each_accepted_trajectory(factor):
    lockstep = pacer(real_time_factor=factor, lockstep=True, lockstep_patience=0.0)
    assert run(lockstep, steps(100.0, 103.0)) == 0.0
    assert lockstep.wait(5 * SECOND, 103.0) == math.inf
    lockstep.accepted(5 * SECOND)
    assert run(lockstep, steps(103.0, 106.0)) == pytest.approx(0.4)
    assert lockstep.standing(5 * SECOND + 400_000_000)


def test_a_trajectory_accepted_on_the_way_moves_the_stop():
    lockstep = pacer(real_time_factor=0.0, lockstep=True, lockstep_period=0.4)
    lockstep.accepted(5 * SECOND)
    lockstep.accepted(5 * SECOND + 300_000_000)
    assert run(lockstep, [100.0] * 20) == pytest.approx(0.7)


def test_standing_still_is_not_made_up_for_in_real_time():
    lockstep = pacer(real_time_factor=1.0, lockstep=True, lockstep_patience=0.0)
    run(lockstep, steps(100.0, 130.0))
    lockstep.accepted(5 * SECOND)
    assert run(lockstep, steps(130.0, 130.2)) == pytest.approx(0.2, abs=0.011)


def test_a_restart_stands_at_the_new_time():
    lockstep = pacer(real_time_factor=0.0, lockstep=True)
    lockstep.accepted(5 * SECOND)
    lockstep.restart(9 * SECOND, 101.0)
    assert lockstep.standing(9 * SECOND)
    assert lockstep.ticks(9 * SECOND, 101.0) == 0


def test_a_period_off_the_grid_is_refused():
    with pytest.raises(ConfigurationError, match="whole number of ticks"):
        pacer(lockstep=True, lockstep_period=0.405)


def test_patience_lets_a_period_pass_when_a_message_was_lost():
    lockstep = pacer(real_time_factor=0.0, lockstep=True, lockstep_patience=10.0)
    assert run(lockstep, [100.0, 105.0, 109.9]) == 0.0
    assert lockstep.wait(5 * SECOND, 109.9) == pytest.approx(0.1)
    assert run(lockstep, [110.0] * 10) == pytest.approx(0.4)


def test_patience_begins_anew_with_every_trajectory():
    lockstep = pacer(real_time_factor=0.0, lockstep=True, lockstep_patience=10.0)
    run(lockstep, [100.0, 109.0])
    lockstep.accepted(5 * SECOND)
    assert run(lockstep, [109.5, 109.6, 109.7, 109.8, 109.9, 112.0, 119.0]) == pytest.approx(0.4)
