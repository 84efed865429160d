import json

import numpy as np
import pytest
import tiny_policies as tiny
import torch
from safetensors.torch import load_file, save_file

from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.policies.base import PrefixConditioned
from vla_reasoner_ros.policies.normalisation import MeanScale, read_statistics
from vla_reasoner_ros.policies.pi0 import Pi0
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ActionChunk, ChunkSource


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pi0")
    return folder, tiny.write_pi0(folder)


@pytest.fixture(scope="module")
def policy(checkpoint):
    return load(checkpoint[0])


def load(folder, convention=None, **options):
    return Pi0(str(folder), convention or tiny.pi0_convention(), device="cpu", **options)


def test_actions_equal_those_of_transformers_own_sampling(checkpoint, policy):
    network = checkpoint[1]
    inputs = policy.inputs(tiny.seen())
    noise = torch.randn((1, 10, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = network.sample_actions(noise=noise, **inputs)
        found = policy.integrate(inputs, noise)
        assert (expected - noise).abs().max() > 0.05
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_samples_share_the_prefix_and_equal_single_ones(policy):
    inputs = policy.inputs(tiny.seen())
    noise = torch.randn((3, 10, 16), generator=torch.Generator().manual_seed(6))
    calls = []
    hook = policy.model.model.vlm.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        together = policy.integrate(inputs, noise)
        assert len(calls) == 1
        hook.remove()
        alone = torch.cat([policy.integrate(inputs, row[None]) for row in noise])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_inputs_are_those_of_training(checkpoint, policy):
    observation = tiny.seen(instruction=" pick_up the\ncup ")
    inputs = policy.inputs(observation)
    words = [*"pick up the cup\n"]
    numbers = [policy._tokens.token_to_id(letter) for letter in words]
    assert inputs["input_ids"][0].tolist() == [70] * 8 + [2, *numbers]
    pixels = inputs["pixel_values"][0, 1].permute(1, 2, 0)
    image = observation.images["wrist"]
    torch.testing.assert_close(pixels, torch.from_numpy(image / 127.5 - 1.0).float())
    stats = json.loads((checkpoint[0] / "processor_config.json").read_text())
    # Fingers down: the first two columns of the rotation matrix.
    state = np.array([0.4, 0.1, 0.3, 1, 0, 0, 0, -1, 0, 0.75])
    expected = (state - stats["state_mean"]) / (np.array(stats["state_std"]) + 1e-8)
    np.testing.assert_allclose(inputs["state"][0, :10], expected, atol=1e-5)
    np.testing.assert_array_equal(inputs["state"][0, 10:], 0.0)


def test_normalisation_is_undone(checkpoint, policy):
    stats = json.loads((checkpoint[0] / "processor_config.json").read_text())
    observation = tiny.seen()
    policy.reset()
    chunk = policy.propose(observation)[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 10, 16), generator=generator)
    with torch.no_grad():
        raw = policy.integrate(policy.inputs(observation), noise)[0, :, :6].double().numpy()
    std, mean = np.array(stats["actions_std"])[:6], np.array(stats["actions_mean"])[:6]
    np.testing.assert_allclose(chunk.actions[:, :6], raw * (std + 1e-8) + mean, atol=1e-6)
    assert set(chunk.actions[:, 6]) <= {0.0, 1.0}


def test_a_seed_reproduces_an_episode(policy):
    observation = tiny.seen()
    episodes = []
    for _ in range(2):
        policy.reset()
        episodes.append([policy.propose(observation, 2)[1].actions for _ in range(2)])
    np.testing.assert_array_equal(episodes[0], episodes[1])
    assert np.abs(episodes[0][0] - episodes[0][1]).max() > 1e-3


def test_a_prefix_is_kept_once_and_bends_what_follows(policy):
    assert isinstance(policy, PrefixConditioned)
    observation = tiny.seen()
    policy.reset()
    free = policy.propose(observation)[0].actions
    held = np.tile([0.05, -0.05, 0.05, 0.1, -0.1, 0.1, 1.0], (3, 1))
    policy.reset()
    policy.condition_on_prefix(ActionChunk(policy.spec.action, held, 0))
    chunk = policy.propose(observation)[0].actions
    np.testing.assert_allclose(chunk[:3], held, atol=1e-6)
    assert np.abs(chunk[3:] - free[3:]).max() > 1e-5
    policy.reset()
    np.testing.assert_array_equal(policy.propose(observation)[0].actions, free)
    with pytest.raises(ActionChunkError, match="at most 10 actions"):
        policy.condition_on_prefix(ActionChunk(policy.spec.action, np.zeros((11, 7)), 0))


@pytest.mark.parametrize("change", [{"rotation": "euler_xyz"}, {"delta_frame": "tool"}])
def test_actions_that_cannot_be_turned_back_are_drawn_without_a_prefix(checkpoint, change):
    policy = Pi0(str(checkpoint[0]), tiny.pi0_convention() | change, device="cpu")
    observation = tiny.seen()
    free = policy.propose(observation)[0].actions
    policy.reset()
    policy.condition_on_prefix(ActionChunk(policy.spec.action, np.zeros((3, 7)), 0))
    np.testing.assert_array_equal(policy.propose(observation)[0].actions, free)


def test_joint_actions_relative_to_the_state_leave_as_positions(checkpoint, tmp_path):
    names = list(tiny.JOINTS)
    action = {
        "representation": "joint_position",
        "names": [*names, "gripper"],
        "frame": "",
        "dt": 0.02,
        "gripper": {"index": 7, "open": 1.0, "closed": 0.0, "binary": False},
    }
    folder = tmp_path
    tiny.write_pi0(folder, state=8, actions=8)
    convention = tiny.convention(
        action=action,
        state={"state": ["joint_positions", "gripper_opening"]},
        joint_names=names,
        relative_to_state=True,
    )
    relative, absolute = (
        load(folder, {**convention, "relative_to_state": flag}) for flag in (True, False)
    )
    observation = tiny.seen()
    difference = relative.propose(observation)[0].actions - absolute.propose(observation)[0].actions
    expected = np.append(observation.joint_positions, 0.0)
    np.testing.assert_allclose(difference, np.tile(expected, (10, 1)), atol=1e-9)
    held = np.tile(np.append(observation.joint_positions + 0.1, 0.4), (2, 1))
    relative.condition_on_prefix(ActionChunk(relative.spec.action, held, 0))
    np.testing.assert_allclose(relative.propose(observation)[0].actions[:2], held, atol=1e-6)


def test_it_drives_through_the_whole_planner(policy):
    decision = Reasoner(policy, None, None, None).decide(tiny.seen())
    assert decision.chunk.source is ChunkSource.POLICY
    assert decision.chunk.steps == policy.spec.horizon == 10


def test_half_precision_is_close(checkpoint):
    inputs = [load(checkpoint[0], dtype=kind) for kind in ("float32", "bfloat16")]
    exact, half = (policy.propose(tiny.seen())[0].actions[:, :6] for policy in inputs)
    assert np.abs(exact - half).max() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [224, 224]}, "takes images of 28x28"),
        ({"horizon": 11}, "at most 10 actions"),
        ({"state": {}}, "one state called 'state', got none"),
        ({"state": {"state": ["ee_position"]}}, "state have 3 numbers, the checkpoint's.* 10"),
        ({"rotation": "quaternion_xyzw"}, "actions have 8 numbers, the checkpoint's.* 7"),
    ],
)
def test_a_convention_that_does_not_fit_is_refused(checkpoint, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load(checkpoint[0], tiny.pi0_convention() | changes)


def copy(checkpoint, target):
    for path in checkpoint[0].iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_weights_are_not_left_to_chance(checkpoint, tmp_path):
    folder = copy(checkpoint, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "action_out_proj.weight" in name)
    weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"missing keys, action_out_proj\.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("processor_config.json", "no normalisation statistics"),
        ("tokenizer.json", r"tokenizer\.json: no such file"),
        ("model.safetensors", r"no model\*\.safetensors"),
        ("config.json", r"config\.json"),
    ],
)
def test_a_missing_file_is_named(checkpoint, tmp_path, file, message):
    folder = copy(checkpoint, tmp_path)
    (folder / file).unlink()
    with pytest.raises(ConfigurationError, match=message):
        load(folder)


def test_pickles_are_not_read_and_the_repositorys_code_has_no_effect(checkpoint, tmp_path):
    folder = copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    assert load(folder).spec.horizon == 10
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


def test_a_model_of_another_type_and_no_model_at_all_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigurationError, match="type 'llama', expected 'pi0'"):
        load(tmp_path)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        load(tmp_path / "nothing")


STATISTICS = {
    "state": {"mean": [1.0, 2.0], "std": [0.5, 0.25]},
    "actions": {"mean": [3.0], "std": [0.0]},
}


def test_padding_of_statistics_is_left_out_and_nothing_else():
    padded = MeanScale(np.array([1.0, 2.0, 0.0]), np.array([0.5, 0.0, 0.0]))
    np.testing.assert_array_equal(padded.without_padding(2).mean, [1.0, 2.0])
    assert len(padded.without_padding(1).mean) == 3


def test_statistics_come_from_openpi_and_from_lerobot_as_well(tmp_path):
    (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": STATISTICS}))
    found = [read_statistics(tmp_path, str(tmp_path / "norm_stats.json"), "test")]
    state = tmp_path / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    tensors = {
        "observation.state.mean": torch.tensor([1.0, 2.0]),
        "observation.state.std": torch.tensor([0.5, 0.25]),
        "action.mean": torch.tensor([3.0]),
        "action.std": torch.tensor([0.0]),
    }
    save_file(tensors, state)
    modes = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    step = {"registry_name": "normalizer_processor", "state_file": state.name}
    pipeline = {"steps": [{"registry_name": "other"}, {**step, "config": {"norm_map": modes}}]}
    path = tmp_path / "policy_preprocessor.json"
    path.write_text(json.dumps(pipeline))
    found.append(read_statistics(tmp_path, "", "test"))
    for statistics in found:
        np.testing.assert_array_equal(statistics.state.mean, [1.0, 2.0])
        given = np.array([2.0, 2.5])
        np.testing.assert_allclose(statistics.state.normalise(given), [2.0, 2.0], rtol=1e-5)
        np.testing.assert_allclose(statistics.actions.undo(np.array([5.0])), [3.0], rtol=1e-5)
    # What never varied is divided by what each adds to a deviation of zero.
    scales = [float(s.actions.normalise(np.array([4.0]))[0]) for s in found]
    np.testing.assert_allclose(scales, [1e6, 1e8])
    pipeline["steps"][1]["config"]["norm_map"]["ACTION"] = "QUANTILES"
    path.write_text(json.dumps(pipeline))
    with pytest.raises(ConfigurationError, match="ACTION is normalised by QUANTILES"):
        read_statistics(tmp_path, "", "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": {"mean": [1.0]}}, "missing 'std'"),
        ({"actions": {"mean": [1.0, 2.0], "std": [1.0]}}, "2 means and 1 deviations"),
        ({"actions": {"mean": [1.0], "std": [-1.0]}}, "deviations >= 0"),
        ({"actions": {"mean": [float("nan")], "std": [1.0]}}, "finite"),
    ],
)
def test_broken_statistics_are_refused(tmp_path, change, message):
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps(STATISTICS | change))
    with pytest.raises(ConfigurationError, match=message):
        read_statistics(tmp_path, str(path), "test")
