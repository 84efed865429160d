import numpy as np
import pytest
import yaml

from vla_reasoner_ros.control.robots import available_robots, load_robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import share_directory

ROBOTS = ("fr3", "panda", "ur10e", "ur5e")


@pytest.fixture
def broken(tmp_path):
    """Loads the FR3's file after a change."""

    def load(change, limits=""):
        content = yaml.safe_load((share_directory() / "config/robots/fr3.yaml").read_text())
        change(content)
        path = tmp_path / "arm.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_robot(path, limits)

    return load


def test_the_four_arms_are_shipped():
    assert available_robots() == ROBOTS


@pytest.mark.parametrize("name", ROBOTS)
def test_home_is_within_limits_and_limits_are_positive(name):
    robot = load_robot(name)
    limits = robot.limits
    assert len(robot.joint_names) == len(robot.dh) == robot.joints
    assert np.all(limits.position_min < robot.home)
    assert np.all(robot.home < limits.position_max)
    for values in (limits.velocity, limits.acceleration, limits.jerk, limits.torque):
        assert values.shape == (robot.joints,)
        assert np.all(values > 0.0)


def test_the_fr3_starts_with_the_rectangular_set_and_offers_the_full_one():
    rectangular, full = load_robot("fr3").limits, load_robot("fr3", "full").limits
    assert np.all(rectangular.velocity < full.velocity)
    assert np.all(rectangular.position_max < full.position_max)
    assert rectangular.velocity_envelope is None
    assert full.velocity_envelope is not None


def test_the_rectangular_set_touches_the_position_dependent_velocity_at_its_corners():
    rectangular, envelope = load_robot("fr3").limits, load_robot("fr3", "full").limits
    _, fast = envelope.velocity_envelope.bounds(rectangular.position_max)
    slow, _ = envelope.velocity_envelope.bounds(rectangular.position_min)
    np.testing.assert_allclose(fast, rectangular.velocity, atol=2e-3)
    np.testing.assert_allclose(-slow, rectangular.velocity, atol=2e-3)


def test_the_velocity_envelope_is_zero_beyond_the_ends_of_travel():
    envelope = load_robot("fr3", "full").limits.velocity_envelope
    slow, _ = envelope.bounds(envelope.position_min - 1.0)
    _, fast = envelope.bounds(envelope.position_max + 1.0)
    assert not slow.any()
    assert not fast.any()


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ConfigurationError, match=r"'fr4' is unknown; known are fr3, panda"):
        load_robot("fr4")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"gone.yaml: cannot be read"):
        load_robot(tmp_path / "gone.yaml")


@pytest.mark.parametrize("text", ["a: [", "", "[1, 2]", "name: a\nname: b\n"])
def test_what_is_not_a_robot_file_is_refused(tmp_path, text):
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"arm.yaml"):
        load_robot(path)


def set_in(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("surprise", value=1), "unknown key 'surprise'"),
        (lambda c: c.pop("home"), "missing key 'home'"),
        (set_in("kinematics", "a", value=[0.0]), r"kinematics.a: expected a list of 7 numbers"),
        (
            set_in("kinematics", "a", 2, value="x"),
            r"kinematics.a: expected finite numbers, got 'x'",
        ),
        (set_in("kinematics", "d", 0, value=float("nan")), r"kinematics.d: .* got nan"),
        (set_in("kinematics", "convention", value="mine"), r"one of modified, standard"),
        (
            set_in("limits", "rectangular", "velocity", 3, value=-1.0),
            r"limits.rectangular.velocity: expected finite positive numbers, got -1.0",
        ),
        (
            set_in("limits", "full", "jerk", 0, value=0.0),
            r"limits.full.jerk: expected finite positive numbers, got 0.0",
        ),
        (
            set_in("limits", "rectangular", "acceleration", 0, value=float("inf")),
            r"limits.rectangular.acceleration: .* got inf",
        ),
        (
            set_in("limits", "rectangular", "position_min", 1, value=2.0),
            r"limits.rectangular.position_min\[1\]: expected less than position_max\[1\] = 1.5133",
        ),
        (set_in("default_limits", value="none"), r"one of rectangular, full, got 'none'"),
        (set_in("home", 3, value=1.0), r"home: expected positions within limits.rectangular"),
        (set_in("joint_names", 1, value="fr3_joint1"), r"joint_names: expected names that differ"),
        (set_in("workspace", "min", value=[1.0, 1.0, 1.0]), r"workspace.min\[0\]"),
        (set_in("tool_frames", value=[]), r"tool_frames: expected a list of at least one frame"),
        (set_in("gripper", "opening", value=True), r"gripper.opening: expected finite positive"),
        (set_in("cartesian", "linear_jerk", value=None), r"cartesian.linear_jerk"),
    ],
)
def test_a_wrong_file_names_the_field_and_what_was_expected(broken, change, message):
    with pytest.raises(ConfigurationError, match=message):
        broken(change)


def test_an_unknown_limit_set_is_named(broken):
    with pytest.raises(ConfigurationError, match=r"one of rectangular, full, got 'fast'"):
        broken(lambda content: None, limits="fast")
