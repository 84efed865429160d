import json

import numpy as np
import pytest
import torch
from torch import nn

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.values.progress import ValueConfig
from vla_reasoner_ros.values.vision_progress import VisionValueConfig
from vla_reasoner_ros.weights import load_arrays, load_into, load_model, require_architecture
from vla_reasoner_ros.weights import save_model as save
from vla_reasoner_ros.world_models.encoder import EncoderConfig, LatentLayout
from vla_reasoner_ros.world_models.latent import DynamicsConfig
from vla_reasoner_ros.world_models.predictor import PredictorConfig
from vla_reasoner_ros.world_models.views import ViewsConfig
from vla_reasoner_ros.world_models.vision import VisionSettings
from vla_reasoner_ros.world_models.vision_latents import VisionLayout

CARD = {
    "kind": "policy",
    "architecture": {"width": 4, "horizon": 8},
    "data": {"sha256": "0" * 64},
    "seed": 3,
    "command": "vla-reasoner train policy",
    "metrics": {"loss": 0.5},
    "licence": "Apache-2.0",
}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


@pytest.fixture
def stem(tmp_path, module):
    path = tmp_path / "models" / "tiny"
    save(path, module.state_dict(), CARD)
    return path


def test_saved_weights_come_back_bit_for_bit_with_their_card(stem, module):
    tensors, card = load_model(stem, "policy")
    assert card["seed"] == 3
    assert card["created"].endswith("+00:00")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_half_storage_gives_32_bit_floats_back_within_half_precision(tmp_path, module):
    save(tmp_path / "half", module.state_dict(), CARD, half=True)
    tensors, _ = load_model(tmp_path / "half", "policy")
    assert tensors["weight"].dtype == torch.float32
    assert torch.allclose(tensors["weight"], module.weight, rtol=1e-3)
    whole = tmp_path / "whole"
    save(whole, module.state_dict(), CARD)
    assert (tmp_path / "half.safetensors").stat().st_size < whole.with_suffix(
        ".safetensors"
    ).stat().st_size


def test_arrays_keep_double_precision_and_need_no_torch_tensors(tmp_path):
    points = np.linspace(0.0, 1.0, 7).reshape(1, 7)
    save(tmp_path / "prior", {"points": points}, CARD | {"kind": "prior"})
    arrays, _ = load_arrays(tmp_path / "prior", "prior")
    assert arrays["points"].dtype == np.float64
    np.testing.assert_array_equal(arrays["points"], points)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_either_file_names_the_model(stem, suffix):
    _, card = load_model(f"{stem}{suffix}", "policy")
    assert card["kind"] == "policy"


@pytest.mark.parametrize(
    ("suffix", "message"), [(".json", "card .*no such file"), (".safetensors", "no such file")]
)
def test_a_missing_file_is_named(stem, suffix, message):
    stem.with_suffix(suffix).unlink()
    with pytest.raises(ConfigurationError, match=message):
        load_model(stem, "policy")


def test_a_file_cut_off_is_refused(stem):
    path = stem.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigurationError, match="not a safetensors file"):
        load_model(stem, "policy")


def test_a_flipped_bit_is_refused(stem):
    path = stem.with_suffix(".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="corrupt"):
        load_model(stem, "policy")


def test_a_card_that_is_no_json_is_refused(stem):
    stem.with_suffix(".json").write_text("{")
    with pytest.raises(ConfigurationError, match="not readable as JSON"):
        load_model(stem, "policy")


def test_a_card_without_a_required_field_is_refused(stem):
    stem.with_suffix(".json").write_text(json.dumps({"kind": "policy"}))
    with pytest.raises(ConfigurationError, match="missing architecture"):
        load_model(stem, "policy")


def test_an_edited_card_is_refused(stem):
    path = stem.with_suffix(".json")
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        load_model(stem, "policy")


def test_weights_of_another_training_are_refused(stem, tmp_path):
    other = tmp_path / "other"
    save(other, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, CARD)
    stem.with_suffix(".safetensors").write_bytes(other.with_suffix(".safetensors").read_bytes())
    with pytest.raises(ConfigurationError, match="do not belong together"):
        load_model(stem, "policy")


def test_another_kind_is_refused(stem):
    with pytest.raises(ConfigurationError, match="expected kind 'value', the card says 'policy'"):
        load_model(stem, "value")


def test_another_architecture_is_refused_naming_what_differs(stem):
    _, card = load_model(stem, "policy")
    require_architecture(card, {"width": 4}, "tiny")
    with pytest.raises(ConfigurationError, match="horizon: expected 4, the card has 8"):
        require_architecture(card, {"width": 4, "horizon": 4}, "tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "missing bias"),
        (lambda t: t.update(scale=torch.ones(1)), "unexpected scale"),
        (lambda t: t.update(bias=torch.ones(3)), r"bias expected \(2,\), got \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_the_module_are_named(module, change, message):
    tensors = dict(module.state_dict())
    before = module.weight.clone()
    change(tensors)
    with pytest.raises(ConfigurationError, match=message):
        load_into(module, tensors, "tiny")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_what_is_not_finite_in_the_stored_type_is_not_saved(tmp_path, value):
    with pytest.raises(ConfigurationError, match="tensor w: not finite"):
        save(tmp_path / "bad", {"w": torch.tensor([value])}, CARD, half=True)
    assert not list(tmp_path.iterdir())


def test_a_card_must_say_where_the_weights_come_from(tmp_path):
    card = {key: value for key, value in CARD.items() if key not in ("data", "licence")}
    with pytest.raises(ConfigurationError, match="missing data, licence"):
        save(tmp_path / "bad", {}, card)


VISION = VisionLayout(("agent", "wrist"), ((96, 96), (64, 80)), grid=4, channels=8, joints=7)
SETTINGS = VisionSettings("folder", "dinov2", 224, 16, "fingerprint")


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(),
        EncoderConfig(channels=(4, 8, 16), vision=SETTINGS),
        ViewsConfig(cameras=("front",)),
        DynamicsConfig(layout=LatentLayout(objects=("cup", "shelf"), blocks=1), members=2),
        ValueConfig(hidden=32),
        PredictorConfig(VISION, actions=7, layers=2),
        VisionValueConfig(VISION, heads=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_how_a_network_is_built_survives_its_card(config):
    assert type(config).from_card(json.loads(json.dumps(config.to_card()))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"widht": 3},
        {"layout": {"objects": ["cup"], "cups": 1}},
        {"layout": "all"},
        {"layout": ["cup"]},
    ],
)
def test_a_card_of_another_architecture_is_named(values):
    with pytest.raises(ConfigurationError, match="is no DynamicsConfig"):
        DynamicsConfig.from_card(values)
