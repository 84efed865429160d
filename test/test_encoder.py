import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.arguments import Parser
from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.training import encoder as encoder_training
from vla_reasoner_ros.training.branches import branches_hash
from vla_reasoner_ros.training.encoder import FrameSamples, encoder_loss, judge, sighting_loss
from vla_reasoner_ros.training.frames import Frames, FrameSource, is_held, upright
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import (
    Encoder,
    EncoderConfig,
    EncoderNetwork,
    LatentLayout,
    fold_batch_norms,
    rotation_columns,
    rotation_matrix,
)

TINY = EncoderConfig(channels=(4, 4, 8), hidden=16)
LAYOUT = LatentLayout()


def tiny_network(seed=0):
    torch.manual_seed(seed)
    return EncoderNetwork(TINY)


def save_tiny(folder, seed=0):
    card = {
        "kind": "encoder",
        "architecture": TINY.to_card(),
        "data": {},
        "seed": seed,
        "command": "none",
        "metrics": {},
        "licence": "Apache-2.0",
    }
    save_model(folder / "encoder", tiny_network(seed).state_dict(), card)
    return Encoder.load(folder)


def observe(seed=0, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "stamp_ns": 0,
        "images": {
            name: rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for name in ("agent", "wrist")
        },
        "joint_names": tuple(f"j{i}" for i in range(7)),
        "joint_positions": np.zeros(7),
        "joint_velocities": rng.normal(size=7),
        "ee_position": np.array([0.5, 0.1, 0.2]),
        "ee_quaternion": Rotation.random(random_state=seed).as_quat(),
        "gripper": 0.7,
        "instruction": "lift the green block",
    }
    return Observation(**(fields | changes))


@pytest.fixture(scope="module")
def source():
    source = FrameSource()
    yield source
    source.close()


@pytest.fixture(scope="module")
def frames(source):
    return source.frames(48, np.random.default_rng(59_999))


def test_the_parts_of_a_latent_cover_it_without_gap_or_overlap():
    places = [i for part in LAYOUT.slices.values() for i in range(part.start, part.stop)]
    assert places == list(range(LAYOUT.width))


def test_a_latent_taken_apart_and_joined_is_the_same():
    latents = torch.randn(2, 3, LAYOUT.width)
    parts = {name: LAYOUT.get(latents, name) for name in LAYOUT.slices}
    assert parts["object_position"].shape == (2, 3, 5, 3)
    assert torch.equal(LAYOUT.join(parts), latents)


def test_config_survives_its_card():
    assert EncoderConfig.from_card(TINY.to_card()) == TINY


@given(st.integers(0, 10_000))
def test_rotation_columns_are_those_of_the_quaternion(seed):
    rotation = Rotation.random(random_state=seed)
    columns = rotation_columns(torch.from_numpy(rotation.as_quat()))
    assert np.allclose(rotation_matrix(columns).numpy(), rotation.as_matrix(), atol=1e-6)


def test_what_proprioception_knows_is_in_the_latent_unchanged(tmp_path):
    observation = observe()
    latent = save_tiny(tmp_path).encode([observation])[0]
    assert torch.allclose(
        LAYOUT.get(latent, "ee_position"), torch.tensor([0.5, 0.1, 0.2]), atol=1e-7
    )
    assert LAYOUT.get(latent, "gripper").item() == pytest.approx(0.7)
    velocity = LAYOUT.get(latent, "joint_velocity").numpy()
    assert np.allclose(velocity, observation.joint_velocities, atol=1e-6)


def test_a_batch_gives_what_single_observations_give(tmp_path):
    encoder = save_tiny(tmp_path)
    observations = [observe(seed) for seed in range(3)]
    together = encoder.encode(observations)
    apart = torch.cat([encoder.encode([o]) for o in observations])
    assert torch.allclose(together, apart, atol=1e-5)
    assert torch.equal(together, encoder.encode(observations))
    assert encoder.encode([]).shape == (0, LAYOUT.width)


def test_folding_batch_norms_changes_nothing():
    network = tiny_network().train()
    images, arm = torch.randn(4, 3, 96, 96), torch.randn(4, 17)
    network(images, images, arm)
    before = network.eval()(images, images, arm)
    after = fold_batch_norms(network)(images, images, arm)
    assert torch.allclose(before.positions, after.positions, atol=1e-4)


def test_a_missing_camera_is_named(tmp_path):
    encoder = save_tiny(tmp_path)
    blind = observe(images={"agent": np.zeros((96, 96, 3), dtype=np.uint8)})
    with pytest.raises(ObservationError, match=r"camera 'wrist' is missing.*agent"):
        encoder.encode([blind])


def test_an_image_of_another_size_is_refused(tmp_path):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    with pytest.raises(ObservationError, match=r"'agent' needs \(96, 96, 3\), got \(64, 64, 3\)"):
        save_tiny(tmp_path).encode([observe(images={"agent": image, "wrist": image})])


def test_another_number_of_joints_is_refused(tmp_path):
    six = observe(
        joint_names=tuple("abcdef"), joint_positions=np.zeros(6), joint_velocities=np.zeros(6)
    )
    with pytest.raises(ObservationError, match="expected 7 joints, got 6"):
        save_tiny(tmp_path).encode([six])


def test_weights_that_are_not_finite_are_neither_saved_nor_used(tmp_path):
    encoder = save_tiny(tmp_path)
    broken = tiny_network()
    with torch.no_grad():
        broken.fuse[0].weight[0, 0] = torch.nan
    with pytest.raises(ConfigurationError, match="not finite"):
        save_model(tmp_path / "encoder", broken.state_dict(), {"kind": "encoder"} | _rest())
    with torch.no_grad():
        encoder.network.fuse[0].weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        encoder.encode([observe()])


def _rest():
    names = ("architecture", "data", "seed", "command", "metrics", "licence")
    return dict.fromkeys(names, "")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        Encoder.load(tmp_path)


def test_other_weights_have_another_fingerprint(tmp_path):
    first, second = (save_tiny(tmp_path / str(seed), seed) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == save_tiny(tmp_path / "again", 0).fingerprint


def test_a_heat_map_at_the_true_cell_costs_least():
    network = tiny_network()
    tower = network.agent
    cells = 48
    maps = torch.zeros(1, 5, cells, cells)
    maps[..., 10, 30] = 50.0
    sighting = tower._locate(
        _unshuffled(maps), torch.full((1, 5), -50.0), torch.zeros(1, 4, 24, 24)
    )
    place = torch.tensor([(30 + 0.5) / cells * 2 - 1, (10 + 0.5) / cells * 2 - 1])
    assert torch.allclose(sighting.points[0, 0], place, atol=1e-5)
    here = sighting_loss(sighting, place.expand(1, 5, 2))
    beside = sighting_loss(sighting, (place + 0.05).expand(1, 5, 2))
    absent = sighting_loss(sighting, torch.full((1, 5, 2), torch.nan))
    assert here < 1e-3
    assert beside > 1.0
    assert absent > 1.0


def _unshuffled(maps):
    return torch.nn.functional.pixel_unshuffle(maps, 2)


def test_a_cube_lies_the_same_whichever_face_is_down():
    lying = Rotation.from_euler("z", 0.3)
    yaw, up = upright(lying.as_matrix())
    assert np.allclose(yaw, [np.cos(1.2), np.sin(1.2)], atol=1e-6)
    assert up == pytest.approx(1.0)
    for symmetry in Rotation.create_group("O"):
        other_yaw, other_up = upright((lying * symmetry).as_matrix())
        assert np.allclose(other_yaw, yaw, atol=1e-5)
        assert other_up == pytest.approx(up)


def test_frames_repeat_with_their_seed(source):
    first, second = (source.frames(2, np.random.default_rng(59_998)) for _ in range(2))
    assert np.array_equal(first.agent, second.agent)
    assert np.array_equal(first.positions, second.positions)


def test_frames_show_what_their_labels_say(frames):
    seen = np.isfinite(frames.agent_points[:, 2]).all(axis=-1)
    reds = blues = 0
    for image, points in zip(frames.agent[seen], frames.agent_points[seen], strict=True):
        for block, channel in ((0, 0), (2, 2)):
            if not np.isfinite(points[block]).all():
                continue
            x, y = ((points[block] + 1.0) * 48.0).astype(int)
            pixel = image[y, x].astype(int)
            hit = pixel[channel] > 1.5 * np.delete(pixel, channel).max()
            if block == 0:
                reds += hit
            else:
                blues += hit
    # The rest is hidden behind the arm or another block.
    assert min(reds, blues) > 0.6 * seen.sum()


def test_decisions_in_two_folders_give_the_frames_of_one_that_holds_both(tmp_path, monkeypatch):
    apart, together = [tmp_path / "a", tmp_path / "b"], [tmp_path / "both"]
    for folder in (*apart, *together):
        folder.mkdir()
    for folder, name in zip(apart, ("expert_0.npz", "small_vla_0.npz"), strict=True):
        (folder / name).touch()
        (together[0] / name).touch()

    def frames_of(name, world, each, rng):
        return name, each, rng.random()

    monkeypatch.setattr(encoder_training, "outcome_frames", frames_of)
    monkeypatch.setattr(encoder_training.Branches, "load", lambda path: path.name)
    monkeypatch.setattr(encoder_training.Frames, "join", list)
    found = encoder_training.decision_frames(apart, 2)
    assert found == encoder_training.decision_frames(together, 2)
    assert [name for name, *_ in found] == ["expert_0.npz", "small_vla_0.npz"]


def test_held_blocks_are_between_tight_fingers(frames):
    rotations = Rotation.from_quat(frames.ee_quaternion).as_matrix()
    found = is_held(frames.ee_position, rotations, frames.gripper * 0.08, frames.positions[:, :3])
    assert frames.held.any()
    assert np.mean(found == frames.held) > 0.97


def test_frames_come_back_from_their_file(frames, tmp_path):
    frames.save(tmp_path / "a.npz")
    loaded = Frames.load(tmp_path)
    assert np.array_equal(loaded.wrist, frames.wrist)
    assert np.array_equal(loaded.wrist_points, frames.wrist_points, equal_nan=True)
    with pytest.raises(ConfigurationError, match=r"no \*.npz"):
        Frames.load(tmp_path / "none")


def test_training_lowers_the_loss_on_the_frames_it_sees(frames):
    samples = FrameSamples(frames, LAYOUT)
    network = tiny_network().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    batch = samples.batch(np.arange(16), None)
    losses = []
    for _ in range(15):
        loss = encoder_loss(network, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_colours_are_jittered_in_training_only(frames):
    samples = FrameSamples(frames, LAYOUT)
    assert (samples.batch(np.arange(4), None)["gain"] == 1.0).all()
    jittered = [samples.batch(np.arange(4), np.random.default_rng(1))["gain"] for _ in range(2)]
    assert torch.equal(*jittered)
    assert (jittered[0] != 1.0).all()


def test_the_shipped_encoder_finds_objects_within_a_centimetre(frames):
    encoder = Encoder.load()
    measures = judge(encoder, frames)
    assert measures["object_error_median_m"] < 0.010
    assert measures["held_block_error_median_m"] < 0.010
    assert measures["held_flag_wrong"] < 0.05


def test_the_order_of_objects_does_not_depend_on_their_places(frames):
    encoder = Encoder.load()
    batch = FrameSamples(frames, LAYOUT).batch(np.arange(len(frames)), None)
    found = LAYOUT.get(
        encoder.encode_arrays(batch["agent"], batch["wrist"], batch["arm"]), "object_position"
    )
    own = (found - batch["positions"]).norm(dim=-1).median()
    for a, b in itertools.combinations(range(5), 2):
        swapped = batch["positions"].clone()
        swapped[:, [a, b]] = swapped[:, [b, a]]
        assert (found - swapped)[:, [a, b]].norm(dim=-1).median() > 5 * own


def test_layout_of_another_robot_has_its_own_width():
    assert replace(LAYOUT, joints=6).width == LAYOUT.width - 1


def test_a_training_is_not_resumed_from_another_start(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(
        encoder_training, "_frames", lambda arguments, config: ([frames], {"random": frames}, {})
    )
    monkeypatch.setattr(encoder_training, "EncoderConfig", lambda vision=None: TINY)
    parser = Parser()
    encoder_training.add_arguments(parser)
    words = ["--steps", "2", "--evaluate-every", "1", "--batch-size", "4"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    encoder_training.run(parser.parse_args(words))
    save_tiny(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="of another run; initial: expected"):
        encoder_training.run(parser.parse_args([*words, "--initial", str(tmp_path / "other")]))


def test_the_hash_of_branched_decisions_is_of_their_content(tmp_path):
    for part in ("train", "held_out"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "1.npz").write_bytes(b"one")
    first = branches_hash([tmp_path])
    assert branches_hash([tmp_path]) == first
    (tmp_path / "held_out" / "1.npz").write_bytes(b"two")
    assert branches_hash([tmp_path]) != first
