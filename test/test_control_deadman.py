"""The deadman's rules, with a judge that plays every command as the arm's controller would."""

import numpy as np
import pytest

from benchmark.arm_judge import Judge
from vla_reasoner_ros.control.commands import ControllerState, TimedTrajectory
from vla_reasoner_ros.control.deadman import Deadman, DeadmanParameters, SignOfLifeError
from vla_reasoner_ros.control.executor import ResetRefused
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.spline import spline_to_rest
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.parameters import build

FR3 = load_robot("fr3")
MS, S = 1_000_000, 1_000_000_000


class Watch:
    """A deadman, the two it listens to, and an arm."""

    def __init__(self, **changes):
        self.deadman = Deadman(FR3, build(DeadmanParameters, changes))
        self.now, self.wall = 1000 * S, 50.0
        self.judge = Judge(FR3, self.now)
        self.stops = []
        self.voices = [self.controller, self.planner]
        self.behind = np.full(7, 5e-4)  # rad, by which the arm is not where it should be

    def controller(self, **changes):
        self.deadman.controller_spoke(self.now, self.now, self.wall, **changes)

    def planner(self):
        """Every tenth look, from an observation of a tenth of a second before."""
        if self.now // MS % 100 == 0:
            self.deadman.planner_spoke(self.now - S // 10, self.now, self.wall)

    def joints(self):
        if self.behind is not None:
            position, velocity, _ = self.judge.desired(self.now)
            self.deadman.measured(self.now, position - self.behind, velocity, self.now)

    def command(self, duration=3.0, distance=0.6):
        """A motion of joint 1, sent as the arm controller sends it."""
        way = np.zeros((4, 7))
        way[:, 0] = distance * np.array([0.2, 0.5, 0.8, 1.0])
        self.joints()
        start = MotionState.at_rest(FR3.home)
        motion = spline_to_rest(FR3.joint_names, start, FR3.home + way, np.full(4, duration / 4))
        sent = without_start(motion, self.now)
        self.judge.receive(sent, self.now)
        self.deadman.commanded(sent.told, self.now, self.now, self.wall)

    def run(self, seconds, wall_only=False):
        for _ in range(round(seconds * 100)):
            self.wall += 0.01
            self.now += 0 if wall_only else 10 * MS
            for voice in (*self.voices, self.joints):
                voice()
            stop = self.deadman.tick(self.now, self.wall)
            if stop is not None:
                self.stops.append(self.now)
                self.judge.receive(stop, self.now)
        self.judge.advance(self.now)
        assert self.judge.problems == []

    def at_rest(self):
        return not np.diff(self.judge._tail, axis=0).any()


def without_start(motion, start_ns):
    """As a motion is sent of which the arm's controller is not known to be at its start."""
    return TimedTrajectory(start_ns, motion, known_ns=start_ns + round(motion.times[1] * S))


def test_a_motion_whose_steerers_speak_is_left_alone():
    watch = Watch()
    watch.command()
    watch.run(4.0)
    assert watch.stops == []
    assert watch.deadman.reason == ""


@pytest.mark.parametrize(
    ("silent", "changes", "reason"),
    [
        (0, {}, "the arm controller silent for 0.21"),
        (1, {"planner_timeout": 0.3}, "the planner silent for 0.31"),
    ],
)
def test_silence_while_the_arm_moves_stops_it_within_the_limits(silent, changes, reason):
    watch = Watch(**changes)
    watch.command()
    watch.run(1.0)
    del watch.voices[silent]
    watch.run(0.8)
    assert len(watch.stops) == 1
    assert watch.at_rest()
    assert watch.deadman.reason.startswith(reason)
    assert watch.deadman.status(watch.now).state is ControllerState.STOPPED


@pytest.mark.parametrize("moved", [0.02, 0.1, 0.25, 0.5, 0.74, 0.76, 1.5, 2.9])
@pytest.mark.parametrize("behind", [None, 0.0, 0.01, -0.01])
def test_a_stop_at_any_time_of_a_first_motion_is_within_the_limits(moved, behind):
    """A message does not say where its motion starts, and its first point is 0.75 s ahead."""
    watch = Watch()
    watch.behind = None if behind is None else np.full(7, behind)
    watch.command()
    watch.run(moved)
    watch.deadman.latch("a fault")
    watch.run(0.02)
    assert len(watch.stops) == (behind is not None or moved > 0.73)
    watch.run(0.3 if behind is not None or moved > 0.7 else 1.1)
    assert len(watch.stops) == 1
    assert watch.at_rest()


def test_a_motion_that_starts_nobody_knows_where_goes_on_to_its_first_point():
    """The arm was moved by hand since its last one."""
    watch = Watch()
    watch.command()
    watch.run(4.0)
    pose = FR3.home + 0.3
    watch.judge = Judge(FR3, watch.now, pose)
    watch.run(0.1)
    way = pose + np.array([[0.05], [0.1]])
    motion = spline_to_rest(FR3.joint_names, MotionState.at_rest(pose), way, np.full(2, 0.5))
    sent = without_start(motion, watch.now)
    watch.judge.receive(sent, watch.now)
    watch.deadman.commanded(sent.told, watch.now, watch.now, watch.wall)
    watch.run(0.2)
    watch.deadman.latch("a fault")
    watch.run(0.6)
    assert watch.at_rest()
    assert watch.judge.desired(watch.now)[0][0] < pose[0] + 0.09


def test_a_controller_that_is_silent_by_the_wall_clock_is_noticed_while_time_stands_still():
    watch = Watch()
    watch.command()
    watch.run(1.0)
    watch.voices.clear()
    watch.run(0.6, wall_only=True)
    assert "silent for 0.51" in watch.deadman.reason
    assert "of the wall clock" in watch.deadman.reason
    assert len(watch.stops) == 1
    watch.run(0.8)
    assert watch.at_rest()


def test_the_planner_may_be_silent_while_the_controller_moves_the_arm_by_itself():
    watch = Watch(planner_timeout=0.3)
    watch.voices = [lambda: watch.controller(executing=False)]
    watch.command()
    watch.run(4.0)
    assert watch.stops == []


@pytest.mark.parametrize("who", ["the arm controller", "the planner"])
@pytest.mark.parametrize(
    "lie", ["said again", "from the future", "from the past"], ids=lambda lie: lie.replace(" ", "_")
)
def test_what_is_not_said_now_is_no_sign_of_life(who, lie):
    """A publisher stuck on its last message, a bag beside the arm, another clock."""
    watch = Watch(planner_timeout=0.3)
    watch.command()
    watch.run(1.0)
    stuck = watch.now

    def liar():
        stamp = {"said again": stuck, "from the future": watch.now + S, "from the past": S}[lie]
        speak = watch.deadman.controller_spoke
        if who == "the planner":
            speak, stamp = watch.deadman.planner_spoke, stamp - S // 10
        try:
            speak(stamp, watch.now, watch.wall)
        except SignOfLifeError as error:
            refused.append(str(error))

    refused = []
    watch.voices[who == "the planner"] = liar
    watch.run(0.8)
    assert watch.deadman.reason.startswith(f"{who} silent for")
    assert len(watch.stops) == 1
    assert watch.at_rest()
    assert refused or (who, lie) == ("the arm controller", "said again")


def test_a_planner_that_answers_to_old_observations_only_does_not_count():
    watch = Watch(planner_timeout=0.5)
    with pytest.raises(SignOfLifeError, match=r"from an observation 0\.600 s old"):
        watch.deadman.planner_spoke(watch.now - 600 * MS, watch.now, watch.wall)


def test_a_planner_that_was_started_anew_counts_at_once():
    """Its sequence begins again; the observations go on."""
    watch = Watch(planner_timeout=0.5)
    watch.command()
    watch.run(0.4)
    watch.voices.pop()
    watch.run(0.4)
    watch.voices.append(watch.planner)
    watch.run(2.0)
    assert watch.stops == []


def test_after_a_jump_back_in_time_what_is_said_then_counts():
    watch = Watch(planner_timeout=0.3)
    watch.command()
    watch.run(0.5)
    watch.now -= 100 * S
    watch.judge = Judge(FR3, watch.now)
    watch.run(0.1)
    watch.command()
    watch.run(2.0)
    assert watch.stops == []


def test_silence_while_the_arm_stands_is_of_no_concern():
    watch = Watch()
    watch.voices.clear()
    watch.run(5.0)
    watch.command()
    watch.run(0.1)
    assert watch.stops == []  # and it counts from the start of the motion


def test_the_stop_is_latched_and_a_reset_refuses_while_the_controller_is_silent():
    watch = Watch()
    watch.command()
    watch.run(1.0)
    voices, watch.voices = watch.voices, []
    watch.run(0.22)
    with pytest.raises(ResetRefused, match="still decelerates"):
        watch.deadman.reset(watch.now, watch.wall)
    watch.run(1.0)
    with pytest.raises(ResetRefused, match="the arm controller silent"):
        watch.deadman.reset(watch.now, watch.wall)
    watch.voices = voices
    watch.run(0.1)
    start = watch.judge._tail[-1]
    way = start + np.array([[0.1, 0, 0, 0, 0, 0, 0]])
    again = spline_to_rest(FR3.joint_names, MotionState.at_rest(start), way, np.array([1.0]))

    def command():
        sent = TimedTrajectory(watch.now, again)
        watch.judge.receive(sent, watch.now)
        watch.deadman.commanded(sent.told, watch.now, watch.now, watch.wall)

    command()
    watch.run(0.5)
    assert len(watch.stops) == 2  # latched: the new motion was stopped too
    watch.deadman.reset(watch.now, watch.wall)
    assert watch.deadman.reason == ""


def test_a_stop_for_what_the_outside_found_is_latched_and_its_first_reason_stays():
    watch = Watch()
    watch.command()
    watch.run(0.8)
    for problem in ("the stream ended in motion", "and another thing"):
        watch.deadman.latch(problem)
    assert (watch.deadman.reason, watch.deadman.stops) == ("the stream ended in motion", 1)
    watch.run(0.02)
    assert len(watch.stops) == 1
    watch.run(1.0)
    assert watch.at_rest()
    watch.deadman.reset(watch.now, watch.wall)
    assert watch.deadman.reason == ""


def test_after_a_jump_back_in_time_it_knows_of_no_motion():
    watch = Watch()
    watch.command()
    watch.run(0.5)
    watch.voices.clear()
    watch.now -= 100 * S
    assert watch.deadman.tick(watch.now, watch.wall) is None
    assert watch.deadman.status(watch.now).state is ControllerState.WAITING


def test_a_command_that_the_arm_would_refuse_changes_nothing():
    watch = Watch()
    watch.command()
    other = JointTrajectory(("a",), np.array([1.0]), *(np.zeros((1, 1)) for _ in range(3)))
    with pytest.raises(TrajectoryError, match="expected joints"):
        watch.deadman.commanded(other, watch.now, watch.now, watch.wall)
    assert watch.deadman.status(watch.now).state is ControllerState.EXECUTING
