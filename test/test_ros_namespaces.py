"""Two arms in one graph: the same nodes in two namespaces hear only their own."""

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.msg import ControllerStatus
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

ARMS = {"left": "fr3", "right": "ur5e"}


class TwoArms:
    def __init__(self, client):
        self.client = client
        self.status, self.diagnosed, self.joints = {}, {}, {}
        node = client.node
        for arm in ARMS:
            node.create_subscription(
                ControllerStatus,
                f"/{arm}/{arm}_controller/status",
                lambda message, arm=arm: self.status.update({arm: message}),
                qos.STATE,
            )
            self.joints[arm] = node.create_publisher(JointState, f"/{arm}/joint_states", qos.STATE)
        node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnose, qos.DIAGNOSTICS)

    def diagnose(self, message):
        self.diagnosed.update({status.name: status for status in message.status})

    def measure(self, arm):
        robot = load_robot(ARMS[arm])
        now_ns = self.client.node.get_clock().now().nanoseconds
        self.joints[arm].publish(
            JointState(
                header=header(now_ns),
                name=list(robot.joint_names),
                position=np.asarray(robot.home).tolist(),
                velocity=[0.0] * robot.joints,
            )
        )


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        for arm, robot in ARMS.items():
            graph.start(
                NodeProcess(
                    f"{arm}_controller",
                    "arm_controller_node",
                    {"robot": robot, "enable_control": True, "diagnostics_period": 0.2},
                    remappings={"__ns": f"/{arm}"},
                )
            )
        with GraphClient(graph) as client:
            arms = TwoArms(client)
            client.wait(lambda: len(arms.status) == 2, 60.0, "the status of both")
            yield arms


def test_joint_states_of_one_arm_do_not_reach_the_other(arms):
    def heard():
        arms.measure("left")
        return "no joint state yet" not in arms.status["left"].reason

    arms.client.wait(heard, 30.0, "the left arm's joint states")
    assert "no joint state yet" in arms.status["right"].reason


def test_a_hold_of_one_arm_is_not_the_others(arms):
    hold = SetBool.Request(data=True)
    assert arms.client.call(SetBool, "/right/right_controller/hold", hold).success
    arms.client.wait(
        lambda: arms.status["right"].state == ControllerStatus.HOLDING, 30.0, "the hold"
    )
    assert arms.status["left"].reason != arms.status["right"].reason


def test_diagnostics_tell_the_arms_apart(arms):
    names = {f"{arm}/{arm}_controller: state" for arm in ARMS}
    arms.client.wait(lambda: names <= set(arms.diagnosed), 30.0, "diagnostics of both")
