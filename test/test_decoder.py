import argparse
import shutil

import cv2
import numpy as np
import pytest
import torch

from vla_reasoner_ros import cli
from vla_reasoner_ros.data.episodes import Episode, EpisodeWriter
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.imagined import GAP, Imagination
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training import decoder as training
from vla_reasoner_ros.training.branches import record_scene
from vla_reasoner_ros.training.decoder import picture_loss, read_samples
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.decoder import (
    MODEL_NAME,
    Decoder,
    DecoderConfig,
    DecoderNetwork,
)
from vla_reasoner_ros.world_models.encoder import Encoder

CONFIG = DecoderConfig(image_size=16, width=32, channels=16)


def save(folder, network, encoder):
    card = {"kind": MODEL_NAME, "architecture": CONFIG.to_card(), "encoder": encoder, "data": {},
            "seed": 0, "command": "", "metrics": {}, "licence": "Apache-2.0"}  # fmt: skip
    save_model(folder / MODEL_NAME, network.state_dict(), card)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    world = World()
    record_scene(world, "lift_green", 200_001, 0.5, 0.5, most=2).save(folder / "a.npz")
    world.close()
    return read_samples([folder], CONFIG, 3, 0)


def test_every_decision_gives_its_own_picture_and_some_of_its_outcomes(samples):
    assert len(samples) == 2 + 2 * 3
    assert samples.latents.shape == (8, CONFIG.layout.width)
    batch = samples.batch(np.array([0, 5]), None)
    assert batch["agent"].shape == (2, 3, 16, 16)
    assert float(batch["agent"].min()) >= 0.0
    assert float(batch["agent"].max()) <= 1.0
    assert float(batch["wrist weight"].min()) >= 1.0


def test_it_learns_to_draw_what_is_where(samples):
    torch.manual_seed(0)
    network = DecoderNetwork(CONFIG)
    network.normalise(torch.from_numpy(samples.latents))
    batch = samples.batch(np.arange(8), None)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = picture_loss(network, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_velocities_and_errors_are_in_no_picture(samples):
    decoder = Decoder(DecoderNetwork(CONFIG), "")
    latents = torch.from_numpy(samples.latents[:1])
    changed = latents.clone()
    for name in ("joint_velocity", "object_error"):
        changed[:, CONFIG.layout.slices[name]] += 1.0
    pictures = decoder.draw(latents)
    assert {camera: picture.shape for camera, picture in pictures.items()} == {
        "agent": (1, 16, 16, 3),
        "wrist": (1, 16, 16, 3),
    }
    assert pictures["agent"].dtype == np.uint8
    for camera, picture in decoder.draw(changed).items():
        np.testing.assert_array_equal(picture, pictures[camera])


def test_it_comes_back_from_its_weights_and_others_are_refused(tmp_path, samples):
    network = DecoderNetwork(CONFIG)
    save(tmp_path, network, "abc")
    loaded = Decoder.load(tmp_path)
    assert loaded.encoder == "abc"
    latents = torch.from_numpy(samples.latents)
    for camera, picture in Decoder(network, "abc").draw(latents).items():
        np.testing.assert_array_equal(loaded.draw(latents)[camera], picture)
    with pytest.raises(ConfigurationError, match=MODEL_NAME):
        Decoder.load(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    world = World()
    world.reset("lift_green", 200_002)
    expert = Expert(world)
    writer = EpisodeWriter(world.action_spec, ("green_block",))
    for _ in range(9):
        observation, action = world.observation(), expert.act()
        writer.append(observation, action, world.progress(), np.zeros((1, 7)))
        world.apply(action)
    path = tmp_path_factory.mktemp("episode") / "a.safetensors"
    writer.write(path, task="lift_green", seed=200_002, success=False, kind="expert")
    world.close()
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The shipped encoder and dynamics, and a decoder that has learned nothing."""
    folder = tmp_path_factory.mktemp("models")
    for path in models_directory().glob("*.*"):
        if path.stem in ("encoder", "latent_dynamics"):
            shutil.copy(path, folder)
    save(folder, DecoderNetwork(CONFIG), Encoder.load(folder).fingerprint)
    return folder


def test_what_is_imagined_stands_below_what_was_recorded(models, episode, tmp_path):
    out = tmp_path / "imagined.png"
    words = ["imagine", str(episode), "--count", "2", "--models", str(models), "--out", str(out)]
    assert cli.main([*words, "--scale", "2"]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape == (2 * 4 * (16 + GAP), 2 * 3 * (16 + GAP), 3)
    latents = Imagination.load(models).latents(Episode(episode), 0, 2)
    place = CONFIG.layout.slices["ee_position"]
    recorded = Episode(episode)["ee_position"]
    for column, step in enumerate((0, 4, 8)):
        assert np.linalg.norm(latents[column, place].numpy() - recorded[step]) < 0.03
    assert np.linalg.norm(recorded[8] - recorded[0]) > 0.06


def test_an_episode_that_ends_before_is_refused(models, episode):
    with pytest.raises(ConfigurationError, match="3 macro-actions of 4 from step 0 on need 13"):
        Imagination.load(models).pictures(Episode(episode), 0, 3)


def test_a_decoder_of_another_encoder_is_refused(models, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    save(folder, DecoderNetwork(CONFIG), "other")
    with pytest.raises(ConfigurationError, match="trained on the encoder other"):
        Imagination.load(folder)


def test_the_verb_takes_its_options():
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    assert parser.parse_args(["--each", "3"]).each == 3
