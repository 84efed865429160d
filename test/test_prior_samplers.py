"""Gaussian, primitives, policy samples, mixtures: what they draw, and the densities they state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.priors.mixture import MixturePrior
from vla_reasoner_ros.priors.noise import MacroNoise
from vla_reasoner_ros.priors.policy_samples import PolicySamplesPrior
from vla_reasoner_ros.priors.primitives import PrimitivesPrior
from vla_reasoner_ros.priors.space import DEFAULT_SPEC, MotionSpace
from vla_reasoner_ros.sim.world import ACTION_SPEC
from vla_reasoner_ros.types import ActionChunk, ActionSpec, GripperSpec

POSE = ActionSpec(
    "end_effector_pose",
    ("x", "y", "z", "qx", "qy", "qz", "qw", "g"),
    "base",
    0.1,
    GripperSpec(7, open=0.0, closed=1.0),
)
JOINTS = ActionSpec("joint_position", ("g", "a", "b"), "", 0.1, GripperSpec(0))
PLAIN = ActionSpec("joint_delta", ("a", "b"), "", 0.1)
SPECS = {"delta": DEFAULT_SPEC, "pose": POSE, "joints": JOINTS, "plain": PLAIN}


def reference(spec, nodes=3, steps=4, seed=0):
    rng = np.random.default_rng(seed)
    actions = 0.1 * rng.standard_normal((nodes, steps, spec.dimensions))
    if spec is POSE:
        actions[..., 3:7] = Rotation.random(nodes * steps, rng).as_quat().reshape(nodes, steps, 4)
    if spec.gripper:
        actions[..., spec.gripper.index] = rng.integers(2, size=(nodes, 1))
    return actions


def priors(spec):
    sampled = PolicySamplesPrior(spec, proposals=4)
    sampled.begin([ActionChunk(spec, reference(spec, 1, 8, seed)[0], 0) for seed in range(4)])
    weights = {"gaussian": 2.0, "primitives": 1.0}
    options = {"gaussian": {"spec": spec}, "primitives": {"spec": spec}}
    return [GaussianPrior(spec), PrimitivesPrior(spec), sampled, MixturePrior(weights, options)]


def test_the_default_convention_is_that_of_the_shipped_policy():
    assert DEFAULT_SPEC == ACTION_SPEC


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("index", range(4))
def test_every_prior_states_the_density_of_what_it_draws(name, index):
    spec = SPECS[name]
    prior = priors(spec)[index]
    around = reference(spec)
    drawn = prior.sample(around, 30, np.random.default_rng(0))
    assert drawn.actions.shape == (3, 30, 4, spec.dimensions)
    assert drawn.log_density.shape == (3, 30)
    assert len(drawn.origins) == 30
    assert np.isfinite(drawn.actions).all()
    np.testing.assert_allclose(
        drawn.log_density, prior.log_density(drawn.actions, around), atol=1e-6
    )
    if spec is POSE:
        np.testing.assert_allclose(np.linalg.norm(drawn.actions[..., 3:7], axis=-1), 1.0)
    if spec.gripper:
        assert set(np.unique(drawn.actions[..., spec.gripper.index])) <= {0.0, 1.0}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("index", range(4))
def test_with_the_reference_come_the_same_draws(name, index):
    spec = SPECS[name]
    prior, around = priors(spec)[index], reference(spec)
    drawn = prior.sample(around, 30, np.random.default_rng(0))
    both = prior.sample_with_reference(around, 30, np.random.default_rng(0))
    np.testing.assert_array_equal(both.actions[:, 0], around)
    np.testing.assert_allclose(both.actions[:, 1:], drawn.actions, atol=1e-12)
    density = prior.log_density(both.actions, around)
    np.testing.assert_allclose(both.log_density, density, atol=1e-6)
    assert both.origins == ("policy", *drawn.origins)


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_displacements_are_inverse(name, seed):
    space = MotionSpace(SPECS[name])
    rng = np.random.default_rng(seed)
    moves = 0.2 * rng.standard_normal((3, 5, 4, space.size))
    flips = rng.random((3, 5)) < 0.5
    around = reference(SPECS[name], seed=seed)
    actions = space.displace(around, moves, flips)
    np.testing.assert_allclose(space.displacements(actions, around), moves, atol=1e-9)
    if SPECS[name].gripper:
        np.testing.assert_array_equal(space.flips(actions, around), flips)


def test_the_gaussians_density_is_scipys():
    noise = MacroNoise(np.array([0.5, 2.0]), 0.7)
    moves = noise.sample((50,), 3, np.random.default_rng(0))
    over_steps = 0.3 * np.eye(3) + 0.7
    covariance = np.kron(over_steps, np.diag([0.25, 4.0]))
    exact = stats.multivariate_normal(np.zeros(6), covariance).logpdf(moves.reshape(50, 6))
    np.testing.assert_allclose(noise.log_density(moves), exact)
    many = noise.sample((100_000,), 3, np.random.default_rng(1)).reshape(-1, 6)
    np.testing.assert_allclose(np.cov(many.T), covariance, atol=0.05)


def test_the_gaussian_leans_one_way_and_flips_the_gripper_now_and_then():
    prior = GaussianPrior(correlation=0.99, flip_probability=0.15)
    around = reference(DEFAULT_SPEC, 1)
    drawn = prior.sample(around, 4000, np.random.default_rng(0)).actions[0]
    moves = drawn[..., :3] - around[0, :, :3]
    assert moves.std() == pytest.approx(0.012, rel=0.03)
    assert np.corrcoef(moves[:, 0, 0], moves[:, 3, 0])[0, 1] > 0.97
    flipped = drawn[:, 0, 6] != around[0, 0, 6]
    assert flipped.mean() == pytest.approx(0.15, abs=0.02)


def test_primitives_hold_every_direction_and_the_gripper():
    prior = PrimitivesPrior(spread=0.01)
    around = reference(DEFAULT_SPEC, 1)
    centres = prior.centres(around)[0]
    assert len(centres) == 14
    moves = (centres - around[0]).mean(1)
    assert sorted(np.flatnonzero(np.abs(row) > 1e-9).tolist() for row in moves[:12]) == sorted(
        [[i] for i in range(6)] * 2
    )
    np.testing.assert_array_equal(centres[12][:, :6], 0.0)
    np.testing.assert_array_equal(centres[13][:, 6], 1.0 - around[0, :, 6])


def test_policy_samples_are_the_policys_other_chunks_at_the_root():
    spec = DEFAULT_SPEC
    chunks = [ActionChunk(spec, reference(spec, 1, 8, seed)[0], 0) for seed in range(3)]
    prior = PolicySamplesPrior(spec, proposals=3, spread=1e-6)
    prior.begin(chunks)
    drawn = prior.sample(chunks[0].actions[None, :4], 2, np.random.default_rng(0)).actions[0]
    wanted = np.stack([chunk.actions[:4] for chunk in chunks[1:]])
    order = np.argsort(drawn[:, 0, 0])
    exact = wanted[np.argsort(wanted[:, 0, 0])]
    np.testing.assert_allclose(drawn[order][..., :6], exact[..., :6], atol=1e-5)
    with pytest.raises(ModelError, match="single chunk"):
        prior.begin(chunks[:1])


def test_a_mixture_shares_its_candidates_by_weight():
    prior = MixturePrior({"gaussian": 3.0, "primitives": 1.0})
    drawn = prior.sample(reference(DEFAULT_SPEC), 10, np.random.default_rng(0))
    assert drawn.origins.count("gaussian") in (7, 8)
    assert drawn.origins.count("primitives") == 10 - drawn.origins.count("gaussian")
    for count in range(1, 40):
        assert prior.shares(count).sum() == count
    parts = [p.log_density(drawn.actions, reference(DEFAULT_SPEC)) for p in prior._parts]
    exact = np.log(0.75 * np.exp(parts[0]) + 0.25 * np.exp(parts[1]))
    np.testing.assert_allclose(drawn.log_density, exact)
    several = {"gaussian": 1.0, "policy_samples": 1.0}
    assert MixturePrior(several).proposals == 8


def test_the_weights_of_a_density_over_fewer_numbers_leave_the_density_alone():
    usual = MixturePrior()
    other = MixturePrior({"gaussian": 0.25, "kde": 0.75}, {"kde": {"neighbours": 256}})
    around = np.tile([0.005, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], (3, 4, 1))
    drawn = usual.sample(around, 32, np.random.default_rng(0))
    assert drawn.origins.count("kde") == 8
    for prior in (usual, other):
        change = prior.log_density(drawn.actions, around) - GaussianPrior().log_density(
            drawn.actions, around
        )
        np.testing.assert_allclose(change, change[0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GaussianPrior(std=[0.01] * 5), "6 positive"),
        (lambda: GaussianPrior(std=[0.01] * 5 + [0.0]), "singular"),
        (lambda: GaussianPrior(correlation=1.0), "singular"),
        (lambda: GaussianPrior(flip_probability=0.9), "flip"),
        (lambda: PrimitivesPrior(step=[-1.0] * 6), "step"),
        (lambda: PolicySamplesPrior(proposals=1), "proposals"),
        (lambda: MixturePrior({}), "weights"),
        (lambda: MixturePrior({"gaussian": -1.0}), "weights"),
        (lambda: MixturePrior({"gauss": 1.0}), "gauss"),
        (lambda: MixturePrior({"gaussian": 1.0}, {"kde": {}}), "kde"),
        (
            lambda: MixturePrior(
                {"gaussian": 1.0, "primitives": 1.0}, {"primitives": {"spec": PLAIN}}
            ),
            "conventions differ",
        ),
    ],
)
def test_bad_options_are_named(make, named):
    with pytest.raises(ConfigurationError, match=named):
        make()
