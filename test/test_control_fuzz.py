import os
from dataclasses import replace

import numpy as np
import pytest

from benchmark.arm_judge import Judge, departure
from benchmark.fuzz_control import Episode, Progress, Report, fuzz, fuzz_in_parallel, shares_of
from benchmark.hostile_chunks import KINDS, PLAUSIBLE, HostileChunks, singular_pose
from vla_reasoner_ros.control.executor import ChunkExecutor, TimedTrajectory
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.spline import spline_to_rest
from vla_reasoner_ros.control.trajectory import MotionState, resting
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Representation

MANY = int(os.environ.get("FUZZ_CHUNKS", "20000"))
FR3 = load_robot("fr3")
S = 1_000_000_000


def require_clean(report, chunks):
    assert report.problems == []
    assert report.chunks == chunks == sum(report.robots.values())
    outcomes = report.by_outcome()
    assert outcomes["accepted"] > 0.15 * chunks
    assert report.replaced > 0.1 * chunks
    assert len(outcomes) >= 12


def test_hostile_chunks_break_no_limit_and_crash_nothing():
    require_clean(fuzz(600, seed=1, episode=150), 600)


def test_a_short_stop_has_not_ended_when_it_arrives():
    # Here a stop of an arm at rest took less time than its message may take to the arm.
    assert fuzz(180, seed=16_100).problems == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_chunks_break_no_limit_and_crash_nothing():
    total = Report()
    for _, report in fuzz_in_parallel(shares_of(MANY, 100, 1000), os.cpu_count() or 1):
        total.add(report)
    require_clean(total, MANY)


def test_processes_find_the_same_as_one():
    shares = shares_of(30, seed=3, share=15)
    assert dict(fuzz_in_parallel(shares, 2)) == {share: fuzz(*share) for share in shares}


def test_an_episode_repeats_from_its_seed():
    reports = [Report(), Report()]
    for report in reports:
        Episode(7).run(40, report)
    assert reports[0].outcomes == reports[1].outcomes


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    path = tmp_path / "progress.jsonl"
    shares = shares_of(25, seed=3, share=10)
    assert shares == [(10, 3), (10, 13), (5, 23)]
    first = Progress(path)
    for share in shares[:2]:
        first.add(share, fuzz(*share))
    again = Progress(path)
    assert again.done == set(shares[:2])
    assert again.total == first.total
    path.write_text(path.read_text().replace('{"code": "', '{"code": "other'))
    assert Progress(path).done == set()  # other code has shown nothing about this one


def executor(**values):
    made = ChunkExecutor(build(ControlParameters, {"enable_control": True} | values))
    made.measured(S, made.robot.home, np.zeros(made.robot.joints))
    return made


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "millions of steps"])
def test_every_kind_of_hostile_chunk_can_be_made(kind):
    chunks = HostileChunks(np.random.default_rng(5), executor())
    chunks.make(PLAUSIBLE, S)
    for _ in range(20):
        try:
            assert chunks.make(kind, S).actions.size
        except (ActionChunkError, ConfigurationError):
            continue


def test_a_chunk_of_millions_of_steps_is_refused():
    arm = executor()
    long = HostileChunks(np.random.default_rng(5), arm).make("millions of steps", S)
    assert long.steps >= 1_000_000
    with pytest.raises(ChunkRejected, match="at most 256 are taken"):
        arm.submit(long, S)


def test_singular_poses_are_singular():
    arm = executor(robot="ur5e")
    pose = singular_pose(arm, np.random.default_rng(0))
    assert np.linalg.svd(arm.kinematics.jacobian(pose), compute_uv=False)[-1] < 1e-3


@pytest.mark.parametrize("clamped", [0.0, 1e-4])
def test_a_chunk_that_was_changed_without_a_word_is_found(clamped):
    arm = executor()
    spec = ActionSpec(Representation.JOINT_DELTA, FR3.joint_names, "", 0.1)
    chunk = ActionChunk(spec, np.full((4, 7), 0.004), S, 1)
    accepted = arm.submit(chunk, S)
    other = replace(chunk, actions=chunk.actions + clamped)
    found = departure(other, accepted, arm.kinematics, arm.parameters)
    assert ("became" in found) == bool(clamped)


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
