import json
import os
import sys

import numpy as np
import pytest
import tiny_policies as tiny
import torch
from safetensors.torch import save_file

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies.lerobot import LeRobot
from vla_reasoner_ros.policies.process import ProcessPolicy
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ChunkSource

# A package with the part of LeRobot 0.4's interface that loads and runs a policy. The policy
# answers with a linear map of what it was given plus noise of torch's global generator.
CONFIGS = """
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class PolicyFeature:
    type: str
    shape: tuple


class PreTrainedConfig:
    known = {}

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, local_files_only=False, **kwargs):
        values = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        config = cls.known[values.pop("type")]()
        for side in ("input_features", "output_features"):
            values[side] = {
                name: PolicyFeature(f["type"], tuple(f["shape"]))
                for name, f in values[side].items()
            }
        vars(config).update(values)
        return config
"""
FACTORY = """
import json
from pathlib import Path

import safetensors.torch
import torch

from lerobot.configs.policies import PreTrainedConfig


class ActConfig(PreTrainedConfig):
    n_obs_steps = 1


class ActPolicy(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(7, 8))
        self.resets = 0

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, config=None, local_files_only=False):
        policy = cls(config)
        file = Path(pretrained_name_or_path) / "model.safetensors"
        safetensors.torch.load_model(policy, str(file))
        return policy.to(config.device)

    def reset(self):
        self.resets += 1

    def predict_action_chunk(self, batch):
        assert batch["task"] == ["pick up the cup\\n"], batch["task"]
        image = batch["observation.images.top"]
        assert image.shape == (1, 3, 28, 28) and image.dtype == torch.float32
        assert 0.0 <= image.min() and image.max() <= 1.0
        answer = self.weight @ batch["observation.state"][0]
        answer = answer + image.mean() + 0.01 * torch.randn(())
        chunk = answer.expand(1, self.config.chunk_size, 7)
        return chunk if self.config.shape == "chunk" else chunk[0]


def get_policy_class(name):
    if name not in ("act", "groot"):
        raise NotImplementedError(f"Policy with name {name} is not implemented.")
    PreTrainedConfig.known[name] = ActConfig
    return ActPolicy


def make_pre_post_processors(policy_cfg, pretrained_path=None, **kwargs):
    assert kwargs["preprocessor_overrides"]["device_processor"]["device"] == policy_cfg.device
    stats = json.loads((Path(pretrained_path) / "stats.json").read_text())

    def before(batch):
        state = (batch["observation.state"] - stats["mean"]) / stats["std"]
        return {**batch, "observation.state": state, "task": [batch["task"] + "\\n"]}

    return before, lambda action: action * 0.05
"""
STATE = ["joint_positions", "gripper_opening"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for package, name, text in (
        ("configs", "policies", CONFIGS),
        ("policies", "factory", FACTORY),
    ):
        (folder / "lerobot" / package).mkdir(parents=True)
        (folder / "lerobot" / package / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def lerobot(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lerobot"]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path):
    config = {
        "type": "act",
        "shape": "chunk",
        "chunk_size": 6,
        "input_features": {
            "observation.images.top": {"type": "VISUAL", "shape": [3, 28, 28]},
            "observation.state": {"type": "STATE", "shape": [8]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    }
    weight = torch.randn((7, 8), generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "stats.json").write_text(json.dumps({"mean": 0.1, "std": 0.5}))
    (tmp_path / "config.json").write_text(json.dumps(config))

    class Checkpoint:
        folder = tmp_path

        def __init__(self):
            self.weight = weight.double().numpy()

        def change(self, **changes):
            (tmp_path / "config.json").write_text(json.dumps(config | changes))

    return Checkpoint()


def convention(**changes):
    own = {
        "cameras": {"observation.images.top": "agent"},
        "state": {"observation.state": STATE},
        "joint_names": list(tiny.JOINTS),
    }
    return tiny.convention(**own | changes)


def load(checkpoint, given=None, **options):
    return LeRobot(str(checkpoint.folder), given or convention(), device="cpu", **options)


def expected(checkpoint, observation):
    state = (np.append(observation.joint_positions, observation.gripper) - 0.1) / 0.5
    return 0.05 * (checkpoint.weight @ state + observation.images["agent"].mean() / 255.0)


def test_observations_pass_its_processors_and_chunks_come_back(lerobot, checkpoint):
    policy, observation = load(checkpoint), tiny.seen()
    chunk = policy.propose(observation)[0]
    assert chunk.steps == policy.spec.horizon == 6
    wanted = expected(checkpoint, observation)
    np.testing.assert_allclose(chunk.actions[:, :6], np.tile(wanted[:6], (6, 1)), atol=2e-3)


def test_samples_differ_a_seed_reproduces_them_and_the_global_generator_is_left_alone(
    lerobot, checkpoint
):
    policy, observation = load(checkpoint, samples=2), tiny.seen()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = policy.propose(observation, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.abs(first.actions - second.actions).max() > 0.0
    policy.reset()
    np.testing.assert_array_equal(policy.propose(observation)[0].actions, first.actions)


def test_it_drives_through_the_whole_planner(lerobot, checkpoint):
    chunk = Reasoner(load(checkpoint), None, None, None).decide(tiny.seen()).chunk
    assert chunk.source is ChunkSource.POLICY


def test_it_runs_in_another_python_that_has_lerobot(installed, checkpoint, tmp_path):
    python = tmp_path / "python"
    path = os.pathsep.join([str(installed), *sys.path])
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = {"checkpoint": str(checkpoint.folder), "convention": convention(), "device": "cpu"}
    policy = ProcessPolicy("lerobot", options, python=str(python), answer_s=120.0)
    observation = tiny.seen()
    actions = policy.propose(observation)[0].actions
    np.testing.assert_allclose(actions[0, :6], expected(checkpoint, observation)[:6], atol=2e-3)


def test_where_lerobot_is_missing_the_way_out_is_told(checkpoint):
    with pytest.raises(ConfigurationError, match=r"cannot be imported here .*policy 'process'"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_obs_steps": 2}, "needs a history of 2 observations"),
        ({"type": "nonsense"}, "LeRobot does not load .*nonsense is not implemented"),
        (
            {"output_features": {"action": {"type": "ACTION", "shape": [14]}}},
            r"actions: the checkpoint has \(14,\), the convention \(7,\)",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused(lerobot, checkpoint, changes, message):
    checkpoint.change(**changes)
    with pytest.raises(ConfigurationError, match=message):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"observation.images.front": "agent"}}, "'observation.images.front'.*none"),
        ({"image_size": [96, 96]}, r"images\.top'.* \(3, 28, 28\), the convention \(3, 96, 96\)"),
        ({"state": {"observation.state": ["gripper_opening"]}}, r"has \(8,\), .* \(1,\)"),
    ],
)
def test_a_convention_that_does_not_fit_its_features_is_refused(
    lerobot, checkpoint, changes, message
):
    with pytest.raises(ConfigurationError, match=message):
        load(checkpoint, convention(**changes))


def test_remote_code_is_refused_unless_allowed_by_name_and_then_warned_of(
    lerobot, checkpoint, caplog
):
    checkpoint.change(type="groot")
    with pytest.raises(
        ConfigurationError, match=r"type 'groot' run Python code.*allow_remote_code"
    ):
        load(checkpoint)
    load(checkpoint, allow_remote_code=True)
    assert "runs downloaded code" in caplog.text


def test_pickles_are_not_read(lerobot, checkpoint):
    (checkpoint.folder / "model.safetensors").rename(checkpoint.folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin is a pickle"):
        load(checkpoint)


def test_an_answer_of_another_shape_is_named(lerobot, checkpoint):
    checkpoint.change(shape="single")
    with pytest.raises(ModelError, match=r"expected a chunk \(1, H, D\), got shape \(6, 7\)"):
        load(checkpoint).propose(tiny.seen())
