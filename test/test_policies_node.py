"""A policy of others in the planner's process, with the search in a learned world of features."""

import numpy as np
import pytest
import tiny_policies as tiny
import tiny_vision
import yaml
from test_planner_node import Rig

from vla_reasoner_ros.msg import ActionChunk, SearchStatistics
from vla_reasoner_ros.ros.graph import CONFIGURE, GraphClient, GraphError
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph

PLANNER = "planner_node"
SIDE = tiny_vision.SIDE


def written(path, options):
    path.write_text(yaml.safe_dump(options))
    return str(path)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "pi0").mkdir()
    tiny.write_pi0(folder / "pi0", side=SIDE, patch=32)
    episodes = tiny_vision.write_episodes(folder / "episodes", range(2), steps=6)
    tiny_vision.write_world_model(folder, episodes)
    known = {"control_frame": "fr3_hand_tcp", "example_instruction": tiny.INSTRUCTION}
    convention = tiny.pi0_convention(SIDE, horizon=8, **known)
    options = {"checkpoint": str(folder / "pi0"), "convention": convention, "device": "cpu"}
    models = {"models_dir": str(folder)}
    parameters = {
        "autostart": False,
        "planner.policy": "pi0",
        "planner.policy_options": written(folder / "pi0.yaml", options),
        "planner.world_model": "vjepa2_ac",
        "planner.world_model_options": written(folder / "world.yaml", models | {"device": "cpu"}),
        "planner.value": "vision_progress",
        "planner.value_options": written(folder / "value.yaml", models),
        "planner.prior": "gaussian",
        "search.simulations": 24,
        "search.deadline_ms": 0.0,
    }
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        graph.start(NodeProcess(PLANNER, PLANNER, parameters))
        with GraphClient(graph) as client:
            client.state(PLANNER, timeout=120.0)  # a process that is there
            yield Rig(client)


def test_pi0_is_searched_on_top_of_with_vjepa2_ac(rig):
    rig.activate()
    joints = {
        "joint_names": tiny.JOINTS,
        "joint_positions": np.zeros(7),
        "joint_velocities": np.zeros(7),
    }
    said, chunk = rig.decide(rig.message(instruction=tiny.INSTRUCTION, **joints))
    assert said.status == SearchStatistics.STATUS_OK, said.fallback_reason
    assert said.simulations == 24
    assert chunk.source in (
        ActionChunk.SOURCE_POLICY, ActionChunk.SOURCE_SEARCH, ActionChunk.SOURCE_BLEND
    )  # fmt: skip


def test_a_failed_convention_check_stops_its_activation(rig):
    rig.put_down()
    rig.client.set_parameters(PLANNER, {"planner.check_robot": "ur5e"})
    with pytest.raises(GraphError, match="convention self-check: robot: control frame"):
        rig.client.change(PLANNER, CONFIGURE, timeout=120.0)
    assert "convention self-check" in rig.diagnosed("state").message
    rig.client.set_parameters(PLANNER, {"planner.check_robot": "fr3"})
    rig.activate()
