from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_encoder import observe

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.latents import EpisodeLatents
from vla_reasoner_ros.training.value import (
    RANKED,
    ValueLossParameters,
    rank_correlation,
    ranks_by_kind,
)
from vla_reasoner_ros.training.value import value_loss as objective
from vla_reasoner_ros.training.value_groups import (
    UNKNOWN,
    Groups,
    episode_groups,
    roles_of,
    without_setbacks,
)
from vla_reasoner_ros.values.progress import ProgressNetwork, ProgressValue, ValueConfig
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import LatentLayout
from vla_reasoner_ros.world_models.latent import LatentWorldModel

LAYOUT = LatentLayout()
RED, GREEN, PLATE = (LAYOUT.objects.index(n) for n in ("red_block", "green_block", "plate"))
TINY = ValueConfig(hidden=16, words=4)
SOURCE = "fingerprint of the encoder"
value_loss = objective(ValueLossParameters())


def tiny_value(folder):
    torch.manual_seed(0)
    card = {
        "kind": "progress_value",
        "architecture": TINY.to_card(),
        "encoder": SOURCE,
        "data": {},
        "seed": 0,
        "command": "none",
        "metrics": {},
        "licence": "Apache-2.0",
    }
    save_model(folder / "progress_value", ProgressNetwork(TINY).state_dict(), card)
    return ProgressValue(str(folder))


def states(width=LAYOUT.width, source=SOURCE, count=8):
    """A world model that knows nothing but its latents."""
    table = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        name="table",
        latent_source=source,
        latents=lambda slots: table[torch.from_numpy(slots)],
    )


def test_every_member_gives_a_progress_between_0_and_1(tmp_path):
    value = tiny_value(tmp_path)
    value.bind(states())
    value.begin(observe())
    progress = value.evaluate(np.arange(5))
    assert progress.shape == (3, 5)
    assert ((progress >= 0.0) & (progress <= 1.0)).all()
    assert np.ptp(progress, axis=0).min() > 0.0
    assert np.array_equal(progress, value.evaluate(np.arange(5)))
    assert np.allclose(progress[:, 2:3], value.evaluate(np.array([2])), atol=1e-6)


def test_latents_of_another_encoder_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="reads latents of the encoder fingerprint"):
        tiny_value(tmp_path).bind(states(source="another"))


def test_latents_of_another_width_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="51 numbers, world model table has 60"):
        tiny_value(tmp_path).bind(states(width=60))


def test_evaluate_comes_after_bind_and_begin(tmp_path):
    value = tiny_value(tmp_path)
    with pytest.raises(ModelError, match="bind and begin come before"):
        value.evaluate(np.arange(2))
    value.bind(states())
    with pytest.raises(ModelError, match="bind and begin come before"):
        value.evaluate(np.arange(2))


def test_an_answer_that_is_not_finite_is_refused(tmp_path):
    value = tiny_value(tmp_path)
    broken = states()
    broken.latents(np.array([0]))[:] = torch.nan
    table = torch.full((3, LAYOUT.width), torch.nan)
    broken.latents = lambda slots: table[torch.from_numpy(slots)]
    value.bind(broken)
    value.begin(observe())
    with pytest.raises(ModelError, match="not finite"):
        value.evaluate(np.arange(3))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        ProgressValue(str(tmp_path))


def test_rank_correlation_knows_order_and_reverse():
    true = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).repeat(2, 1)
    values = torch.tensor([[1.0, 2.0, 3.0, 9.0], [9.0, 3.0, 2.0, 1.0]])
    assert torch.allclose(rank_correlation(values, true), torch.tensor([1.0, -1.0]))


def groups(count=6, size=16, seed=0):
    rng = np.random.default_rng(seed)
    latents = rng.normal(0.0, 0.1, (count, size, LAYOUT.width)).astype(np.float32)
    height = rng.uniform(0.02, 0.2, (count, size)).astype(np.float32)
    latents[..., LAYOUT.slices["object_position"].start + 2] = height
    sentence = np.repeat(rng.normal(size=(1, 384)).astype(np.float32), count, axis=0)
    kind, roles = np.zeros(count, dtype=np.int64), np.tile([RED, PLATE], (count, 1))
    return Groups(latents, sentence, height * 4.0, kind, roles)


def test_training_learns_to_rank_by_height():
    data = groups()
    network = trained(data, value_loss)
    assert ranks_by_kind(network, data)["rank_seen"] > 0.8
    sentence = torch.from_numpy(data.sentence[:1])
    assert (network.roles(sentence).argmax(dim=-1) == torch.tensor([RED, PLATE])).all()


def test_the_objects_that_a_task_is_about_are_taught_where_they_are_known():
    assert roles_of(["red_on_green", "lift_green", "somebody's own"], LAYOUT).tolist() == [
        [RED, GREEN],
        [GREEN, UNKNOWN],
        [UNKNOWN, UNKNOWN],
    ]


def test_without_known_roles_progress_alone_is_learned():
    data = groups()
    unknown = replace(data, roles=np.full_like(data.roles, UNKNOWN))
    torch.manual_seed(0)
    network = ProgressNetwork(TINY)
    loss = value_loss(network, unknown.batch(np.arange(len(unknown)), None))["loss"]
    assert torch.isfinite(loss)


def test_members_learn_from_different_groups_but_are_judged_on_all():
    data = groups()
    torch.manual_seed(0)
    network = ProgressNetwork(TINY)
    training = data.batch(np.arange(len(data)), np.random.default_rng(0))
    judged = data.batch(np.arange(len(data)), None)
    assert (judged["group"] == -1).all()
    assert value_loss(network, training)["loss"] != value_loss(network, judged)["loss"]


def episode(success, progress=None, length=40):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(length, LAYOUT.width)).astype(np.float32)
    if progress is None:
        progress = np.full(length, np.nan, dtype=np.float32)
    return EpisodeLatents(
        task="lift_green",
        success=success,
        sentence=np.ones(384, dtype=np.float32),
        actions=np.zeros((length, 7), dtype=np.float32),
        progress=progress,
        encoded=latents,
        true=latents,
    )


def test_linear_labels_rise_to_1_on_a_success_and_are_capped_on_a_failure():
    done = episode_groups([episode(True)], "linear", LAYOUT, np.random.default_rng(0))
    failed = episode_groups([episode(False)], "linear", LAYOUT, np.random.default_rng(0))
    assert done.progress.max() > 0.9
    assert failed.progress.max() == pytest.approx(0.4)
    assert (np.diff(done.progress, axis=1) >= 0.0).all()


def test_dense_labels_need_recorded_progress():
    with pytest.raises(ConfigurationError, match="records no progress"):
        episode_groups([episode(True)], "dense", LAYOUT, np.random.default_rng(0))
    recorded = episode(False, np.linspace(0.0, 0.3, 40, dtype=np.float32))
    found = episode_groups([recorded], "dense", LAYOUT, np.random.default_rng(0))
    assert found.progress.max() <= 0.3


def trained(data, loss, steps=80):
    torch.manual_seed(0)
    network = ProgressNetwork(TINY)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    batch = data.batch(np.arange(len(data)), np.random.default_rng(0))
    for _ in range(steps):
        value = loss(network, batch)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return network


def test_ranked_labels_teach_the_order_and_nothing_of_how_much():
    ranked = objective(build(ValueLossParameters, RANKED))
    data = groups()
    network = trained(data, ranked)
    assert ranks_by_kind(network, data)["rank_seen"] > 0.8
    shifted = replace(data, progress=data.progress + 0.1)

    def change(loss):
        losses = [
            loss(network, d.batch(np.arange(6), None))["loss"].item() for d in (data, shifted)
        ]
        return abs(losses[1] - losses[0])

    assert change(ranked) < 1e-5
    assert change(value_loss) > 1e-2


def test_without_failures_no_outcome_sets_a_task_back_and_sizes_stay():
    data = groups(count=3)
    before = np.median(data.progress, axis=1)
    before[2] = 2.0  # everything sets this one back
    kept = without_setbacks(data, before)
    assert kept.latents.shape == (2, 16, LAYOUT.width)
    assert (kept.progress >= before[:2, None]).all()
    for row in range(2):
        assert set(kept.progress[row]) == {p for p in data.progress[row] if p >= before[row]}


def test_only_setbacks_are_no_data():
    data = groups(count=2)
    with pytest.raises(ConfigurationError, match="no decision has two outcomes"):
        without_setbacks(data, np.full(2, 2.0))


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def test_the_shipped_value_rises_while_the_expert_works(world):
    model, value = LatentWorldModel(), ProgressValue()
    model.allocate(64)
    value.bind(model)
    world.reset("lift_green", 65_000)
    expert = Expert(world)
    seen = []
    while not world.success():
        observation = world.observation()
        model.encode(observation)
        value.begin(observation)
        seen.append(value.evaluate(np.array([0])).mean())
        for _ in range(4):
            world.apply(expert.act())
    assert seen[0] < 0.3
    assert seen[-1] > 0.7
    # Of the finished state, another instruction says that its own task is not done.
    other = world.observation()
    object.__setattr__(other, "instruction", "put the red block on the plate")
    value.begin(other)
    assert value.evaluate(np.array([0])).mean() < 0.5
