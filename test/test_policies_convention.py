import inspect

import numpy as np
import pytest
import tiny_policies as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.policies.convention import Convention
from vla_reasoner_ros.policies.state import PARTS, state_vector, width

POSE = {
    "representation": "end_effector_pose",
    "names": ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"],
    "frame": "base",
    "dt": 0.1,
    "gripper": {"index": 7, "open": 0.08, "closed": 0.0, "binary": False},
}
numbers = arrays.arrays(np.float64, (5, 3), elements=st.floats(-0.5, 0.5))


def made(**changes):
    return Convention.from_mapping(tiny.convention(**changes), "test")


def rotations(form, rotation):
    return {
        "rotation_vector": lambda: rotation.as_rotvec(),
        "euler_xyz": lambda: rotation.as_euler("xyz"),
        "quaternion_xyzw": lambda: rotation.as_quat(),
        "quaternion_wxyz": lambda: np.roll(rotation.as_quat(), 1, axis=1),
        "rotation_6d": lambda: rotation.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6),
    }[form]()


FORMS = ("rotation_vector", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz", "rotation_6d")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(position=numbers, vector=numbers)
def test_every_form_of_rotation_leaves_as_ours(form, position, vector):
    rotation = Rotation.from_rotvec(vector)
    raw = np.concatenate([position, rotations(form, rotation), np.ones((5, 1))], axis=1)
    delta = made(rotation=form).chunk(raw, tiny.seen(), "test").actions
    np.testing.assert_allclose(delta[:, :3], position)
    np.testing.assert_allclose(delta[:, 3:6], vector, atol=1e-9)
    pose = made(rotation=form, action=POSE).chunk(raw, tiny.seen(), "test").actions
    turned = Rotation.from_quat(pose[:, 3:7]) * rotation.inv()
    assert turned.magnitude().max() < 1e-7


@settings(max_examples=30)
@given(position=numbers, vector=numbers)
def test_displacements_in_the_tool_frame_lead_to_the_same_poses(position, vector):
    observation = tiny.seen(ee_quaternion=Rotation.from_rotvec([0.3, -1.0, 2.0]).as_quat())
    raw = np.concatenate([position, vector, np.zeros((5, 1))], axis=1)
    actions = made(delta_frame="tool").chunk(raw, observation, "test").actions.copy()
    tool, base = (Rotation.from_quat(observation.ee_quaternion),) * 2
    where_tool = where_base = np.zeros(3)
    for step in range(5):
        where_tool = where_tool + tool.apply(position[step])
        tool = tool * Rotation.from_rotvec(vector[step])
        where_base = where_base + actions[step, :3]
        base = Rotation.from_rotvec(actions[step, 3:6]) * base
    np.testing.assert_allclose(where_base, where_tool, atol=1e-9)
    assert (base * tool.inv()).magnitude() < 1e-9


def test_a_controllers_scale_is_undone():
    convention = made(scale=[0.05] * 3 + [0.5] * 3)
    actions = convention.chunk(np.ones((1, 7)), tiny.seen(), "test").actions
    np.testing.assert_allclose(actions[0], [0.05] * 3 + [0.5] * 3 + [1.0])
    back = convention.raw(actions, tiny.seen(), "test")
    np.testing.assert_allclose(back, np.ones((1, 7)))


@pytest.mark.parametrize(("open_", "closed"), [(1.0, 0.0), (-1.0, 1.0), (0.08, 0.0)])
def test_a_binary_gripper_takes_the_nearer_end(open_, closed):
    gripper = {"index": 6, "open": open_, "closed": closed, "binary": True}
    convention = made(action={**tiny.ACTION, "gripper": gripper})
    raw = np.zeros((2, 7))
    raw[:, 6] = closed + np.array([0.4, 0.6]) * (open_ - closed)
    assert convention.chunk(raw, tiny.seen(), "test").actions[:, 6].tolist() == [closed, open_]


def test_a_continuous_gripper_passes_as_it_is():
    raw = np.concatenate([np.zeros((1, 6)), [[1.0, 0.03]]], axis=1)
    assert made(action=POSE).chunk(raw, tiny.seen(), "test").actions[0, 7] == 0.03


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((4, 7), np.int64), "expected floating-point actions, got int64"),
        (np.zeros((4, 6)), r"expected actions of 7 numbers .* got shape \(4, 6\)"),
        (np.zeros(7), r"got shape \(7,\)"),
        (np.zeros((0, 7)), r"got shape \(0, 7\)"),
        (np.full((4, 7), np.inf), "number 0 of action 0 is inf"),
        ("text", "expected floating-point"),
    ],
)
def test_wrong_numbers_are_named(raw, message):
    with pytest.raises(ModelError, match=message):
        made().chunk(raw, tiny.seen(), "test")


@pytest.mark.parametrize("form", ["quaternion_xyzw", "quaternion_wxyz", "rotation_6d"])
def test_zeros_are_no_rotation(form):
    convention = made(rotation=form, action=POSE)
    with pytest.raises(ModelError, match="are no rotation"):
        convention.chunk(np.zeros((1, convention.raw_width)), tiny.seen(), "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": "tool"}, "convention has no field 'frame'"),
        ({"action": {**tiny.ACTION, "names": ["x"]}}, "gripper index 6 is outside"),
        ({"rotation": "euler"}, "'euler' is not a valid RotationForm"),
        ({"scale": [1.0]}, "scale needs 6 numbers, got 1"),
        ({"delta_frame": "hand"}, "'base' or 'tool', got 'hand'"),
        ({"delta_frame": "tool", "action": POSE}, "needs end-effector displacements"),
        ({"relative_to_state": True}, "relative_to_state needs joint_position"),
        ({"state": {"state": ["joint_positions"]}}, "needs joint_names"),
        ({"state": {"state": ["tcp"]}}, "state part 'tcp' is unknown; known are joint_positions"),
        ({"horizon": -1}, "horizon must be positive"),
        (
            {
                "rotation": "euler_xyz",
                "action": {**POSE, "gripper": {"index": 0}, "names": ["g", *POSE["names"][:7]]},
            },
            "gripper to be the last dimension",
        ),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        made(**changes)


@pytest.mark.parametrize("field", ["action", "cameras"])
def test_what_must_be_said_is_asked_for(field):
    values = tiny.convention()
    values.pop(field)
    with pytest.raises(ConfigurationError, match=f"convention needs '{field}'"):
        Convention.from_mapping(values, "test")


def test_relative_actions_must_name_the_joints_of_the_state():
    action = {"representation": "joint_position", "names": ["a", "b"], "frame": "", "dt": 0.1}
    with pytest.raises(ConfigurationError, match="to be the action's joints"):
        made(action=action, relative_to_state=True, joint_names=["b", "a"])


def test_missing_and_odd_pictures_are_named():
    with pytest.raises(ObservationError, match="camera 'wrist' is missing"):
        made().images(tiny.seen(cameras=("agent",)), "test")
    with pytest.raises(ObservationError, match=r"needs 28x28 pixels .*, got 30x30"):
        made().images(tiny.seen(side=30), "test")


def test_a_pose_in_another_frame_is_refused():
    convention = made(state={"state": ["ee_position"]})
    with pytest.raises(ObservationError, match="in frame 'base', got 'world'"):
        convention.states(tiny.seen(ee_frame="world"), "test")


def test_the_state_has_the_width_and_order_that_was_said():
    observation = tiny.seen()
    for part in PARTS:
        found = state_vector([part], tiny.JOINTS, observation)
        assert found.shape == (width([part], tiny.JOINTS),)
    order = ["joint3", "joint1"]
    found = state_vector(["joint_positions", "gripper_closing"], order, observation)
    positions = observation.joint_positions
    np.testing.assert_allclose(found, [positions[2], positions[0], 0.25], atol=1e-7)
    with pytest.raises(ObservationError, match="joint 'joint9' is not in the observation"):
        state_vector(["joint_positions"], ["joint9"], observation)


SHIPPED = sorted((share_directory() / "config" / "policies").glob("*.yaml"))
ADAPTERS = {"openpi", "process", "pi0", "openvla", "lerobot"}


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_file_of_options_can_be_taken(path):
    name = path.stem.split("_")[0]
    options = plugins.read_options(path)
    assert options.keys() <= inspect.signature(plugins.load("policy", name)).parameters.keys()
    if "convention" in options:
        convention = Convention.from_mapping(options["convention"], name)
        assert convention.spec(name).horizon >= 1
    page = share_directory() / "docs" / "policies" / f"{name}.md"
    assert f"config/policies/{path.name}" in page.read_text(encoding="utf-8")


def test_every_adapter_has_its_file_of_options():
    assert {path.stem.split("_")[0] for path in SHIPPED} == ADAPTERS
    assert plugins.BUILT_IN["policy"].keys() > ADAPTERS
