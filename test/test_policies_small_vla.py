import dataclasses
import json

import numpy as np
import pytest
import torch

from vla_reasoner_ros import language, plugins
from vla_reasoner_ros.errors import (
    ConfigurationError,
    InstructionError,
    ModelError,
    ObservationError,
)
from vla_reasoner_ros.policies.small_vla import (
    Architecture,
    SmallVla,
    SmallVlaNetwork,
    proprioception,
)
from vla_reasoner_ros.types import ActionSpec, GripperSpec, Observation, Representation
from vla_reasoner_ros.weights import save_model

pytest.importorskip(language.PACKAGE)

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(index=6),
)
TINY = Architecture(
    image_size=(32, 32), fine_channels=8, coarse_channels=8, keypoints=4, condition=8, hidden=16
)
KNOWN = ["put the red block on the plate", "lift the green block"]


def write(stem, architecture=TINY, spec=SPEC, change=None, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallVlaNetwork(architecture)
    with torch.no_grad():
        network.motion_scale.fill_(0.01)
        network.motion_mean.fill_(0.005)
        if change is not None:
            change(network)
    card = {
        "kind": "policy",
        "architecture": dataclasses.asdict(architecture),
        "action_spec": spec.to_mapping(),
        "control_frame": "fr3_hand_tcp",
        "instructions": {"known": KNOWN, "threshold": 0.65},
        "data": {},
        "seed": 0,
        "command": "",
        "metrics": {},
        "licence": "Apache-2.0",
    } | fields
    save_model(stem, network.state_dict(), card)
    return stem


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return SmallVla(write(tmp_path_factory.mktemp("policy") / "tiny"))


def seen(size=(32, 32), cameras=("agent", "wrist"), instruction=KNOWN[0], **fields):
    rng = np.random.default_rng(0)
    return Observation(
        stamp_ns=fields.pop("stamp_ns", 5),
        images={name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name in cameras},
        joint_names=("a",),
        joint_positions=np.zeros(1),
        joint_velocities=np.zeros(1),
        ee_position=fields.pop("ee_position", np.array([0.45, 0.0, 0.25])),
        ee_quaternion=np.array([1.0, 0.0, 0.0, 0.0]),
        gripper=1.0,
        instruction=instruction,
        **fields,
    )


def test_the_spec_says_what_the_policy_takes_and_gives(policy):
    assert policy.spec.cameras == {"agent": (32, 32), "wrist": (32, 32)}
    assert policy.spec.action == SPEC
    assert policy.spec.horizon == 8
    assert policy.spec.control_frame == "fr3_hand_tcp"


def test_it_proposes_one_chunk_of_its_convention_stamped_as_the_observation(policy):
    (chunk,) = policy.propose(seen(stamp_ns=123), n=4)
    assert chunk.actions.shape == (8, 7)
    assert chunk.spec == SPEC
    assert chunk.observation_stamp_ns == 123
    assert set(chunk.actions[:, 6]) <= {0.0, 1.0}


def test_proposals_are_deterministic_and_follow_the_observation(policy):
    first, again = (policy.propose(seen())[0].actions for _ in range(2))
    np.testing.assert_array_equal(first, again)
    moved = policy.propose(seen(ee_position=np.array([0.6, 0.1, 0.1])))[0].actions
    other = policy.propose(seen(instruction=KNOWN[1]))[0].actions
    assert np.abs(first - moved).max() > 1e-6
    assert np.abs(first - other).max() > 1e-6


def test_normalisation_is_undone_inside(tmp_path, policy):
    def silent(network):
        network.motion.weight.zero_()
        network.motion.bias.zero_()
        network.motion.bias[:6] = 2.0

    chunk = SmallVla(write(tmp_path / "silent", change=silent)).propose(seen())[0]
    np.testing.assert_allclose(chunk.actions[0, :6], 2.0 * 0.01 + 0.005, rtol=1e-6)
    np.testing.assert_allclose(chunk.actions[1:, :6], 0.005, rtol=1e-6)


@pytest.mark.parametrize(("bias", "expected"), [(50.0, 1.0), (-50.0, 0.0)])
def test_the_gripper_is_binary_in_the_specs_own_numbers(tmp_path, bias, expected):
    def biased(network):
        network.gripper.bias.fill_(bias)

    chunk = SmallVla(write(tmp_path / "gripper", change=biased)).propose(seen())[0]
    assert set(chunk.actions[:, 6]) == {expected}


def test_a_missing_camera_is_named(policy):
    with pytest.raises(ObservationError, match=r"camera 'wrist' is missing; .* has agent"):
        policy.propose(seen(cameras=("agent",)))


def test_a_camera_of_another_size_is_named(policy):
    with pytest.raises(ObservationError, match=r"'agent' needs 32x32 .* got 48x64"):
        policy.propose(seen(size=(48, 64)))


def test_a_pose_in_another_frame_is_refused(policy):
    with pytest.raises(ObservationError, match="frame 'base', got 'world'"):
        policy.propose(seen(ee_frame="world"))


@pytest.mark.parametrize(
    "text", ["lay the red block on the plate", "pick up the green block", "Lift the green block!"]
)
def test_paraphrases_of_known_instructions_are_taken(policy, text):
    assert policy.propose(seen(instruction=text))


@pytest.mark.parametrize("text", ["open the drawer", "what time is it", "pour me a coffee"])
def test_an_unknown_instruction_is_refused_naming_the_nearest_known(policy, text):
    with pytest.raises(InstructionError, match=f"'{text}' .* nearest is '(put|lift) the"):
        policy.propose(seen(instruction=text))


def test_an_empty_instruction_is_refused(policy):
    with pytest.raises(InstructionError, match="empty"):
        policy.propose(seen(instruction=" "))


def test_a_network_that_answers_nan_is_an_error(tmp_path):
    broken = SmallVla(write(tmp_path / "nan"))
    with torch.no_grad():
        broken._network.motion.bias[0] = float("nan")
    with pytest.raises(ModelError, match="non-finite"):
        broken.propose(seen())


def test_proprioception_is_position_rotation_columns_and_opening():
    half = np.sqrt(0.5)
    quarter_turn_about_z = np.array([0.0, 0.0, half, half])
    state = proprioception(np.array([1.0, 2.0, 3.0]), quarter_turn_about_z, 0.5)
    np.testing.assert_allclose(state, [1, 2, 3, 0, 1, 0, -1, 0, 0, 0.5], atol=1e-6)
    many = proprioception(np.zeros((4, 3)), np.tile(quarter_turn_about_z, (4, 1)), np.zeros(4))
    assert many.shape == (4, 10)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing\.json: no such file"):
        SmallVla(tmp_path / "nothing")


def test_weights_of_another_architecture_are_refused(tmp_path):
    fields = dataclasses.asdict(TINY) | {"hidden": 32}
    stem = write(tmp_path / "other", architecture=TINY)
    card = json.loads(stem.with_suffix(".json").read_text())
    tensors = SmallVlaNetwork(TINY).state_dict()
    save_model(stem, tensors, card | {"architecture": fields})
    with pytest.raises(ConfigurationError, match=r"shapes differ: .*gripper\.weight"):
        SmallVla(stem)
    save_model(stem, tensors, card | {"architecture": {"layers": 3}})
    with pytest.raises(ConfigurationError, match=r"the card has \['layers'\]"):
        SmallVla(stem)


def test_an_action_spec_that_the_network_cannot_serve_is_refused(tmp_path):
    spec = ActionSpec(Representation.JOINT_DELTA, ("a", "b", "gripper"), "", 0.1, GripperSpec(2))
    with pytest.raises(ConfigurationError, match="moves 6 dimensions"):
        SmallVla(write(tmp_path / "joints", spec=spec))


def test_the_shipped_policy_loads_by_name_and_knows_its_held_out_paraphrases():
    from vla_reasoner_ros.paths import models_directory
    from vla_reasoner_ros.sim.tasks import TASKS

    if not (models_directory() / "small_vla.json").exists():
        pytest.skip("no shipped weights in this tree")
    shipped = plugins.create("policy", "small_vla")
    margins = shipped.card["instructions"]
    assert margins["most_unrelated"] < margins["threshold"] < margins["least_held_out_paraphrase"]
    for task in TASKS.values():
        for text in (*task.instructions, *task.held_out):
            chunk = shipped.propose(seen(size=(96, 96), instruction=text))[0]
            assert np.abs(chunk.actions[:, :3]).max() < 0.04
            assert np.abs(chunk.actions[:, 3:6]).max() < 0.3
    with pytest.raises(InstructionError, match="nearest"):
        shipped.propose(seen(size=(96, 96), instruction="open the drawer"))
