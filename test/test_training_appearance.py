"""Other looks of rendered frames: what changes, and what must not."""

from dataclasses import replace

import numpy as np
import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim import scene
from vla_reasoner_ros.training.appearance import Appearance, Looks
from vla_reasoner_ros.training.frames import FrameSource, make_frames

ALWAYS = Looks(share=1.0, other_light=1.0)


def rendered(looks, count=3):
    source = FrameSource(looks=looks)
    try:
        return source.frames(count, np.random.default_rng(59_998))
    finally:
        source.close()


def lights(model):
    return np.concatenate(
        [model.vis.headlight.ambient, model.light_diffuse.ravel(), model.light_dir.ravel()]
    )


@pytest.fixture
def model():
    return scene.compile_scene()


def test_a_scene_is_the_same_whatever_it_looks_like():
    plain, dressed = rendered(None), rendered(ALWAYS)
    assert np.array_equal(plain.positions, dressed.positions)
    assert np.array_equal(plain.agent_points, dressed.agent_points, equal_nan=True)
    assert not np.array_equal(plain.agent, dressed.agent)


def test_a_share_of_nothing_leaves_the_simulators_images_bit_for_bit():
    assert np.array_equal(rendered(None).agent, rendered(replace(ALWAYS, share=0.0)).agent)


def test_every_draw_begins_from_the_simulators_own_looks(model):
    colours, light = model.geom_rgba.copy(), lights(model)
    rng = np.random.default_rng(0)
    Appearance(model, ALWAYS).draw(rng)
    assert not np.allclose(model.geom_rgba, colours)
    assert not np.allclose(lights(model), light)
    mixed = scene.compile_scene()
    appearance, own = Appearance(mixed, Looks(share=0.5)), 0
    for _ in range(40):
        appearance.draw(rng)
        own += np.array_equal(mixed.geom_rgba, colours) and np.array_equal(lights(mixed), light)
    assert 5 < own < 35


def test_blocks_stay_red_green_and_blue(model):
    appearance, rng = Appearance(model, ALWAYS), np.random.default_rng(1)
    for _ in range(50):
        appearance.draw(rng)
        for channel, name in enumerate(("red_block", "green_block", "blue_block")):
            assert model.geom(name).rgba[:3].argmax() == channel


def test_what_had_one_colour_keeps_one(model):
    rims = np.flatnonzero((model.geom_rgba[:, :3] == model.geom_rgba[-1, :3]).all(axis=1))
    Appearance(model, ALWAYS).draw(np.random.default_rng(2))
    assert len(np.unique(model.geom_rgba[rims], axis=0)) == 1


def test_light_stays_where_only_things_look_other(model):
    light = lights(model)
    appearance, rng = Appearance(model, replace(ALWAYS, other_light=0.0)), np.random.default_rng(4)
    for _ in range(5):
        appearance.draw(rng)
        assert np.array_equal(lights(model), light)


def test_light_comes_from_above_and_is_within_its_bounds(model):
    appearance, rng = Appearance(model, ALWAYS), np.random.default_rng(3)
    for _ in range(50):
        appearance.draw(rng)
        assert (model.light_dir[:, 2] < 0.0).all()
        assert np.allclose(np.linalg.norm(model.light_dir, axis=1), 1.0)
        assert (model.light_diffuse <= ALWAYS.lamp_high * (1.0 + ALWAYS.tint)).all()
        assert (model.geom_rgba >= 0.0).all()
        assert (model.geom_rgba <= 1.0).all()


def test_a_folder_of_frames_keeps_to_its_looks(tmp_path):
    make_frames(tmp_path, 2, 59_997, ALWAYS)
    make_frames(tmp_path, 2, 59_997, ALWAYS)
    with pytest.raises(ConfigurationError, match="have other looks"):
        make_frames(tmp_path, 2, 59_997, Looks(share=0.1))


def test_frames_that_do_not_say_what_they_look_like_are_refused(tmp_path):
    rendered(None, 1).save(tmp_path / "059997.npz")
    with pytest.raises(ConfigurationError, match="does not say"):
        make_frames(tmp_path, 1, 59_997, ALWAYS)
