import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_policies as tiny
import torch
import yaml
from test_policies_planner import lerobot, openpi, openvla, openvla_oft, pi0, process

from vla_reasoner_ros import cli
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.memory import MIB, Peak, Plan, Row, plan, plan_dry, table
from vla_reasoner_ros.search.parameters import SearchParameters

# A policy whose weights and activations dwarf what else a process does; measured by the kernel.
MEASURED = """
import gc, json, re
from pathlib import Path

import numpy as np
import torch

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.memory import plan, resident_set
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.types import ActionChunk
import vla_reasoner_ros.search.engine


def peak():
    # Of this program alone: ru_maxrss would begin with that of the process that started it.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])


class Big:
    spec = PolicySpec("big", {"agent": (8, 8)}, DEFAULT_SPEC, 8)

    def __init__(self):
        self.network = torch.nn.Embedding(5_000, 8_000)
        self.table = np.ones((2_000, 5_000))

    def reset(self):
        pass

    def propose(self, observation, n=1):
        with torch.inference_mode():
            first = torch.ones(15_000_000)
            second = first * 2.0
            total = (first + second).sum()
            del first, second
            total = total + torch.zeros(1_000_000).sum()
        actions = np.zeros((8, 7)) + 0.0 * float(total)
        return [ActionChunk(DEFAULT_SPEC, actions, observation.stamp_ns)]


torch.ones(1000).sum()
gc.collect()
before = resident_set()
policy = Big()
from vla_reasoner_ros.planner import blank
policy.propose(blank(policy.spec, 0))
measured = peak() - before
found = plan(Components(policy), SearchParameters())
print(json.dumps({"measured": measured, "planned": found.on("cpu"),
                  "parameters": found.rows[0].parameters}))
"""


def test_the_plan_is_within_a_tenth_of_what_the_kernel_measures():
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["parameters"] == 40_000_000
    assert found["planned"] == pytest.approx(found["measured"], rel=0.1)
    assert found["planned"] == pytest.approx(160e6 + 80e6 + 180e6, rel=0.02)


# Each configuration twice, in a process of its own: driven, as the kernel measures it, and planned.
COMPARED = """
import json, os, sys

from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.memory import _example, peak_of, plan, resident_set
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters

SEARCH = SearchParameters(simulations=64, deadline_ms=0.0)


def driven(parameters):
    components = load_components(parameters)
    names = ("policy", "world_model", "value", "prior")
    reasoner = Reasoner(*(getattr(components, name) for name in names), SEARCH)
    observation = _example(components)
    reasoner.warm_up(observation)
    for _ in range(3):
        reasoner.decide(observation)
    worker = getattr(components.policy, "process_id", None)
    return peak_of() + (peak_of(worker) if worker else 0)


def planned(parameters):
    before = resident_set()
    return plan(load_components(parameters), SEARCH, before).on("cpu")


configurations = json.loads(sys.argv[1])
if "pi0" in configurations:  # once for all that are forked
    from transformers import LlamaModel, PI0ForConditionalGeneration
for name, given in configurations.items():
    for work in (driven, planned):
        child = os.fork()
        if not child:
            number = work(ComponentParameters(**given))
            print(json.dumps([name, work.__name__, number]), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, (name, work.__name__)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("adapters", [[], [openpi, pi0, openvla, openvla_oft, lerobot, process]])
def test_real_configurations_are_planned_within_a_tenth(adapters, tmp_path, monkeypatch):
    given = {} if adapters else {"shipped": {"world_model": "latent"}}
    for make in adapters:
        folder = tmp_path / make.__name__
        folder.mkdir()
        options = folder / "options.yaml"
        options.write_text(yaml.safe_dump(make(folder, monkeypatch)))
        name = make.__name__.removesuffix("_oft")
        given[make.__name__] = {
            "policy": name, "policy_options": str(options), "world_model": "none"
        }  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, "-c", COMPARED, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {tuple(row[:2]): row[2] for row in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 2 * len(given)
    for name in given:
        measured = found[name, "driven"]
        assert found[name, "planned"] == pytest.approx(measured, rel=0.1), (name, found)


def test_the_highest_moment_is_counted_not_the_sum():
    with Peak() as peak:
        for _ in range(5):
            first = torch.ones(1000)
            second = first.view(10, 100)[1:]
            second.add_(1.0)
            del first, second
        kept = torch.zeros(500)
    assert peak.highest == 4000
    assert peak.live == kept.nbytes


@pytest.fixture(scope="module")
def planned():
    components = load_components(ComponentParameters(world_model="latent"))
    return components, plan(components, SearchParameters(simulations=64, wave=16))


def test_every_component_has_its_row(planned):
    components, found = planned
    rows = {row.part: row for row in found.rows}
    assert list(rows) == ["policy", "world model, 16 leaves", "value", "prior", "tree"]
    network = components.policy._network
    own = sum(p.numel() for p in network.parameters())
    assert rows["policy"].parameters == own
    assert rows["policy"].resident > 4 * own
    states = 65 * components.world_model._layout.width * 4
    assert rows["world model, 16 leaves"].resident >= states
    assert rows["world model, 16 leaves"].transient > 0
    assert rows["tree"].resident > 0


def test_more_leaves_at_once_and_more_states_take_more(planned):
    components, few = planned
    many = plan(components, SearchParameters(simulations=256, wave=64))
    (before, after) = ({row.part.split(",")[0]: row for row in p.rows} for p in (few, many))
    assert after["world model"].transient >= before["world model"].transient
    assert after["world model"].resident > before["world model"].resident
    assert after["tree"].resident > before["tree"].resident
    assert after["policy"].resident == before["policy"].resident


def test_stages_run_one_after_the_other_and_devices_apart():
    rows = (Row("a", 1, 10 * MIB, 5 * MIB), Row("b", 1, MIB, 7 * MIB), Row("c", 1, MIB, 3, "cuda"))
    found = Plan(rows, process=100 * MIB)
    assert found.on("cpu") == 118 * MIB
    assert found.on("cuda") == MIB + 3
    assert found.places == ("cpu", "cuda")
    assert "total on cuda: 0.001 GiB" in table(found)


def test_what_does_not_fit_is_said_and_ends_with_one(capsys):
    words = ["memory", "--world-model", "none", "--gib"]
    assert cli.main([*words, "100"]) == 0
    assert "fits in 100 GiB of cpu" in capsys.readouterr().out
    assert cli.main([*words, "0.01"]) == 1
    assert "does not fit in 0.01 GiB" in capsys.readouterr().out


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """Options files of tiny pi0 and OpenVLA checkpoints."""
    folder = tmp_path_factory.mktemp("pi0")
    tiny.write_pi0(folder)
    options = {"checkpoint": str(folder), "convention": tiny.pi0_convention(), "device": "cpu"}
    pi0 = folder / "options.yaml"
    pi0.write_text(yaml.safe_dump(options))
    folder = tmp_path_factory.mktemp("openvla")
    tiny.write_openvla(folder, tiny.openvla_weights())
    convention = tiny.convention(cameras={"image": "agent"})
    options = {"checkpoint": str(folder), "convention": convention, "device": "cpu"}
    openvla = folder / "options.yaml"
    openvla.write_text(yaml.safe_dump({**options, "unnorm_key": "bridge_orig"}))
    return {"pi0": pi0, "openvla": openvla}


@pytest.mark.parametrize("name", ["pi0", "openvla"])
def test_a_plan_of_shapes_alone_equals_that_of_the_loaded_policy(configured, name):
    parameters = ComponentParameters(
        policy=name, policy_options=str(configured[name]), world_model="none"
    )
    loaded = plan(load_components(parameters), SearchParameters(executed=1)).rows[0]
    dry = plan_dry(parameters).rows[0]
    assert dry.parameters == loaded.parameters
    assert dry.resident == pytest.approx(loaded.resident, rel=0.01)
    # The loaded one also draws the other tokens, whose logits weigh much in a tiny network.
    assert dry.transient == pytest.approx(loaded.transient, rel=0.5)


def test_a_policy_that_must_be_loaded_says_so():
    with pytest.raises(ConfigurationError, match="leave out --dry"):
        plan_dry(ComponentParameters(policy="small_vla"))


def test_arrays_and_shared_tensors_are_counted_once(planned):
    components, _ = planned
    # Room that was made for a larger wave stays, so both come after it.
    found, twice = (plan(components, SearchParameters(simulations=64, wave=16)) for _ in range(2))
    assert [row.resident for row in twice.rows] == [row.resident for row in found.rows]
    assert np.isfinite([row.transient for row in twice.rows]).all()
