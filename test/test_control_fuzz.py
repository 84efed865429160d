import os
from dataclasses import replace

import numpy as np
import pytest

from benchmark.fuzz_control import Episode, Judge, Report, fuzz, fuzz_in_parallel
from vla_reasoner_ros.control.executor import TimedTrajectory
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.spline import spline_to_rest
from vla_reasoner_ros.control.trajectory import MotionState, resting

MANY = int(os.environ.get("FUZZ_CHUNKS", "4000"))
FR3 = load_robot("fr3")
S = 1_000_000_000


def require_clean(report, chunks):
    assert report.problems == []
    assert report.chunks == chunks
    assert report.outcomes["accepted"] > 0.15 * chunks
    assert len(report.outcomes) >= 12


def test_hostile_chunks_break_no_limit_and_crash_nothing():
    require_clean(fuzz(1000, seed=1), 1000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_chunks_break_no_limit_and_crash_nothing():
    *_, report = fuzz_in_parallel(MANY, seed=100, jobs=os.cpu_count() or 1, share=1000)
    require_clean(report, MANY)


def test_an_episode_repeats_from_its_seed():
    reports = [Report(), Report()]
    for report in reports:
        Episode(7).run(40, report)
    assert reports[0].outcomes == reports[1].outcomes


# The judge itself must be able to find something.


def motion(duration):
    start = MotionState.at_rest(FR3.home)
    return spline_to_rest(FR3.joint_names, start, FR3.home[None] + 0.1, np.array([duration]))


def judged(*messages):
    judge = Judge(FR3, S)
    for when, message in messages:
        judge.receive(TimedTrajectory(S + round(when * S), message), S + round(when * S))
    judge.advance(5 * S)
    return " ".join(judge.problems)


def test_the_judge_accepts_a_slow_motion_and_finds_a_fast_one():
    assert judged((0.0, motion(1.0))) == ""
    assert "breaks its velocity limit" in judged((0.0, motion(0.1)))
    assert "breaks its jerk limit" in judged((0.0, motion(0.01)))


def test_the_judge_finds_a_jump_where_one_motion_replaces_another():
    elsewhere = resting(FR3.joint_names, FR3.home + 0.05, 0.001)
    assert "breaks its acceleration limit" in judged((0.0, motion(1.0)), (0.3, elsewhere))


def test_the_judge_rejects_what_the_controller_would_reject():
    good = motion(1.0)
    assert "does not end at rest" in judged((0.0, replace(good, velocities=good.velocities + 0.1)))
    assert "times do not ascend" in judged((0.0, replace(good, times=-good.times)))
