"""Each adapter with the search on top: components by name, warm-up, planner thread, decision."""

import contextlib
import json
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_policies as tiny
import yaml
from safetensors.torch import save_file
from test_reasoner import Nearness, Point
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.planner import Planner, warm_up
from vla_reasoner_ros.policies import wire
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.types import ActionChunk, ChunkSource, Decision

SIDE = 96  # of the pictures of the shipped policy, which one of them runs
INSTRUCTION = next(iter(TASKS.values())).instructions[0]
COMMON = {"control_frame": "fr3_hand_tcp", "example_instruction": INSTRUCTION}


def openpi(folder, _):
    def answer(connection):
        connection.send(wire.pack({}))
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                assert wire.unpack(message)["prompt"] == INSTRUCTION
                connection.send(wire.pack({"actions": np.full((8, 7), 0.01, np.float32)}))

    server = serve(answer, "127.0.0.1", 0, compression=None, max_size=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    limits = {"read": 60.0, "total": 60.0, "start": 60.0}
    return {
        "uri": uri,
        "convention": tiny.convention(SIDE, horizon=8, **COMMON),
        "deadlines": limits,
    }


def pi0(folder, _):
    tiny.write_pi0(folder, side=SIDE, patch=32)
    return {"checkpoint": str(folder), "convention": tiny.pi0_convention(SIDE, horizon=8, **COMMON)}


def openvla(folder, _):
    tiny.write_openvla(folder, tiny.openvla_weights(side=SIDE, patch=32), SIDE)
    convention = tiny.convention(SIDE, cameras={"image": "agent"}, rotation="euler_xyz", **COMMON)
    options = {"checkpoint": str(folder), "convention": convention, "unnorm_key": "bridge_orig"}
    return {**options, "repeat": 8}


def openvla_oft(folder, _):
    tiny.write_openvla(folder, tiny.openvla_weights(side=SIDE, patch=32), SIDE)
    save_file(tiny.head_weights(), folder / "action_head.safetensors")
    save_file(tiny.proprio_weights(), folder / "proprio.safetensors")
    state = {"state": ["ee_position", "ee_rotation_vector", "panda_fingers"]}
    convention = tiny.convention(SIDE, horizon=8, state=state, **COMMON)
    files = {"head": "action_head.safetensors", "proprio": "proprio.safetensors"}
    options = {"checkpoint": str(folder), "convention": convention, "unnorm_key": "bridge_orig"}
    return options | files


def lerobot(folder, monkeypatch):
    monkeypatch.syspath_prepend(tiny.write_lerobot_package(folder))
    tiny.write_lerobot(folder, SIDE, chunk=8)
    convention = tiny.convention(
        SIDE,
        cameras={"observation.images.top": "agent"},
        state={"observation.state": ["joint_positions", "gripper_opening"]},
        joint_names=list(tiny.JOINTS),
        scale=[0.01] * 6,
        **COMMON,
    )
    return {"checkpoint": str(folder), "convention": convention}


def process(folder, _):
    return {"policy": "small_vla", "answer_s": 120.0}


class World(Point):
    joints = 0


@pytest.mark.parametrize("make", [openpi, pi0, openvla, openvla_oft, lerobot, process])
def test_an_adapter_is_searched_on_top_of(make, tmp_path, monkeypatch):
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(make(tmp_path, monkeypatch)))
    parameters = ComponentParameters(
        policy=make.__name__.removesuffix("_oft"), policy_options=str(file), world_model="none"
    )
    search, world = SearchParameters(simulations=32, wave=8, deadline_ms=0.0), World()
    answers = queue.Queue()
    with ThreadPoolExecutor(max_workers=1) as thread:
        policy = thread.submit(load_components, parameters).result().policy
        reasoner = Reasoner(policy, world, Nearness(), GaussianPrior(policy.spec.action), search)
        thread.submit(warm_up, reasoner, policy, world).result()
        planner = Planner(
            reasoner, thread, policy.spec.action, search, lambda: 0, answers.put, answers.put
        )
        planner.start()
        try:
            planner.offer(tiny.seen(SIDE, instruction=INSTRUCTION))
            decision = answers.get(timeout=120)
        finally:
            planner.stop().result(120)
    assert isinstance(decision, Decision), decision
    assert decision.policy_chunk.source is ChunkSource.POLICY
    assert decision.statistics.status is Status.OK, decision.statistics.fallback_reason
    assert decision.statistics.simulations == 32
    assert decision.chunk.steps == 8
    for name in [name for name in sys.modules if name.split(".")[0] == "lerobot"]:
        del sys.modules[name]


def test_a_world_model_of_another_convention_is_refused_naming_what_differs(tmp_path):
    tiny.write_pi0(tmp_path, side=SIDE, patch=32)
    joint = {
        "representation": "joint_position", "names": [*tiny.JOINTS, "gripper"], "frame": "",
        "dt": 0.02, "gripper": {"index": 7, "open": 1.0, "closed": 0.0, "binary": False},
    }  # fmt: skip
    convention = tiny.pi0_convention(SIDE, horizon=8, joint_names=list(tiny.JOINTS), action=joint)
    statistics = tmp_path / "processor_config.json"
    found = json.loads(statistics.read_text())
    found["actions_mean"], found["actions_std"] = [0.0] * 8, [1.0] * 8
    statistics.write_text(json.dumps(found))
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump({"checkpoint": str(tmp_path), "convention": convention}))
    parameters = ComponentParameters(policy="pi0", policy_options=str(file), world_model="latent")
    with pytest.raises(ConfigurationError, match=r"policy 'pi0' has .*JOINT_POSITION.*'latent'"):
        load_components(parameters)


class Continuing:
    """Remembers what it was told to begin with."""

    spec = PolicySpec("continuing", {}, DEFAULT_SPEC, 8)

    def __init__(self):
        self.prefixes = []

    def reset(self):
        pass

    def condition_on_prefix(self, prefix):
        self.prefixes.append(prefix)

    def propose(self, observation, n=1):
        actions = np.arange(56.0).reshape(8, 7)
        return [ActionChunk(DEFAULT_SPEC, actions, observation.stamp_ns)]


def test_a_policy_is_told_the_actions_that_run_while_it_thinks():
    policy = Continuing()
    reasoner = Reasoner(policy, None, None, None)
    for decision in range(3):
        seen = tiny.seen(stamp_ns=decision * 400_000_000)
        reasoner.decide(seen, actions_consumed=lambda: 2)
    first, second, third = policy.prefixes
    assert first is None
    # Four actions of 0.1 s have passed; the next two fall due during the decision.
    np.testing.assert_array_equal(second.actions, np.arange(56.0).reshape(8, 7)[4:6])
    np.testing.assert_array_equal(third.actions, second.actions)
    reasoner.reset()
    reasoner.decide(tiny.seen())
    assert policy.prefixes[-1] is None
    late = tiny.seen(stamp_ns=tiny.seen().stamp_ns + 900_000_000)
    reasoner.decide(late)
    assert policy.prefixes[-1] is None
