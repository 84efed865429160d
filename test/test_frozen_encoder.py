"""The structured latent read off a frozen vision encoder, under the same dynamics and value."""

import argparse
import json

import numpy as np
import pytest
import tiny_vision as tiny
import torch
from test_encoder import observe
from test_latent_world_model import save_tiny_dynamics

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.training import encoder as training
from vla_reasoner_ros.training.encoder import FrameSamples, encoder_loss
from vla_reasoner_ros.training.frames import FrameSource
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import Encoder, EncoderConfig, EncoderNetwork
from vla_reasoner_ros.world_models.latent import LatentWorldModel
from vla_reasoner_ros.world_models.vision import FrozenVision


def make(folder, seed=0):
    """A frozen DINOv2 and an untrained encoder on it."""
    tiny.write_dinov2(folder / "dinov2", seed)
    vision = FrozenVision(str(folder / "dinov2"), size=56, device="cpu")
    config = EncoderConfig(channels=(4, 4, 8), hidden=16, vision=vision.settings)
    torch.manual_seed(0)
    return EncoderNetwork(config, vision)


def save(folder, network):
    card = {
        "kind": "encoder", "architecture": network.config.to_card(), "data": {}, "seed": 0,
        "command": "none", "metrics": {}, "licence": "Apache-2.0",
    }  # fmt: skip
    save_model(folder / "encoder", network.state_dict(), card)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder, make(folder))
    save_tiny_dynamics(folder, Encoder.load(folder).fingerprint)
    return folder


def test_its_heads_learn_and_the_frozen_encoder_stays(tmp_path):
    network = make(tmp_path)
    source = FrameSource()
    try:
        frames = source.frames(6, np.random.default_rng(0))
    finally:
        source.close()
    batch = FrameSamples(frames, network.config.layout).batch(np.arange(6), None)
    frozen = network.agent._vision
    before = frozen.features(batch["agent"])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = encoder_loss(network.train(), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(frozen.features(batch["agent"]), before)
    assert not any("vision" in name for name in network.state_dict())


def test_the_latent_dynamics_imagine_on_it(models):
    model = LatentWorldModel(str(models))
    model.allocate(3)
    model.encode(observe())
    actions = np.zeros((1, 4, 7), np.float32)
    actions[..., 0] = 0.01
    model.step(np.array([0]), actions, np.array([1]))
    moved = model.ee_positions(np.array([1])) - model.ee_positions(np.array([0]))
    assert moved[0, 0] == pytest.approx(0.04, abs=0.01)
    card = json.loads((models / "encoder.json").read_text())
    assert card["architecture"]["vision"]["family"] == "dinov2"
    assert model.encoder.network.agent.grid.shape == (32 * 32, 2)


def test_another_frozen_encoder_is_refused_by_name(models, tmp_path):
    tiny.write_dinov2(tmp_path / "other", seed=9)
    with pytest.raises(ConfigurationError, match=rf"{models}/dinov2 .*other is another one"):
        LatentWorldModel(str(models), vision=str(tmp_path / "other"))


def test_the_command_trains_on_it(tmp_path):
    tiny.write_dinov2(tmp_path / "dinov2")
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    words = [
        "--vision", str(tmp_path / "dinov2"), "--vision-size", "28", "--count", "8",
        "--frames", str(tmp_path / "frames"), "--steps", "2", "--work", str(tmp_path / "work"),
        "--output", str(tmp_path / "models"), "--jobs", "1",
    ]  # fmt: skip
    assert training.run(parser.parse_args(words)) == 0
    encoder = Encoder.load(tmp_path / "models")
    assert encoder.config.vision.checkpoint == str(tmp_path / "dinov2")
    assert torch.isfinite(encoder.encode([observe()])).all()
