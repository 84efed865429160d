import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_encoder import observe, save_tiny

from vla_reasoner_ros import cli
from vla_reasoner_ros.data.episodes import EpisodeWriter
from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.sim.world import ACTION_SPEC
from vla_reasoner_ros.training.latents import EpisodeLatents
from vla_reasoner_ros.training.world_model import Sequences, dynamics_loss, from_episodes
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import LatentLayout, rotation_matrix
from vla_reasoner_ros.world_models.ensemble import EnsembleMlp
from vla_reasoner_ros.world_models.latent import (
    DynamicsConfig,
    DynamicsNetwork,
    LatentWorldModel,
    rotation_from_vector,
)

LAYOUT = LatentLayout()
TINY = DynamicsConfig(hidden=16)
NEVER, ALWAYS = -8.0, 8.0


def tiny_network(contact=NEVER, seed=0):
    torch.manual_seed(seed)
    network = DynamicsNetwork(TINY)
    with torch.no_grad():
        network.object.layers[-1].bias[..., 0] = contact
    return network


def save_tiny_dynamics(folder, encoder, network=None):
    card = {
        "kind": "latent_dynamics",
        "architecture": TINY.to_card(),
        "encoder": encoder,
        "action_spec": ACTION_SPEC.to_mapping(),
        "data": {},
        "seed": 0,
        "command": "none",
        "metrics": {},
        "licence": "Apache-2.0",
    }
    save_model(folder / "latent_dynamics", (network or tiny_network()).state_dict(), card)


def make_model(folder, contact=NEVER):
    encoder = save_tiny(folder)
    save_tiny_dynamics(folder, encoder.fingerprint, tiny_network(contact))
    model = LatentWorldModel(str(folder))
    model.allocate(12)
    model.encode(observe())
    return model


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path)


def slots(*numbers):
    return np.array(numbers, dtype=np.int64)


def actions(count, seed=0):
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0.0, 0.01, (count, 4, 7)).astype(np.float32)
    drawn[..., 6] = rng.integers(0, 2, (count, 1))
    return drawn


def part(model, slot, name):
    return LAYOUT.get(model.latents(slots(slot)), name)[0].numpy()


def test_encode_writes_what_the_encoder_sees_to_slot_0(model):
    expected = model.encoder.encode([observe()])
    assert torch.equal(model.latents(slots(0)), expected)
    assert model.latents(slots()).shape == (0, LAYOUT.width)


def test_a_model_that_has_learned_nothing_obeys_the_commands(model):
    commands = actions(1)
    model.step(slots(0), commands, slots(1))
    expected = part(model, 0, "ee_position") + commands[0, :, :3].sum(axis=0)
    assert np.allclose(part(model, 1, "ee_position"), expected, atol=0.005)
    turns = [Rotation.from_rotvec(a) for a in commands[0, :, 3:6]]
    start = Rotation.from_quat(observe().ee_quaternion)
    wanted = turns[3] * turns[2] * turns[1] * turns[0] * start
    found = rotation_matrix(torch.from_numpy(part(model, 1, "ee_rotation"))).numpy()
    assert (Rotation.from_matrix(found) * wanted.inv()).magnitude() < 0.05


def test_objects_stay_unless_touched(tmp_path):
    still = make_model(tmp_path / "still", NEVER)
    touched = make_model(tmp_path / "touched", ALWAYS)
    for model in (still, touched):
        model.step(slots(0), actions(1), slots(1))
    name = "object_position"
    assert np.allclose(part(still, 1, name), part(still, 0, name), atol=1e-6)
    assert not np.allclose(part(touched, 1, name), part(touched, 0, name), atol=1e-4)


def test_step_writes_the_children_and_nothing_else(model):
    before = model.latents(np.arange(12))
    model.step(slots(0, 0), actions(2), slots(3, 5))
    after = model.latents(np.arange(12))
    changed = (before != after).any(dim=1).nonzero().ravel().tolist()
    assert changed == [3, 5]


def test_a_batch_imagines_what_single_steps_imagine(model):
    commands = actions(3)
    model.step(slots(0, 0, 0), commands, slots(1, 2, 3))
    for i in range(3):
        model.step(slots(0), commands[i : i + 1], slots(4 + i))
    assert torch.allclose(model.latents(slots(1, 2, 3)), model.latents(slots(4, 5, 6)), atol=1e-5)


def test_the_same_actions_are_imagined_the_same_twice(model):
    for child in (1, 2):
        model.step(slots(0), actions(1), slots(child))
    assert torch.equal(model.latents(slots(1)), model.latents(slots(2)))


def test_copy_reads_all_before_it_writes(model):
    model.step(slots(0, 0), actions(2), slots(1, 2))
    first, second = model.latents(slots(1)), model.latents(slots(2))
    doubt = model.uncertainty(slots(1, 2))
    model.copy(slots(1, 2), slots(2, 1))
    assert torch.equal(model.latents(slots(2)), first)
    assert torch.equal(model.latents(slots(1)), second)
    assert np.array_equal(model.uncertainty(slots(2, 1)), doubt)


def test_doubt_grows_along_the_path_and_starts_at_zero(model):
    model.step(slots(0), actions(1), slots(1))
    model.step(slots(1), actions(1, seed=1), slots(2))
    doubt = model.uncertainty(slots(0, 1, 2))
    assert doubt[0] == 0.0
    assert 0.0 < doubt[1] < doubt[2]


def test_distance_is_how_far_anything_is_from_where_it_was_seen(model):
    commands = np.zeros((1, 4, 7), dtype=np.float32)
    commands[0, :, 2] = 0.02
    model.step(slots(0), commands, slots(1))
    distance = model.distance(slots(0, 1))
    assert distance[0] == 0.0
    assert distance[1] == pytest.approx(0.08, abs=0.01)
    assert np.allclose(model.ee_positions(slots(0)), [[0.5, 0.1, 0.2]], atol=1e-6)


def test_imagined_rotations_stay_rotations(model):
    parent = 0
    for child in range(1, 6):
        model.step(slots(parent), actions(1, seed=child) * 3.0, slots(child))
        parent = child
    columns = part(model, 5, "ee_rotation").reshape(2, 3)
    assert np.allclose(columns @ columns.T, np.eye(2), atol=1e-5)


def test_actions_of_another_shape_are_refused(model):
    with pytest.raises(ModelError, match=r"expected actions \(1, 4, 7\), got \(1, 3, 7\)"):
        model.step(slots(0), actions(1)[:, :3], slots(1))


def test_an_answer_that_is_not_finite_is_refused(model):
    commands = actions(1)
    commands[0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        model.step(slots(0), commands, slots(1))


def test_dynamics_of_another_encoder_are_refused(tmp_path):
    save_tiny(tmp_path)
    save_tiny_dynamics(tmp_path, "0123456789abcdef")
    with pytest.raises(ConfigurationError, match="trained on the encoder 0123456789ab"):
        LatentWorldModel(str(tmp_path))


def test_room_for_no_state_is_refused(model):
    with pytest.raises(ConfigurationError, match="capacity must be positive, got 0"):
        model.allocate(0)


def test_action_convention_survives_the_card():
    assert ActionSpec.from_mapping(ACTION_SPEC.to_mapping()) == ACTION_SPEC


def test_rotation_vectors_become_matrices():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    found = rotation_from_vector(torch.from_numpy(vectors)).numpy()
    assert np.allclose(found, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-9)
    assert np.allclose(rotation_from_vector(torch.zeros(3)).numpy(), np.eye(3))


def test_members_of_an_ensemble_are_independent_networks():
    torch.manual_seed(0)
    mlp = EnsembleMlp(3, (4, 8, 2))
    inputs = torch.randn(5, 4)
    outputs = mlp(inputs)
    assert outputs.shape == (3, 5, 2)
    first, last = mlp.layers
    hidden = torch.nn.functional.silu(inputs @ first.weight[1] + first.bias[1])
    assert torch.allclose(outputs[1], hidden @ last.weight[1] + last.bias[1], atol=1e-6)


def test_training_learns_that_a_held_block_moves_with_the_hand():
    rng = np.random.default_rng(0)
    count = 64
    true = np.zeros((count, 2, LAYOUT.width), dtype=np.float32)
    true[:, :, LAYOUT.slices["ee_rotation"]] = [1, 0, 0, 0, -1, 0]
    hand = rng.uniform([0.4, -0.2, 0.1], [0.6, 0.2, 0.3], (count, 3))
    commands = np.repeat(rng.normal(0.0, 0.01, (count, 1, 1, 3)), 4, axis=2)
    blocks = rng.uniform(0.3, 0.7, (count, 5, 3))
    blocks[:, 0] = hand
    for time in range(2):
        moved = time * commands.sum(axis=(1, 2))
        true[:, time, LAYOUT.slices["ee_position"]] = hand + moved
        blocks[:, 0] = hand + moved
        true[:, time, LAYOUT.slices["object_position"]] = blocks.reshape(count, -1)
        true[:, time, LAYOUT.slices["block_held"]] = [1, 0, 0]
    macro = np.zeros((count, 1, 4, 7), dtype=np.float32)
    macro[..., :3] = commands
    samples = Sequences(true[:, 0], macro, true)
    torch.manual_seed(0)
    network = DynamicsNetwork(TINY)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    batch = samples.batch(np.arange(count), None)
    untrained = dynamics_loss(network, batch)
    for _ in range(60):
        loss = dynamics_loss(network, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = dynamics_loss(network, batch)
    assert trained["moved_m_1"] < 0.5 * untrained["moved_m_1"]
    assert trained["still_m_1"] < 0.005


def latents_of(steps):
    """An episode in which nothing happens."""
    still = np.zeros((steps, LAYOUT.width), np.float32)
    return EpisodeLatents(
        task="lift_green",
        success=True,
        sentence=np.zeros(384, np.float32),
        actions=np.zeros((steps, 7), np.float32),
        progress=np.zeros(steps, np.float32),
        encoded=still,
        true=still,
    )


def test_episodes_give_windows_as_long_as_branched_decisions_look_ahead():
    windows = from_episodes([latents_of(5), latents_of(12)], horizons=2)
    assert len(windows) == 2  # from steps 0 and 2 of the longer one
    assert windows.actions.shape == (2, 2, 4, 7)
    assert windows.true.shape == (2, 3, LAYOUT.width)


def test_episodes_that_are_all_too_short_are_refused():
    expected = "one of at least 9 steps.*the longest of 2 has 8"
    with pytest.raises(ConfigurationError, match=expected):
        from_episodes([latents_of(5), latents_of(8)], horizons=2)


def test_episodes_of_another_convention_are_not_learned_from(tmp_path, capsys):
    save_tiny(tmp_path)
    for seed in range(30):
        writer = EpisodeWriter(dataclasses.replace(ACTION_SPEC, dt=0.2))
        writer.append(observe(), np.zeros(7), 0.0)
        writer.write(
            tmp_path / "episodes" / f"{seed}.safetensors",
            task="lift_green",
            seed=seed,
            success=True,
            kind="expert",
        )
    words = ["train", "world-model", "--models", tmp_path, "--episodes", tmp_path / "episodes"]
    assert cli.main([str(word) for word in words]) == cli.EXIT_ERROR
    assert "dt: the recording has 0.2 s, the simulator has 0.1 s" in capsys.readouterr().err


def test_the_shipped_model_has_the_demo_robots_convention():
    model = LatentWorldModel()
    model.spec.require_same(ACTION_SPEC, "shipped", "simulator")
    assert model.macro_steps == 4
