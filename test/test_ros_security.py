"""The SROS2 policy against the live graph: nothing missing, nothing more than is used."""

import xml.etree.ElementTree as ElementTree
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import rclpy
from rclpy.action import get_action_server_names_and_types_by_node

from vla_reasoner_ros.ros.graph import CONFIGURE, GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

ROOT = Path(__file__).resolve().parent.parent
POLICY = ElementTree.parse(ROOT / "config" / "security" / "policy.xml").getroot()
NODES = sorted(path.stem for path in (ROOT / "vla_reasoner_ros" / "nodes").glob("*_node.py"))
KINDS = {
    "publish": ("topics", "publish"),
    "subscribe": ("topics", "subscribe"),
    "reply": ("services", "reply"),
    "execute": ("actions", "execute"),
}
OPTIONS = {
    "planner_node": {"planner.world_model": "simulator", "search.simulations": 2},
}


def allowed(node, kind):
    """What the policy allows a node, by full name."""
    group, attribute = KINDS[kind]
    path = f"enclaves/enclave[@path='/vla_reasoner_ros/{node}']/profiles/profile[@node='{node}']"
    profile = POLICY.find(path)
    assert profile is not None, f"the policy has no {node}"
    names = [
        item.text
        for element in profile.findall(group)
        if element.get(attribute) == "ALLOW"
        for item in element
    ]
    assert len(names) == len(set(names)), f"{node}: something is allowed twice"
    return {full(name, node) for name in names}


def full(name, node):
    if name.startswith("~/"):
        return f"/{node}/{name[2:]}"
    return name if name.startswith("/") else f"/{name}"


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    with ProcessGraph(tmp_path_factory.mktemp("log")) as processes:
        for node in NODES:
            parameters = {"autostart": False, "use_sim_time": True, **OPTIONS.get(node, {})}
            processes.start(NodeProcess(node, node, parameters))
        with GraphClient(processes) as client:
            for node in NODES:
                client.change(node, CONFIGURE, timeout=240.0)
            yield client


@pytest.mark.parametrize("node", NODES)
def test_the_policy_allows_what_a_node_does_and_no_more(graph, node):
    questions = {
        "publish": graph.node.get_publisher_names_and_types_by_node,
        "subscribe": graph.node.get_subscriber_names_and_types_by_node,
        "reply": graph.node.get_service_names_and_types_by_node,
    }

    def found():
        seen = {
            kind: {name for name, _ in ask(node, "/") if "/_action/" not in name}
            for kind, ask in questions.items()
        }
        actions = get_action_server_names_and_types_by_node(graph.node, node, "/")
        return seen | {"execute": {name for name, _ in actions}}

    wanted = {kind: allowed(node, kind) for kind in KINDS}
    # Discovery takes its time, what is wrong stays wrong.
    try:
        graph.wait(lambda: found() == wanted, 30.0, "the graph of the policy")
    except Exception:
        assert found() == wanted
        raise


def test_the_supervisor_may_have_the_node_that_a_launch_process_has():
    name = "launch_ros_4711"
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node(name, context=context)
        replies = {each for each, _ in node.get_service_names_and_types_by_node(name, "/")}
        publishes = {each for each, _ in node.get_publisher_names_and_types_by_node(name, "/")}
    finally:
        rclpy.shutdown(context=context)
    assert replies
    for asked, kind in ((replies, "reply"), (publishes, "publish")):
        patterns = allowed("supervisor", kind)
        assert all(any(fnmatch(each, known) for known in patterns) for each in asked)


def test_only_the_supervisor_may_change_parameters_and_lifecycle():
    changing = ("set_parameters", "set_parameters_atomically", "change_state")
    for enclave in POLICY.iter("enclave"):
        asked = [
            item.text
            for element in enclave.iter("services")
            if element.get("request") == "ALLOW"
            for item in element
        ]
        changes = [name for name in asked if name.split("/")[-1] in changing]
        assert bool(changes) == enclave.get("path").endswith("/supervisor")


def test_only_controller_and_deadman_may_command_the_arm():
    commands = {
        enclave.get("path").split("/")[-1]
        for enclave in POLICY.iter("enclave")
        for element in enclave.iter("topics")
        if element.get("publish") == "ALLOW"
        for item in element
        if item.text.endswith("joint_trajectory")
    }
    assert commands == {"arm_controller_node", "deadman_node"}
