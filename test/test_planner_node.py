"""The planner as a process: what it publishes, and what it does with bad input."""

import gc
import math
import weakref

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.msg import ActionChunk, Observation, SearchStatistics, SearchTree
from vla_reasoner_ros.nodes import planner_node
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.policies.small_vla import SmallVla
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import observation_to_message
from vla_reasoner_ros.ros.graph import (
    ACTIVATE,
    ACTIVE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    INACTIVE,
    GraphClient,
    GraphError,
)
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.srv import GetSearchTree
from vla_reasoner_ros.types import Observation as ObservationData

PLANNER = "planner_node"
HOLD, OK, SKIPPED = (
    SearchStatistics.STATUS_HOLD,
    SearchStatistics.STATUS_OK,
    SearchStatistics.STATUS_SKIPPED,
)
ROBOT = load_robot("fr3")
POSITION, QUATERNION = Kinematics(ROBOT).forward(np.array(ROBOT.home))
GREY = np.full((96, 96, 3), 120, dtype=np.uint8)


class Rig:
    """A camera node's place: publishes observations, hears what the planner says."""

    def __init__(self, client):
        self.client = client
        node = client.node
        self.chunks, self.statistics, self.diagnostics = [], [], []
        node.create_subscription(ActionChunk, "action_chunk", self.chunks.append, qos.COMMAND)
        node.create_subscription(
            SearchStatistics, "search_statistics", self.statistics.append, qos.STATE
        )
        node.create_subscription(
            DiagnosticArray, "/diagnostics", self.diagnostics.append, qos.DIAGNOSTICS
        )
        self.publisher = node.create_publisher(Observation, "observation", qos.STATE)
        self.now_ms = 1000
        self.instruction = SmallVla().spec.example_instruction

    def activate(self, **parameters):
        """Configure and activate with these parameters, from any state."""
        self.put_down()
        if parameters:
            self.client.set_parameters(
                PLANNER, {name.replace("__", "."): value for name, value in parameters.items()}
            )
        self.client.change(PLANNER, CONFIGURE, timeout=120.0)
        self.client.wait(self.publisher.get_subscription_count, 120.0, "the subscription")
        self.client.change(PLANNER, ACTIVATE)

    def put_down(self):
        """Back to unconfigured."""
        if self.client.state(PLANNER) == ACTIVE:
            self.client.change(PLANNER, DEACTIVATE)
        if self.client.state(PLANNER) == INACTIVE:
            self.client.change(PLANNER, CLEANUP)

    def message(self, **changes):
        self.now_ms += 400
        fields = {
            "stamp_ns": self.now_ms * 1_000_000,
            "images": {"agent": GREY, "wrist": GREY},
            "joint_names": ROBOT.joint_names,
            "joint_positions": np.array(ROBOT.home),
            "joint_velocities": np.zeros(7),
            "ee_position": POSITION,
            "ee_quaternion": QUATERNION,
            "gripper": 1.0,
            "instruction": self.instruction,
        }
        return observation_to_message(ObservationData(**{**fields, **changes}))

    def decide(self, message=None):
        """Publish an observation; the statistics and the chunk of the decision on it."""
        message = message or self.message()
        stamp = message.header.stamp
        self.publisher.publish(message)

        def found():
            chunk = [c for c in self.chunks if c.observation_stamp == stamp]
            said = [s for s in self.statistics if s.observation_stamp == stamp]
            return (said[-1], chunk[-1]) if chunk and said else None

        return self.client.wait(found, 120.0, "a decision")

    def diagnosed(self, task):
        """The newest status of a task."""

        def found():
            for array in reversed(self.diagnostics):
                for status in array.status:
                    if status.name == f"{PLANNER}: {task}":
                        return status
            return None

        self.diagnostics.clear()
        return self.client.wait(found, 120.0, f"diagnostics of {task}")


SEARCHING = {
    "planner__world_model": "latent",
    "search__simulations": 24,
    "search__deadline_ms": 0.0,
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    parameters = {"autostart": False, "diagnostics_period": 0.2}
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, parameters))
        with GraphClient(graph) as client:
            yield Rig(client)


@pytest.fixture
def searching(rig):
    if rig.client.state(PLANNER) != ACTIVE:
        rig.activate(**SEARCHING)
    return rig


def test_a_decision_is_a_chunk_with_all_its_statistics(searching):
    said, chunk = searching.decide()
    assert chunk.names == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    assert chunk.representation == "end_effector_delta"
    assert chunk.header.frame_id == "base"
    assert np.isfinite(np.array(chunk.actions)).all()
    assert len(chunk.actions) == chunk.steps * chunk.dimensions
    assert said.status == OK
    assert said.sequence == chunk.sequence
    assert 0 < said.simulations <= 24
    assert said.nodes > 1
    assert said.world_model_calls > 0
    assert len(said.candidate_ids) == len(said.candidate_values) > 1
    assert said.world_model == "latent"
    assert 0.0 < sum(said.stage_ms) <= said.time_ms + 1.0
    assert math.isclose(said.margin, said.chosen_value - said.policy_value, abs_tol=1e-9)


def test_the_tree_of_the_newest_decision_is_there_on_demand(searching):
    said, _ = searching.decide()
    answer = searching.client.call(
        GetSearchTree, f"{PLANNER}/get_search_tree", GetSearchTree.Request()
    )
    assert answer.success
    tree = answer.tree
    assert tree.sequence == said.sequence
    assert tree.nodes == said.nodes == len(tree.parents)
    assert tree.parents[0] == -1
    assert all(0 <= parent < i for i, parent in enumerate(tree.parents) if i)
    assert len(tree.actions) == tree.nodes * tree.macro_steps * tree.dimensions


def test_the_tree_is_published_while_someone_listens(searching):
    trees = []
    node = searching.client.node
    subscription = node.create_subscription(SearchTree, "search_tree", trees.append, qos.STATE)

    def heard():
        said, _ = searching.decide()
        searching.client.spin(0.2)
        return [tree for tree in trees if tree.sequence == said.sequence and said.nodes > 1]

    (tree,) = searching.client.wait(heard, 120.0, "a tree")
    assert tree.nodes == len(tree.parents)
    assert len(tree.ee_positions) == 3 * tree.nodes
    node.destroy_subscription(subscription)


def test_the_budget_changes_between_two_decisions(searching):
    for simulations in (8, 40, 24):
        searching.client.set_parameters(PLANNER, {"search.simulations": simulations})
        said, _ = searching.decide()
        assert said.simulations_budget == simulations
        assert said.simulations <= simulations


def test_parameters_change_all_or_none(searching):
    with pytest.raises(GraphError, match=r"search\.alpha out of range"):
        searching.client.set_parameters(PLANNER, {"search.simulations": 8, "search.alpha": 1.5})
    kept = searching.client.get_parameters(PLANNER, ["search.simulations", "search.alpha"])
    assert kept["search.simulations"] == 24
    assert kept["search.alpha"] <= 1.0


def test_what_the_policys_chunk_cannot_serve_is_refused_and_the_old_value_stays(searching):
    with pytest.raises(GraphError, match=r"executed.*50"):
        searching.client.set_parameters(PLANNER, {"search.executed": 50})
    searching.decide()


def test_a_component_is_fixed_once_configured(searching):
    with pytest.raises(GraphError, match="fixed once the node is configured"):
        searching.client.set_parameters(PLANNER, {"planner.policy": "another"})


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_deadline_that_is_no_time_is_refused(searching, value):
    with pytest.raises(GraphError, match="deadline_ms"):
        searching.client.set_parameters(PLANNER, {"search.deadline_ms": value})


def test_an_unknown_instruction_holds_the_arm_and_says_why(searching):
    said, chunk = searching.decide(searching.message(instruction="bake a chocolate cake"))
    assert said.status == HOLD
    assert "bake a chocolate cake" in said.fallback_reason
    assert chunk.source == ActionChunk.SOURCE_HOLD
    motion = np.array(chunk.actions).reshape(chunk.steps, chunk.dimensions)[:, :6]
    assert (motion == 0.0).all()
    assert "bake" in searching.diagnosed("decisions").message
    said, _ = searching.decide()
    assert said.status == OK


def test_a_missing_camera_holds_the_arm_and_the_next_decision_is_clean(searching):
    said, chunk = searching.decide(searching.message(images={"agent": GREY}))
    assert chunk.source == ActionChunk.SOURCE_HOLD
    assert "'wrist' is missing" in said.fallback_reason
    assert searching.decide()[0].status == OK


def test_an_observation_that_contradicts_itself_is_dropped_and_counted(searching):
    broken = searching.message()
    broken.joint_state.position[2] = math.nan
    searching.publisher.publish(broken)
    searching.client.wait(
        lambda: "dropped" in searching.diagnosed("state").message, 120.0, "the dropped message"
    )
    stamp = broken.header.stamp
    assert not [c for c in searching.chunks if c.observation_stamp == stamp]
    assert searching.decide()[0].status == OK


def test_a_clock_that_jumped_back_is_a_new_episode(searching):
    before = searching.decide()[0].sequence
    assert before > 1
    searching.now_ms = 500
    assert searching.decide()[0].sequence == 1


def test_a_stream_that_never_delivers_is_said(rig):
    rig.activate(**SEARCHING)
    status = rig.diagnosed("decisions")
    assert status.message == "no decision yet"
    assert status.level == b"\x01"
    assert rig.client.state(PLANNER) == ACTIVE


def test_without_a_world_model_the_plain_policy_drives_and_says_so(rig):
    rig.activate(planner__world_model="none")
    said, chunk = rig.decide()
    assert said.status == SKIPPED
    assert chunk.source == ActionChunk.SOURCE_POLICY
    assert "the plain policy drives" in rig.diagnosed("decisions").message
    rig.put_down()


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("planner.policy", "big_vla", "policy 'big_vla' is unknown; known are "),
        ("planner.world_model", "dreams", "world_model 'dreams' is unknown"),
        ("planner.policy_options", "/nowhere.yaml", "/nowhere.yaml: No such file"),
        ("search.depth", 9, "depth"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(rig, parameter, value, message):
    rig.put_down()
    before = rig.client.get_parameters(PLANNER, [parameter])
    rig.client.set_parameters(PLANNER, {"planner.world_model": "latent", parameter: value})
    try:
        with pytest.raises(GraphError, match=message):
            rig.client.change(PLANNER, CONFIGURE, timeout=120.0)
        assert message in rig.diagnosed("state").message
    finally:
        rig.client.set_parameters(PLANNER, before)


@pytest.mark.parametrize("fault", ["corrupt", "missing"])
def test_unusable_weights_are_refused_by_their_path(rig, tmp_path, fault):
    rig.put_down()
    for suffix in (".json", ".safetensors"):
        content = (models_directory() / f"small_vla{suffix}").read_bytes()
        if suffix == ".safetensors" and fault == "corrupt":
            content = content[:-100] + bytes(100)
        if suffix == ".json" or fault == "corrupt":
            (tmp_path / f"small_vla{suffix}").write_bytes(content)
    (tmp_path / "options.yaml").write_text(f"weights: {tmp_path / 'small_vla'}\n")
    options = {"planner.policy_options": str(tmp_path / "options.yaml")}
    rig.client.set_parameters(PLANNER, options)
    try:
        with pytest.raises(GraphError, match=str(tmp_path / "small_vla")):
            rig.client.change(PLANNER, CONFIGURE, timeout=120.0)
    finally:
        rig.client.set_parameters(PLANNER, {"planner.policy_options": ""})


def test_a_file_with_a_wrong_name_and_a_bad_value_is_refused_with_both_named(tmp_path):
    parameters = {"autostart": False, "search.simulatoins": 3, "search.alpha": 7.0}
    with ProcessGraph(tmp_path / "log") as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, parameters))
        with GraphClient(graph) as client:
            with pytest.raises(GraphError, match=r"did you mean search\.simulations") as refused:
                client.change(PLANNER, CONFIGURE, timeout=60.0)
            assert "search.alpha" in str(refused.value)
            graph.check()


def test_the_stamp_of_the_observation_goes_through(searching):
    message = searching.message()
    said, chunk = searching.decide(message)
    stamp_ns = to_nanoseconds(message.header.stamp)
    assert to_nanoseconds(chunk.observation_stamp) == stamp_ns
    assert to_nanoseconds(said.observation_stamp) == stamp_ns


@pytest.mark.parametrize("fails", [False, True])
def test_models_are_gone_when_the_node_let_go_of_them(fails, monkeypatch):
    """Also those that refer to themselves, and those of a configuration that was refused."""
    made = []

    class Large(SmallVla):
        def __init__(self):
            super().__init__()
            self.itself = self
            made.append(weakref.ref(self))

        def propose(self, observation, n=1):
            if fails:
                raise ModelError("out of memory")
            return super().propose(observation, n)

    monkeypatch.setattr(planner_node, "load_components", lambda _: Components(Large()))
    rclpy.init(domain_id=88)
    try:
        overrides = [Parameter("autostart", value=False)]
        node = planner_node.PlannerNode("planner_node", parameter_overrides=overrides)
        gc.disable()
        succeeded = node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert succeeded is not fails
        if succeeded:
            node.trigger_cleanup()
        assert made[0]() is None
    finally:
        gc.enable()
        node.destroy_node()
        rclpy.try_shutdown()
