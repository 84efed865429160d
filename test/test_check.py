import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_reasoner_ros import cli, plugins
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import EpisodeWriter
from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.self_check import Level, check, require, table
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    GripperSpec,
    Observation,
    Representation,
)

JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
DELTA = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(6),
)
POSE = ActionSpec(
    Representation.EE_POSE,
    ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper"),
    "base",
    0.1,
    GripperSpec(7),
)
JOINT = ActionSpec(Representation.JOINT_POSITION, (*JOINTS, "gripper"), "", 0.1, GripperSpec(7))
JOINT_DELTA = dataclasses.replace(JOINT, representation=Representation.JOINT_DELTA)
SPECS = {"delta": DELTA, "pose": POSE, "joint": JOINT, "joint_delta": JOINT_DELTA}
CAMERAS = {"agent": (8, 8), "wrist": (8, 8)}


def demonstrations(spec, steps=80, seed=0):
    """Rows of (observation, action): a smooth wandering whose next step is the action."""
    rng = np.random.default_rng(seed)
    position, rotation = np.array([0.5, 0.0, 0.3]), Rotation.from_quat([1.0, 0, 0, 0])
    joints, opening = load_robot("fr3").home.copy(), 1.0
    translation, turn, joint_step = np.zeros(3), np.zeros(3), np.zeros(7)
    for step in range(steps):
        translation = 0.7 * translation + rng.normal(0.0, 0.008, 3)
        turn = 0.7 * turn + rng.normal(0.0, 0.04, 3)
        joint_step = 0.7 * joint_step + rng.normal(0.0, 0.02, 7)
        opening = float(step % 20 < 10)
        motion = {
            Representation.EE_DELTA: lambda t=translation, r=turn: np.append(t, r),
            Representation.EE_POSE: lambda t=translation, r=turn, p=position, q=rotation: np.append(
                p + t, (Rotation.from_rotvec(r) * q).as_quat()
            ),
            Representation.JOINT_POSITION: lambda j=joints, d=joint_step: j + d,
            Representation.JOINT_DELTA: lambda d=joint_step: d,
        }[spec.representation]()
        yield (
            Observation(
                stamp_ns=step,
                images={name: np.zeros((*size, 3), np.uint8) for name, size in CAMERAS.items()},
                joint_names=JOINTS,
                joint_positions=joints,
                joint_velocities=np.zeros(7),
                ee_position=position,
                ee_quaternion=rotation.as_quat(),
                gripper=opening,
                instruction="wander",
            ),
            np.append(motion, opening),
        )
        position, joints = position + translation, joints + joint_step
        rotation = Rotation.from_rotvec(turn) * rotation


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    made = {}
    for name, spec in SPECS.items():
        folder, writer = tmp_path_factory.mktemp(name), EpisodeWriter(spec)
        for observation, action in demonstrations(spec):
            writer.append(observation, action)
        writer.write(folder / "a.safetensors", task="", seed=1, success=True, kind="expert")
        made[name] = EpisodeSet.open(folder)
    return made


class Imitator:
    """Answers what was demonstrated, plus a little noise, after a fault of the test's."""

    def __init__(self, episodes, fault=lambda action: action, spec=None, **fields):
        action = spec or episodes.action_spec
        self.spec = PolicySpec(
            "imitator", CAMERAS, action, 2, **{"control_frame": "fr3_hand_tcp"} | fields
        )
        self._known = {
            episodes[0].observation(step).ee_position.tobytes(): row
            for step, row in enumerate(episodes[0].actions)
        }
        self._fault, self._rng = fault, np.random.default_rng(3)

    def reset(self):
        pass

    def propose(self, observation, n=1):
        action = self._known[observation.ee_position.tobytes()].astype(float)
        action[:-1] += self._rng.normal(0.0, 0.1, len(action) - 1) * np.abs(action[:-1]) * 0.1
        row = self._fault(action.copy())
        return [ActionChunk(self.spec.action, np.stack([row, row]), observation.stamp_ns)]


def levels(findings):
    return {finding.check: finding.level for finding in findings}


def failed(findings):
    return {finding.check: finding.said for finding in findings if finding.level is Level.FAIL}


@pytest.mark.parametrize("name", SPECS)
def test_a_policy_that_means_what_was_recorded_passes(recordings, name):
    findings = check(Imitator(recordings[name]), load_robot("fr3"), None, recordings[name])
    assert set(levels(findings).values()) == {Level.PASS}, table(findings)
    require(findings)


def scaled(part, factor):
    def fault(action):
        action[part] *= factor
        return action

    return fault


def replaced(index, order):
    def fault(action):
        action[index] = action[order]
        return action

    return fault


def flipped(action):
    action[-1] = 1.0 - action[-1]
    return action


def shifted(action):
    action[:3] += 0.1
    return action


FAULTS = {
    "millimetres": ("delta", scaled(slice(0, 3), 1000.0), "units of translation", "millimetres"),
    "degrees": ("delta", scaled(slice(3, 6), 57.3), "units of rotation", "degrees"),
    "degrees of joints": ("joint_delta", scaled(slice(0, 7), 57.3), "units of joints", "degrees"),
    "normalised": ("delta", scaled(slice(0, 3), 15.0), "units of translation", "normalisation"),
    "mirrored": ("delta", scaled(slice(0, 2), -1.0), "signs", "x -"),
    "a turned frame": (
        "delta",
        replaced([0, 1], [1, 0]),
        "frame and axes",
        "y does what x was shown",
    ),
    "other statistics": ("delta", shifted, "normalisation statistics", "deviations"),
    "gripper sign": ("delta", flipped, "gripper sign", "0%"),
    "gripper range": ("delta", scaled(-1, 255.0), "gripper range", "to 255.00"),
    "w first": ("pose", replaced([3, 4, 5, 6], [6, 3, 4, 5]), "rotation form", "as w x y z"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_convention_shows_in_the_numbers(recordings, fault):
    name, change, row, said = FAULTS[fault]
    findings = check(Imitator(recordings[name], change), None, None, recordings[name])
    assert said in failed(findings)[row], table(findings)
    with pytest.raises(ConfigurationError, match="convention self-check: "):
        require(findings)


def test_positions_declared_as_displacements_are_found(recordings):
    targets = Imitator(recordings["joint"], spec=JOINT_DELTA)
    findings = check(targets, None, None, recordings["joint_delta"])
    assert "positions come" in failed(findings)["delta or absolute"]


def test_displacements_declared_as_positions_are_found(recordings):
    steps = Imitator(recordings["joint_delta"], spec=JOINT)
    findings = check(steps, None, None, recordings["joint"])
    assert "displacements come" in failed(findings)["delta or absolute"]


def test_an_untrained_policy_is_warned_of_not_refused(recordings):
    rng = np.random.default_rng(0)

    def unrelated(action):
        return np.append(rng.normal(0.0, [0.01] * 3 + [0.05] * 3), action[6])

    findings = check(Imitator(recordings["delta"], unrelated), None, None, recordings["delta"])
    assert levels(findings)["signs"] is Level.WARN
    assert not failed(findings), table(findings)


def test_a_few_large_turns_that_a_policy_makes_small_are_warned_of_not_refused(tmp_path):
    """A wrong unit is wrong in every step; here the policy only does less where much was shown."""

    writer = EpisodeWriter(DELTA)
    for step, (observation, action) in enumerate(demonstrations(DELTA)):
        action[3:6] *= 1.0 if step % 20 == 0 else 1e-3
        writer.append(observation, action)
    writer.write(tmp_path / "a.safetensors", task="", seed=1, success=True, kind="expert")
    recorded = EpisodeSet.open(tmp_path)

    def timid(action):
        action[3:6] *= 2.0 if np.abs(action[3:6]).max() < 1e-3 else 0.01
        return action

    findings = check(Imitator(recorded, timid), None, None, recorded)
    assert levels(findings)["units of rotation"] is Level.WARN, table(findings)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"dt": 0.2}, "recordings: dt"),
        ({"frame": "world"}, "recordings: frame"),
        ({"gripper": GripperSpec(6, open=-1.0, closed=1.0)}, "recordings: gripper"),
        ({"names": ("y", "x", "z", "rx", "ry", "rz", "gripper")}, "recordings: names"),
    ],
)
def test_what_recordings_say_otherwise_fails_by_name(recordings, change, row):
    spec = dataclasses.replace(DELTA, **change)
    findings = check(Imitator(recordings["delta"], spec=spec), None, None, recordings["delta"])
    assert list(failed(findings)) == [row]


def test_the_robot_must_have_what_the_policy_moves_and_reads(recordings):
    delta, joint = recordings["delta"], recordings["joint"]
    ur = load_robot("ur5e")
    assert "robot: joints of actions" in failed(check(Imitator(joint), ur))
    found = failed(check(Imitator(delta), ur))
    assert "fr3_hand_tcp" in found["robot: control frame"]
    world = dataclasses.replace(DELTA, frame="camera")
    assert "robot: frame" in failed(check(Imitator(delta, spec=world), load_robot("fr3")))
    found = failed(check(Imitator(delta, joint_names=("elbow",)), load_robot("fr3")))
    assert "'elbow'" in found["robot: joints of the state"]


def test_the_width_of_actions_is_held_against_robot_and_recordings(recordings):
    short = dataclasses.replace(JOINT, names=(*JOINTS[:6], "gripper"), gripper=GripperSpec(6))
    imitator = Imitator(recordings["joint"], spec=short)
    found = failed(check(imitator, load_robot("fr3"), None, recordings["joint"]))
    assert found["robot: action width"] == "policy 7, robot 8"
    assert found["recordings: action width"] == "policy 7, recordings 8"


def test_the_contract_must_have_the_cameras_in_their_sizes(recordings):
    contract = load_contract("franka")
    found = failed(check(Imitator(recordings["delta"]), contract=contract))
    assert "policy 8x8, contract 96x96" in found["contract: camera agent"]


def test_a_policy_that_fails_on_recorded_observations_fails_the_check(recordings):
    def broken(action):
        raise ModelError("no weights")

    findings = check(Imitator(recordings["delta"], broken), None, None, recordings["delta"])
    assert failed(findings) == {"replay": "ModelError: no weights"}


def test_without_recordings_the_table_says_what_was_not_compared(recordings):
    findings = check(Imitator(recordings["delta"]), load_robot("fr3"))
    assert levels(findings)["recorded actions"] is Level.WARN
    assert "warn  recorded actions" in table(findings)


@pytest.fixture
def registered(monkeypatch, recordings):
    def register(fault=lambda action: action):
        monkeypatch.setitem(plugins.BUILT_IN["policy"], "imitator", "nowhere:Imitator")
        load = plugins.load
        monkeypatch.setattr(
            plugins,
            "load",
            lambda kind, name: (
                (lambda: Imitator(recordings["delta"], fault))
                if name == "imitator"
                else load(kind, name)
            ),
        )
        return recordings["delta"][0].path.parent

    return register


def test_the_command_prints_the_table_and_fails_with_it(registered, capsys):
    folder = str(registered())
    words = ["check", "--policy", "imitator", "--robot", "fr3", "--data", folder]
    assert cli.main(words) == 0
    assert "pass  units of translation" in capsys.readouterr().out
    registered(flipped)
    assert cli.main(words) == 1
    assert "fail  gripper sign" in capsys.readouterr().out


def test_a_failed_check_stops_the_planner_from_being_configured(registered):
    folder = str(registered())
    parameters = ComponentParameters(
        policy="imitator", world_model="none", check_data=folder, check_robot="fr3"
    )
    assert load_components(parameters).policy.spec.name == "imitator"
    registered(scaled(slice(0, 3), 1000.0))
    with pytest.raises(ConfigurationError, match="convention self-check: units of translation"):
        load_components(parameters)
    with pytest.raises(ConfigurationError, match="there is none"):
        load_components(dataclasses.replace(parameters, check_data="/nowhere"))
