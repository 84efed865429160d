import dataclasses

import numpy as np
import pytest
import torch

from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.privileged_value import PrivilegedValue
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.sim.world_model import SimulatorWorldModel


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def model():
    model = SimulatorWorldModel(macro_steps=4)
    model.allocate(8)
    return model


@pytest.fixture
def observation(world):
    """Just before the grasp, where contact begins."""
    world.reset("red_on_plate", 3)
    expert = Expert(world)
    for _ in range(12):
        world.apply(expert.act())
    return world.observation()


def plan(world, steps):
    """What the expert will do; the world is left as it was."""
    state = world.get_state()
    expert = Expert(world)
    actions = []
    for _ in range(steps):
        actions.append(expert.act())
        world.apply(actions[-1])
    world.set_state(state)
    return np.array(actions, dtype=np.float32)


def slots(*numbers):
    return np.array(numbers, dtype=np.int64)


def test_a_step_is_what_the_world_does(world, model, observation):
    actions = plan(world, 4)
    model.encode(observation)
    model.step(slots(0), actions[None], slots(1))
    for action in actions:
        world.apply(action)
    np.testing.assert_array_equal(model.observation(1).simulator_state, world.get_state())
    assert model.progress(slots(1))[0] == world.progress()
    np.testing.assert_array_equal(model.ee_positions(slots(1))[0], world.true_state().tcp)


def test_leaves_of_a_batch_do_not_disturb_one_another(world, model, observation):
    actions = plan(world, 8).reshape(2, 4, 7)
    model.encode(observation)
    model.step(slots(0, 0), actions, slots(1, 2))
    together = model.progress(slots(1, 2))
    model.step(slots(0), actions[1:], slots(3))
    assert model.progress(slots(3))[0] == together[1]
    assert together[0] != together[1]


def test_copies_as_if_all_were_read_first(world, model, observation):
    model.encode(observation)
    model.step(slots(0, 0), plan(world, 8).reshape(2, 4, 7), slots(1, 2))
    first, second = model.progress(slots(1, 2))
    model.copy(slots(1, 2), slots(2, 1))
    np.testing.assert_array_equal(model.progress(slots(1, 2)), [second, first])


def test_distance_is_that_of_what_moved_furthest(world, model, observation):
    model.encode(observation)
    up = np.tile([0, 0, 0.02, 0, 0, 0, 1.0], (4, 1)).astype(np.float32)
    model.step(slots(0), up[None], slots(1))
    distances = model.distance(slots(0, 1))
    assert distances[0] == 0.0
    assert distances[1] == pytest.approx(0.08, abs=0.01)
    np.testing.assert_array_equal(model.uncertainty(slots(0, 1)), [0.0, 0.0])


def test_a_coarser_time_step_agrees_after_four_actions(world, observation):
    fine, coarse = SimulatorWorldModel(4), SimulatorWorldModel(4, time_step=0.005)
    free = np.tile([0.005, -0.01, 0.015, 0, 0, 0.02, 1.0], (4, 1)).astype(np.float32)
    ends = []
    for model in (fine, coarse):
        model.allocate(2)
        model.encode(observation)
        model.step(slots(0), free[None], slots(1))
        ends.append(model.ee_positions(slots(1))[0])
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)


def test_needs_the_simulator_state(model, observation):
    blind = dataclasses.replace(observation, simulator_state=None)
    with pytest.raises(ObservationError, match="simulator_state"):
        model.encode(blind)
    wrong = dataclasses.replace(observation, simulator_state=np.zeros(5))
    with pytest.raises(ObservationError, match="simulator state"):
        model.encode(wrong)


def test_an_empty_slot_is_named(observation):
    model = SimulatorWorldModel()
    model.allocate(3)
    model.encode(observation)
    with pytest.raises(ModelError, match="slot 2"):
        model.progress(slots(2))


def test_needs_a_macro_step():
    with pytest.raises(ConfigurationError, match="macro_steps"):
        SimulatorWorldModel(macro_steps=0)


class TestPrivilegedValue:
    def test_is_the_true_progress(self, world, model, observation):
        value = PrivilegedValue()
        value.bind(model)
        model.encode(observation)
        model.step(slots(0), plan(world, 4)[None], slots(1))
        value.begin(observation)
        values = value.evaluate(slots(0, 1))
        assert values.shape == (1, 2)
        assert values[0, 0] == world.progress()
        assert values[0, 1] > values[0, 0]

    def test_reads_latents_only_of_the_layout_that_it_knows(self):
        class Pixels:
            name = "pixels"

            def latents(self, slots):
                return torch.zeros((len(slots), 3))

        with pytest.raises(ConfigurationError, match=r"true states or latents of .*'pixels' has 3"):
            PrivilegedValue().bind(Pixels())

    def test_must_be_bound_first(self):
        with pytest.raises(ConfigurationError, match="bind"):
            PrivilegedValue().evaluate(slots(0))


def test_latents_are_what_the_encoder_makes_of_the_imagined_views(world, model, observation):
    encoder = pytest.importorskip("vla_reasoner_ros.world_models.encoder")
    network = encoder.EncoderNetwork(encoder.EncoderConfig())
    model._encoder = encoder.Encoder(network, "untrained")
    model.encode(observation)
    model.step(slots(0), plan(world, 4)[None], slots(1))
    latents = model.latents(slots(0, 1))
    assert latents.shape == (2, model._encoder.layout.width)
    ends = latents[:, model._encoder.layout.slices["ee_position"]].numpy()
    np.testing.assert_allclose(ends, model.ee_positions(slots(0, 1)), atol=1e-6)
