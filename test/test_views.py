"""A moved camera or a changed light is noticed and undone; an unchanged view stays as it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.errors import ConfigurationError, ObservationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.views import Changes, ViewSamples, view_loss
from vla_reasoner_ros.world_models.encoder import Encoder
from vla_reasoner_ros.world_models.views import (
    Significance,
    View,
    ViewCorrector,
    ViewsConfig,
    anchors,
    view_networks,
)

SIZE = 96
UNCHANGED = View(np.zeros((4, 2)), np.zeros(3), SIZE)


def picture(seed=0):
    """An (S, S, 3) picture without sharp edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [np.sin(2.0 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 2, (3, 3))]
    return np.clip(110.0 + 60.0 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


def inside(image, edge=24):
    """The part of an image that small changes do not push out of the view."""
    return image[edge:-edge, edge:-edge].astype(float)


def observe(hook=None, seeds=range(52_100, 52_104)):
    """Observations of several scenes, and where their blocks truly are, (N, 3, 3)."""
    world = World(scene_hook=hook)
    try:
        observations, truth = [], []
        for seed in seeds:
            world.reset("red_on_plate", seed)
            observations.append(world.observation())
            truth.append(list(world.true_state().blocks.values()))
        return observations, np.array(truth)
    finally:
        world.close()


def moved_camera(spec):
    camera = spec.camera("agent")
    camera.pos = np.add(camera.pos, [0.02, -0.03, 0.02])


def dim_light(spec):
    for light in spec.lights:
        light.diffuse = [0.25, 0.25, 0.25]
    spec.visual.headlight.ambient = [0.2, 0.2, 0.2]


@given(st.integers(0, 10_000))
def test_undoing_a_change_gives_the_image_back(seed):
    view = Changes(shift=5.0, turn=0.05, zoom=0.05, darker=-0.3, brighter=0.2).draw(
        np.random.default_rng(seed), SIZE
    )
    image = picture(seed)
    restored = view.undone(view.applied(image))
    assert np.abs(inside(restored) - inside(image)).mean() < 4.0


def test_an_unchanged_view_leaves_every_bit():
    image = picture()
    assert UNCHANGED.undone(image) is image
    assert UNCHANGED.shift == 0.0
    assert UNCHANGED.gain == 1.0


def test_the_homography_takes_the_anchors_where_they_moved():
    moved = np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, 0.0], [2.0, -2.0]])
    view = View(moved, np.zeros(3), SIZE)
    points = np.c_[anchors(SIZE), np.ones(4)] @ view.homography.T
    np.testing.assert_allclose(points[:, :2] / points[:, 2:], anchors(SIZE) + moved, atol=1e-4)


def test_a_shift_to_the_right_is_undone_to_the_left():
    view = View(np.tile([3.0, 0.0], (4, 1)), np.zeros(3), SIZE)
    image = picture()
    np.testing.assert_array_equal(view.applied(image)[:, 3:], image[:, :-3])
    assert view.shift == pytest.approx(3.0)


def test_small_changes_do_not_count():
    view = View(np.full((4, 2), 0.2), np.full(3, 0.02), SIZE)
    left = view.significant(Significance(shift=0.5, gain=0.05))
    assert not left.moved.any()
    assert not left.log_gain.any()
    kept = view.significant(Significance(shift=0.1, gain=0.01))
    assert kept.shift == view.shift
    np.testing.assert_array_equal(kept.log_gain, view.log_gain)


def test_training_samples_are_the_same_each_time_without_a_generator():
    images = {"agent": np.stack([picture(i) for i in range(3)])}
    samples = ViewSamples(images, torch.zeros(3, 10), Changes())
    one, two = (samples.batch(np.arange(3), None) for _ in range(2))
    for name in one:
        assert torch.equal(one[name], two[name])
    other = samples.batch(np.arange(3), np.random.default_rng(1))
    assert not torch.equal(one["agent"], other["agent"])


def test_networks_learn_how_an_image_was_changed():
    config = ViewsConfig(cameras=("agent",), channels=(8, 12, 16, 16), hidden=32)
    images = {"agent": np.stack([picture(0)])}
    samples = ViewSamples(images, torch.zeros(1, 10), Changes(turn=0.0, zoom=0.0, bend=0.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = view_networks(config)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=3e-3)
    errors = []
    for step in range(80):
        batch = samples.batch(np.zeros(16, np.int64), np.random.default_rng(step))
        parts = view_loss(networks, batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        errors.append(parts["agent_pixels"].item())
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])


def test_the_shipped_networks_leave_an_unchanged_scene_alone():
    corrector = ViewCorrector.load(models_directory())
    for observation in observe()[0]:
        restored = corrector.restore(observation)
        for camera, image in observation.images.items():
            np.testing.assert_array_equal(restored.images[camera], image)
            assert corrector.changes()[camera].shift == 0.0


@pytest.mark.parametrize("hook", [moved_camera, dim_light])
def test_objects_are_found_again_after_the_camera_or_the_light_changed(hook):
    encoder, corrector = Encoder.load(), ViewCorrector.load(models_directory())
    observations, truth = observe(hook)

    def error(seen):
        places = encoder.layout.get(encoder.encode(seen), "object_position").numpy()
        return np.linalg.norm(places[:, :3] - truth, axis=-1).mean()

    as_seen, restored = error(observations), error([corrector.restore(o) for o in observations])
    view = corrector.changes()["agent"]
    if hook is moved_camera:
        assert restored < 0.4 * as_seen
        assert view.shift > 3.0
    else:  # the encoder has learned in other lights, and hardly needs it
        assert restored < as_seen + 1e-3 < 0.01
        assert view.gain < 0.8


def test_a_folder_without_views_has_no_corrector(tmp_path):
    assert ViewCorrector.load(tmp_path) is None


def test_weights_without_their_card_are_refused(tmp_path):
    shutil.copy(models_directory() / "views.safetensors", tmp_path)
    with pytest.raises(ConfigurationError, match=r"views\.json"):
        ViewCorrector.load(tmp_path)


def test_a_card_of_another_architecture_is_refused(tmp_path):
    for suffix in ("safetensors", "json"):
        shutil.copy(models_directory() / f"views.{suffix}", tmp_path)
    path = tmp_path / "views.json"
    card = json.loads(path.read_text())
    card["architecture"]["channels"] = [4, 4]
    path.write_text(json.dumps(card))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        ViewCorrector.load(tmp_path)


def test_a_missing_camera_is_named():
    corrector = ViewCorrector.load(models_directory())
    observation = observe(seeds=[52_100])[0][0]
    del observation.images["wrist"]
    with pytest.raises(ObservationError, match="camera 'wrist'"):
        corrector.restore(observation)
