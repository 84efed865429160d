"""Shipped configurations of controllers and of Servo: held to the robot files and to their use."""

import numpy as np
import pytest
import yaml

from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.robots import available_robots, load_robot
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.ros.output import CommandParameters

CONFIG = share_directory() / "config"
CONTROLLERS = {
    "fr3": ("franka", "joint_trajectory_controller"),
    "ur5e": ("ur", "scaled_joint_trajectory_controller"),
    "ur10e": ("ur", "scaled_joint_trajectory_controller"),
}
DEFAULTS = build(ControlParameters, {})


def parameters(path, node):
    """The parameters of one node, which the file may name more than once."""
    found = {}
    for document in yaml.compose_all(path.read_text()):
        for key, value in document.value:
            assert key.value == "/**"
            content = yaml.safe_load(yaml.serialize(value))
            found |= content.get(node, {}).get("ros__parameters", {})
    return found


@pytest.fixture(params=CONTROLLERS)
def arm(request):
    file, node = CONTROLLERS[request.param]
    return load_robot(request.param), parameters(CONFIG / f"ros2_control/{file}.yaml", node)


def test_the_controller_has_the_joints_of_the_robot_file_in_order(arm):
    robot, given = arm
    assert tuple(given["joints"]) == robot.joint_names
    assert set(robot.joint_names) <= set(given["constraints"])


def test_trajectories_continue_the_commanded_state_and_are_complete(arm):
    _, given = arm
    assert given["interpolate_from_desired_state"] is True
    assert given["command_interfaces"] == ["position"]
    for name in (
        "allow_partial_joints_goal",
        "allow_integration_in_goal_trajectories",
        "allow_nonzero_velocity_at_trajectory_end",
    ):
        assert given[name] is False


def test_a_cancelled_goal_decelerates_within_the_limits(arm):
    robot, given = arm
    assert given["constraints"]["decelerate_on_cancel"] is True
    assert "velocity" in given["state_interfaces"]  # or the controller would ignore it
    told = [given["constraints"][j]["max_deceleration_on_cancel"] for j in robot.joint_names]
    assert np.all(np.array(told) > 0.0)
    assert np.all(np.array(told) <= robot.limits.acceleration)


def test_the_controller_never_holds_by_itself_where_the_arm_is(arm):
    """That is a step of the command by the error; the watchdog's answer is none."""
    robot, given = arm
    constraints = given["constraints"]
    assert given["cmd_timeout"] == constraints["goal_time"] == 0.0
    assert constraints["stopped_velocity_tolerance"] == 0.0
    for joint in robot.joint_names:
        assert constraints[joint]["trajectory"] == constraints[joint]["goal"] == 0.0
    assert 1.0 / given["action_monitor_rate"] < CommandParameters().result_timeout


@pytest.fixture(params=available_robots())
def servo(request):
    given = parameters(CONFIG / f"servo/{request.param}.yaml", "servo_node")
    return load_robot(request.param), given["moveit_servo"]


def test_servo_takes_velocities_as_they_are_published(servo):
    robot, given = servo
    assert given["command_in_type"] == "speed_units"
    assert given["apply_twist_commands_about_ee_frame"] is True
    assert given["scale"]["linear"] == robot.cartesian.linear_velocity
    assert given["scale"]["rotational"] == robot.cartesian.angular_velocity


def test_servo_halts_when_the_stream_ends_and_not_before(servo):
    _, given = servo
    assert given["incoming_command_timeout"] > 5.0 / CommandParameters().rate
    assert given["use_smoothing"] is False


def test_servo_keeps_no_more_distance_from_the_limits_than_our_motions_do(servo):
    robot, given = servo
    assert len(given["joint_limit_margins"]) == robot.joints
    assert max(given["joint_limit_margins"]) <= DEFAULTS.motion.position_margin


def test_servo_moves_the_link_whose_velocity_is_published(servo):
    robot, given = servo
    link = robot.outputs.arm["twist"].link
    source = next(
        line
        for line in (CONFIG / f"servo/{robot.name}.yaml").read_text().splitlines()
        if line.startswith("# [group]")
    )
    assert source.endswith(f" to {link}")
    assert given["command_out_topic"].endswith("/joint_trajectory")
