"""The world model on a frozen vision encoder: encoder, predictor, value, their training."""

import inspect
import json
import shutil

import numpy as np
import pytest
import tiny_vision as tiny
import torch
from torch.nn import functional

from vla_reasoner_ros import cli, plugins
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.planner import blank, warm_up
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.training.vision_latents import layout_of, load_vision_episodes
from vla_reasoner_ros.training.vision_model import Windows, predictor_loss, take_spread
from vla_reasoner_ros.types import ActionChunk, ActionSpec, GripperSpec, Representation
from vla_reasoner_ros.values.vision_progress import VisionProgress
from vla_reasoner_ros.world_models.predictor import Predictor, PredictorConfig
from vla_reasoner_ros.world_models.vision import FrozenVision
from vla_reasoner_ros.world_models.vision_latents import VisionEncoder, VisionLayout
from vla_reasoner_ros.world_models.vjepa2_ac import Vjepa2Ac

JOINT = ActionSpec(
    Representation.JOINT_POSITION, (*tiny.JOINTS, "gripper"), "", 0.1, GripperSpec(7)
)
ENCODERS = {"vjepa2": tiny.write_vjepa2, "dinov2": tiny.write_dinov2}
SIZES = ["--width", "24", "--layers", "1", "--heads", "2", "--members", "2", "--grid", "2"]


def slots(*numbers):
    return np.array(numbers, dtype=np.int64)


def moves(count, seed=0):
    drawn = np.random.default_rng(seed).normal(0.0, 0.02, (count, 4, 7)).astype(np.float32)
    drawn[..., 6] = 1.0
    return drawn


@pytest.fixture(scope="module", params=ENCODERS)
def trained(request, tmp_path_factory):
    """Folders of an encoder, and of predictor and value trained on it by the commands."""
    folder = tmp_path_factory.mktemp(request.param)
    encoder, models = folder / "encoder", folder / "models"
    ENCODERS[request.param](encoder)
    common = [
        "--encoder", str(encoder), "--episodes", str(tiny.write_episodes(folder / "episodes")),
        "--cache", str(folder / "cache"), "--models", str(models), "--steps", "12",
        "--batch-size", "4", "--device", "cpu",
    ]  # fmt: skip
    work = ["--work", str(folder / "work_model")]
    assert cli.main(["train", "vision-model", *common, *SIZES, *work]) == 0
    work = ["--grid", "2", "--width", "16", "--work", str(folder / "work_value")]
    assert cli.main(["train", "vision-value", *common, *work]) == 0
    return folder


@pytest.fixture
def model(trained):
    found = Vjepa2Ac(str(trained / "models"), device="cpu")
    found.allocate(8)
    found.encode(tiny.observation())
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_the_features_are_those_of_transformers_own_module(name, tmp_path):
    network = ENCODERS[name](tmp_path)
    colours = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "crop_size": 56}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(colours))
    vision = FrozenVision(str(tmp_path), device="cpu")
    patch = network.config.patch_size
    assert (vision.settings.size, vision.patches) == (56, 56 // patch)
    image = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    pixels = (image / 255.0 - colours["image_mean"]) / colours["image_std"]
    pixels = torch.from_numpy(pixels).float().movedim(-1, 1)
    with torch.inference_mode():
        if name == "vjepa2":
            clip = pixels[:, None].expand(-1, 2, -1, -1, -1)
            expected = network(clip, skip_predictor=True).last_hidden_state
        else:
            expected = network(pixels).last_hidden_state[:, 1:]
    found = vision.features(torch.from_numpy(image)).flatten(2).transpose(1, 2)
    expected = functional.layer_norm(expected, (vision.channels,))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_cells_are_means_of_their_patches_and_pictures_of_any_shape_are_stretched(tmp_path):
    tiny.write_dinov2(tmp_path, registers=True)
    fine, coarse = (FrozenVision(str(tmp_path), grid=g, device="cpu") for g in (0, 2))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), np.uint8))
    assert fine.features(image).shape == (2, 24, 4, 4)
    assert coarse.features(image).shape == (2, 24, 2, 2)
    assert fine.settings.fingerprint != coarse.settings.fingerprint


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"model_type": "vit"}, {}, "expected model_type vjepa2, dinov2"),
        ({}, {"size": 30}, "multiple of its patches of 7"),
        ({}, {"grid": 3}, "must divide its 4 patches"),
        ({"hidden_size": 30}, {}, "mismatched"),
        ({"num_hidden_layers": 3}, {}, "missing keys"),
    ],
)
def test_an_encoder_that_does_not_fit_is_named(tmp_path, change, options, message):
    tiny.write_dinov2(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=message):
        FrozenVision(str(tmp_path), device="cpu", **options)


def test_pickles_are_refused_and_the_repositorys_code_has_no_effect(tmp_path):
    tiny.write_dinov2(tmp_path)
    path = tmp_path / "config.json"
    code = {"auto_map": {"AutoModel": "modeling_evil.Evil"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('ran')")
    FrozenVision(str(tmp_path), device="cpu")
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin is a pickle"):
        FrozenVision(str(tmp_path), device="cpu")


def test_before_it_learns_the_predictor_says_that_all_stays():
    layout = VisionLayout(("agent",), ((96, 96),), grid=2, channels=6, joints=7)
    network = Predictor(PredictorConfig(layout, actions=7, width=12, layers=1, heads=2)).eval()
    latents = torch.randn(3, layout.width)
    state, tokens = layout.split(latents)
    state[:, 3:9] = torch.tensor([1.0, 0, 0, 0, 1.0, 0])
    latents = layout.join(state, functional.layer_norm(tokens, (6,)))
    with torch.inference_mode():
        after = network(latents, torch.randn(3, 4, 7))[0]
    torch.testing.assert_close(after, latents, atol=1e-4, rtol=1e-3)


def test_some_steps_of_training_beat_copying(tmp_path):
    tiny.write_dinov2(tmp_path / "encoder")
    episodes = EpisodeSet.open(tiny.write_episodes(tmp_path / "episodes", range(6)))
    vision = FrozenVision(str(tmp_path / "encoder"), grid=2, device="cpu")
    encoder = VisionEncoder(vision, layout_of(episodes, vision))
    rows = load_vision_episodes(episodes, encoder, tmp_path / "cache")
    windows = Windows(rows, horizons=2, macro_steps=4)
    torch.manual_seed(0)
    network = Predictor(PredictorConfig(encoder.layout, 7, width=24, layers=1, heads=2))
    take_spread(network, rows)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    batch = windows.batch(np.arange(len(windows)), None)
    for _ in range(90):
        parts = predictor_loss(network, batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    assert parts["features"] < 0.97 * parts["copy"]
    assert parts["position_m"] < 0.03


def test_the_command_writes_weights_with_their_card(trained):
    card = json.loads((trained / "models" / "vjepa2_ac.json").read_text())
    assert card["vision"]["checkpoint"] == str(trained / "encoder")
    assert card["layout"]["image_sizes"] == [[tiny.SIDE, tiny.SIDE]] * 2
    assert card["metrics"]["held_out"]["copy"] > 0.0
    assert card["data"]["episodes"] >= 1


def test_a_step_writes_the_children_and_nothing_else(model):
    before = model.latents(np.arange(8))
    model.step(slots(0, 0), moves(2), slots(3, 5))
    after = model.latents(np.arange(8))
    changed = (before != after).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [3, 5]
    assert (model.uncertainty(slots(3, 5)) > 0.0).all()
    assert model.uncertainty(slots(0))[0] == 0.0
    assert (model.distance(slots(3, 5)) > 0.0).all()
    assert model.distance(slots(0))[0] == 0.0
    assert model.ee_positions(slots(3)).shape == (1, 3)
    model.copy(slots(3, 5), slots(5, 3))
    swapped = model.latents(slots(5, 3))
    assert torch.equal(swapped, after[[3, 5]])


def test_actions_of_another_shape_are_refused(model):
    with pytest.raises(ModelError, match=r"expected actions \(1, 4, 7\), got \(1, 3, 7\)"):
        model.step(slots(0), moves(1)[:, :3], slots(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "camera 'agent' is missing"),
        (
            {"images": {c: tiny.picture(np.zeros(3), 64) for c in tiny.CAMERAS}},
            r"got \(64, 64, 3\)",
        ),
        ({"ee_frame": "world"}, "frame 'base', got 'world'"),
        (
            {
                "joint_names": ("a",),
                "joint_positions": np.zeros(1),
                "joint_velocities": np.zeros(1),
            },
            "expected 7 joints, got 1",
        ),
    ],
)
def test_observations_of_another_robot_are_refused(model, changes, message):
    with pytest.raises(ObservationError, match=message):
        model.encode(tiny.observation(**changes))


def test_another_encoder_is_refused_by_name(trained, tmp_path):
    tiny.write_vjepa2(tmp_path / "other", seed=5)
    with pytest.raises(ConfigurationError, match=f"trained on the .* encoder {trained}.*other"):
        Vjepa2Ac(str(trained / "models"), encoder=str(tmp_path / "other"), device="cpu")
    shutil.copytree(trained / "encoder", tmp_path / "moved")
    moved = Vjepa2Ac(str(trained / "models"), encoder=str(tmp_path / "moved"), device="cpu")
    VisionProgress(str(trained / "models")).bind(moved)


def test_the_value_reads_the_latents_that_it_was_trained_on_alone(model, trained):
    value = VisionProgress(str(trained / "models"))
    with pytest.raises(ModelError, match="bind and begin"):
        value.evaluate(slots(0))
    value.bind(model)
    value.begin(tiny.observation())
    model.step(slots(0), moves(1), slots(1))
    found = value.evaluate(slots(0, 1))
    assert found.shape == (3, 2)
    assert ((found >= 0.0) & (found <= 1.0)).all()
    with pytest.raises(ConfigurationError, match="reads latents of the encoder"):
        plugins.create("value", "progress").bind(model)
    model.latent_source = "0" * 64
    with pytest.raises(ConfigurationError, match=str(trained / "encoder")):
        value.bind(model)


def test_it_drives_the_whole_planner(trained, tmp_path):
    options = tmp_path / "options.yaml"
    options.write_text(f"models_dir: {trained / 'models'}\n")
    components = load_components(
        ComponentParameters(
            world_model="vjepa2_ac",
            world_model_options=str(options),
            value="vision_progress",
            value_options=str(options),
        )
    )
    search = SearchParameters(simulations=24, wave=8, deadline_ms=0.0)
    reasoner = Reasoner(*(getattr(components, n) for n in ("policy", "world_model")),
                        components.value, components.prior, search)  # fmt: skip
    warm_up(reasoner, components.policy, components.world_model)
    seen = blank(components.policy.spec, components.world_model.joints)
    decision = reasoner.decide(seen)
    assert decision.statistics.status is Status.OK, decision.statistics.fallback_reason
    assert decision.statistics.simulations == 24


class JointPolicy:
    """Answers small joint motions from where the arm is."""

    spec = PolicySpec("joint", dict.fromkeys(tiny.CAMERAS, (96, 96)), JOINT, 8)

    def reset(self):
        pass

    def propose(self, observation, n=1):
        steps = np.arange(1, 9)[:, None] * np.full(7, 0.01) + observation.joint_positions
        actions = np.concatenate([steps, np.ones((8, 1))], axis=1)
        return [ActionChunk(JOINT, actions, observation.stamp_ns)]


def test_policies_in_joint_space_are_searched_as_well(tmp_path):
    episodes = tiny.write_episodes(tmp_path / "episodes", range(2), steps=6, spec=JOINT)
    tiny.write_world_model(tmp_path, episodes)
    world = Vjepa2Ac(str(tmp_path), device="cpu")
    assert world.spec == JOINT
    value, search = VisionProgress(str(tmp_path)), SearchParameters(simulations=16, deadline_ms=0.0)
    reasoner = Reasoner(JointPolicy(), world, value, GaussianPrior(JOINT), search)
    decision = reasoner.decide(tiny.observation(ee_frame="base"))
    assert decision.statistics.status is Status.OK, decision.statistics.fallback_reason
    assert np.abs(decision.chunk.actions[:, :7]).max() < 1.0
    with pytest.raises(ConfigurationError, match="action conventions differ"):
        Reasoner(JointPolicy(), world, value, GaussianPrior(), search)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cameras", "top"], "camera 'top' was not recorded; there are agent, wrist"),
        (["--heads", "5"], "width 24 is no multiple of 5 heads"),
        (["--horizons", "9"], "more than 36 steps"),
    ],
)
def test_bad_options_of_the_training_are_named(trained, tmp_path, words, message, capsys):
    common = [
        "--encoder", str(trained / "encoder"), "--episodes", str(trained / "episodes"),
        "--cache", str(trained / "cache"), "--models", str(tmp_path), "--steps", "1",
        "--work", str(tmp_path / "work"), "--device", "cpu",
    ]  # fmt: skip
    assert cli.main(["train", "vision-model", *common, *SIZES, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name"), [("world_model", "vjepa2_ac"), ("value", "vision_progress")]
)
def test_the_shipped_file_of_options_can_be_taken(kind, name):
    options = plugins.read_options(share_directory() / "config" / "models" / f"{name}.yaml")
    assert options.keys() <= inspect.signature(plugins.load(kind, name)).parameters.keys()
    page = share_directory() / "docs" / "policies" / "vision_world_models.md"
    assert f"config/models/{name}.yaml" in page.read_text(encoding="utf-8")


def test_dense_labels_need_recorded_progress(trained, tmp_path, capsys):
    common = [
        "--encoder", str(trained / "encoder"), "--episodes", str(trained / "episodes"),
        "--cache", str(trained / "cache"), "--models", str(tmp_path), "--grid", "2",
        "--work", str(tmp_path / "work"), "--device", "cpu", "--labels", "dense",
    ]  # fmt: skip
    assert cli.main(["train", "vision-value", *common]) == 2
    assert "records no progress; try --labels linear" in capsys.readouterr().err
