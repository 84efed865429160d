"""The arm controller as a process of its own, over real DDS, with the test as clock and arm."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from arm_bench import FORWARD, MS, NODE, ROBOT, Bench
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from vla_reasoner_ros.control.executor import ControllerState
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.graph import GraphError

ARM = Kinematics(ROBOT)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("log"))
    yield bench
    bench.graph.stop()


@pytest.fixture
def bench(process):
    process.client.set_parameters(NODE, {"enable_control": True})
    process.start()
    yield process
    process.run(1.0)
    process.judge()
    process.client.change(NODE, lifecycle.DEACTIVATE)


def test_a_chunk_moves_the_arm_where_it_says(bench):
    before, _ = ARM.forward(bench.arm.state.position)
    bench.move()
    bench.run(1.2)
    after, _ = ARM.forward(bench.arm.state.position)
    np.testing.assert_allclose(after - before, FORWARD[:, :3].sum(axis=0), atol=2e-3)
    bench.wait(lambda: bench.grips == [1.0], "the gripper's command")
    assert bench.status.state == ControllerState.HOLDING
    assert bench.status.reason == "no new chunk"
    assert bench.status.sequence == bench.sequence
    assert bench.status.actions_consumed == 8


def test_chunks_in_a_row_are_one_motion(bench):
    rejected = bench.status.chunks_rejected
    for _ in range(4):
        bench.send(bench.chunk(0.5 * FORWARD))
        bench.run(0.37)
        assert not bench.at_rest()
    assert bench.status.chunks_rejected == rejected


def test_in_a_dry_run_not_one_command_leaves(bench):
    bench.client.set_parameters(NODE, {"enable_control": False})
    bench.run(0.05)
    accepted = bench.status.chunks_accepted
    for _ in range(3):
        bench.send(bench.chunk())
        bench.run(0.2)
    bench.call(SetBool, "hold", data=True)
    bench.call(SetBool, "hold", data=False)
    bench.run(0.3)
    assert bench.status.chunks_accepted == accepted + 3
    assert bench.status.state == ControllerState.DRY_RUN
    assert bench.commands == []
    assert bench.grips == []


def spoiled(message, **fields):
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"actions": [float("nan")] * 56}, "x at step 0 is nan"),
        ({"actions": [0.0] * 55}, "55 numbers, expected 8 steps x 7 dimensions"),
        ({"representation": "dance"}, "dance"),
        ({"dt": -0.1}, "dt must be positive seconds"),
        ({"names": ["a", "b", "c", "d", "e", "f", "gripper"]}, "convention"),
        ({"actions": [0.5] * 56}, "translation step 0"),
    ],
)
def test_a_bad_chunk_is_dropped_counted_and_said_and_the_next_good_one_is_taken(
    bench, fields, reason
):
    bench.send(spoiled(bench.chunk(), **fields))
    assert reason in bench.status.last_rejection
    assert bench.commands == []
    bench.send(bench.chunk())
    assert len(bench.commands) == 1


def test_diagnostics_count_what_was_refused(bench):
    bench.send(bench.chunk(50.0 * FORWARD))
    refused = str(bench.status.chunks_rejected)

    def said():
        arm = bench.diagnostics.get(f"{NODE}: arm")
        return arm and {v.key: v.value for v in arm.values}["chunks rejected"] == refused

    bench.wait(said, "diagnostics")


def test_an_old_or_a_repeated_chunk_is_refused(bench):
    bench.send(bench.chunk(stamp=bench.now - 5000 * MS))
    assert "stale_observation" in bench.status.last_rejection
    good = bench.chunk()
    bench.send(good)
    bench.send(good)
    assert "duplicate" in bench.status.last_rejection


@pytest.mark.parametrize("profile", [qos.COMMAND, qos.LATCHED], ids=["unlatched", "latched"])
def test_the_emergency_stop_is_heard_from_any_publisher_and_needs_a_reset(bench, profile):
    publisher = bench.client.node.create_publisher(Bool, "estop", profile)
    bench.wait(publisher.get_subscription_count, "connection")
    bench.move()
    publisher.publish(Bool(data=True))
    bench.wait(lambda: len(bench.commands) == 2, "the stop")
    bench.run(0.4)
    assert bench.at_rest()
    assert bench.status.state == ControllerState.STOPPED
    answer = bench.call(Trigger, "reset")
    assert not answer.success
    assert "still set" in answer.message
    bench.send(bench.chunk())
    assert "stopped" in bench.status.last_rejection
    publisher.publish(Bool(data=False))
    bench.wait(lambda: bench.call(Trigger, "reset").success, "reset")
    bench.run(0.02)
    bench.send(bench.chunk())
    assert len(bench.commands) == 3
    bench.client.node.destroy_publisher(publisher)


def test_a_hold_stops_until_it_is_released(bench):
    bench.move()
    assert bench.call(SetBool, "hold", data=True).success
    bench.run(0.4)
    assert bench.at_rest()
    assert bench.status.reason == "hold requested"
    bench.call(SetBool, "hold", data=False)
    bench.run(0.02)
    bench.send(bench.chunk())
    assert bench.status.state == ControllerState.EXECUTING


def test_joint_states_that_stop_stop_the_arm(bench):
    bench.move()
    bench.run(0.5, joints=False)
    assert bench.at_rest()
    assert "joint state is" in bench.status.reason
    assert len(bench.commands) == 2
    bench.run(0.1)
    bench.send(bench.chunk())
    assert len(bench.commands) == 3


def test_a_node_that_is_deactivated_in_motion_leaves_a_deceleration(bench):
    bench.move()
    bench.client.change(NODE, lifecycle.DEACTIVATE)
    bench.wait(lambda: len(bench.commands) == 2, "the last command")
    for _ in range(40):
        bench.step(0.01)
    assert bench.at_rest()
    bench.client.change(NODE, lifecycle.ACTIVATE)


def test_parameters_out_of_range_are_refused_in_motion_and_change_nothing(bench):
    bench.move()
    for name, value in (("motion.speed_factor", float("nan")), ("watchdog.period", 0.05)):
        with pytest.raises(GraphError, match=name):
            bench.client.set_parameters(NODE, {name: value})
    bench.run(1.0)


def test_an_unknown_robot_or_a_broken_file_refuses_to_configure(process, tmp_path):
    broken = tmp_path / "arm.yaml"
    broken.write_text("name: arm\n")
    client = process.client
    client.change(NODE, lifecycle.CLEANUP)
    for robot, words in (("fr4", "'fr4' is unknown"), (str(broken), "missing key 'limits'")):
        client.set_parameters(NODE, {"robot": robot})
        with pytest.raises(GraphError, match=r"failed to configure"):
            client.change(NODE, lifecycle.CONFIGURE)
        process.wait(lambda w=words: w in process.graph.log(NODE).read_text(), "the reason")
    client.set_parameters(NODE, {"robot": "fr3"})
    client.change(NODE, lifecycle.CONFIGURE)
