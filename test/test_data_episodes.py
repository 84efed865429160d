import json
import os

import numpy as np
import pytest

from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Episode, EpisodeWriter, Kind
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.types import ActionSpec, GripperSpec, Observation, Representation

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(index=6),
)
OBJECTS = ("red_block", "plate")


def seen(rng, size=8, instruction="lift the red block"):
    quaternion = rng.normal(size=4)
    return Observation(
        stamp_ns=0,
        images={
            camera: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            for camera in ("agent", "wrist")
        },
        joint_names=tuple(f"joint{i}" for i in range(7)),
        joint_positions=rng.normal(size=7),
        joint_velocities=rng.normal(size=7),
        ee_position=rng.normal(size=3),
        ee_quaternion=quaternion / np.linalg.norm(quaternion),
        gripper=0.5,
        instruction=instruction,
        simulator_state=rng.normal(size=11),
    )


def record(path, seed=100_000, steps=5, spec=SPEC, size=8, task="lift_red", **fields):
    rng = np.random.default_rng(seed)
    writer = EpisodeWriter(spec, OBJECTS)
    rows = []
    for step in range(steps):
        observation, action = seen(rng, size), rng.normal(size=spec.dimensions)
        writer.append(observation, action, step / steps, rng.normal(size=(2, 7)))
        rows.append((observation, action))
    fields = {"success": True, "kind": Kind.EXPERT} | fields
    writer.write(path, task=task, seed=seed, **fields)
    return rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episode.safetensors"


def test_a_folder_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    # Whoever runs the tests as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(EpisodeError, match=f"episode folder {tmp_path}: may not be read"):
        EpisodeSet.open(tmp_path)


def test_an_episode_comes_back_as_it_was_recorded(path):
    rows = record(path)
    episode = Episode(path)
    assert len(episode) == 5
    assert episode.meta.action_spec == SPEC
    assert episode.meta.object_names == OBJECTS
    assert episode.meta.instruction == "lift the red block"
    assert (episode.meta.task, episode.meta.seed) == ("lift_red", 100_000)
    assert episode.meta.success
    assert episode.cameras == {"agent": (8, 8), "wrist": (8, 8)}
    assert episode["object_poses"].shape == (5, 2, 7)
    np.testing.assert_allclose(episode.progress, [0.0, 0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    for step, (observation, action) in enumerate(rows):
        np.testing.assert_allclose(episode.actions[step], action, rtol=1e-6)
        again = episode.observation(step)
        np.testing.assert_array_equal(again.images["wrist"], observation.images["wrist"])
        np.testing.assert_array_equal(again.simulator_state, observation.simulator_state)
        np.testing.assert_allclose(again.joint_velocities, observation.joint_velocities, rtol=1e-6)
        assert again.stamp_ns == step * 100_000_000
    episode.verify()


def test_arrays_are_read_only_views_of_the_file(path):
    record(path)
    episode = Episode(path)
    with pytest.raises(ValueError, match="read-only"):
        episode.images["agent"][0] = 0


def test_what_moved_the_arm_is_kept_beside_what_should_have(path):
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(SPEC)
    answer, disturbed = np.zeros(7), np.full(7, 0.5)
    writer.append(seen(rng), answer, executed=disturbed)
    writer.write(path, task="t", seed=1, success=False, kind="noisy_expert")
    episode = Episode(path)
    np.testing.assert_array_equal(episode.actions[0], answer)
    np.testing.assert_array_equal(episode.executed_actions[0], disturbed)
    assert np.isnan(episode.progress[0])


def test_without_disturbance_the_recorded_actions_are_the_executed_ones(path):
    record(path)
    episode = Episode(path)
    np.testing.assert_array_equal(episode.executed_actions, episode.actions)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.r_[0.0, np.nan, np.zeros(5)], "action y in row 0 is nan"),
        (np.zeros(6), r"expected an action of 7 numbers .* got shape \(6,\)"),
    ],
)
def test_a_bad_action_is_refused_when_it_is_recorded(action, message):
    writer = EpisodeWriter(SPEC)
    with pytest.raises(EpisodeError, match=message):
        writer.append(seen(np.random.default_rng(0)), action)


def test_a_camera_that_disappears_is_refused():
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(SPEC)
    writer.append(seen(rng), np.zeros(7))
    with pytest.raises(EpisodeError, match="step 1"):
        writer.append(seen(rng, size=16), np.zeros(7))


def test_object_poses_must_fit_the_named_objects():
    writer = EpisodeWriter(SPEC, OBJECTS)
    with pytest.raises(EpisodeError, match="red_block"):
        writer.append(seen(np.random.default_rng(0)), np.zeros(7), 0.0, np.zeros((3, 7)))


def test_an_episode_without_a_step_is_not_written(path):
    with pytest.raises(EpisodeError, match="no step"):
        EpisodeWriter(SPEC).write(path, task="t", seed=0, success=False, kind="expert")
    assert not path.exists()


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_file_cut_off_is_refused(path, keep):
    record(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EpisodeError, match=str(path.name)):
        Episode(path)


def test_a_file_of_something_else_is_refused(path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(EpisodeError, match="header is not an episode's"):
        Episode(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(EpisodeError, match="No such file"):
        Episode(path)


def test_actions_that_are_not_finite_in_a_file_are_refused(path):
    record(path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + length])["actions"]["data_offsets"]
    assert end - start == 5 * 7 * 4
    content[8 + length + start : 8 + length + start + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match="action x in row 0 is inf"):
        Episode(path)


def test_a_flipped_pixel_is_found_by_verifying(path):
    record(path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + length])["image/agent"]["data_offsets"]
    content[8 + length + start] ^= 1
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match="corrupt"):
        Episode(path).verify()


def test_a_set_filters_counts_and_hashes(tmp_path):
    for seed in range(6):
        record(
            tmp_path / f"{seed}.safetensors",
            seed=100_000 + seed,
            success=seed % 2 == 0,
            kind="policy" if seed < 2 else "expert",
            task="push" if seed < 3 else "lift",
        )
    episodes = EpisodeSet.open(tmp_path)
    assert len(episodes) == 6
    assert episodes.steps == 30
    assert [e.meta.seed for e in episodes.where(kind="policy")] == [100_000, 100_001]
    assert len(episodes.where(kind=("policy", "expert"), success=True)) == 3
    assert episodes.counts(lambda e: e.meta.task) == {"lift": 3, "push": 3}
    assert EpisodeSet(episodes[::-1]).content_hash == episodes.content_hash
    assert EpisodeSet(episodes[:5]).content_hash != episodes.content_hash
    with pytest.raises(EpisodeError, match="no_such_task"):
        episodes.where(task="no_such_task")
    with pytest.raises(EpisodeError, match=r"\(kind noisy_expert, success False\): there"):
        episodes.where(kind="noisy_expert", success=False)


def test_the_split_keeps_a_seed_on_its_side_when_episodes_are_added(tmp_path):
    for seed in range(40):
        record(tmp_path / f"{seed:03}.safetensors", seed=seed, steps=1)
    episodes = EpisodeSet.open(tmp_path)
    few_train, few_held = EpisodeSet(episodes[:20]).split(0.3)
    train, held = episodes.split(0.3)
    seeds = [{e.meta.seed for e in part} for part in (few_train, few_held, train, held)]
    assert seeds[0] < seeds[2]
    assert seeds[1] < seeds[3]
    assert not seeds[2] & seeds[3]
    assert len(train) + len(held) == 40
    assert 4 <= len(held) <= 20
    with pytest.raises(ConfigurationError, match="0 < share < 1"):
        episodes.split(1.0)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(EpisodeError, match=r"no \*\.safetensors file in it"):
        EpisodeSet.open(tmp_path)
    with pytest.raises(EpisodeError, match="nowhere"):
        EpisodeSet.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": ActionSpec(SPEC.representation, SPEC.names, "base", 0.05, SPEC.gripper)}, "dt"),
        ({"size": 16}, "cameras"),
    ],
)
def test_episodes_of_different_contracts_are_not_mixed(tmp_path, change, message):
    record(tmp_path / "a.safetensors")
    record(tmp_path / "b.safetensors", **change)
    with pytest.raises(EpisodeError, match=rf"differ in .*{message}"):
        EpisodeSet.open(tmp_path)
