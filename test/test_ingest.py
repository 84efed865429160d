import contextlib
import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import contract_from, load_contract
from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.data.streams import BACKWARD_LIMIT, StreamBuffer
from vla_reasoner_ros.errors import ConfigurationError, ObservationError

KINEMATICS = Kinematics(load_robot("fr3"))
ARM = KINEMATICS.robot.joint_names
FINGERS = ("fr3_finger_joint1", "fr3_finger_joint2")
SECOND = 10**9

CONTRACT = """
robot: fr3
reference: agent
rate: 10.0
future_tolerance: 0.1
max_age: 2.0
joint_states: {topic: joint_states, policy: asof, tolerance: 0.05}
gripper: {joints: [fr3_finger_joint1, fr3_finger_joint2], open: 0.04, closed: 0.0}
cameras:
  agent: {topic: agent/image_raw}
  wrist: {topic: wrist/image_raw, policy: asof, tolerance: 0.05}
"""


def contract(**changes):
    content = yaml.safe_load(CONTRACT)
    for name, value in changes.items():
        *groups, leaf = name.split("__")
        branch = content
        for group in groups:
            branch = branch[group]
        branch[leaf] = value
    return contract_from(content)


def ns(seconds):
    return round(seconds * SECOND)


@dataclass
class JointState:
    """The fields of sensor_msgs/JointState, as a bag gives them too."""

    position: list = field(default_factory=lambda: [*KINEMATICS.robot.home, 0.01, 0.03])
    velocity: list = field(default_factory=lambda: [0.1] * 9)
    name: list = field(default_factory=lambda: [*ARM, *FINGERS])


class Robot:
    """Feeds an ingest; everything happens now unless said otherwise."""

    def __init__(self, contract_=None, instruction="lift the red block"):
        self.ingest = Ingest(contract_ or contract(), KINEMATICS)
        self.decoded = []
        if instruction:
            self.ingest.set_instruction(instruction, 0)

    def picture(self, camera, at, now=None, arrival=None, value=None, broken=False):
        stamp = ns(at)

        def decode():
            self.decoded.append((camera, stamp))
            if broken:
                raise ObservationError(f"{camera}: broken picture")
            shade = int(at * 100) % 251 if value is None else value
            return np.full((48, 64, 3), shade, dtype=np.uint8)

        now_ns = stamp if now is None else ns(now)
        arrival = at if arrival is None else arrival
        self.ingest.push_picture(camera, decode, stamp, now_ns, arrival)
        return self.ingest.poll(arrival)

    def joints(self, at, now=None, arrival=None, **fields):
        now_ns = ns(at) if now is None else ns(now)
        arrival = at if arrival is None else arrival
        self.ingest.push_joints(JointState(**fields), ns(at), now_ns, arrival)
        return self.ingest.poll(arrival)

    def everything(self, at, arrival=None):
        """One sample of each stream with the same stamp; the reference comes last."""
        self.joints(at, arrival=arrival)
        self.picture("wrist", at, arrival=arrival)
        return self.picture("agent", at, arrival=arrival)


@pytest.fixture
def warm():
    """A robot whose streams have all delivered once, at 0.9 s."""
    robot = Robot()
    assert len(robot.everything(0.9)) == 1
    return robot


# What an observation holds.


def test_an_observation_holds_every_stream_of_its_moment(warm):
    (observation,) = warm.everything(1.0)
    assert observation.stamp_ns == SECOND
    assert {n: i.shape for n, i in observation.images.items()} == {
        "agent": (96, 96, 3),
        "wrist": (96, 96, 3),
    }
    assert (observation.images["agent"] == 100).all()
    assert observation.joint_names == ARM
    position, quaternion = KINEMATICS.forward(KINEMATICS.robot.home)
    np.testing.assert_array_equal(observation.ee_position, position)
    np.testing.assert_array_equal(observation.ee_quaternion, quaternion)
    assert observation.gripper == pytest.approx(0.5)
    assert observation.instruction == "lift the red block"
    assert observation.ages == {"agent": 0, "wrist": 0, "joint_states": 0, "instruction": 1.0}


def test_joints_come_in_any_order(warm):
    order = list(range(8, -1, -1))
    state = JointState()
    warm.joints(
        1.0,
        name=[state.name[i] for i in order],
        position=[float(i) for i in order],
        velocity=[i / 10 for i in order],
    )
    warm.picture("wrist", 1.0)
    (observation,) = warm.picture("agent", 1.0)
    assert observation.joint_positions.tolist() == list(range(7))
    assert observation.joint_velocities.tolist() == [i / 10 for i in range(7)]


def test_nothing_is_made_before_every_stream_has_delivered():
    robot = Robot(instruction="")
    assert robot.ingest.waiting_for() == ("joint_states", "agent", "wrist", "instruction")
    assert robot.everything(1.0) == []
    assert robot.ingest.waiting_for() == ("instruction",)
    assert robot.ingest.moments["warming up"] == 1
    assert "instruction" in robot.ingest.last_error
    robot.ingest.set_instruction("push the block", SECOND)
    assert len(robot.everything(1.1)) == 1


def test_the_first_moment_waits_for_a_stream_that_is_on_its_way():
    robot = Robot()
    robot.joints(1.0)
    assert robot.picture("agent", 1.0) == []
    (observation,) = robot.picture("wrist", 1.0, arrival=1.04)
    assert observation.stamp_ns == SECOND


def test_the_first_moment_is_given_up_when_a_stream_does_not_come():
    robot = Robot()
    robot.joints(1.0)
    robot.picture("agent", 1.0)
    assert robot.ingest.poll(1.06) == []
    assert robot.ingest.moments["warming up"] == 1
    assert "wrist" in robot.ingest.last_error


def test_patience_waits_longer_than_a_sample_may_be_old():
    robot = Robot(contract(patience=1.0))
    robot.everything(0.9)
    robot.joints(1.0)
    assert robot.picture("agent", 1.0) == []
    (observation,) = robot.picture("wrist", 1.0, arrival=1.9)
    assert observation.stamp_ns == SECOND


def test_an_empty_instruction_is_refused(warm):
    with pytest.raises(ObservationError, match="instruction is empty"):
        warm.ingest.set_instruction("  ", 0)
    assert warm.everything(1.0)[0].instruction == "lift the red block"


def test_only_pictures_that_are_used_are_decoded(warm):
    warm.decoded.clear()
    for tick in range(1, 31):  # 30 Hz, thinned out to 10 Hz
        warm.everything(0.9 + tick / 30)
    assert len(warm.decoded) == 20
    assert warm.ingest.statistics["agent"].used == 11
    assert warm.ingest.statistics["agent"].received == 31


# When observations are made.


def test_pictures_are_thinned_out_to_the_rate():
    robot = Robot()
    stamps = [o.stamp_ns for k in range(61) for o in robot.everything(k / 30)]
    assert stamps == [ns(k / 10) for k in range(21)]


def test_jitter_does_not_lose_a_moment():
    robot = Robot(contract(rate=30.0))
    rng = np.random.default_rng(0)
    jitter = rng.uniform(-0.008, 0.008, 300)
    made = sum(len(robot.everything(1 + k / 30 + jitter[k])) for k in range(300))
    assert made == 300


def test_a_gap_starts_the_rhythm_anew(warm):
    assert len(warm.everything(1.0)) == 1
    assert len(warm.everything(3.27)) == 1
    assert warm.everything(3.30) == []
    assert len(warm.everything(3.37)) == 1


def test_a_picture_between_moments_is_used_when_time_stands_still(warm):
    assert warm.everything(0.95, arrival=1.0) == []
    assert warm.ingest.wake_at() == pytest.approx(1.3)
    assert warm.ingest.poll(1.2) == []
    (observation,) = warm.ingest.poll(1.31)
    assert observation.stamp_ns == ns(0.95)
    assert warm.ingest.wake_at() is None


# Policies.


def test_asof_waits_for_the_sample_of_the_same_stamp(warm):
    warm.joints(1.0)
    assert warm.picture("agent", 1.0) == []
    assert warm.ingest.wake_at() == pytest.approx(1.05)
    (observation,) = warm.picture("wrist", 1.0, arrival=1.02)
    assert observation.ages["wrist"] == 0.0


def test_asof_takes_the_sample_before_once_a_newer_one_is_there(warm):
    warm.joints(1.0)
    warm.picture("wrist", 0.98)
    assert warm.picture("agent", 1.0) == []
    (observation,) = warm.picture("wrist", 1.01)
    assert observation.ages["wrist"] == pytest.approx(0.02)


def test_asof_goes_on_with_the_sample_before_when_its_tolerance_has_passed(warm):
    warm.joints(1.0)
    warm.picture("wrist", 0.96)
    assert warm.picture("agent", 1.0) == []
    (observation,) = warm.ingest.poll(1.051)
    assert observation.ages["wrist"] == pytest.approx(0.04)


def test_asof_drops_the_moment_when_the_sample_is_too_old(warm):
    warm.joints(1.0)
    assert warm.picture("agent", 1.0) == []
    assert warm.ingest.poll(1.051) == []
    assert warm.ingest.moments["wrist stale"] == 1
    assert "wrist/image_raw: newest sample is 0.100 s old" in warm.ingest.last_error
    assert len(warm.everything(1.1)) == 1


def test_what_is_not_waited_for_is_taken_as_it_has_arrived_unless_too_old():
    robot = Robot(contract(joint_states__waited_for=False))
    robot.everything(1.0)
    robot.joints(1.995)
    robot.picture("wrist", 2.0)
    (observation,) = robot.picture("agent", 2.0)  # at once, not when the next joint state comes
    assert observation.ages["joint_states"] == pytest.approx(0.005)
    robot.picture("wrist", 3.0)
    assert not robot.picture("agent", 3.0)
    assert "expected at most 0.05 s" in robot.ingest.last_error


def test_hold_takes_the_newest_at_once_however_old():
    robot = Robot(contract(cameras__wrist__policy="hold"))
    robot.everything(0.9)
    robot.joints(1.9)
    (observation,) = robot.picture("agent", 1.9)
    assert observation.ages["wrist"] == pytest.approx(1.0)


def test_drop_uses_every_sample_once():
    robot = Robot(contract(cameras__wrist__policy="drop"))
    assert len(robot.everything(0.9)) == 1
    robot.joints(1.0)
    robot.picture("agent", 1.0)
    assert robot.ingest.poll(1.06) == []
    assert robot.ingest.moments["wrist not new"] == 1
    assert len(robot.everything(1.1)) == 1


def test_a_sample_after_the_moment_is_never_used(warm):
    warm.joints(1.0)
    warm.picture("wrist", 1.02)
    warm.picture("agent", 1.0)
    assert warm.ingest.moments["wrist stale"] == 1  # 1.02 is after it and 0.9 too old


def test_latency_is_taken_off_the_stamp():
    robot = Robot(contract(cameras__agent__latency=0.03))
    robot.everything(0.9)
    robot.joints(1.0)
    robot.picture("wrist", 1.0)
    (observation,) = robot.picture("agent", 1.03)
    assert observation.stamp_ns == SECOND
    assert set(observation.ages.values()) == {0.0, 1.0}


def test_paused_time_is_no_obstacle(warm):
    """With /clock standing still, everything that was stamped at the stop makes the observation."""
    warm.joints(1.0, arrival=50.0)
    warm.picture("agent", 1.0, arrival=50.0)
    (observation,) = warm.picture("wrist", 1.0, arrival=50.01)
    assert observation.stamp_ns == SECOND
    warm.picture("agent", 1.1, arrival=50.02)
    warm.joints(1.1, arrival=50.02)
    assert warm.ingest.poll(50.03) == []  # the wrist camera has failed
    assert warm.ingest.poll(50.08) == []
    assert warm.ingest.moments["wrist stale"] == 1


# What is refused.


@pytest.mark.parametrize(
    ("at", "now", "reason", "complaint"),
    [
        (1.2, 1.0, "future", "stamp is 0.200 s ahead"),
        (1.0, 4.0, "too old", "stamp is 3.000 s old on arrival"),
        (0.0, 1.7e9, "too old", "old on arrival"),
        (0.9, 1.0, "repeated", "came twice"),
        (0.8, 1.0, "backward", "0.100 s before the last one"),
    ],
)
@pytest.mark.parametrize("stream", ["agent", "joint_states"])
def test_an_unbelievable_stamp_is_refused_and_counted(warm, stream, at, now, reason, complaint):
    deliver = warm.joints if stream == "joint_states" else partial(warm.picture, stream)
    with pytest.raises(ObservationError, match=complaint):
        deliver(at, now=now)
    statistics = warm.ingest.statistics[stream]
    assert statistics.dropped == {reason: 1}
    assert statistics.last_error
    assert len(warm.everything(1.0)) == 1


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"position": [math.nan] * 9}, "fr3_joint1 is nan"),
        ({"velocity": [0.0] * 8 + [math.inf]}, "fr3_finger_joint2 is inf"),
        ({"velocity": []}, "0 numbers of velocity for 9 joints"),
        ({"name": [*ARM, "a", "b"]}, "fr3_finger_joint1, fr3_finger_joint2 are missing"),
        (
            {"name": [*ARM, *FINGERS, "extra"], "position": [0.0] * 10, "velocity": [0.0] * 10},
            "joints extra are unknown",
        ),
    ],
)
def test_an_unusable_joint_state_is_refused_and_counted(warm, fields, complaint):
    with pytest.raises(ObservationError, match=f"joint_states: .*{complaint}"):
        warm.joints(1.0, **fields)
    assert warm.ingest.statistics["joint_states"].dropped == {"unusable": 1}


@given(st.floats(1.0, 2e9), st.floats(0.05, 10.0))
def test_when_it_asks_to_be_woken_it_waits_no_more(arrival, patience):
    """Whatever the sum of arrival and patience is rounded to."""
    robot = Robot(contract(patience=patience))
    robot.joints(0.99, arrival=arrival)
    robot.picture("wrist", 1.0, arrival=arrival)
    assert robot.picture("agent", 1.0, arrival=arrival) == []
    assert len(robot.ingest.poll(robot.ingest.wake_at())) == 1
    assert robot.ingest.wake_at() is None


def test_an_undecodable_picture_drops_its_moment_only(warm):
    warm.joints(1.0)
    warm.picture("wrist", 1.0, broken=True)
    assert warm.picture("agent", 1.0) == []
    assert warm.ingest.moments["wrist unusable"] == 1
    assert warm.ingest.statistics["wrist"].dropped == {"unusable": 1}
    assert len(warm.everything(1.1)) == 1


def test_a_sender_whose_clock_was_set_back_is_believed_in_the_end():
    robot = Robot(contract(max_age=100.0))
    robot.everything(90.0)
    for k in range(BACKWARD_LIMIT - 1):
        with pytest.raises(ObservationError, match="before the last one"):
            robot.joints(80.0 + k / 100, now=90.1)
    robot.joints(80.1, now=90.1)
    assert robot.ingest.statistics["joint_states"].dropped == {"backward": BACKWARD_LIMIT - 1}


def test_a_reference_camera_whose_clock_was_set_back_is_believed_too():
    """The first moment that it asks for is between two pictures that the wrist has given away."""
    robot = Robot(contract(max_age=100.0))
    for k in range(20):
        robot.everything(1.0 + k / 10)
    made = []
    for k in range(20):
        now = 3.0 + k / 10
        robot.joints(now)
        robot.joints(now + 0.01)
        robot.picture("wrist", now)
        with contextlib.suppress(ObservationError):  # not believed at first
            made += robot.picture("agent", now - 0.57, now=now)
    assert robot.ingest.moments["wrist missing"] == 1
    assert [round(o.stamp_ns / SECOND, 2) for o in made][-3:] == [4.13, 4.23, 4.33]


def test_a_stream_that_began_anew_keeps_its_pictures_when_an_older_one_is_settled():
    limits = contract(max_age=100.0)
    buffer = StreamBuffer("agent", limits.cameras["agent"])
    buffer.push(ns(3.1), ns(3.1), limits, "old")
    old = buffer.newest()
    for k in range(BACKWARD_LIMIT + 2):
        with contextlib.suppress(ObservationError):
            buffer.push(ns(2.0 + k / 10), ns(3.1), limits, k)
    buffer.settle(old)
    assert [buffer.find(ns(at))[0].payload for at in (2.4, 2.5, 2.6)] == [4, 5, 6]


def test_after_a_jump_back_everything_begins_anew_but_instruction_and_counts(warm):
    warm.everything(50.0)
    warm.joints(50.1)
    warm.picture("agent", 50.1)  # still waits for the wrist
    warm.ingest.reset()
    assert warm.ingest.waiting_for() == ("joint_states", "agent", "wrist")
    assert warm.ingest.poll(100.0) == []
    assert [o.stamp_ns for o in warm.everything(0.2)] == [ns(0.2)]
    assert warm.ingest.statistics["agent"].received == 4


def test_a_frozen_camera_blocks_observations_until_it_moves():
    robot = Robot(contract(cameras__wrist__frozen_after=0.25))
    made = []
    for k in range(8):
        at = 1 + k / 10
        robot.joints(at)
        robot.picture("wrist", at, value=7 if k < 6 else 8)
        made += [round(o.stamp_ns / SECOND, 1) for o in robot.picture("agent", at)]
    assert made == [1.0, 1.1, 1.2, 1.6, 1.7]
    assert robot.ingest.moments["wrist frozen"] == 3


def test_velocities_can_be_differentiated():
    robot = Robot(contract(joint_states__velocity="differentiated"))
    still = [0.0] * 9
    robot.joints(0.98, position=still, velocity=[])
    robot.joints(1.0, position=[0.01 * i for i in range(9)], velocity=[])
    robot.picture("wrist", 1.0)
    (observation,) = robot.picture("agent", 1.0)
    np.testing.assert_allclose(observation.joint_velocities, 0.5 * np.arange(7))


# Invariants.

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["agent", "wrist", "joints"]),
        st.integers(-30, 60),  # stamp relative to the clock, ms
        st.integers(0, 40),  # time until the next event, ms
    ),
    max_size=120,
)


@settings(max_examples=60)
@given(EVENTS, st.sampled_from(["hold", "asof", "drop"]))
def test_whatever_arrives_observations_are_aligned_ordered_and_counted(events, policy):
    robot = Robot(contract(cameras__wrist__policy=policy, future_tolerance=0.03))
    now, made = 1.0, []
    for stream, offset, pause in events:
        at = now + offset / 1000
        try:
            if stream == "joints":
                made += robot.joints(at, now=now, arrival=now)
            else:
                made += robot.picture(stream, at, now=now, arrival=now)
        except ObservationError:
            made += robot.ingest.poll(now)
        now += pause / 1000
    made += robot.ingest.poll(now + 10)

    stamps = [o.stamp_ns for o in made]
    assert stamps == sorted(set(stamps))
    limits = {"joint_states": 0.05, "agent": 0.0, "wrist": 0.05 if policy == "asof" else math.inf}
    for observation in made:
        for stream, limit in limits.items():
            assert 0.0 <= observation.ages[stream] <= limit
    assert robot.ingest.moments["observed"] == len(made)
    for stream in ("agent", "wrist", "joint_states"):
        statistics = robot.ingest.statistics[stream]
        assert statistics.used + statistics.dropped.total() <= statistics.received
    assert robot.ingest.wake_at() is None


# Contracts.


@pytest.mark.parametrize("name", ["sim", "franka", "ur"])
def test_the_shipped_contracts_are_valid(name):
    shipped = load_contract(name)
    robot = load_robot(shipped.moments.robot)
    Ingest(shipped, Kinematics(robot))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cameras__wrist__tolerence": 0.1}, "did you mean cameras.wrist.tolerance"),
        ({"rates": 10.0}, "parameter rates: there is none of this name; did you mean rate"),
        ({"rate": 0.0}, "parameter rate: expected at least 0.1 Hz, got 0.0"),
        ({"rate": "fast"}, "parameter rate: expected float, got 'fast'"),
        ({"cameras__wrist__policy": "guess"}, "expected one of hold, asof, drop, got 'guess'"),
        ({"cameras__wrist__topic": "agent/image_raw"}, "is the topic of agent already"),
        ({"cameras__wrist__topic": ""}, "wrist.topic: expected a topic"),
        ({"cameras": {}}, "expected at least one"),
        ({"cameras__wrist": 3}, "cameras.wrist: expected a mapping, got 3"),
        ({"reference": "head"}, "expected one of the cameras agent, wrist, got 'head'"),
        ({"gripper__open": 0.0}, "expected two positions, got 0.0 twice"),
        ({"joint_states__latency": math.nan}, "expected a finite number, got nan"),
    ],
)
def test_a_wrong_contract_is_named_by_entry_and_fault(change, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        contract(**change)


def test_a_wrong_contract_file_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigurationError, match=r"mine.yaml: cannot be read"):
        load_contract(path)
    path.write_text("reference: [")
    with pytest.raises(ConfigurationError, match=r"mine.yaml: not valid YAML"):
        load_contract(path)
    path.write_text("- a")
    with pytest.raises(ConfigurationError, match=r"mine.yaml: the file: expected a mapping"):
        load_contract(path)


def test_a_camera_is_not_called_as_another_stream():
    named = contract(cameras={"instruction": {"topic": "a"}}, reference="instruction")
    with pytest.raises(ConfigurationError, match="'instruction' cannot be the name of a camera"):
        Ingest(named, KINEMATICS)
