"""Distances between the links, against geometry done by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_reasoner_ros.control.collision import SLACK, SelfCollision
from vla_reasoner_ros.control.kinematics import table_model
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.stopping import move_to
from vla_reasoner_ros.control.trajectory import MotionState

ROBOTS = ("fr3", "panda", "ur5e", "ur10e")
ARMS = {name: load_robot(name) for name in ROBOTS}
COLLISIONS = {name: SelfCollision(arm, table_model(arm)) for name, arm in ARMS.items()}


def way(name, start, target):
    arm = ARMS[name]
    return move_to(arm.joint_names, MotionState.at_rest(start), target, arm.limits)


@pytest.mark.parametrize("name", ROBOTS)
def test_at_home_no_link_is_near_another(name):
    distance, _ = COLLISIONS[name].distance(ARMS[name].home)
    assert distance > 0.03


def test_the_distance_of_two_links_is_that_of_their_capsules():
    """The UR5e stretched up: forearm above the base, on one line but for the offset."""
    arm = ARMS["ur5e"]
    capsules = {capsule.link: capsule for capsule in arm.capsules}
    joints = np.array([0.0, -np.pi / 2.0, 0.0, -np.pi / 2.0, -np.pi / 2.0, 0.0])
    height = {"forearm": arm.dh[0, 1] + abs(arm.dh[1, 0]), "base": capsules["base"].end[2]}
    gap = height["forearm"] - height["base"]
    gap -= capsules["forearm"].radius + capsules["base"].radius
    offset = capsules["forearm"].start[2]
    expected = np.hypot(height["forearm"] - height["base"], offset)
    expected -= capsules["forearm"].radius + capsules["base"].radius
    assert gap == pytest.approx(expected, abs=1e-3)
    collision = COLLISIONS["ur5e"]
    collision.distance(joints)
    pair = collision._pairs.index(("base", "forearm"))
    found = collision._geometry_data.distanceResults[pair].min_distance
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_hand_that_goes_into_the_base_is_found_on_the_way():
    start = ARMS["panda"].home
    inside = np.array([0.0, -1.5, 0.0, -3.0, 0.0, 0.1, 0.0])
    motion = way("panda", start, inside)
    closest = COLLISIONS["panda"].closest(motion, 0.01)
    assert closest is not None
    assert closest.distance < closest.bound == 0.01
    distance, links = COLLISIONS["panda"].distance(motion.sample(closest.time).position)
    assert links == closest.links
    assert distance == pytest.approx(closest.distance, abs=1e-9)


def test_a_motion_away_from_a_start_that_is_too_close_is_free():
    inside = np.array([0.0, -1.5, 0.0, -2.9, 0.0, 0.35, 0.0])
    collision = COLLISIONS["panda"]
    distance, _ = collision.distance(inside)
    assert distance < 0.1
    assert collision.closest(way("panda", inside, ARMS["panda"].home), 0.1) is None
    assert collision.closest(way("panda", ARMS["panda"].home, inside), 0.1) is not None


def test_a_robot_file_without_capsules_never_collides():
    from dataclasses import replace

    arm = replace(ARMS["fr3"], capsules=())
    collision = SelfCollision(arm, table_model(arm))
    assert collision.closest(way("fr3", arm.home, arm.home + 0.3), 0.1) is None


@st.composite
def motions(draw):
    name = draw(st.sampled_from(ROBOTS))
    limits = ARMS[name].limits
    shares = st.lists(st.floats(0.02, 0.98), min_size=12, max_size=14)
    mix = np.array(draw(shares))[: 2 * ARMS[name].joints].reshape(-1)
    half = ARMS[name].joints
    mix = np.resize(mix, 2 * half)
    span = np.minimum(limits.position_max, np.pi) - np.maximum(limits.position_min, -np.pi)
    low = np.maximum(limits.position_min, -np.pi)
    return name, low + span * mix[:half], low + span * mix[half:]


@settings(max_examples=40)
@given(motions())
def test_no_approach_slips_between_two_looks(motion):
    """Against a look every millisecond."""
    name, start, target = motion
    collision, margin = COLLISIONS[name], 0.02
    trajectory = way(name, start, target)
    if collision.distance(start)[0] < margin:
        return
    times = np.arange(0.0, trajectory.duration, 0.001)
    positions = trajectory.sample_positions(times)
    nearest = min(collision.distance(position)[0] for position in positions)
    found = collision.closest(trajectory, margin)
    if nearest < margin - 2.0 * SLACK:
        assert found is not None
    elif nearest > margin:
        assert found is None
