import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from benchmark.arm_judge import Judge
from vla_reasoner_ros.control.executor import (
    ChunkExecutor,
    ControllerState,
    ResetRefused,
    TimedTrajectory,
)
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected, RejectionReason
from vla_reasoner_ros.control.spline import limited_spline_to_rest
from vla_reasoner_ros.control.trajectory import JointTrajectory, resting
from vla_reasoner_ros.errors import ConfigurationError, ObservationError, TrajectoryError
from vla_reasoner_ros.parameters import build, replace
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    ChunkSource,
    GripperSpec,
    Representation,
)

S = 1_000_000_000
MS = 1_000_000
GRIPPER = GripperSpec(6)
DELTA = ActionSpec(
    Representation.EE_DELTA, ("x", "y", "z", "rx", "ry", "rz", "gripper"), "base", 0.1, GRIPPER
)


class Rig:
    """An executor, an arm that follows exactly, and a judge of every command."""

    def __init__(self, **changes):
        values = {
            "enable_control": True,
            "motion.settle_time": 0.0,
            "motion.lead_time": 0.0,
            "motion.stop_lead_time": 0.0,
        }
        values |= {name.replace("__", "."): value for name, value in changes.items()}
        self.parameters = build(ControlParameters, values)
        self.executor = ChunkExecutor(self.parameters)
        self.robot = self.executor.robot
        self.now = 1_000 * S
        self.judge = Judge(self.robot, self.now)
        self.sent = []
        self.grips = []
        self.sequence = 0
        self.offset = np.zeros(self.robot.joints)
        self.measure()

    def spec(self, representation):
        return ActionSpec(representation, self.robot.joint_names, "", 0.1)

    def measure(self):
        position, velocity, _ = self.judge.desired(self.now)
        self.executor.measured(self.now, position + self.offset, velocity)

    def publish(self, commands):
        if commands.trajectory is not None:
            self.sent.append(commands.trajectory)
            self.judge.receive(commands.trajectory, self.now)
        if commands.gripper is not None:
            self.grips.append((round((self.now - 1_000 * S) / S, 3), commands.gripper))

    def chunk(self, motion, gripper=1.0, age=0.0, spec=DELTA, sequence=None):
        motion = np.atleast_2d(motion)
        if spec is DELTA:
            grips = np.broadcast_to(np.asarray(gripper, dtype=float), len(motion))
            motion = np.column_stack([motion, grips])
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return ActionChunk(spec, motion, self.now - round(age * S), self.sequence)

    def submit(self, chunk):
        accepted = self.executor.submit(chunk, self.now)
        self.publish(accepted.commands)
        return accepted

    def rejected(self, chunk):
        with pytest.raises(ChunkRejected) as caught:
            self.submit(chunk)
        return caught.value.reason

    def run(self, seconds, measure=True):
        end = self.now + round(seconds * S)
        while self.now < end:
            self.now += 10 * MS
            if measure:
                self.measure()
            self.publish(self.executor.tick(self.now))
        self.judge.advance(self.now)
        assert self.judge.problems == []

    def move(self):
        """A chunk that is under way for half a second."""
        self.submit(self.chunk(FORWARD))
        self.run(0.3)
        assert not self.executor.commanded(self.now).resting

    @property
    def state(self):
        return self.executor.status(self.now).state

    @property
    def reason(self):
        return self.executor.status(self.now).reason

    def pose(self):
        return self.executor.kinematics.forward(self.executor.commanded(self.now).position)


FORWARD = np.tile([0.012, 0.006, -0.01, 0.0, 0.0, 0.02], (8, 1))


def test_a_chunk_of_displacements_ends_where_they_add_up_to():
    rig = Rig()
    position, quaternion = rig.pose()
    accepted = rig.submit(rig.chunk(FORWARD))
    assert accepted.stretch < 1.02
    rig.run(1.5)
    reached, turned = rig.pose()
    np.testing.assert_allclose(reached, position + FORWARD[:, :3].sum(axis=0), atol=1e-3)
    turn = Rotation.from_quat(turned) * Rotation.from_quat(quaternion).inv()
    np.testing.assert_allclose(turn.as_rotvec(), [0.0, 0.0, 0.16], atol=5e-3)
    assert rig.state is ControllerState.HOLDING
    assert rig.reason == "no new chunk"


@pytest.mark.parametrize("lead", [0.0, 0.02, 0.05])
def test_chunks_that_follow_one_another_in_time_are_one_motion(lead):
    rig = Rig(motion__lead_time=lead)
    for _ in range(6):
        accepted = rig.submit(rig.chunk(0.5 * FORWARD))
        assert accepted.trimmed == 0
        rig.run(0.4)
        assert rig.state is ControllerState.EXECUTING
    speeds = [np.linalg.norm(motion.trajectory.velocities[0]) for motion in rig.sent[1:]]
    assert min(speeds) > 0.05


def test_displacements_start_from_the_command_at_the_observation_not_from_now():
    rig = Rig()
    rig.submit(rig.chunk(FORWARD))
    rig.run(0.2)
    seen = rig.pose()[0]
    observed = rig.chunk(FORWARD)
    rig.run(0.3)
    accepted = rig.submit(observed)
    assert accepted.trimmed == 3
    base, _ = rig.executor.kinematics.forward(accepted.base)
    np.testing.assert_allclose(base, seen, atol=1e-6)
    target, _ = rig.executor.kinematics.forward(accepted.motion.trajectory.positions[-1])
    np.testing.assert_allclose(target, seen + FORWARD[:, :3].sum(axis=0), atol=2e-3)
    rig.run(1.0)


def test_displacements_start_from_the_measured_arm_when_it_is_not_where_it_should_be():
    rig = Rig(chunk__max_reference_error=0.01)
    rig.move()
    rig.offset[3] = 0.05
    rig.run(0.02)
    accepted = rig.submit(rig.chunk(0.3 * FORWARD))
    np.testing.assert_allclose(
        accepted.base, rig.executor.commanded(rig.now).position + rig.offset, atol=1e-9
    )


def test_a_chunk_that_comes_late_goes_on_where_the_arm_is():
    rig = Rig()
    rig.submit(rig.chunk(FORWARD))
    observed = rig.chunk(FORWARD, age=0.0)
    rig.run(0.35)
    accepted = rig.submit(observed)
    assert accepted.trimmed == 3
    assert rig.executor.status(rig.now).actions_consumed == 3
    rig.run(1.5)


def test_what_is_too_fast_is_slowed_and_still_ends_there():
    rig = Rig(motion__max_stretch=10.0)
    position, _ = rig.pose()
    accepted = rig.submit(rig.chunk(np.tile([0.08, 0.0, -0.03, 0, 0, 0], (2, 1))))
    assert accepted.stretch > 1.2
    rig.run(3.0)
    np.testing.assert_allclose(rig.pose()[0] - position, [0.16, 0.0, -0.06], atol=2e-3)


def test_a_lower_speed_factor_makes_the_same_way_slower():
    fast = Rig().submit(Rig().chunk(FORWARD)).motion.trajectory
    rig = Rig(motion__speed_factor=0.1, motion__max_stretch=20.0)
    slow = rig.submit(rig.chunk(FORWARD)).motion.trajectory
    assert slow.duration > 1.5 * fast.duration
    assert np.all(np.abs(slow.velocities) <= 0.1 * rig.robot.limits.velocity)
    np.testing.assert_allclose(slow.positions[-8:], fast.positions[-8:], atol=1e-9)
    rig.run(slow.duration)


def test_the_tool_is_slowed_to_its_own_speed_limit():
    rig = Rig(motion__max_tcp_speed=0.1, motion__max_stretch=10.0)
    accepted = rig.submit(rig.chunk(FORWARD))
    assert accepted.stretch > 1.3
    motion = accepted.motion.trajectory
    for time in np.linspace(0.0, motion.duration, 100):
        state = motion.sample(time)
        twist = rig.executor.kinematics.jacobian(state.position) @ state.velocity
        assert np.linalg.norm(twist[:3]) < 0.101


# What is refused.


@pytest.mark.parametrize(
    ("motion", "reason"),
    [
        ([[0.5, 0, 0, 0, 0, 0]], RejectionReason.JUMP),
        ([[0.0, 0, 0, 0, 0, 3.0]], RejectionReason.JUMP),
        (np.tile([0.1, 0, 0, 0, 0, 0], (8, 1)), RejectionReason.UNREACHABLE),
        (np.tile([0, 0, -0.02, 0, 0, 0], (5, 1)), RejectionReason.WORKSPACE),
    ],
)
def test_a_chunk_that_cannot_be_followed_is_refused_whole(motion, reason):
    rig = Rig(motion__max_stretch=10.0, motion__workspace_min=(-1.0, -1.0, 0.4))
    assert rig.rejected(rig.chunk(np.array(motion))) is reason
    assert rig.sent == []
    status = rig.executor.status(rig.now)
    assert (status.chunks_accepted, status.chunks_rejected) == (0, 1)
    assert reason.value in status.last_rejection


def test_a_limit_that_breaks_at_the_last_step_only_is_named():
    rig = Rig()
    motion = np.tile(rig.robot.home, (8, 1))
    motion[-1, 5] = rig.robot.limits.position_max[5] + 0.2
    motion[:-1, 5] = rig.robot.limits.position_max[5] - 0.1
    rig.executor.reset_reference(rig.now)
    rig.executor.measured(rig.now, motion[0], np.zeros(7))
    with pytest.raises(
        ChunkRejected, match=r"limit: fr3_joint6 breaks its position limit of 4.1994"
    ):
        rig.submit(rig.chunk(motion, spec=rig.spec(Representation.JOINT_POSITION)))


def test_while_a_chunk_is_refused_the_running_motion_goes_on_to_rest():
    rig = Rig()
    rig.move()
    sent = len(rig.sent)
    bad = FORWARD.copy()
    bad[7, 0] = 0.5
    assert rig.rejected(rig.chunk(bad)) is RejectionReason.JUMP
    rig.run(1.0)
    assert len(rig.sent) == sent
    assert rig.executor.commanded(rig.now).resting


def test_another_convention_is_refused():
    rig = Rig()
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    camera = ActionSpec(Representation.EE_DELTA, names, "camera", 0.1, GRIPPER)
    chunk = ActionChunk(camera, np.zeros((2, 7)), rig.now, 1)
    assert rig.rejected(chunk) is RejectionReason.CONVENTION
    pinned = ChunkExecutor(rig.parameters, action_spec=rig.spec(Representation.JOINT_DELTA))
    pinned.measured(rig.now, rig.robot.home, np.zeros(7))
    with pytest.raises(ChunkRejected, match=r"convention: action conventions differ"):
        pinned.submit(rig.chunk(FORWARD), rig.now)


def test_a_gripper_command_out_of_range_is_refused():
    rig = Rig()
    assert rig.rejected(rig.chunk(FORWARD, gripper=7.0)) is RejectionReason.CONTENT


def test_nothing_moves_before_a_joint_state():
    rig = Rig()
    blind = ChunkExecutor(rig.parameters)
    assert blind.commanded(rig.now) is None
    with pytest.raises(ChunkRejected, match=r"joint_state: no joint state yet"):
        blind.submit(rig.chunk(FORWARD), rig.now)


def test_an_arm_that_moves_by_itself_is_left_alone():
    rig = Rig()
    rig.now += 10 * MS
    rig.executor.measured(rig.now, rig.robot.home, np.full(7, 0.3))
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.JOINT_STATE


@pytest.mark.parametrize(
    ("positions", "velocities", "message"),
    [
        (np.full(7, np.nan), np.zeros(7), r"position of fr3_joint1 is not finite"),
        (np.zeros(7), np.array([0, 0, np.inf, 0, 0, 0, 0]), r"velocity of fr3_joint3"),
        (np.zeros(6), np.zeros(7), r"expected 7 numbers for position, got shape \(6,\)"),
    ],
)
def test_a_bad_joint_state_is_refused(positions, velocities, message):
    rig = Rig()
    with pytest.raises(ObservationError, match=message):
        rig.executor.measured(rig.now + MS, positions, velocities)


class SlowClock:
    """Time passes by a fixed amount whenever someone looks."""

    def __init__(self, rig, cost):
        self.now, self.cost = rig.now, cost

    def __call__(self):
        self.now += self.cost
        return self.now


def slow_rig(cost, **changes):
    """A rig on a machine where every planning takes ``cost`` ns."""
    rig = Rig(**changes)
    rig.clock = SlowClock(rig, cost)
    rig.executor = ChunkExecutor(rig.parameters, clock=rig.clock)
    rig.measure()
    return rig


def test_a_motion_that_was_planned_too_slowly_is_planned_again_with_a_longer_lead():
    rig = slow_rig(15 * MS, motion__lead_time=0.02, motion__max_lead_time=0.2)
    accepted = rig.submit(rig.chunk(FORWARD))
    lead = accepted.motion.start_ns - rig.clock.now
    assert rig.executor.lead_time == pytest.approx(0.03)
    assert lead == 15 * MS  # what is left of it when the command leaves


def test_a_machine_that_is_fast_again_gets_its_lead_back():
    rig = slow_rig(15 * MS, motion__lead_time=0.02)
    rig.submit(rig.chunk(FORWARD))
    rig.clock.cost = 0
    for _ in range(40):
        rig.now += 100 * MS
        rig.clock.now = rig.now
        rig.measure()
        rig.submit(rig.chunk(0.1 * FORWARD))
    assert rig.executor.lead_time == pytest.approx(0.02)


def test_a_motion_that_cannot_be_planned_in_time_at_all_is_not_sent():
    rig = slow_rig(30 * MS, motion__lead_time=0.02, motion__max_lead_time=0.05)
    with pytest.raises(ChunkRejected, match=r"late: planning the motion took 30.0 ms, .* 50.0 ms"):
        rig.submit(rig.chunk(FORWARD))
    assert rig.sent == []


# The arm itself.


def test_a_chunk_that_folds_the_arm_into_itself_is_refused_and_names_the_links():
    rig = Rig(robot="panda", motion__workspace_min=[-1.0] * 3)
    spec = rig.spec(Representation.JOINT_POSITION)
    folded = np.array([0.0, -1.5, 0.0, -3.0, 0.0, 0.1, 0.0])
    chunk = rig.chunk(np.tile(folded, (8, 1)), spec=spec)
    with pytest.raises(ChunkRejected, match=r"self_collision: panda_link\d to panda_\w+ breaks"):
        rig.submit(chunk)
    assert rig.sent == []


def test_the_look_for_self_collision_can_be_switched_off():
    rig = Rig(
        robot="panda",
        motion__self_collision=False,
        motion__workspace_min=[-1.0] * 3,
    )
    folded = np.array([0.0, -1.5, 0.0, -3.0, 0.0, 0.1, 0.0])
    spec = rig.spec(Representation.JOINT_POSITION)
    rig.submit(rig.chunk(np.tile(folded, (8, 1)), spec=spec))
    assert len(rig.sent) == 1


# Someone else, and a clock that stops.


def test_what_replaces_a_running_motion_begins_with_the_state_at_its_stamp():
    """Jazzy's controller would begin a blend from its last command with a step."""
    rig = Rig(motion__lead_time=0.03, motion__stop_lead_time=0.01)
    rig.move()
    state = rig.executor.commanded(rig.now)
    told = rig.submit(rig.chunk(0.5 * FORWARD)).commands.trajectory.told
    assert told.times[0] == 0.0
    np.testing.assert_allclose(told.velocities[0], state.velocity)
    rig.run(0.1)
    rig.publish(rig.executor.hold(rig.now))
    assert rig.sent[-1].told.times[0] == 0.0
    rig.run(0.5)  # the judge is such a controller

    whole = rig.sent[-1].trajectory
    blind = TimedTrajectory(rig.now, whole, known_ns=rig.now + round(whole.times[1] * S))
    assert len(blind.told.times) == len(whole.times) - 1


def test_from_rest_the_first_knot_that_is_sent_is_where_the_motion_starts():
    """The arm's controller may have started anew where the arm is, and gets the time to come."""
    rig = Rig(motion__lead_time=0.03)
    rig.submit(rig.chunk(FORWARD))
    rig.run(2.0)
    rig.offset = np.full(7, 0.04)
    rig.run(0.1)
    rig.judge.hold(rig.judge.desired(rig.now)[0] + rig.offset)
    accepted = rig.submit(rig.chunk(0.1 * FORWARD))
    lead = accepted.motion.start_ns - rig.now
    assert accepted.commands.trajectory.told.times[0] == pytest.approx(lead / S)
    assert lead > 100 * MS
    rig.offset[:] = 0.0
    rig.run(1.5)
    end = accepted.motion.trajectory.end.position
    np.testing.assert_allclose(rig.judge.desired(rig.now)[0], end, atol=1e-9)


def test_just_after_its_end_the_arms_controller_is_not_at_rest_yet():
    """Its last cycle was before."""
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.stop(rig.now))
    rig.now = rig.sent[-1].end_ns + 1
    rig.measure()
    assert rig.submit(rig.chunk(FORWARD)).commands.trajectory.told.times[0] == 0.0
    rig.run(0.1)


def test_a_stop_that_comes_after_its_end_is_not_refused():
    """It says to rest there for some time."""
    rig = Rig(motion__lead_time=0.03, motion__stop_lead_time=0.01)
    rig.submit(rig.chunk(FORWARD))
    rig.run(0.05)
    stop = rig.executor.emergency_stop(True, rig.now).trajectory
    assert stop.told.times[-1] >= stop.trajectory.duration + 0.4
    np.testing.assert_array_equal(stop.told.positions[-1], stop.trajectory.end.position)
    rig.run(stop.trajectory.duration + 0.02)
    assert rig.executor.status(rig.now).reason != "decelerating"


def test_the_own_commands_that_come_back_are_recognised():
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.hold(rig.now))
    rig.executor.release(rig.now)
    for sent in rig.sent:
        assert rig.executor.heard(sent.told, sent.start_ns, rig.now).trajectory is None
    assert rig.reason == "decelerating"


def test_a_command_of_someone_else_is_decelerated_from_as_the_arm_plays_it():
    rig = Rig()
    rig.move()
    state = rig.executor.commanded(rig.now)
    other = limited_spline_to_rest(
        rig.robot.joint_names,
        state,
        state.position + np.array([[0.15, 0, 0, 0, 0, 0, 0]]),
        np.array([0.6]),
        rig.robot.limits,
        3.0,
    ).trajectory
    other = TimedTrajectory(rig.now, other)
    rig.judge.receive(other, rig.now)
    rig.run(0.02)
    rig.publish(rig.executor.heard(other.told, other.start_ns, rig.now))
    assert len(rig.sent) == 2
    rig.run(0.6)
    assert rig.executor.commanded(rig.now).resting
    assert rig.reason.startswith("someone else commands the arm")
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    rig.executor.reset(rig.now)
    rig.run(0.02)
    rig.submit(rig.chunk(FORWARD))


@pytest.mark.parametrize("moving", [True, False], ids=["moving", "at rest"])
def test_a_command_that_says_nothing_of_its_motion_is_answered_by_a_gentle_stop(moving):
    rig = Rig()
    rig.move()
    rig.run(0.0 if moving else 2.0)
    before = rig.executor.commanded(rig.now)
    stop = rig.executor.intruded(rig.now).trajectory
    assert stop.trajectory.duration >= 0.15
    assert len(stop.told.times) == 2  # its end, and some rest: the arm is not where it was told
    np.testing.assert_array_equal(stop.trajectory.positions[0], before.position)
    assert rig.reason.startswith("someone else commands the arm")


def test_before_the_first_motion_a_stop_of_someone_else_s_begins_anywhere_near():
    """The arm rests somewhat off from where its controller was told to be."""
    rig = Rig()
    place = rig.robot.home + 0.003
    way = np.linspace(0.06, 0.6, 10)[:, None] * np.eye(7)[0]
    foreign = JointTrajectory(
        rig.robot.joint_names,
        np.linspace(0.3, 3.0, 10),
        rig.robot.home + way,
        np.where(np.arange(10)[:, None] < 9, 0.2 * np.eye(7)[0], 0.0),
        np.zeros((10, 7)),
    )
    rig.executor.measured(rig.now, place, np.zeros(7))
    rig.judge.receive(TimedTrajectory(rig.now, foreign, known_ns=rig.now), rig.now)
    rig.now += 2 * MS
    rig.publish(rig.executor.heard(foreign, rig.now - 2 * MS, rig.now))
    assert len(rig.sent) == 1
    rig.judge.advance(rig.now + S)
    assert rig.judge.problems == []
    assert not np.diff(rig.judge._tail, axis=0).any()


def test_in_a_dry_run_others_may_command_the_arm():
    rig = Rig(enable_control=False)
    other = resting(rig.robot.joint_names, rig.robot.home, 0.5)
    rig.executor.heard(other, rig.now, rig.now)
    assert rig.state is ControllerState.DRY_RUN
    rig.submit(rig.chunk(FORWARD))


def test_a_clock_that_stands_still_stops_the_arm_and_a_clock_that_goes_on_frees_it():
    rig = Rig(watchdog__max_clock_standstill=0.5)
    rig.move()
    for tenth in range(5):
        rig.publish(rig.executor.wall_tick(rig.now, 7.0 + 0.1 * tenth))
    assert len(rig.sent) == 1
    rig.publish(rig.executor.wall_tick(rig.now, 7.6))
    assert len(rig.sent) == 2
    assert "stood still for 0.600 s" in rig.reason
    rig.run(0.5)
    assert rig.executor.commanded(rig.now).resting
    rig.submit(rig.chunk(FORWARD))


# The first motion.


def test_a_far_first_waypoint_is_approached_slowly_and_reached():
    rig = Rig()
    target = rig.robot.home + np.array([0.5, 0.3, 0.0, 0.2, 0.0, 0.1, 0.4])
    spec = rig.spec(Representation.JOINT_POSITION)
    rig.submit(rig.chunk(np.tile(target, (8, 1)), spec=spec))
    rig.run(0.4)
    assert rig.state is ControllerState.EXECUTING
    speed = np.abs(rig.executor.commanded(rig.now).velocity) / rig.robot.limits.velocity
    assert 0.05 < speed.max() <= 0.2 + 1e-6
    rig.run(4.0)
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, target, atol=1e-6)
    accepted = rig.submit(rig.chunk(np.tile(target + 0.02, (8, 1)), spec=spec))
    assert accepted.trimmed == 0
    rig.run(1.0)


def fastest(rig, target, seconds):
    """Of the limits of speed, while a chunk to an absolute target comes ten times a second."""
    spec, shares = rig.spec(Representation.JOINT_POSITION), []
    for step in range(round(seconds * 100)):
        if step % 10 == 0:
            rig.submit(rig.chunk(np.tile(target, (8, 1)), spec=spec))
        rig.run(0.01)
        velocity = rig.executor.commanded(rig.now).velocity
        shares.append(np.abs(velocity / rig.robot.limits.velocity).max())
    return max(shares)


def test_the_approach_is_as_slow_when_chunks_keep_coming():
    rig = Rig()
    target = rig.robot.home + np.array([0.5, 0.3, 0.0, 0.2, 0.0, 0.1, 0.4])
    assert 0.15 < fastest(rig, target, 1.2) <= 0.2 + 1e-6
    rig.run(2.5)
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, target, atol=1e-6)


def test_what_is_far_away_after_a_stop_is_approached_slowly_too():
    rig = Rig()
    near = np.tile(rig.robot.home + 0.01, (8, 1))
    rig.submit(rig.chunk(near, spec=rig.spec(Representation.JOINT_POSITION)))
    rig.run(0.3)
    rig.publish(rig.executor.emergency_stop(True, rig.now))
    rig.run(0.5)
    rig.executor.emergency_stop(False, rig.now)
    rig.executor.reset(rig.now)
    rig.run(0.02)
    assert fastest(rig, rig.executor.commanded(rig.now).position + 0.3, 1.0) <= 0.2 + 1e-6


def test_the_first_motion_leaves_the_arm_time_to_settle():
    rig = Rig(motion__settle_time=0.2)
    rig.submit(rig.chunk(FORWARD))
    first = rig.sent[0].trajectory
    np.testing.assert_array_equal(first.sample(0.199).position, rig.robot.home)
    np.testing.assert_allclose(first.times[1], 0.2)
    rig.run(0.5)
    rig.submit(rig.chunk(FORWARD))
    assert rig.executor.commanded(rig.now + 10 * MS).velocity.any()
    rig.run(1.0)


# Stops.


def brake_time(rig):
    """How long the arm needs from here to rest."""
    begin = rig.now
    while not rig.executor.commanded(rig.now).resting:
        rig.run(0.01)
        assert rig.now - begin < S
    return (rig.now - begin) / S


@pytest.mark.parametrize("lead", [0.0, 0.02])
@settings(max_examples=25)
@given(moment=st.integers(1, 80))
def test_a_hold_decelerates_within_the_limits_whenever_it_comes(lead, moment):
    rig = Rig(motion__lead_time=2.0 * lead, motion__stop_lead_time=lead)
    rig.submit(rig.chunk(FORWARD))
    rig.run(0.01 * moment)
    rig.publish(rig.executor.hold(rig.now))
    assert brake_time(rig) < 0.25
    assert rig.state is ControllerState.HOLDING
    assert rig.reason == "hold requested"


def test_a_hold_is_never_a_repeated_velocity_nor_a_step():
    rig = Rig()
    rig.move()
    before = rig.executor.commanded(rig.now)
    rig.publish(rig.executor.hold(rig.now))
    stop = rig.sent[-1].trajectory
    np.testing.assert_allclose(stop.sample(0.0).position, before.position)
    np.testing.assert_allclose(stop.sample(0.0).velocity, before.velocity)
    np.testing.assert_allclose(stop.sample(0.0).acceleration, before.acceleration)
    assert stop.end.resting
    assert np.abs(stop.end.position - before.position).max() < 0.1


def test_while_holding_chunks_are_refused_and_after_the_release_only_new_ones_count():
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.hold(rig.now, "operator"))
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    rig.run(0.5)
    old = rig.chunk(FORWARD)
    rig.run(0.1)
    rig.executor.release(rig.now)
    assert rig.rejected(old) is RejectionReason.BEFORE_RESET
    rig.submit(rig.chunk(FORWARD))
    rig.run(1.0)


def test_the_emergency_stop_is_latched_and_reset_refuses_while_it_is_set():
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.emergency_stop(True, rig.now))
    brake_time(rig)
    assert rig.state is ControllerState.STOPPED
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.STOPPED
    with pytest.raises(ResetRefused, match=r"emergency stop is still set"):
        rig.executor.reset(rig.now)
    rig.publish(rig.executor.emergency_stop(False, rig.now))
    rig.run(0.1)
    assert rig.state is ControllerState.STOPPED
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.STOPPED
    rig.executor.reset(rig.now)
    rig.run(0.01)
    rig.submit(rig.chunk(FORWARD))
    rig.run(1.0)


def test_reset_refuses_while_the_arm_moves_or_is_not_seen():
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.emergency_stop(True, rig.now))
    rig.executor.emergency_stop(False, rig.now)
    with pytest.raises(ResetRefused, match=r"still decelerates"):
        rig.executor.reset(rig.now)
    rig.run(0.5)
    rig.run(0.5, measure=False)
    with pytest.raises(ResetRefused, match=r"joint state is 0.500 s old"):
        rig.executor.reset(rig.now)
    rig.run(0.1)
    rig.executor.reset(rig.now)
    assert rig.state is ControllerState.WAITING


def test_joint_states_that_stop_stop_the_arm_and_it_recovers():
    rig = Rig(watchdog__max_joint_state_age=0.1)
    rig.move()
    sent = len(rig.sent)
    rig.run(0.1, measure=False)
    assert len(rig.sent) == sent
    rig.run(0.01, measure=False)
    assert len(rig.sent) == sent + 1
    rig.run(0.3, measure=False)
    assert rig.executor.commanded(rig.now).resting
    assert "joint state is" in rig.reason
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    rig.run(0.05)
    rig.submit(rig.chunk(FORWARD))
    rig.run(1.0)


def test_an_arm_that_does_not_follow_is_held_and_the_command_returns_to_it():
    rig = Rig(watchdog__max_unseen_motion=0.0)
    rig.move()
    frozen = rig.executor.commanded(rig.now).position
    rig.submit(rig.chunk(np.tile([0.0, 0.05, 0.0, 0, 0, 0], (8, 1))))
    for _ in range(300):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, frozen, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
        if "does not follow" in rig.reason:
            break
    assert "allowed are 0.2 rad" in rig.reason
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    for _ in range(1000):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, frozen, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, frozen, atol=1e-6)
    rig.run(0.1)
    rig.submit(rig.chunk(FORWARD))
    rig.run(1.5)


@pytest.mark.parametrize("moved", [True, False], ids=["late", "never"])
def test_a_stop_on_the_way_back_leaves_the_arm_within_its_limits_wherever_it_is(moved):
    """Its controller got the command late, or took none since and stands where it was."""
    rig = Rig(watchdog__max_unseen_motion=0.0)
    rig.move()
    rig.run(1.0)
    start = rig.executor.commanded(rig.now).position
    off = 0.24 * np.array([1, 0, 0, 1, 0, 0, 0])

    def tick(share=1.0):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, start - share * off, np.zeros(7))
        return rig.executor.tick(rig.now).trajectory

    rig.judge = Judge(rig.robot, rig.now, start if moved else start - off)
    back = tick(0.5) or tick() or tick()
    if moved:
        rig.judge.receive(back, rig.now + 40 * MS)
    for _ in range(30):
        tick()
    stop = rig.executor.emergency_stop(True, rig.now).trajectory
    rig.judge.receive(stop, rig.now + 15 * MS)
    rig.judge.advance(stop.end_ns + S)
    assert rig.judge.problems == []
    np.testing.assert_allclose(rig.judge.desired(stop.end_ns)[0], stop.trajectory.end.position)
    assert stop.end_ns < back.end_ns


def test_joint_states_that_are_frozen_are_noticed_whatever_their_stamps_say():
    """Long before the command has left them as far behind as an arm may lag."""
    rig = Rig()
    rig.move()
    frozen = rig.executor.commanded(rig.now).position

    def live():
        rig.now += 10 * MS
        rig.executor.measured(rig.now, frozen, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))

    while rig.state is ControllerState.EXECUTING:
        live()
    assert rig.reason.startswith("joint states are frozen")
    moved = np.abs(rig.executor.commanded(rig.now).position - frozen).max()
    assert 0.05 < moved < 0.08
    for _ in range(300):
        live()
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, frozen, atol=1e-6)
    rig.judge.advance(rig.now)
    assert rig.judge.problems == []
    assert rig.reason == "no new chunk"


def test_joint_states_that_repeat_while_the_arm_stands_are_as_they_should_be():
    rig = Rig()
    rig.move()
    rig.run(3.0)
    assert rig.reason == "no new chunk"


def test_a_stamp_far_ahead_of_the_clock_does_not_make_the_next_joint_states_old():
    rig = Rig()
    rig.move()
    with pytest.raises(ObservationError, match=r"5\.000 s ahead of the clock"):
        rig.executor.measured(rig.now + 5 * S, rig.robot.home, np.zeros(7))
    rig.run(0.3)
    assert rig.reason in ("", "no new chunk")


def test_a_joint_state_of_the_same_stamp_that_says_otherwise_is_a_jump():
    """As of a second publisher of joint states."""
    rig = Rig()
    rig.move()
    elsewhere = rig.executor.commanded(rig.now).position + 0.3
    rig.executor.measured(rig.now, elsewhere, np.zeros(7))
    assert "jumped by 0.300 rad in 0.000 s" in rig.reason


def test_an_arm_whose_driver_reports_no_velocities_is_seen_to_move():
    rig = Rig()
    for step in range(30):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, rig.robot.home + 0.002 * step, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
    with pytest.raises(ChunkRejected, match=r"the arm still moves: fr3_joint\d at 0\.200 rad/s"):
        rig.submit(rig.chunk(FORWARD))


def test_a_chunk_that_holds_moves_no_joint_not_even_in_the_null_space():
    rig = Rig()
    rig.move()
    rig.run(1.0)
    before = rig.executor.commanded(rig.now).position
    rig.submit(rig.chunk(np.zeros((8, 6))))
    rig.run(1.0)
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, before, atol=1e-9)


def test_the_slow_approach_of_an_absolute_chunk_leaves_the_gripper_alone():
    rig = Rig()
    names = (*rig.robot.joint_names, "gripper")
    spec = ActionSpec(Representation.JOINT_POSITION, names, "", 0.1, GripperSpec(7))
    far = np.append(rig.robot.home + 0.2, 1.0)
    rig.submit(rig.chunk(np.tile(far, (4, 1)), spec=spec))
    rig.run(2.0)
    assert rig.grips == []
    np.testing.assert_allclose(rig.executor.commanded(rig.now).position, far[:7], atol=1e-6)


def test_joints_that_jump_need_a_reset_which_takes_the_new_place():
    rig = Rig()
    rig.move()
    rig.run(1.0)
    rig.offset[0] = 0.8
    rig.run(0.02)
    assert "fr3_joint1 jumped by 0.800 rad" in rig.reason
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    rig.run(1.0)
    rig.executor.reset(rig.now)
    place = rig.robot.home + rig.offset
    rig.executor.measured(rig.now, place, np.zeros(7))
    np.testing.assert_array_equal(rig.executor.commanded(rig.now).position, place)


def test_after_such_a_reset_the_command_comes_from_where_it_was_left_within_the_limits():
    rig = Rig(motion__settle_time=0.05)
    rig.move()
    rig.run(1.0)
    rig.offset[:4] = [0.8, 0.2, 0.0, 0.3]
    rig.run(0.2)
    place = rig.executor.commanded(rig.now).position + rig.offset
    rig.executor.reset(rig.now)

    def live(seconds):
        for _ in range(round(seconds * 100)):
            rig.now += 10 * MS
            rig.executor.measured(rig.now, place, np.zeros(7))
            rig.publish(rig.executor.tick(rig.now))

    live(0.02)
    accepted = rig.submit(rig.chunk(0.1 * FORWARD))
    np.testing.assert_array_equal(accepted.motion.trajectory.positions[0], place)
    assert accepted.motion.start_ns - rig.now > S
    rig.judge.advance(accepted.motion.end_ns)
    assert rig.judge.problems == []
    end = accepted.motion.trajectory.end.position
    np.testing.assert_allclose(rig.judge.desired(accepted.motion.end_ns)[0], end)


def jumped(rig, place):
    """The arm is elsewhere, which only a reset ends."""
    for _ in range(20):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, place, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
    assert "jumped" in rig.reason


def toggled(rig, between=lambda rig: None):
    disabled = replace(rig.parameters, {"enable_control": False})
    rig.publish(rig.executor.set_parameters(disabled, rig.now))
    between(rig)
    rig.publish(rig.executor.set_parameters(rig.parameters, rig.now))


def reset_while_disabled(rig):
    seen = rig.executor.commanded(rig.now).position + 0.4

    def reset(rig):
        rig.executor.measured(rig.now, seen, np.zeros(7))
        rig.executor.reset(rig.now)

    toggled(rig, reset)


def again_elsewhere(rig):
    rig.executor.reset(rig.now)
    rig.now += 10 * MS
    rig.executor.measured(rig.now, rig.robot.home, np.zeros(7))
    jumped(rig, rig.robot.home + 0.4)
    rig.executor.reset(rig.now)


@pytest.mark.parametrize(
    "free",
    [
        lambda rig: rig.executor.reset(rig.now),
        again_elsewhere,
        lambda rig: (rig.executor.reset(rig.now), toggled(rig)),
        reset_while_disabled,
        lambda rig: (rig.executor.stop(rig.now), rig.executor.reset_reference(rig.now)),
    ],
    ids=["reset", "two resets", "reset and enable", "reset while disabled", "activate"],
)
def test_however_the_hold_ends_the_arms_controller_has_time_to_come(free):
    rig = Rig(motion__settle_time=0.2)
    rig.move()
    rig.run(1.0)
    place = rig.executor.commanded(rig.now).position + 0.4 * np.array([1, 0.2, 0, 0.3, 0, 0, 0])
    jumped(rig, place)
    free(rig)
    for _ in range(2):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, place, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
    accepted = rig.submit(rig.chunk(0.1 * FORWARD))
    rig.judge.advance(accepted.motion.end_ns)
    assert rig.judge.problems == []


def test_where_others_took_the_controller_in_a_dry_run_no_way_back_is_waited_for():
    rig = Rig()
    rig.move()
    rig.run(1.0)

    def others_move(rig):
        way = resting(rig.robot.joint_names, rig.robot.home)
        rig.executor.heard(way, rig.now, rig.now)

    toggled(rig, others_move)
    rig.now += 10 * MS
    rig.executor.measured(rig.now, rig.robot.home, np.zeros(7))
    assert rig.executor.submit(rig.chunk(FORWARD), rig.now).motion.start_ns == rig.now


@pytest.mark.parametrize("disturb", ["enable", "hold and clock"])
def test_an_arm_that_does_not_follow_is_never_stepped_to(disturb):
    rig = Rig(watchdog__max_unseen_motion=0.0, motion__settle_time=0.2)
    rig.move()
    stuck = rig.executor.commanded(rig.now).position

    def live(steps):
        for _ in range(steps):
            rig.now += 10 * MS
            rig.executor.measured(rig.now, stuck, np.zeros(7))
            rig.publish(rig.executor.tick(rig.now))
        rig.judge.advance(rig.now)

    rig.submit(rig.chunk(np.tile([0.0, 0.05, 0.0, 0, 0, 0], (8, 1))))
    while "does not follow" not in rig.reason:
        live(1)
    if disturb == "enable":
        toggled(rig, lambda rig: live(100))
    else:
        rig.publish(rig.executor.hold(rig.now))
        live(100)
        assert np.abs(rig.judge.desired(rig.now)[0] - stuck).max() > 0.1
        tail, rig.now = rig.judge.desired(rig.now)[0], rig.now - 100 * S
        rig.judge = Judge(rig.robot, rig.now, tail)
        live(2)
        rig.executor.release(rig.now)
    live(300)
    accepted = rig.submit(rig.chunk(0.1 * FORWARD))
    rig.judge.advance(accepted.motion.end_ns)
    assert rig.judge.problems == []
    end = accepted.motion.trajectory.end.position
    np.testing.assert_allclose(rig.judge.desired(accepted.motion.end_ns)[0], end)


@pytest.mark.parametrize("disturb", ["hold", "chunk", "clock"])
def test_while_the_arms_controller_settles_nothing_hurries_it(disturb):
    """It was told to be somewhat off from where the arm is, and interpolates from there."""
    rig = Rig(motion__settle_time=0.2)
    place = rig.robot.home + 0.02

    def live(steps):
        for _ in range(steps):
            rig.now += 10 * MS
            rig.executor.measured(rig.now, place, np.zeros(7))
            rig.publish(rig.executor.tick(rig.now))
        rig.judge.advance(rig.now)

    live(2)
    start = rig.submit(rig.chunk(FORWARD)).motion.start_ns
    live(7)
    if disturb == "hold":
        rig.publish(rig.executor.hold(rig.now))
        live(50)
        np.testing.assert_allclose(rig.judge.desired(rig.now)[0], place, atol=1e-5)
    elif disturb == "chunk":
        assert rig.rejected(rig.chunk(0.5 * FORWARD)) is RejectionReason.HOLDING
        live(13)
        assert rig.now == start
        second = rig.submit(rig.chunk(0.5 * FORWARD))
        live(100)
        end = second.motion.trajectory.end.position
        np.testing.assert_allclose(rig.judge.desired(rig.now)[0], end, atol=1e-9)
    else:
        commands = rig.executor.tick(rig.now - 100 * S)
        assert commands.trajectory.end_ns >= start - 100 * S
        np.testing.assert_array_equal(commands.trajectory.trajectory.end.position, place)
    assert rig.judge.problems == []


def test_an_emergency_stop_while_the_arms_controller_comes_from_far_away_stops_it_on_its_way():
    rig = Rig(motion__settle_time=0.2)
    rig.submit(rig.chunk(FORWARD))
    rig.run(2.0)
    place = rig.executor.commanded(rig.now).position - 0.6 * np.eye(7)[0]

    def live(steps):
        for _ in range(steps):
            rig.now += 10 * MS
            rig.executor.measured(rig.now, place, np.zeros(7))
            rig.publish(rig.executor.tick(rig.now))
        rig.judge.advance(rig.now)

    rig.executor.reset_reference(rig.now)
    live(2)
    accepted = rig.submit(rig.chunk(0.1 * FORWARD))
    assert accepted.motion.start_ns > rig.now + 2 * S
    live(50)
    here = rig.judge.desired(rig.now)[0]
    rig.publish(rig.executor.emergency_stop(True, rig.now))
    live(120)
    assert rig.judge.problems == []
    assert not np.diff(rig.judge._tail, axis=0).any()
    assert np.abs(rig.judge.desired(rig.now)[0] - here).max() < 0.15


def test_after_a_reset_the_arm_is_taken_where_it_is_however_it_was_stopped():
    """A protective stop left it behind the command by less than the watchdog minds."""
    rig = Rig(motion__settle_time=0.2)
    rig.submit(rig.chunk(FORWARD))
    rig.run(2.0)
    place = rig.executor.commanded(rig.now).position - 0.1
    rig.judge.hold(place)
    for _ in range(60):
        rig.now += 10 * MS
        rig.executor.measured(rig.now, place, np.zeros(7))
        rig.publish(rig.executor.tick(rig.now))
    assert rig.reason == "no new chunk"
    rig.executor.reset(rig.now)
    rig.run(0.02)
    accepted = rig.submit(rig.chunk(0.0 * FORWARD))
    np.testing.assert_array_equal(accepted.motion.trajectory.positions[0], place)
    rig.run(1.0)
    np.testing.assert_allclose(rig.judge.desired(rig.now)[0], place)


def test_a_controller_that_plays_slower_than_told_is_held_until_it_does_not():
    rig = Rig()
    rig.move()
    rig.executor.speed_scaled(80.0, rig.now)
    rig.run(0.01)
    stop = rig.sent[-1]
    assert stop.known_ns == stop.end_ns  # only the end is told: the arm is behind
    assert "plays at 80 % of the speed" in rig.reason
    rig.run(2.0)
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.HOLDING
    assert rig.sent[-1] is stop
    rig.executor.speed_scaled(100.0, rig.now)
    rig.run(1.0)
    rig.submit(rig.chunk(FORWARD))
    with pytest.raises(ObservationError, match="expected a percentage from 0 on, got nan"):
        rig.executor.speed_scaled(float("nan"), rig.now)


def test_where_no_quickest_stop_is_found_there_is_one_all_the_same(monkeypatch):
    """Ruckig finds none from some states; a stop must never fail."""
    monkeypatch.setattr(
        "vla_reasoner_ros.control.stopping._solve",
        lambda *_: (_ for _ in ()).throw(TrajectoryError("no motion")),
    )
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.hold(rig.now))
    rig.run(0.6)
    assert rig.executor.commanded(rig.now).resting


def test_a_gripper_command_that_failed_is_given_again():
    rig = Rig()
    rig.submit(rig.chunk(0.2 * FORWARD, gripper=0.0))
    rig.run(0.1)
    assert [grip for _, grip in rig.grips] == [0.0]
    rig.executor.gripper_failed()
    rig.submit(rig.chunk(0.2 * FORWARD, gripper=0.0))
    rig.run(0.1)
    assert [grip for _, grip in rig.grips] == [0.0, 0.0]


def test_a_new_episode_starts_from_the_measured_arm():
    rig = Rig()
    rig.move()
    rig.run(1.0)
    rig.executor.reset_reference(rig.now)
    assert rig.executor.commanded(rig.now) is None
    elsewhere = rig.robot.home + 0.1
    rig.executor.measured(rig.now - MS, rig.robot.home, np.zeros(7))
    assert rig.executor.commanded(rig.now) is None
    rig.executor.measured(rig.now, elsewhere, np.zeros(7))
    accepted = rig.executor.submit(rig.chunk(FORWARD, sequence=1), rig.now)
    np.testing.assert_array_equal(accepted.motion.trajectory.positions[0], elsewhere)


def test_a_clock_that_jumps_back_ends_the_motion_by_deceleration():
    rig = Rig()
    rig.move()
    moving = rig.executor.commanded(rig.now)
    rig.now -= 100 * S
    commands = rig.executor.tick(rig.now)
    assert commands.trajectory.start_ns == rig.now
    first = commands.trajectory.trajectory.sample(0.0)
    np.testing.assert_allclose(first.velocity, moving.velocity)
    assert commands.trajectory.trajectory.end.resting
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.JOINT_STATE
    rig.judge = Judge(rig.robot, rig.now)
    rig.judge.problems = []
    for _ in range(40):
        rig.now += 10 * MS
        rig.measure()
        rig.executor.tick(rig.now)
    assert rig.executor.submit(rig.chunk(FORWARD, sequence=1), rig.now).trimmed == 0


def test_the_stop_after_a_jump_back_stays_within_the_position_limits():
    wide = {"motion__workspace_min": (-3.0,) * 3, "motion__workspace_max": (3.0,) * 3}
    rig = Rig(motion__max_tcp_speed=5.0, motion__self_collision=False, **wide)
    limit = rig.robot.limits.position_max[5]
    start = rig.robot.home.copy()
    start[5] = limit - 1.2
    way = np.zeros((24, 7))
    way[:, 5] = 1.18 / 24
    spec = ActionSpec(Representation.JOINT_DELTA, rig.robot.joint_names, "", 0.02)
    for moment in np.arange(0.1, 1.1, 0.05):
        rig.executor = ChunkExecutor(rig.parameters)
        rig.executor.measured(rig.now, start, np.zeros(7))
        motion = rig.executor.submit(rig.chunk(way, spec=spec), rig.now).motion
        for _ in range(round(moment * 100)):
            rig.now += 10 * MS
            state = motion.at(rig.now)
            rig.executor.measured(rig.now, state.position, state.velocity)
            rig.executor.tick(rig.now)
        stop = rig.executor.tick(rig.now - 100 * S).trajectory
        if stop is not None:
            assert stop.trajectory.end.position[5] <= limit


def test_before_the_stop_after_a_jump_back_nothing_else_is_sent():
    """Whatever asks for a command first gets it, by the new time."""

    def sent(ask):
        rig = Rig()
        rig.move()
        rig.now -= 100 * S
        trajectory = ask(rig).trajectory
        assert rig.executor.tick(rig.now).trajectory is None
        return rig, trajectory

    disabled = replace(Rig().parameters, {"enable_control": False})
    for ask in (
        lambda rig: rig.executor.stop(rig.now),
        lambda rig: rig.executor.hold(rig.now),
        lambda rig: rig.executor.emergency_stop(True, rig.now),
        lambda rig: rig.executor.set_parameters(disabled, rig.now),
    ):
        rig, stop = sent(ask)
        assert stop.start_ns == rig.now
        assert stop.trajectory.end.resting
        assert stop.trajectory.duration < 0.5


def test_a_chunk_that_comes_before_that_stop_waits_for_its_end():
    rig = Rig()
    rig.move()
    state = rig.executor.commanded(rig.now)
    rig.now -= 100 * S
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.JOINT_STATE
    rig.executor.measured(rig.now, state.position, state.velocity)
    with pytest.raises(ChunkRejected, match="still comes to where the arm is"):
        rig.executor.submit(rig.chunk(FORWARD, sequence=1), rig.now)
    stop = rig.executor.tick(rig.now).trajectory
    np.testing.assert_allclose(stop.trajectory.sample(0.0).velocity, state.velocity)
    rig.now = stop.end_ns
    rig.executor.measured(rig.now, stop.trajectory.end.position, np.zeros(7))
    rig.executor.submit(rig.chunk(FORWARD, sequence=1), rig.now)


def test_a_clock_that_jumps_ahead_makes_joint_states_old():
    rig = Rig()
    rig.move()
    rig.now += 100 * S
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.JOINT_STATE


def test_the_last_command_before_a_shutdown_is_a_deceleration():
    rig = Rig()
    rig.move()
    rig.publish(rig.executor.stop(rig.now))
    assert brake_time(rig) < 0.25
    assert rig.executor.stop(rig.now).trajectory is None


# Answers to a simulator that waits.


def test_a_repeated_motion_changes_nothing():
    rig = Rig()
    rig.move()
    plan = rig.sent[-1]
    for _ in range(4):
        rig.publish(rig.executor.repeat(rig.now))
        rig.run(0.05)
        expected = plan.at(rig.now).position
        np.testing.assert_allclose(rig.executor.commanded(rig.now).position, expected, atol=1e-9)
    rig.run(1.5)
    rig.publish(rig.executor.repeat(rig.now))
    np.testing.assert_array_equal(rig.sent[-1].trajectory.velocities, 0.0)
    rig.run(0.3)


# The gripper.


def test_gripper_commands_go_out_when_their_action_starts_and_only_when_they_change():
    rig = Rig()
    rig.submit(rig.chunk(np.zeros((6, 6)), gripper=[1, 1, 0, 0, 1, 1]))
    rig.run(1.0)
    assert rig.grips == [(0.0, 1.0), (0.21, 0.0), (0.41, 1.0)]


def test_gripper_commands_may_go_out_when_their_action_ends():
    rig = Rig(gripper__due="end")
    rig.submit(rig.chunk(np.zeros((3, 6)), gripper=[1, 0, 0]))
    rig.run(1.0)
    assert rig.grips == [(0.11, 1.0), (0.21, 0.0)]


def test_a_chunk_that_arrives_in_time_replaces_gripper_commands_due_just_then():
    rig = Rig()
    rig.submit(rig.chunk(np.zeros((6, 6)), gripper=[1, 1, 0, 0, 0, 0]))
    rig.run(0.2)
    rig.submit(rig.chunk(np.zeros((6, 6)), gripper=1))
    rig.run(0.5)
    assert rig.grips == [(0.0, 1.0)]


@pytest.mark.parametrize("due", ["start", "end"])
def test_gripper_commands_from_before_a_hold_are_never_sent_after_it(due):
    """Nothing was said of the joints, nor asked, until the motion was over."""
    rig = Rig(gripper__due=due)
    rig.submit(rig.chunk(np.zeros((3, 6)), gripper=[1.0, 1.0, 0.0]))
    rig.run(0.1)
    before = list(rig.grips)
    rig.now += 600 * MS
    rig.run(0.1, measure=False)
    assert "joint state is" in rig.reason
    rig.run(0.1)
    assert rig.state is ControllerState.HOLDING
    assert rig.grips == before


def test_a_hold_leaves_the_gripper_as_it_is():
    rig = Rig()
    rig.submit(rig.chunk(FORWARD, gripper=[1, 1, 1, 1, 0, 0, 0, 0]))
    rig.run(0.2)
    rig.publish(rig.executor.hold(rig.now))
    rig.run(1.0)
    assert rig.grips == [(0.0, 1.0)]


def test_a_chunk_that_holds_leaves_the_gripper_as_it_is():
    """What holds position only knows the opening that is measured: that of a wide object."""
    rig = Rig()
    rig.submit(rig.chunk(np.zeros((8, 6)), gripper=0.0))
    rig.run(0.2)
    holding = rig.chunk(np.zeros((8, 6)), gripper=1.0)
    rig.submit(dataclasses.replace(holding, source=ChunkSource.HOLD))
    rig.run(0.2)
    rig.submit(rig.chunk(np.zeros((8, 6)), gripper=0.0))
    rig.run(0.2)
    assert rig.grips == [(0.0, 0.0)]


# Dry run and parameters.


def test_in_a_dry_run_all_is_checked_and_nothing_leaves():
    rig = Rig(enable_control=False)
    accepted = rig.submit(rig.chunk(FORWARD))
    assert accepted.motion.trajectory.duration > 0.8
    bad = FORWARD.copy()
    bad[3, 2] = -1.0
    assert rig.rejected(rig.chunk(bad)) is RejectionReason.JUMP
    rig.publish(rig.executor.hold(rig.now))
    rig.executor.release(rig.now)
    rig.publish(rig.executor.emergency_stop(True, rig.now))
    rig.executor.emergency_stop(False, rig.now)
    rig.run(0.5, measure=False)
    rig.run(0.1)
    rig.executor.reset(rig.now)
    rig.publish(rig.executor.repeat(rig.now))
    rig.publish(rig.executor.stop(rig.now))
    assert (rig.sent, rig.grips) == ([], [])
    assert rig.state is ControllerState.DRY_RUN


def test_control_that_is_disabled_in_motion_stops_the_arm():
    rig = Rig()
    rig.move()
    disabled = replace(rig.parameters, {"enable_control": False})
    rig.publish(rig.executor.set_parameters(disabled, rig.now))
    assert rig.sent[-1].trajectory.end.resting
    assert rig.sent[-1].trajectory.duration < 0.25
    sent = len(rig.sent)
    rig.run(0.1)
    rig.executor.submit(rig.chunk(FORWARD), rig.now)
    assert len(rig.sent) == sent


def test_a_speed_factor_that_falls_in_motion_refuses_until_the_arm_is_slow_enough():
    rig = Rig()
    rig.move()
    rig.executor.set_parameters(replace(rig.parameters, {"motion.speed_factor": 0.02}), rig.now)
    assert rig.rejected(rig.chunk(FORWARD)) is RejectionReason.LIMIT
    rig.run(1.0)
    rig.submit(rig.chunk(0.05 * FORWARD))
    rig.run(1.0)


def test_parameters_that_cannot_work_are_refused_and_the_old_ones_stay():
    rig = Rig()
    with pytest.raises(ConfigurationError, match=r"workspace_min.*below"):
        rig.executor.set_parameters(
            replace(rig.parameters, {"motion.workspace_min": (2.0, 2.0, 2.0)}), rig.now
        )
    with pytest.raises(ConfigurationError, match=r"fixed at 'fr3'"):
        rig.executor.set_parameters(replace(rig.parameters, {"robot": "panda"}), rig.now)
    rig.submit(rig.chunk(FORWARD))
    rig.run(1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"motion.speed_factor": float("nan")}, r"motion.speed_factor: expected a finite number"),
        ({"motion.speed_factor": 0.0}, r"at least 0.01"),
        ({"motion.workspace_max": (1.0,)}, r"expected 3 numbers or none"),
        ({"chunk.min_dt": 1.0, "chunk.max_dt": 0.5}, r"chunk.min_dt: expected at most"),
        ({"watchdog.max_tracking_error": -1.0}, r"watchdog.max_tracking_error"),
        ({"gripper.due": "later"}, r"one of start, end"),
        ({"motion.sped": 1.0}, r"did you mean"),
    ],
)
def test_bad_parameters_are_named(values, message):
    with pytest.raises(ConfigurationError, match=message):
        build(ControlParameters, values)


@pytest.mark.parametrize("robot", ["panda", "ur5e", "ur10e"])
def test_the_other_arms_move_as_well(robot):
    rig = Rig(robot=robot)
    spec = rig.spec(Representation.JOINT_DELTA)
    gripper = rig.robot.gripper_opening is not None
    for _ in range(3):
        rig.submit(rig.chunk(np.full((8, rig.robot.joints), 0.01), spec=spec))
        rig.run(0.4)
    rig.run(2.0)
    assert gripper == (robot == "panda")


def test_with_temporal_ensembling_the_arm_goes_between_what_two_chunks_say():
    """The second chunk says stay, the first said go: with equal weights the arm goes half way."""
    travelled = {}
    for ensemble in (False, True):
        rig = Rig(chunk__ensemble=ensemble, chunk__ensemble_decay=0.0)
        rig.submit(rig.chunk(FORWARD))
        rig.run(0.4)
        before = rig.pose()[0]
        rig.submit(rig.chunk(np.zeros_like(FORWARD)))
        rig.run(0.4)
        travelled[ensemble] = np.linalg.norm(rig.pose()[0] - before)
        rig.run(1.0)
    said = 4.0 * np.linalg.norm(FORWARD[0, :3])
    assert travelled[False] < 0.2 * said
    assert travelled[True] == pytest.approx(0.5 * said, rel=0.2)
