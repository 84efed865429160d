import argparse
import json

import numpy as np
import pytest

from vla_reasoner_ros import language
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import EpisodeWriter
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.policies.small_vla import Architecture, SmallVla
from vla_reasoner_ros.training import policy, prior
from vla_reasoner_ros.training.policy import (
    ChunkSamples,
    Cloning,
    CloningParameters,
    cloning_loss,
)
from vla_reasoner_ros.types import ActionChunk, ActionSpec, GripperSpec, Observation, Representation

pytest.importorskip(language.PACKAGE)

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(index=6),
)
SIZE = 32
TEXTS = {"red_on_plate": "put the red block on the plate", "lift_green": "lift the green block"}


def record(folder, seed, steps=12, task="red_on_plate", spec=SPEC, **fields):
    """The hand moves along x in one task and against it in the other; the image shows where."""
    rng = np.random.default_rng(seed)
    writer = EpisodeWriter(spec, ("block",))
    sign = 1.0 if task == "red_on_plate" else -1.0
    x = rng.uniform(0.3, 0.6)
    for step in range(steps):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[:, int((x - 0.2) * 50)] = 255
        observation = Observation(
            stamp_ns=0,
            images={"agent": image, "wrist": image},
            joint_names=("a",),
            joint_positions=np.zeros(1),
            joint_velocities=np.zeros(1),
            ee_position=np.array([x, 0.0, 0.2]),
            ee_quaternion=np.array([1.0, 0.0, 0.0, 0.0]),
            gripper=1.0,
            instruction=TEXTS[task],
        )
        noise = rng.normal(0.0, 0.001, 5)
        action = np.array([0.01 * sign, *noise, float(step < 6)])
        writer.append(observation, action, 0.0, np.array([[x, 0.0, 0.0, 0, 0, 0, 1.0]]))
        x += action[0]
    fields = {"success": True, "kind": "expert"} | fields
    writer.write(folder / f"{seed}-{task}.safetensors", task=task, seed=seed, **fields)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    for index in range(16):
        record(folder, 100_000 + index, task=list(TEXTS)[index % 2])
    return folder


@pytest.fixture(scope="module")
def samples(recorded):
    architecture = Architecture(image_size=(SIZE, SIZE), horizon=8)
    return ChunkSamples(EpisodeSet.open(recorded), architecture, language.sentence_encoder(), 2)


def arguments(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize(("gripper", "objects"), [(0.3, 0.5), (0.0, 0.0), (2.0, 1.0)])
def test_the_parts_of_the_loss_count_as_much_as_was_asked_for(samples, gripper, objects):
    architecture = Architecture(image_size=(SIZE, SIZE), horizon=8)
    weights = CloningParameters(gripper=gripper, objects=objects, least_translation=0.05)
    module = Cloning(architecture, samples.objects.shape[1], weights)
    module.normalise(samples)
    assert module.network.motion_scale[:3].min() >= 0.05
    parts = cloning_loss(module, samples.batch(np.arange(4), None))
    expected = parts["motion"] + gripper * parts["gripper"] + objects * parts["objects"]
    assert float(parts["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_sample_holds_the_answers_from_its_step_on_and_marks_those_past_the_end(samples):
    batch = samples.batch(np.array([0, 9]), None)
    assert batch["images"].shape == (2, 2, SIZE, SIZE, 3)
    assert batch["motion"].shape == (2, 8, 6)
    assert batch["valid"].sum(dim=1).tolist() == [8, 3]
    assert batch["opened"][0].tolist() == [1.0] * 6 + [0.0] * 2


def test_without_a_generator_nothing_is_augmented(samples):
    first, again = (samples.batch(np.arange(4), None) for _ in range(2))
    for name, tensor in first.items():
        assert tensor.equal(again[name])


def test_augmentation_is_decided_by_the_generator(samples):
    plain = samples.batch(np.arange(4), None)
    one, same, other = (
        samples.batch(np.arange(4), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    for name in ("images", "sentence"):
        assert one[name].equal(same[name])
        assert not one[name].equal(other[name])
        assert not one[name].equal(plain[name].to(one[name].dtype))
    assert one["motion"].equal(plain["motion"])


def test_mixtures_of_paraphrases_stay_unit_vectors_near_their_task(samples):
    drawn = samples.batch(np.zeros(20, np.int64), np.random.default_rng(0))["sentence"].numpy()
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0, rtol=1e-5)
    encoder = language.sentence_encoder()
    own, other = encoder.encode_all(list(TEXTS.values()))
    assert (drawn @ own > drawn @ other + 0.2).all()


def test_training_learns_to_tell_instructions_apart_and_saves_a_policy(recorded, tmp_path):
    words = ["--data", recorded, "--work", tmp_path / "work", "--output", tmp_path / "policy"]
    words += ["--steps", 24, "--batch-size", 16, "--evaluate-every", 24, "--threads", 1]
    words += ["--closed-loop", 0]
    assert policy.run(arguments(policy, *words)) == 0
    trained = SmallVla(tmp_path / "policy")
    motion = {}
    for task, text in TEXTS.items():
        episode = EpisodeSet.open(recorded).where(task=task)[0]
        assert episode.meta.instruction == text
        motion[task] = trained.propose(episode.observation(2))[0].actions[0, 0]
    assert motion["red_on_plate"] > 0.004
    assert motion["lift_green"] < -0.004
    card = json.loads((tmp_path / "policy.json").read_text())
    assert card["data"]["episodes"] == {"expert lift_green": 8, "expert red_on_plate": 8}
    assert card["control_frame"] == "fr3_hand_tcp"
    assert 0.6 < card["instructions"]["threshold"] < 0.8


def test_failures_and_the_policys_own_episodes_are_not_imitated(tmp_path):
    record(tmp_path, 100_000, success=False)
    record(tmp_path, 100_001, kind="policy")
    with pytest.raises(EpisodeError, match="no episodes"):
        policy.run(arguments(policy, "--data", tmp_path))


def test_a_gripper_that_is_not_binary_is_refused(tmp_path):
    spec = ActionSpec(
        SPEC.representation, SPEC.names, "base", 0.1, GripperSpec(index=6, binary=False)
    )
    for seed in range(30):
        record(tmp_path, seed, steps=1, spec=spec)
    with pytest.raises(ConfigurationError, match="binary gripper"):
        policy.run(arguments(policy, "--data", tmp_path))


def test_the_prior_is_fitted_with_the_width_that_held_out_episodes_like_best(tmp_path):
    from vla_reasoner_ros.priors.kde import KdePrior

    for seed in range(12):
        record(tmp_path, seed, task=list(TEXTS)[seed % 2])
    words = ["--data", tmp_path, "--output", tmp_path / "kde", "--count", 100, "--folds", 3]
    assert prior.run(arguments(prior, *words)) == 0
    card = json.loads((tmp_path / "kde.json").read_text())
    scores = card["metrics"]["held_out_log_density"]
    assert max(scores, key=scores.get) == str(card["metrics"]["bandwidth_factor"])
    fitted = KdePrior(tmp_path / "kde")
    assert fitted.spec == SPEC
    drawn = fitted.sample(np.zeros((1, 1, 7)), 400, np.random.default_rng(0)).actions[0, :, 0]
    assert drawn[:, 1:6].std() == pytest.approx(0.001, rel=0.6)
    assert {*drawn[:, 6]} == {0.0, 1.0}
    assert drawn[:, 6].mean() == pytest.approx(card["metrics"]["gripper_open_fraction"], abs=0.1)


def test_the_closed_loop_counts_successes_on_seeds_for_tuning():
    class Still:
        def reset(self):
            pass

        def propose(self, observation, n=1):
            return [ActionChunk(SPEC, np.zeros((8, 7)), observation.stamp_ns)]

    outcome = policy.closed_loop(Still(), 1, 50_000, execute=4)
    assert outcome["red_on_plate"] == outcome["all"] == "0 of 1"
    assert outcome["lift_green"] == "0 of 0"
    with pytest.raises(ConfigurationError, match=r"seed 3: .* for tuning"):
        policy.closed_loop(Still(), 1, 3, execute=4)


@pytest.mark.parametrize("folds", [1, 40])
def test_folds_must_fit_the_episodes(tmp_path, folds):
    for seed in range(4):
        record(tmp_path, seed)
    words = ["--data", tmp_path, "--output", tmp_path / "kde", "--folds", folds]
    with pytest.raises(ConfigurationError, match="expected 2 or more and at most one"):
        prior.run(arguments(prior, *words))
