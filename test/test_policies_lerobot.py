import json
import os
import sys

import numpy as np
import pytest
import tiny_policies as tiny
import torch

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies.lerobot import LeRobot
from vla_reasoner_ros.policies.process import ProcessPolicy
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ChunkSource

STATE = ["joint_positions", "gripper_opening"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return tiny.write_lerobot_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def lerobot(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lerobot"]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path):
    config, weight = tiny.write_lerobot(tmp_path)

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


def test_slots_for_cameras_that_there_are_not_stay_empty(lerobot, checkpoint):
    config = json.loads((checkpoint.folder / "config.json").read_text())
    slot = {"observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 224, 224]}}
    checkpoint.change(input_features=config["input_features"] | slot)
    assert load(checkpoint).propose(tiny.seen())


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


@pytest.mark.parametrize(
    "step",
    [
        {"class": "subprocess.check_output", "config": {"args": ["true"]}},
        {"registry_name": "rename", "class": "os.system"},
        {"registry_name": "tokenizer_processor", "config": {"trust_remote_code": True}},
        "a step",
    ],
    ids=["a class", "a class beside a name", "remote code", "no step"],
)
def test_a_processor_that_may_run_other_code_is_refused(lerobot, checkpoint, caplog, step):
    path = checkpoint.folder / "policy_preprocessor.json"
    path.write_text(json.dumps({"steps": [{"registry_name": "rename"}]}))
    load(checkpoint)
    path.write_text(json.dumps({"steps": [{"registry_name": "rename"}, step]}))
    with pytest.raises(ConfigurationError, match=r"policy_preprocessor\.json: the step .* may run"):
        load(checkpoint)
    load(checkpoint, allow_remote_code=True)
    assert "runs code from elsewhere" in caplog.text


def test_pickles_are_not_read(lerobot, checkpoint):
    (checkpoint.folder / "model.safetensors").rename(checkpoint.folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin is a pickle"):
        load(checkpoint)


def test_an_answer_of_another_shape_is_named(lerobot, checkpoint):
    checkpoint.change(shape="single")
    with pytest.raises(ModelError, match=r"expected a chunk \(1, H, D\), got shape \(6, 7\)"):
        load(checkpoint).propose(tiny.seen())
