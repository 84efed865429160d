"""The KDE prior is scipy's, faster where that is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.demonstrations import Demonstrations
from vla_reasoner_ros.priors.kde import KdePrior
from vla_reasoner_ros.priors.library import LibraryPrior, medoids
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.weights import save_model

SPEC = DEFAULT_SPEC


def demonstrated(count=400, seed=0):
    """Actions of two habits, with correlated dimensions."""
    rng = np.random.default_rng(seed)
    mixing = 0.01 * rng.standard_normal((6, 6))
    motion = rng.standard_normal((count, 6)) @ mixing + 0.02 * rng.integers(2, size=(count, 1))
    gripper = (rng.random(count) < 0.7).astype(float)
    return np.concatenate([motion, gripper[:, None]], axis=1)


def reference(nodes=2, steps=4, seed=1):
    return np.repeat(demonstrated(nodes, seed)[:, None], steps, axis=1)


def scipy_kde(actions, factor=1.0):
    motion = actions[:, :6].T
    scott = motion.shape[1] ** (-1.0 / (motion.shape[0] + 4))
    return stats.gaussian_kde(motion, bw_method=factor * scott)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_density_is_scipys(factor):
    actions = demonstrated()
    prior = KdePrior(demonstrations=Demonstrations.from_actions(SPEC, actions, factor))
    points = np.concatenate([demonstrated(200, seed=5), 1.5 * demonstrated(100, seed=6)])
    exact = scipy_kde(actions, factor)(points[:, :6].T)
    np.testing.assert_allclose(np.exp(prior.motion_log_density(points)), exact, rtol=1e-6)


def test_a_macro_action_has_the_density_of_its_mean_action_and_gripper():
    data = Demonstrations.from_actions(SPEC, demonstrated())
    prior = KdePrior(demonstrations=data)
    actions = reference()[:, None]
    expected = prior.motion_log_density(reference()[:, 0])
    is_open = reference()[:, 0, 6] > 0.5
    expected += np.log(np.where(is_open, data.open_fraction, 1 - data.open_fraction))
    np.testing.assert_allclose(prior.log_density(actions, reference())[:, 0], expected)


def test_samples_are_distributed_as_scipys():
    actions = demonstrated()
    prior = KdePrior(demonstrations=Demonstrations.from_actions(SPEC, actions))
    drawn = prior.sample(reference(1), 3000, np.random.default_rng(0))
    theirs = scipy_kde(actions).resample(3000, seed=1).T
    for dimension in range(6):
        mine = drawn.actions[0, :, 0, dimension]
        assert stats.ks_2samp(mine, theirs[:, dimension]).pvalue > 0.01
    direction = np.random.default_rng(2).standard_normal(6)
    mine = drawn.actions[0, :, 0, :6] @ direction
    assert stats.ks_2samp(mine, theirs @ direction).pvalue > 0.01
    assert drawn.actions[0, :, 0, 6].mean() == pytest.approx(actions[:, 6].mean(), abs=0.04)
    assert (drawn.actions == drawn.actions[:, :, :1]).all()


def test_all_neighbours_are_no_condition():
    data = Demonstrations.from_actions(SPEC, demonstrated(100))
    everything, near = KdePrior(demonstrations=data), KdePrior(neighbours=100, demonstrations=data)
    actions = everything.sample(reference(), 20, np.random.default_rng(0)).actions
    np.testing.assert_allclose(
        near.log_density(actions, reference()), everything.log_density(actions, reference())
    )


def test_near_candidates_are_nearer_to_the_reference():
    data = Demonstrations.from_actions(SPEC, demonstrated(2000))
    around = reference(1)
    spread = {}
    for neighbours in (0, 50):
        prior = KdePrior(neighbours=neighbours, demonstrations=data)
        drawn = prior.sample(around, 500, np.random.default_rng(0))
        away = data.whitened(drawn.actions[0, :, 0]) - data.whitened(around[0, :1])
        spread[neighbours] = np.median(np.linalg.norm(away, axis=1))
    assert spread[50] < 0.6 * spread[0]


def test_a_candidate_has_the_density_that_was_reported_with_it():
    data = Demonstrations.from_actions(SPEC, demonstrated())
    for neighbours in (0, 30):
        prior = KdePrior(neighbours=neighbours, demonstrations=data)
        drawn = prior.sample(reference(), 40, np.random.default_rng(0))
        again = prior.log_density(drawn.actions, reference())
        np.testing.assert_allclose(drawn.log_density, again)
        assert drawn.actions.shape == (2, 40, 4, 7)
        assert np.isfinite(drawn.log_density).all()


def test_saved_demonstrations_come_back(tmp_path):
    data = Demonstrations.from_actions(SPEC, demonstrated(), bandwidth_factor=0.8)
    card = {
        "kind": "kde_prior",
        "architecture": {"action_spec": SPEC.to_mapping()},
        "data": "drawn",
        "seed": 0,
        "command": "none",
        "metrics": {},
        "licence": "Apache-2.0",
    }
    save_model(tmp_path / "kde", data.tensors(), card)
    loaded = Demonstrations.load(tmp_path / "kde")
    assert loaded.bandwidth == pytest.approx(data.bandwidth)
    assert loaded.spec == data.spec
    np.testing.assert_allclose(loaded.actions, data.actions)
    assert LibraryPrior(tmp_path / "kde", count=16).centres(reference()).shape == (2, 16, 4, 7)
    with pytest.raises(ConfigurationError, match="count"):
        LibraryPrior(tmp_path / "kde", count=1000)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda a: a[:3], "singular"),
        (lambda a: np.zeros_like(a), "singular"),
        (lambda a: np.concatenate([a[:, :5], 2 * a[:, :1], a[:, 6:]], axis=1), "singular"),
    ],
)
def test_data_without_a_covariance_are_refused(spoil, named):
    with pytest.raises(ConfigurationError, match=named):
        Demonstrations.from_actions(SPEC, spoil(demonstrated(50)))


def test_no_data_and_bad_options_are_refused(tmp_path):
    data = Demonstrations.from_actions(SPEC, demonstrated(50))
    with pytest.raises(ConfigurationError, match="card"):
        KdePrior(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="neighbours"):
        KdePrior(neighbours=51, demonstrations=data)
    with pytest.raises(ConfigurationError, match="bandwidth"):
        KdePrior(bandwidth=0.0, demonstrations=data)
    with pytest.raises(ConfigurationError, match="there are none"):
        Demonstrations(SPEC, np.zeros((0, 7)), data.mean, data.matrix, 1.0, 0.5)
    with pytest.raises(ConfigurationError, match="singular"):
        Demonstrations(SPEC, data.actions, data.mean, np.zeros((6, 6)), 1.0, 0.5)


def test_one_dimension_is_enough():
    spec = ActionSpec("joint_delta", ("a",), "", 0.1)
    actions = np.random.default_rng(0).standard_normal((200, 1))
    prior = KdePrior(demonstrations=Demonstrations.from_actions(spec, actions))
    points = np.linspace(-3, 3, 50)[:, None]
    exact = stats.gaussian_kde(actions.T)(points.T)
    np.testing.assert_allclose(np.exp(prior.motion_log_density(points)), exact, rtol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_medoids_are_members_and_cover_the_data(seed, count):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((60, 3)) + 5.0 * rng.integers(3, size=(60, 1))
    chosen = medoids(points, count, rng)
    assert len(set(chosen)) == count
    distance = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
    alone = np.linalg.norm(points - points.mean(0), axis=1)
    assert distance.mean() <= 1.05 * alone.mean()
