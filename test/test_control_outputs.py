"""What each kind of output is told, and what the controller makes of drivers that do not obey."""

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.commands import ControllerState, TimedTrajectory
from vla_reasoner_ros.control.executor import ChunkExecutor, ChunkRejected, ResetRefused
from vla_reasoner_ros.control.goals import Goals
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.outputs import ARM_OUTPUTS, GRIPPER_OUTPUTS, Tracking
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.resample import LinkSampler
from vla_reasoner_ros.control.robots import available_robots, load_robot
from vla_reasoner_ros.control.trajectory import MotionState, resting
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Representation

S, MS = 1_000_000_000, 1_000_000
SPEC = ActionSpec(Representation.EE_DELTA, ("x", "y", "z", "rx", "ry", "rz"), "base", 0.1)
FORWARD = np.tile([0.012, 0.006, -0.01, 0.0, 0.0, 0.02], (8, 1))
ROBOT = load_robot("fr3")
# A motion of the joints that the TCP does not feel: what a redundant arm may do by itself.
IN_PLACE = np.linalg.svd(Kinematics(ROBOT).jacobian(ROBOT.home))[2][-1]


# What the robot file declares.


@pytest.mark.parametrize("name", available_robots())
def test_every_robot_declares_outputs_each_with_its_source(name):
    robot = load_robot(name)
    for declared, known in (
        (robot.outputs.arm, ARM_OUTPUTS),
        (robot.outputs.gripper, GRIPPER_OUTPUTS),
    ):
        assert set(declared) <= set(known)
        assert all(len(output.source) > 10 for output in declared.values())
    assert "joint_trajectory" in robot.outputs.arm
    assert bool(robot.outputs.gripper) == (robot.gripper_opening is not None)


def test_what_is_not_declared_is_refused_with_what_is():
    outputs = load_robot("ur5e").outputs
    with pytest.raises(ConfigurationError, match=r"ur5e does not declare 'opening'; .* none"):
        outputs.for_gripper("opening", "ur5e")
    with pytest.raises(ConfigurationError, match=r"'wish'; it declares joint_trajectory, follow_"):
        outputs.for_arm("wish", "ur5e")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("arm",), {}, r"outputs.arm: expected some of joint_trajectory"),
        (("arm", "wish"), {"source": "x"}, r"outputs.arm: expected some of .* got 'wish'"),
        (("arm", "twist"), {"source": "a manual"}, r"outputs.arm.twist: missing key 'link'"),
        (("arm", "pose", "link"), "elbow", r"pose.link: expected one of fr3_link8, .* 'elbow'"),
        (("arm", "joint_trajectory"), {}, r"joint_trajectory: missing key 'source'"),
        (("gripper", "gripper_command", "open"), 0.0, r"open: expected another position"),
        (("gripper", "gripper_command", "max_effort"), -1.0, r"max_effort: expected 0 or more"),
        (("gripper", "gripper_command", "closed"), "shut", r"closed: expected finite numbers"),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path, keys, value, message):
    content = yaml.safe_load((share_directory() / "config/robots/fr3.yaml").read_text())
    part = content["outputs"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError, match=message):
        load_robot(path)


def test_a_gripper_command_is_between_its_positions():
    grip = ROBOT.outputs.for_gripper("gripper_command", "fr3")
    assert [grip.position(opening) for opening in (0.0, 0.5, 1.0)] == [0.0, 0.02, 0.04]


# Resampling for Cartesian controllers.


class Rig:
    """An executor, and an arm that does what its drivers understand of the commands."""

    def __init__(self, tracking=Tracking.JOINTS, **changes):
        values = {"enable_control": True, "motion.settle_time": 0.0, "motion.lead_time": 0.0}
        values |= {name.replace("__", "."): value for name, value in changes.items()}
        self.executor = ChunkExecutor(build(ControlParameters, values), tracking=tracking)
        self.now = 1_000 * S
        self.sequence = 0
        self.offset = np.zeros(7)
        self.sent = []
        self.measure()

    def measure(self):
        state = self.executor.commanded(self.now) or MotionState.at_rest(ROBOT.home)
        self.executor.measured(self.now, state.position + self.offset, state.velocity)

    def submit(self, motion=FORWARD):
        self.sequence += 1
        chunk = ActionChunk(SPEC, motion, self.now, self.sequence)
        accepted = self.executor.submit(chunk, self.now)
        self.publish(accepted.commands)
        return accepted

    def publish(self, commands):
        if commands.trajectory is not None:
            self.sent.append(commands.trajectory)
        return commands

    def run(self, seconds):
        end = self.now + round(seconds * S)
        while self.now < end:
            self.now += 10 * MS
            self.measure()
            self.publish(self.executor.tick(self.now))

    def stray(self, offset, steps=10):
        """Time in which the arm comes to be elsewhere than commanded, no faster than it can."""
        for share in np.linspace(0.0, 1.0, steps + 1)[1:]:
            self.offset = share * np.asarray(offset)
            self.run(0.01)

    def stand(self, position, seconds=0.2):
        """Time in which the arm stands somewhere, whatever is commanded."""
        end = self.now + round(seconds * S)
        while self.now < end:
            self.now += 10 * MS
            self.executor.measured(self.now, position, np.zeros(7))
            self.publish(self.executor.tick(self.now))

    def move(self):
        accepted = self.submit()
        self.run(0.3)
        assert not self.executor.commanded(self.now).resting
        return accepted

    @property
    def status(self):
        return self.executor.status(self.now)


@pytest.fixture
def motion():
    return Rig().submit().motion.trajectory


@pytest.mark.parametrize("link", ["fr3_link8", "fr3_hand_tcp"])
def test_the_velocities_of_a_link_add_up_to_its_way(motion, link):
    sampler = LinkSampler(Kinematics(ROBOT), link)
    step = 4e-3
    position, quaternion = sampler.pose(motion.sample(0.0))
    turn = Rotation.from_quat(quaternion)
    for time in np.arange(0.0, motion.duration, step):
        twist = sampler.twist(motion.sample(time + step / 2), in_link=False)
        position = position + step * twist[:3]
        turn = Rotation.from_rotvec(step * twist[3:]) * turn
    reached, turned = sampler.pose(motion.end)
    np.testing.assert_allclose(position, reached, atol=1e-4)
    assert (turn.inv() * Rotation.from_quat(turned)).magnitude() < 1e-3


def test_along_the_axes_of_the_link_it_is_the_same_velocity(motion):
    sampler = LinkSampler(Kinematics(ROBOT), "fr3_link8")
    state = motion.sample(0.4)
    turn = Rotation.from_quat(sampler.pose(state)[1])
    based, linked = (sampler.twist(state, in_link) for in_link in (False, True))
    np.testing.assert_allclose(turn.apply(linked.reshape(2, 3)), based.reshape(2, 3), atol=1e-12)


def test_the_tcp_is_where_kinematics_say(motion):
    sampler, arm = LinkSampler(Kinematics(ROBOT), "fr3_hand_tcp"), Kinematics(ROBOT)
    for got, expected in zip(
        sampler.pose(motion.end), arm.forward(motion.end.position), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_stop_is_a_velocity_that_falls_to_zero():
    rig = Rig()
    rig.move()
    stop = rig.executor.hold(rig.now).trajectory
    sampler = LinkSampler(rig.executor.kinematics, "fr3_link8")
    lead = rig.executor.parameters.motion.stop_lead_time
    times = np.arange(lead, stop.trajectory.duration, 0.01)
    speeds = [
        np.linalg.norm(sampler.twist(stop.trajectory.sample(time), in_link=False)[:3])
        for time in [*times, stop.trajectory.duration]
    ]
    assert speeds[0] > 0.05
    assert np.all(np.diff(speeds) < 0.0)
    assert speeds[-1] == 0.0


def test_a_link_that_is_not_fixed_to_the_tcp_cannot_be_commanded():
    with pytest.raises(ConfigurationError, match=r"no link 'elbow'"):
        LinkSampler(Kinematics(ROBOT), "elbow")


# What is measured means something else where joints are not what the driver follows.


def test_a_posture_of_its_own_is_no_tracking_error_where_only_the_pose_is_followed():
    for tracking, error in ((Tracking.JOINTS, 0.1), (Tracking.POSE, 0.0), (Tracking.TWIST, 0.0)):
        rig = Rig(tracking)
        rig.move()
        rig.offset = 0.1 * IN_PLACE / np.abs(IN_PLACE).max()
        rig.measure()
        assert rig.status.tracking_error == pytest.approx(error, abs=0.02)


@pytest.mark.parametrize("tracking", [Tracking.POSE, Tracking.TWIST])
def test_a_tcp_that_does_not_follow_holds_the_arm_whatever_is_followed(tracking):
    rig = Rig(tracking)
    rig.move()
    rig.stray([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], steps=25)
    assert "the arm does not follow" in rig.status.reason
    assert rig.sent[-1].trajectory.end.resting


def test_after_a_velocity_was_not_followed_the_next_chunk_starts_where_the_arm_is():
    rig = Rig(Tracking.TWIST)
    rig.move()
    rig.offset = np.full(7, 0.05)
    rig.run(1.5)
    measured = rig.executor.commanded(rig.now).position + rig.offset
    accepted = rig.submit()
    np.testing.assert_allclose(accepted.base, measured)
    np.testing.assert_allclose(accepted.motion.trajectory.positions[0], measured)


def test_where_a_pose_is_followed_the_next_chunk_keeps_it_and_takes_over_the_posture():
    rig = Rig(Tracking.POSE)
    rig.move()
    rig.run(1.5)
    commanded = rig.executor.commanded(rig.now).position
    rig.stray(0.05 * IN_PLACE / np.abs(IN_PLACE).max())
    rig.run(0.2)
    start = rig.submit().motion.trajectory.positions[0]
    before, after = (rig.executor.kinematics.forward(joints)[0] for joints in (commanded, start))
    np.testing.assert_allclose(after, before, atol=1e-4)
    np.testing.assert_allclose(start, commanded + rig.offset, atol=0.015)


def test_in_motion_nothing_jumps_because_of_what_is_measured():
    for tracking in Tracking:
        rig = Rig(tracking)
        rig.move()
        rig.offset = np.full(7, 0.01)
        rig.measure()
        before = rig.executor.commanded(rig.now)
        rig.submit(0.5 * FORWARD)
        np.testing.assert_allclose(rig.executor.commanded(rig.now).position, before.position)


# Drivers that fail, and others who command the arm.


def test_someone_else_on_the_topic_stops_the_arm_until_a_reset():
    rig = Rig(Tracking.TWIST)
    rig.move()
    stop = rig.publish(rig.executor.intruded(rig.now)).trajectory.trajectory
    assert stop.end.resting
    assert "someone else commands the arm" in rig.status.reason
    rig.run(1.0)
    with pytest.raises(ChunkRejected, match="someone else"):
        rig.submit()
    rig.executor.reset(rig.now)
    rig.run(0.02)
    rig.submit()


def test_a_goal_that_was_refused_is_followed_by_a_stop_of_what_the_arm_does_instead():
    rig = Rig()
    playing = rig.move().motion
    rig.submit(0.5 * FORWARD)  # the driver refuses this one
    commands = rig.executor.failed("driver: a goal was rejected", playing, rig.now)
    stop = commands.trajectory
    lead_ns = round(rig.executor.parameters.motion.stop_lead_time * S)
    for time_ns in (rig.now, rig.now + lead_ns):
        instead = playing.at(time_ns)
        np.testing.assert_allclose(stop.at(time_ns).position, instead.position, atol=1e-9)
        np.testing.assert_allclose(stop.at(time_ns).velocity, instead.velocity, atol=1e-7)
    assert stop.trajectory.end.resting
    assert rig.status.reason.startswith("driver: a goal was rejected")
    assert rig.status.state is ControllerState.HOLDING


def test_a_stop_that_is_refused_is_not_sent_again():
    rig = Rig()
    playing = rig.move().motion
    rig.publish(rig.executor.hold(rig.now))
    assert rig.executor.failed("refused", playing, rig.now).trajectory is None
    with pytest.raises(ResetRefused, match="still decelerates"):
        rig.executor.reset(rig.now)
    rig.run((playing.end_ns - rig.now) / S)
    rig.stand(playing.trajectory.end.position)
    rig.executor.reset(rig.now)


def test_after_an_aborted_goal_the_arm_is_taken_where_it_stands():
    rig = Rig()
    rig.move()
    assert rig.executor.failed("PATH_TOLERANCE_VIOLATED", None, rig.now).trajectory is None
    stands = rig.executor.commanded(rig.now).position + 0.02
    rig.stand(stands)
    with pytest.raises(ChunkRejected, match="PATH_TOLERANCE_VIOLATED; reset"):
        rig.submit()
    rig.executor.reset(rig.now)
    rig.stand(stands)
    np.testing.assert_allclose(rig.submit().motion.trajectory.positions[0], stands)


def test_a_dry_run_has_no_failures():
    rig = Rig(enable_control=False)
    assert rig.executor.failed("nobody serves the action", None, rig.now).trajectory is None
    assert rig.executor.intruded(rig.now).trajectory is None
    assert rig.status.state is ControllerState.DRY_RUN


# Goals: what a server says, in any order.


def some_motion(start_ns=0):
    return TimedTrajectory(start_ns, resting(ROBOT.joint_names, ROBOT.home, 1.0))


@pytest.fixture
def goals():
    return Goals("Follow", answer_timeout=0.2, result_timeout=0.5)


def test_a_goal_that_succeeds_is_no_failure(goals):
    number = goals.sent(some_motion(), 0.0)
    assert goals.accepted(number)
    assert goals.ended(number, "", "") is None
    assert goals.look(100 * S, 100.0) is None


@pytest.mark.parametrize("code", ["INVALID_GOAL", "CANCELED"])
@pytest.mark.parametrize("result_first", [True, False])
def test_a_goal_that_was_replaced_is_no_failure_whatever_comes_first(goals, code, result_first):
    first = goals.sent(some_motion(), 0.0)
    goals.accepted(first)
    second = goals.sent(some_motion(), 0.1)
    if result_first:
        assert goals.ended(first, code, "preempted") is None
        assert goals.accepted(second)
    else:
        assert goals.accepted(second)
        assert goals.ended(first, code, "preempted") is None
    assert goals.look(S // 2, 0.5) is None


def test_the_newest_goal_that_is_aborted_is_a_failure_by_name(goals):
    number = goals.sent(some_motion(), 0.0)
    goals.accepted(number)
    failure = goals.ended(number, "PATH_TOLERANCE_VIOLATED", "fr3_joint2 by 0.3 rad")
    assert failure.reason == "Follow: PATH_TOLERANCE_VIOLATED: fr3_joint2 by 0.3 rad"
    assert failure.playing is None


def test_after_a_rejected_goal_the_one_before_is_what_plays(goals):
    motion = some_motion()
    first = goals.sent(motion, 0.0)
    goals.accepted(first)
    failure = goals.rejected(goals.sent(some_motion(), 0.1))
    assert failure.reason == "Follow: a goal was rejected"
    assert failure.playing == (first, motion)


def test_a_tolerance_that_a_replaced_goal_broke_is_a_failure_all_the_same(goals):
    first = goals.sent(some_motion(), 0.0)
    goals.accepted(first)
    second = goals.sent(some_motion(), 0.1)
    assert goals.ended(first, "GOAL_TOLERANCE_VIOLATED", "").playing is None
    assert not goals.accepted(second)  # it is not wanted any more, so it is cancelled


def test_a_server_that_does_not_answer_is_a_failure(goals):
    goals.sent(some_motion(), 10.0)
    assert goals.look(0, 10.2) is None
    failure = goals.look(0, 10.3)
    assert failure.reason == "Follow: no answer to a goal for 0.300 s, allowed are 0.2 s"
    assert goals.look(0, 20.0) is None  # said once


def test_a_goal_without_a_result_is_a_failure(goals):
    goals.accepted(goals.sent(some_motion(), 0.0))
    assert goals.look(round(1.5 * S), 2.0) is None
    assert "no result 0.600 s after the end" in goals.look(round(1.6 * S), 2.0).reason


def test_what_is_said_of_forgotten_goals_does_not_matter(goals):
    number = goals.sent(some_motion(), 0.0)
    goals.forget()
    assert goals.rejected(number) is None
    assert goals.ended(number, "INVALID_GOAL", "") is None
    assert goals.look(100 * S, 100.0) is None
