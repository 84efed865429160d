import numpy as np
import pytest
import torch

from vla_reasoner_ros.dense_kernels import HAS_BFLOAT16
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.policies.small_vla import SmallVla
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.values.progress import ProgressNetwork, ProgressValue, ValueConfig
from vla_reasoner_ros.world_models.encoder import LatentLayout, rotation_matrix
from vla_reasoner_ros.world_models.latent import DynamicsConfig, DynamicsNetwork, LatentWorldModel

LAYOUTS = [LatentLayout(), LatentLayout(objects=("a", "b"), blocks=1, joints=6)]


def latents(layout, count, seed=0):
    """States in which every part matters: a hand among things, some of them held."""
    rng = np.random.default_rng(seed)
    states = rng.normal(0.0, 1.0, (count, layout.width)).astype(np.float32)
    places = layout.slices
    states[:, places["ee_position"]] = rng.uniform(0.1, 0.3, (count, 3))
    states[:, places["object_position"]] = rng.uniform(0.1, 0.3, (count, 3 * len(layout.objects)))
    for name in ("gripper", "object_error", "block_held"):
        states[:, places[name]] = rng.random(states[:, places[name]].shape)
    return states


def macro_actions(count, steps, seed=0):
    rng = np.random.default_rng(seed)
    actions = rng.normal(0.0, 0.02, (count, steps, 7)).astype(np.float32)
    actions[..., 3:6] *= 10.0
    actions[..., 6] = rng.integers(0, 2, (count, 1))
    return actions


def dynamics(layout, steps):
    torch.manual_seed(0)
    network = DynamicsNetwork(DynamicsConfig(layout, macro_steps=steps, hidden=24))
    with torch.no_grad():
        for mlp in (network.arm, network.object):
            mlp.layers[-1].weight.mul_(20.0)  # as far from "nothing happens" as training may lead
        network.object.layers[-1].bias[..., 0] = 0.0
    return network.requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_compiled_dynamics_say_what_the_network_says(layout, steps):
    network = dynamics(layout, steps)
    seen, actions = latents(layout, 9), macro_actions(9, steps)
    states = np.concatenate([seen, np.zeros_like(seen)])
    variance = np.linspace(0.0, 1.0, 18, dtype=np.float32)
    before = variance[:9].copy()
    children = np.arange(9, 18)
    assert network.compiled().step(states, variance, np.arange(9), actions, children)

    members = network(torch.from_numpy(seen), torch.from_numpy(actions)).latents
    mean = members.mean(dim=0)
    rotation = rotation_matrix(layout.get(mean, "ee_rotation"))
    mean[:, layout.slices["ee_rotation"]] = torch.cat([rotation[..., 0], rotation[..., 1]], dim=-1)
    np.testing.assert_allclose(states[9:], mean.numpy(), atol=5e-6)
    np.testing.assert_array_equal(states[:9], seen)
    where = [layout.slices["ee_position"], layout.slices["object_position"]]
    doubt = sum(members[..., part].var(dim=0, unbiased=False).sum(dim=-1) for part in where)
    np.testing.assert_allclose(variance[9:], before + doubt.numpy(), rtol=1e-4)
    assert (np.abs(mean.numpy() - seen)[:, layout.slices["object_position"]] > 1e-3).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_compiled_progress_is_the_networks(layout):
    torch.manual_seed(0)
    network = ProgressNetwork(ValueConfig(layout, sentence=12, hidden=24, words=5))
    states, sentence = latents(layout, 11), torch.randn(1, 12)
    answer = network.requires_grad_(False).compiled()(states, *network.understood(sentence))
    wanted = network(torch.from_numpy(states), sentence).numpy()
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(answer, wanted, atol=2e-6)


def test_what_is_imagined_of_a_state_does_not_depend_on_its_batch():
    layout = LAYOUTS[0]
    compiled, actions = dynamics(layout, 4).compiled(), macro_actions(30, 4)
    together = np.concatenate([latents(layout, 30), np.zeros((30, layout.width), np.float32)])
    alone, shuffled = together.copy(), together.copy()
    doubt = [np.zeros(60, np.float32) for _ in range(3)]
    order = np.random.default_rng(1).permutation(30)
    compiled.step(together, doubt[0], np.arange(30), actions, np.arange(30, 60))
    compiled.step(shuffled, doubt[1], order, actions[order], 30 + order)
    for i in range(30):
        compiled.step(alone, doubt[2], np.array([i]), actions[i : i + 1], np.array([30 + i]))
    for states, doubts in ((shuffled, doubt[1]), (alone, doubt[2])):
        np.testing.assert_array_equal(states, together)
        np.testing.assert_array_equal(doubts, doubt[0])


def test_a_state_that_is_not_finite_is_noticed():
    layout = LAYOUTS[0]
    states = np.concatenate([latents(layout, 2), np.zeros((2, layout.width), np.float32)])
    states[1, 0] = np.nan
    parents, children = np.arange(2), np.arange(2, 4)
    finite = (
        dynamics(layout, 4)
        .compiled()
        .step(states, np.zeros(4, np.float32), parents, macro_actions(2, 4), children)
    )
    assert not finite


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor has no AVX512_BF16")
def test_with_half_the_digits_the_shipped_models_decide_alike():
    world = World()
    world.reset("red_on_plate", 3)
    expert, observations = Expert(world), []
    for _ in range(4):
        observations.append(world.observation())
        for _ in range(6):
            world.apply(expert.act())
    world.close()
    decisions = {}
    for precision in ("float32", "bfloat16"):
        parts = LatentWorldModel(precision=precision), ProgressValue(precision=precision)
        reasoner = Reasoner(SmallVla(), *parts, GaussianPrior())
        decisions[precision] = [reasoner.decide(seen) for seen in observations]
    for full, half in zip(*decisions.values(), strict=True):
        assert half.statistics.chosen_value == pytest.approx(full.statistics.chosen_value, abs=5e-3)
        same = half.statistics.chosen_id == full.statistics.chosen_id
        gained = full.statistics.chosen_value - full.statistics.policy_value
        kept = half.statistics.chosen_value - half.statistics.policy_value
        assert same or kept == pytest.approx(gained, abs=5e-3)


@pytest.mark.parametrize("make", [LatentWorldModel, ProgressValue])
def test_a_precision_that_there_is_not_is_refused(make):
    with pytest.raises(ConfigurationError, match="expected one of float32, bfloat16, got 'half'"):
        make(precision="half")
