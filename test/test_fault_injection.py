"""What goes wrong while the arm moves, one fault a test, with real processes.

Each fault must end in a hold by deceleration that breaks no limit at 1 kHz, with its reason named,
and the arm must be of use again afterwards. How fast the stop comes is measured on the nodes'
clock, which passes only as far as they have seen it.
"""

import os
from array import array

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from arm_bench import (
    DEADMAN,
    FORWARD,
    MS,
    NODE,
    ROBOT,
    Bench,
    decelerated,
    reset,
    see_it_decelerate,
)
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_reasoner_ros.control.commands import ControllerState
from vla_reasoner_ros.control.spline import spline_to_rest
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import header, trajectory_to_message
from vla_reasoner_ros.ros.graph import GraphError
from vla_reasoner_ros.ros.processes import NodeProcess

SILENCE = 0.3  # s, deadman_node's controller_timeout


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    bench = Bench(
        tmp_path_factory.mktemp("log"),
        deadman={
            "controller_wall_timeout": 0.0,
            "controller_timeout": 2.0,  # longer than any message is on its way on a busy machine
            "lead_time": 0.03,
        },
    )
    yield bench
    bench.graph.stop()


@pytest.fixture
def bench(graph):
    graph.start()
    graph.move()
    yield graph
    graph.judge()
    for name in graph.nodes:
        graph.client.change(name, lifecycle.DEACTIVATE)


def free_again(bench):
    """A good chunk is taken and moves the arm."""
    for _ in range(200):  # the way back after a tracking error is slow
        bench.run(0.02)
        if bench.status.reason in ("no new chunk", "no chunk yet", ""):
            break
    accepted = bench.status.chunks_accepted
    bench.send(bench.chunk(0.5 * FORWARD))
    assert bench.status.chunks_accepted == accepted + 1
    bench.run(0.1)
    assert not bench.at_rest()


def starts_again(bench):
    """The controller, from where it is not configured."""
    for transition in (lifecycle.CONFIGURE, lifecycle.ACTIVATE):
        bench.client.change(NODE, transition)
    bench.status = None
    publishers = (bench.clock, bench.joints, bench.chunks)
    bench.wait(lambda: all(p.get_subscription_count() >= 1 for p in publishers), "connections")
    bench.run(0.05)


def runs_out(bench):
    """The chunk under way ends at rest by itself, as it was sent."""
    sent = len(bench.commands)
    for _ in range(100):
        bench.run(0.02)
        if bench.at_rest():
            break
    assert bench.status.reason == "no new chunk"
    assert len(bench.commands) == sent


BAD = {
    "NaN": (lambda m: setattr(m, "actions", [float("nan")] * 56), "x at step 0 is nan"),
    "wrong width": (lambda m: setattr(m, "actions", [0.0] * 55), "expected 8 steps x 7"),
    "jump at the seam": (lambda m: m.actions.__setitem__(0, 0.3), "translation step 0 is 0.3"),
    "late chunk": (
        lambda m: setattr(m.observation_stamp, "sec", m.observation_stamp.sec - 5),
        "stale_observation",
    ),
    "duplicate sequence": (lambda m: setattr(m, "sequence", m.sequence - 1), "duplicate"),
}


def is_refused_and_the_motion_goes_on(bench, message, reason):
    sent = len(bench.commands)
    bench.send(message)
    assert reason in bench.status.last_rejection
    assert len(bench.commands) == sent
    bench.run(0.05)
    assert not bench.at_rest()
    runs_out(bench)
    free_again(bench)


@pytest.mark.parametrize("fault", BAD)
def test_a_chunk_that_is_no_good_leaves_the_motion_to_its_rest(bench, fault):
    spoil, reason = BAD[fault]
    message = bench.chunk()
    spoil(message)
    is_refused_and_the_motion_goes_on(bench, message, reason)


def test_a_chunk_that_comes_again_with_the_same_stamp(bench):
    is_refused_and_the_motion_goes_on(bench, bench.last_chunk, "duplicate")


def test_when_no_chunk_comes_the_arm_rests_at_the_end_of_the_last(bench):
    runs_out(bench)
    free_again(bench)


def test_joint_states_that_are_gone(bench):
    decelerated(bench, bench.now, allowed=0.1, joints=False)
    assert "the newest joint state is" in bench.status.reason
    free_again(bench)


def test_joint_states_that_are_frozen(bench):
    """The command leaves them behind, and goes back to where they say that the arm is."""
    frozen = MotionState.at_rest(bench.arm.state.position)
    fault = bench.now
    for _ in range(100):
        bench.run(0.01, frozen)
        if len(bench.commands) > 1:
            break
        fault = bench.now  # the last moment at which that was allowed
    see_it_decelerate(bench, bench.commands[1], fault, joints=frozen)
    assert bench.status.reason.startswith("joint states are frozen")
    free_again(bench)


def test_joint_states_that_thaw_far_from_where_they_froze(bench):
    """The arm has moved as no arm can, which needs a reset."""
    bench.client.set_parameters(NODE, {"watchdog.max_unseen_motion": 0.0})
    frozen = MotionState.at_rest(bench.arm.state.position)
    while len(bench.commands) == 1:
        bench.run(0.01, frozen)
    bench.client.set_parameters(NODE, {"watchdog.max_unseen_motion": 0.05})
    assert bench.status.reason.startswith("the arm does not follow")
    bench.run(0.05)
    assert "which no arm can" in bench.status.reason
    reset(bench, NODE)
    free_again(bench)


@pytest.mark.parametrize(
    "say",
    [
        lambda names, places: {"name": names, "position": [float("nan"), *places[1:]]},
        lambda names, places: {"name": names[:6], "position": places[:6]},
        lambda names, places: {"name": [*names[:6], names[0]], "position": places},
        lambda names, places: {"name": names, "position": places[:5]},
    ],
    ids=["not finite", "a joint missing", "a joint twice", "numbers missing"],
)
def test_joint_states_that_are_unusable_are_as_good_as_none(bench, say):
    fault = bench.now

    def speak():
        fields = say(list(ROBOT.joint_names), list(bench.arm.state.position))
        velocity = [0.0] * len(fields["position"])
        bench.joints.publish(JointState(header=header(bench.now), velocity=velocity, **fields))

    sent = len(bench.commands)
    while len(bench.commands) == sent and bench.now < fault + 10**9:
        speak()
        bench.run(0.01, joints=False)
    see_it_decelerate(bench, bench.commands[sent], fault, allowed=0.1, joints=False)
    assert "the newest joint state is" in bench.status.reason
    free_again(bench)


def test_a_chunk_of_a_million_steps(bench):
    """Refused as soon as it is there; the motion goes on."""
    message = bench.chunk()
    message.steps = 1_000_000
    message.actions = array("d", bytes(8 * 7 * message.steps))
    bench.send(message)
    assert "too_long: 1000000 actions" in bench.status.last_rejection
    bench.run(0.05)
    assert not bench.at_rest()
    free_again(bench)


def test_a_clock_that_jumps_forward(bench):
    """What was seen is old at once; the arm meanwhile plays its motion to rest."""
    bench.step(3.0, joints=False)
    bench.wait(bench.caught_up, "status after the jump")
    assert bench.at_rest()
    # The status may be told before the watchdog looks, and again only by the clock on the wall.
    bench.wait(lambda: "the newest joint state is" in bench.status.reason, "why chunks are refused")
    free_again(bench)


def test_a_clock_that_jumps_back(bench):
    bench.arm.early = False  # what it adds to a stop from where the arm is known roughly
    bench.now -= 50_000 * MS
    bench.arm_ahead += 50_000 * MS  # the arm's own clock goes on
    bench.since = bench.now
    bench.status = bench.deadman = None
    # Where the arm is by its own clock, the controller knows to some hundredths of a second only.
    decelerated(bench, bench.now, slack=0.02)
    free_again(bench)


def test_a_clock_that_stands_still(bench):
    """Seen by a clock that nothing stops; the nodes' own has not moved when the stop leaves."""
    bench.client.set_parameters(NODE, {"watchdog.max_clock_standstill": 0.3})
    bench.wait(lambda: len(bench.commands) == 2, "the stop")
    bench.client.set_parameters(NODE, {"watchdog.max_clock_standstill": 0.0})
    see_it_decelerate(bench, bench.commands[1], bench.now)
    free_again(bench)


def test_a_command_that_the_arm_rejects(bench):
    """It stays on the motion before; the controller sees that it does not move."""
    runs_out(bench)
    bench.refuses = True
    bench.send(bench.chunk(FORWARD))
    sent = len(bench.commands)
    for _ in range(50):
        bench.run(0.02)
        if len(bench.commands) > sent:
            break
    bench.refuses = False
    assert "or the arm does not move: the command moved by" in bench.status.reason
    assert bench.at_rest()
    free_again(bench)


@pytest.mark.parametrize("moving", [True, False], ids=["in motion", "while the planner thinks"])
def test_an_emergency_stop_and_a_reset_while_its_cause_persists(bench, moving):
    if not moving:
        runs_out(bench)
    fault = bench.now
    bench.estop.publish(Bool(data=True))
    if moving:
        bench.wait(lambda: len(bench.commands) == 2, "the stop")
        see_it_decelerate(bench, bench.commands[1], fault)
    bench.wait(lambda: bench.status.state == ControllerState.STOPPED, "the latch")
    assert "emergency stop set" in bench.status.reason
    bench.send(bench.chunk())
    assert "stopped" in bench.status.last_rejection
    refused = bench.call(Trigger, "reset")
    assert (refused.success, refused.message) == (False, "the emergency stop is still set")
    bench.estop.publish(Bool(data=False))
    bench.wait(lambda: "emergency stop cleared" in bench.status.reason, "the release")
    reset(bench, NODE)
    free_again(bench)


def test_a_second_publisher_on_the_command_topic(bench):
    state, now = bench.arm.state, bench.now
    way = state.position + np.array([[0.03, 0, 0, 0, 0, 0, 0], [0.05, 0, 0, 0, 0, 0, 0]])
    motion = spline_to_rest(ROBOT.joint_names, state, way, np.array([0.5, 0.5]))
    other = bench.client.node.create_publisher(JointTrajectory, "joint_trajectory", qos.COMMAND)
    bench.wait(lambda: other.get_subscription_count() >= 3, "connections")
    other.publish(trajectory_to_message(motion, now))
    bench.wait(lambda: len(bench.commands) == 3, "the stop")
    see_it_decelerate(bench, bench.commands[2], now)
    assert bench.status.reason.startswith("someone else commands the arm")
    bench.client.node.destroy_publisher(other)
    reset(bench, NODE)
    free_again(bench)


@pytest.mark.parametrize("fields", [("positions",), ("positions", "velocities")])
def test_a_second_publisher_whose_points_are_not_complete(bench, fields):
    """The arm's controller may play what this one cannot check."""
    bench.arm.early = False  # what it adds to a stop from where the arm is known roughly
    now, point = bench.now, JointTrajectoryPoint()
    for name in fields:
        setattr(point, name, [0.0] * ROBOT.joints)
    point.time_from_start.sec = 1
    other = bench.client.node.create_publisher(JointTrajectory, "joint_trajectory", qos.COMMAND)
    bench.wait(lambda: other.get_subscription_count() >= 3, "connections")
    other.publish(JointTrajectory(joint_names=ROBOT.joint_names, points=[point]))
    bench.wait(lambda: bench.status.state == ControllerState.HOLDING, "the hold")
    assert bench.status.reason.startswith("someone else commands the arm")
    see_it_decelerate(bench, bench.commands[-1], now)
    bench.client.node.destroy_publisher(other)
    reset(bench, NODE)
    free_again(bench)


def test_a_parameter_that_the_robot_refuses_changes_nothing(bench):
    """The box is the parameter's below and the robot file's above."""
    with pytest.raises(GraphError, match=r"workspace_min.*expected the first below the second"):
        bench.client.set_parameters(NODE, {"motion.workspace_min": [2.0, 2.0, 2.0]})
    bench.run(0.05)
    assert not bench.at_rest()
    runs_out(bench)
    free_again(bench)


def test_a_parameter_that_is_set_to_nan(bench):
    with pytest.raises(GraphError, match=r"motion\.speed_factor"):
        bench.client.set_parameters(NODE, {"motion.speed_factor": float("nan")})
    bench.run(0.05)
    assert not bench.at_rest()
    runs_out(bench)
    free_again(bench)


def test_a_robot_file_with_a_negative_limit(bench, tmp_path):
    """Refused while the arm moves, and named when the node is to configure with it."""
    file = tmp_path / "arm.yaml"
    text = (share_directory() / "config/robots/fr3.yaml").read_text()
    file.write_text(text.replace("velocity: [2.0, 1.0", "velocity: [2.0, -1.0"))
    with pytest.raises(GraphError, match=r"parameter robot: fixed once"):
        bench.client.set_parameters(NODE, {"robot": str(file)})
    runs_out(bench)
    for transition in (lifecycle.DEACTIVATE, lifecycle.CLEANUP):
        bench.client.change(NODE, transition)
    bench.client.set_parameters(NODE, {"robot": str(file)})
    with pytest.raises(GraphError, match=r"failed to configure"):
        bench.client.change(NODE, lifecycle.CONFIGURE)
    words = "limits.rectangular.velocity: expected"
    bench.wait(lambda: words in bench.graph.log(NODE).read_text(), "the reason")
    bench.client.set_parameters(NODE, {"robot": "fr3"})
    starts_again(bench)
    free_again(bench)


def test_a_controller_that_is_held_by_a_user(bench):
    fault = bench.now
    bench.call(SetBool, "hold", data=True)
    bench.wait(lambda: len(bench.commands) == 2, "the stop")
    see_it_decelerate(bench, bench.commands[1], fault)
    bench.call(SetBool, "hold", data=False)
    free_again(bench)


def test_a_planner_that_falls_silent(bench):
    """With a chunk so long that the arm would go on for seconds."""
    bench.send(bench.chunk(np.tile(0.15 * FORWARD[0], (40, 1))))
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 0.5})
    decelerated(bench, bench.now, allowed=0.5)
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 2.0})
    assert bench.deadman.state == ControllerState.STOPPED
    assert bench.deadman.reason.startswith("the planner silent for 0.5")
    bench.run(0.05)
    assert bench.status.reason.startswith("someone else commands the arm")
    reset(bench, DEADMAN)
    reset(bench, NODE)
    free_again(bench)


def test_a_deadman_that_listens_elsewhere_says_that_it_is_blind(bench):
    """As one whose output is another than the arm controller's."""
    listens_to(bench, "pose")
    bench.send(bench.chunk(np.tile(0.15 * FORWARD[0], (40, 1))))
    bench.run(0.7)

    def said():
        found = bench.diagnostics.get(f"{DEADMAN}: deadman")
        return found and found.message.startswith("blind: the arm controller moves the arm")

    bench.wait(said, "the diagnostics")
    listens_to(bench, "joint_trajectory")


def listens_to(bench, output):
    for transition in (lifecycle.DEACTIVATE, lifecycle.CLEANUP):
        bench.client.change(DEADMAN, transition)
    bench.client.set_parameters(DEADMAN, {"output": output})
    for transition in (lifecycle.CONFIGURE, lifecycle.ACTIVATE):
        bench.client.change(DEADMAN, transition)
    bench.deadman = None
    bench.run(0.05)


def test_a_controller_that_is_killed_and_started_again_with_a_full_disk(bench):
    """The deadman stops the arm; the new process has nowhere to write its log."""
    bench.send(bench.chunk(np.tile(0.3 * FORWARD[0], (20, 1))))
    bench.run(0.1)
    bench.client.set_parameters(DEADMAN, {"controller_timeout": SILENCE})
    fault = bench.now
    bench.graph.end(NODE)
    bench.nodes.remove(NODE)
    decelerated(bench, fault, allowed=SILENCE)
    assert bench.deadman.reason.startswith("the arm controller silent for 0.3")
    refused = bench.client.call(Trigger, f"{DEADMAN}/reset", Trigger.Request())
    assert "silent" in refused.message
    bench.client.set_parameters(DEADMAN, {"controller_timeout": 2.0})
    log = bench.graph.log(NODE)
    log.unlink()
    os.symlink("/dev/full", log)
    bench.graph.start(NodeProcess(NODE, NODE, bench.parameters))
    bench.nodes.append(NODE)
    starts_again(bench)
    reset(bench, DEADMAN)
    reset(bench, NODE)
    free_again(bench)
