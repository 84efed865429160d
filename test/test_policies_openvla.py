import json

import numpy as np
import pytest
import reference_openvla as reference
import tiny_policies as tiny
import torch
from safetensors.torch import save_file

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.policies.openvla import OpenVla, crop_centre
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ChunkSource

HEADS = tiny.TEXT["num_attention_heads"]
HORIZON = 5


@pytest.fixture(scope="module")
def weights():
    return tiny.openvla_weights()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    folder = tiny.write_openvla(tmp_path_factory.mktemp("openvla"), weights)
    save_file(tiny.head_weights(), folder / "action_head.safetensors")
    torch.save({f"module.{k}": v for k, v in tiny.proprio_weights().items()}, folder / "proprio.pt")
    return folder


def one_camera(**changes):
    return tiny.convention(**{"cameras": {"image": "agent"}, "rotation": "euler_xyz"} | changes)


def load(folder, convention=None, **options):
    options = {"unnorm_key": "bridge_orig", "device": "cpu", **options}
    return OpenVla(str(folder), convention or one_camera(), **options)


def oft(folder, **options):
    state = {"state": ["ee_position", "ee_rotation_vector", "gripper_opening", "gripper_closing"]}
    convention = tiny.convention(horizon=HORIZON, state=state)
    options = {"head": "action_head.safetensors", "proprio": "proprio.pt", **options}
    return load(folder, convention, allow_pickle=True, **options)


def channels(policy, observation):
    """The pictures as the published processor stacks them: (N, 6, S, S)."""
    return policy.pixels(observation).flatten(1, 2)


def test_towers_projector_and_language_model_equal_the_published_computation(folder, weights):
    policy, observation = load(folder), tiny.seen()
    tokens, pixels = policy.tokens(tiny.INSTRUCTION), policy.pixels(observation)
    with torch.no_grad():
        patches = policy.network.patches(pixels)
        expected = reference.projected(weights, channels(policy, observation))
        torch.testing.assert_close(patches, expected, atol=1e-4, rtol=1e-4)
        found = policy.network.language(inputs_embeds=policy.network.embed(tokens, patches)).logits[
            0, -1
        ]
    expected = reference.logits(weights, tokens, channels(policy, observation), HEADS)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_actions_equal_the_published_decoding(folder, weights):
    policy = load(folder)
    for seed in range(3):
        observation = tiny.seen(seed=seed)
        tokens, pixels = policy.tokens(tiny.INSTRUCTION), channels(policy, observation)
        numbers = np.array(reference.generate(weights, tokens, pixels, HEADS, 7))
        centres = (np.linspace(-1, 1, 256)[:-1] + np.linspace(-1, 1, 256)[1:]) / 2
        scaled = centres[np.clip(32000 - numbers - 1, 0, 254)]
        stats = tiny.NORM["bridge_orig"]["action"]
        low, high = np.array(stats["q01"]), np.array(stats["q99"])
        expected = np.where(stats["mask"], 0.5 * (scaled + 1) * (high - low) + low, scaled)
        found = policy._actions.undo(
            policy._decode(policy.network.generate(tokens, policy.pixels(observation), 7))
        )
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_prompt_is_the_one_of_training(folder):
    policy = load(folder)
    tokens = policy.tokens("Pick UP the cup")[0].tolist()
    assert tokens == policy.tokens("pick up the cup")[0].tolist()
    assert (tokens[0], tokens[-1]) == (1, 29871)
    words = "".join(policy._tokens.id_to_token(n) for n in tokens[1:-1])
    expected = "In: What action should the robot take to pick up the cup?\nOut:"
    assert words == expected


def test_the_chunk_head_of_oft_equals_the_published_computation(folder, weights):
    policy, observation = oft(folder), tiny.seen()
    state = policy._convention.states(observation, "test")["state"]
    span = np.full(8, 1.1) + 1e-8
    state = np.clip(2 * (state - -0.5) / span - 1, -1, 1)
    answer = reference.regress(
        weights,
        tiny.head_weights(),
        tiny.proprio_weights(),
        policy.tokens(tiny.INSTRUCTION),
        channels(policy, observation),
        torch.from_numpy(state[None]).float(),
        HEADS,
        HORIZON,
        7,
    ).numpy()
    stats = tiny.NORM["bridge_orig"]["action"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    expected = 0.5 * (answer + 1) * (high - low + 1e-8) + low
    actions = policy.propose(observation)[0].actions
    assert actions.shape == (HORIZON, 7)
    np.testing.assert_allclose(actions[:, :6], expected[:, :6], atol=1e-4)
    assert np.abs(np.diff(actions[:, :6], axis=0)).max() > 1e-4


def test_it_drives_through_the_whole_planner(folder):
    policy = load(folder, repeat=4)
    reasoner = Reasoner(policy, None, None, None)
    chunk = reasoner.decide(tiny.seen(cameras=("agent",))).chunk
    assert chunk.source is ChunkSource.POLICY
    assert chunk.actions.shape == (4, 7)
    assert set(chunk.actions[:, 6]) <= {0.0, 1.0}
    missing = reasoner.decide(tiny.seen(cameras=("wrist",)))
    assert missing.chunk.source is ChunkSource.HOLD
    assert "camera 'agent' is missing" in missing.statistics.fallback_reason


def test_a_wrong_key_of_statistics_lists_the_right_ones(folder):
    with pytest.raises(ConfigurationError, match="'bridge' is not one of bridge_orig, fractal"):
        load(folder, unnorm_key="bridge")
    with pytest.raises(ConfigurationError, match="one of bridge_orig, fractal"):
        load(folder, unnorm_key="")


def test_the_statistics_of_a_fine_tune_go_over_those_of_the_configuration(weights, tmp_path):
    folder = tiny.write_openvla(tmp_path, weights)
    mine = {"mine": tiny.NORM["fractal"]}
    (folder / "dataset_statistics.json").write_text(json.dumps(mine))
    assert load(folder, unnorm_key="").spec.horizon == 1
    with pytest.raises(ConfigurationError, match="is not one of mine"):
        load(folder)


def test_pickles_are_refused_unless_allowed_by_name_and_then_warned_of(folder, caplog):
    with pytest.raises(ConfigurationError, match=r"is a pickle.*allow_pickle"):
        load(
            folder,
            tiny.convention(horizon=HORIZON, state={"state": ["ee_position"]}),
            head="action_head.safetensors",
            proprio="proprio.pt",
        )
    oft(folder)
    assert "can run code" in caplog.text


class Payload:
    def __reduce__(self):
        return (open, ("/nonexistent/written-by-a-pickle", "w"))


def test_even_an_allowed_pickle_runs_no_code(folder):
    torch.save({"fc1.weight": Payload()}, folder / "evil.pt")
    with pytest.raises(ConfigurationError, match=r"evil\.pt: UnpicklingError"):
        oft(folder, proprio="evil.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("projector.fc2.bias"), "projector.fc2.bias is missing"),
        (lambda w: w.update(surprise=torch.zeros(1)), "surprise is none of OpenVLA's"),
        (
            lambda w: w.update({"vision_backbone.featurizer.blocks.0.film.weight": torch.zeros(1)}),
            "blocks.0.film.weight of a vision tower is unknown",
        ),
        (
            lambda w: w.update({"language_model.model.norm.weight": torch.zeros(3)}),
            r"norm.weight has shape \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, tmp_path, change, message):
    changed = dict(weights)
    change(changed)
    with pytest.raises(ConfigurationError, match=message):
        load(tiny.write_openvla(tmp_path, changed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [224, 224]}, "takes images of 28x28"),
        ({"rotation": "quaternion_xyzw"}, "have 8 numbers, the dataset's 7"),
        ({"cameras": {"a": "agent", "b": "wrist"}}, "one image gives one action"),
        ({"state": {"state": ["ee_position"]}}, "none without"),
    ],
)
def test_a_convention_that_does_not_fit_is_refused(folder, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load(folder, one_camera(**changes))


def test_the_middle_of_an_image_is_enlarged_about_its_centre():
    ramp = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    cropped = crop_centre(ramp)[0, 0, 0]
    assert cropped[0] == pytest.approx((1 - 0.9**0.5) / 2, abs=1 / 255)
    assert cropped.flip(0).add(cropped).sub(1).abs().max() <= 1.01 / 255


def test_only_pickles_in_the_folder_are_told(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigurationError, match=r"pytorch_model.bin is a pickle"):
        load(tmp_path)


def test_half_precision_keeps_the_frequencies_of_positions_exact(folder):
    policy = load(folder, dtype="bfloat16")
    assert policy.network.language.model.rotary_emb.inv_freq.dtype is torch.float32
    assert policy.network.language.lm_head.weight.dtype is torch.bfloat16
    assert policy.propose(tiny.seen())[0].steps == 1
