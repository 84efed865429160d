import json
import re
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import KINEMATICS

from vla_reasoner_ros import cli
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data import lerobot
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Episode, EpisodeWriter
from vla_reasoner_ros.data.lerobot import Mapped, export_dataset, import_dataset
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.types import ActionSpec, GripperSpec, Observation, Representation

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(6),
)
INSTRUCTIONS = ("lift the green block", "put the red block on the plate")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("episodes"), np.random.default_rng(0)
    for number in range(3):
        writer = EpisodeWriter(SPEC)
        coarse = rng.integers(40, 216, (6, 6, 3), dtype=np.uint8)
        for step in range(5 + number):
            joints = np.array(KINEMATICS.robot.home) + 0.02 * step
            joints = joints.astype(np.float32).astype(np.float64)
            position, quaternion = KINEMATICS.forward(joints)
            image = cv2.resize(np.roll(coarse, step, axis=0), (96, 96))
            observation = Observation(
                stamp_ns=step,
                images={"agent": image, "wrist": image[::-1].copy()},
                joint_names=KINEMATICS.robot.joint_names,
                joint_positions=joints,
                joint_velocities=np.full(7, 0.2),
                ee_position=position,
                ee_quaternion=quaternion,
                gripper=step / 8,
                instruction=INSTRUCTIONS[number % 2],
            )
            writer.append(observation, rng.normal(size=7))
        path = folder / f"{number}.safetensors"
        writer.write(
            path, task="lift_green", seed=100_000 + number, success=number > 0, kind="policy"
        )
    return EpisodeSet.open(folder)


def written(folder, size=(96, 96), shift=0.0, executed=None, steps=4):
    """A folder with one short episode."""
    writer = EpisodeWriter(SPEC)
    for step in range(steps):
        joints = np.array(KINEMATICS.robot.home) + 0.02 * step
        position, quaternion = KINEMATICS.forward(joints)
        image = np.full((*size, 3), 20 * step, np.uint8)
        observation = Observation(
            stamp_ns=step,
            images={"agent": image},
            joint_names=KINEMATICS.robot.joint_names,
            joint_positions=joints,
            joint_velocities=np.zeros(7),
            ee_position=position + shift,
            ee_quaternion=quaternion,
            gripper=0.5,
            instruction="lift",
        )
        moved = None if executed is None else np.full(7, executed)
        writer.append(observation, np.full(7, 0.001 * step), executed=moved)
    kind = "expert" if executed is None else "noisy_expert"
    writer.write(folder / "a.safetensors", task="t", seed=100_001, success=True, kind=kind)
    return folder


def exported(folder, **options):
    return export_dataset(EpisodeSet.open(written(folder / "episodes", **options)), folder / "set")


@pytest.fixture(scope="module")
def dataset(episodes, tmp_path_factory):
    return export_dataset(episodes, tmp_path_factory.mktemp("sets") / "blocks")


def test_episodes_survive_the_way_through_a_dataset(episodes, dataset, tmp_path):
    again = [Episode(p) for p in import_dataset(dataset, tmp_path, KINEMATICS)]
    assert [len(e) for e in again] == [5, 6, 7]
    for one, other in zip(episodes, again, strict=True):
        assert other.meta == one.meta
        for name in ("actions", "joint_positions", "joint_velocities", "ee_position", "gripper"):
            np.testing.assert_allclose(other[name], one[name], atol=1e-5, err_msg=name)
        for camera in ("agent", "wrist"):
            difference = other.images[camera].astype(float) - one.images[camera]
            assert np.abs(difference).mean() < 8.0, camera


def test_what_is_there_is_not_read_again(dataset, tmp_path):
    first = import_dataset(dataset, tmp_path, KINEMATICS)
    made = [path.stat().st_mtime_ns for path in first]
    first[1].unlink()
    again = import_dataset(dataset, tmp_path, KINEMATICS)
    assert again == first
    assert [again[i].stat().st_mtime_ns for i in (0, 2)] == [made[0], made[2]]


def test_disturbances_that_were_executed_survive_too(tmp_path):
    dataset = exported(tmp_path, executed=0.009)
    info = json.loads((dataset / "meta" / "info.json").read_text())
    assert info["features"]["executed_action"]["shape"] == [7]
    (episode,) = map(Episode, import_dataset(dataset, tmp_path / "again", KINEMATICS))
    assert episode.meta.executed == "executed_actions"
    np.testing.assert_allclose(episode.executed_actions, 0.009)
    assert episode.actions[0, 0] == 0.0


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_another_arm_than_the_datasets_is_refused(dataset, tmp_path, name):
    with pytest.raises(ConfigurationError, match=f"joints fr3_joint1, .*; robot '{name}' has"):
        import_dataset(dataset, tmp_path, Kinematics(load_robot(name)))


def test_another_arm_of_the_same_joint_names_is_refused(tmp_path):
    dataset = exported(tmp_path, shift=0.1)
    with pytest.raises(ConfigurationError, match=r"the end effector begins at .* another arm"):
        import_dataset(dataset, tmp_path / "out", KINEMATICS)


def test_what_has_the_name_and_is_of_something_else_is_refused(tmp_path):
    first = exported(tmp_path / "first")
    second = exported(tmp_path / "second", steps=5)
    out = tmp_path / "out"
    (path,) = import_dataset(first, out, KINEMATICS)
    with pytest.raises(ConfigurationError, match="of another dataset, mapping or arm"):
        import_dataset(second, out, KINEMATICS)
    turned = Mapped(SPEC, tuple(range(7)), 7, 0.0, 1.0, {"agent": "observation.images.agent"})
    with pytest.raises(ConfigurationError, match="of another dataset, mapping or arm"):
        import_dataset(first, out, KINEMATICS, turned)
    path.unlink()
    import_dataset(first, out, KINEMATICS, turned)


def test_a_picture_that_a_video_would_crop_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="'agent': 97 x 95 pixels, expected an even"):
        exported(tmp_path, size=(97, 95))


def test_a_video_that_was_not_written_whole_is_named(tmp_path, monkeypatch):
    # OpenCV's own loses the pictures in silence, too.
    full = SimpleNamespace(isOpened=lambda: True, write=lambda _: None, release=lambda: None)
    monkeypatch.setattr(lerobot, "_video_writer", lambda *_: full)
    with pytest.raises(EpisodeError, match="0 of 4 pictures could be written"):
        exported(tmp_path)
    assert not (tmp_path / "set").exists()


GOOD = {
    "spec": SPEC.to_mapping(),
    "joints": [0, 1, 2, 3, 4, 5, 6],
    "gripper": 7,
    "gripper_open": 1.0,
    "gripper_closed": 0.0,
    "cameras": {"agent": "observation.images.agent"},
}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("joints", [0, 1, 2, 3, 4, 5, 99], r"observation.state has shape \(8,\).*number 99"),
        ("joints", "0123456", "joints: expected a list of indices, got '0123456'"),
        ("gripper", 20, "takes number 20"),
        ("gripper", None, "gripper: expected an index, got None"),
        ("gripper_open", "1", "gripper_open: expected a number, got '1'"),
        ("gripper_open", 0.0, "expected two numbers, got 0.0 twice"),
        ("cameras", ["observation.images.agent"], "cameras: expected names and keys"),
    ],
)
def test_a_mapping_that_cannot_be_is_named(dataset, tmp_path, capsys, field, value, said):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps(GOOD | {field: value}))
    verb = ["lerobot", "import", str(dataset), "--out", str(tmp_path / "out")]
    assert cli.main([*verb, "--mapping", str(mapping)]) == cli.EXIT_ERROR
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def changed(dataset, folder, change):
    shutil.copytree(dataset, folder)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda info: info.pop("fps"), "fps: expected pictures a second, got None"),
        (lambda info: info.pop("features"), "features: expected dict, got None"),
        (lambda info: info["vla_reasoner_ros"]["episodes"].pop(), "describes 2 episodes"),
        (lambda info: info["vla_reasoner_ros"].pop("action_spec"), "vla_reasoner_ros is broken"),
    ],
)
def test_a_dataset_that_does_not_say_what_it_must_is_named(dataset, tmp_path, change, said):
    with pytest.raises(EpisodeError, match=said):
        import_dataset(changed(dataset, tmp_path / "set", change), tmp_path / "out", KINEMATICS)


def test_a_dataset_without_states_is_named(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "set")
    (file,) = (tmp_path / "set" / "data").rglob("*.parquet")
    pq.write_table(pq.read_table(file).drop(["observation.state"]), file)
    with pytest.raises(EpisodeError, match=r"no column 'observation\.state'"):
        import_dataset(tmp_path / "set", tmp_path / "out", KINEMATICS)


def test_the_tables_are_those_of_the_format(dataset):
    info = json.loads((dataset / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 18, 2)
    assert info["fps"] == 10
    assert info["features"]["observation.images.agent"]["dtype"] == "video"
    data = pq.read_table(dataset / "data" / "chunk-000" / "file-000.parquet")
    assert data["index"].to_pylist() == list(range(18))
    assert data["frame_index"].to_pylist() == [*range(5), *range(6), *range(7)]
    assert set(data["task_index"].to_pylist()) == {0, 1}
    assert len(data["action"][0]) == info["features"]["action"]["shape"][0] == 7
    rows = pq.read_table(dataset / "meta" / "episodes").to_pylist()
    assert [row["dataset_to_index"] for row in rows] == [5, 11, 18]
    for row in rows:
        name = f"file-{row['videos/observation.images.wrist/file_index']:03d}.mp4"
        assert (dataset / "videos" / "observation.images.wrist" / "chunk-000" / name).is_file()
    tasks = pq.read_table(dataset / "meta" / "tasks.parquet")
    assert tasks["__index_level_0__"].to_pylist() == sorted(INSTRUCTIONS)
    stats = json.loads((dataset / "meta" / "stats.json").read_text())
    assert len(stats["action"]["mean"]) == 7


def test_a_dataset_of_others_is_read_by_what_its_numbers_mean(dataset, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(dataset, foreign)
    info = json.loads((foreign / "meta" / "info.json").read_text())
    del info["vla_reasoner_ros"]
    (foreign / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigurationError, match="say what its numbers mean"):
        import_dataset(foreign, tmp_path / "out", KINEMATICS)
    mapped = Mapped(SPEC, tuple(range(7)), 7, 1.0, 0.0, {"front": "observation.images.agent"}, "t")
    (first, *_) = import_dataset(foreign, tmp_path / "out", KINEMATICS, mapped)
    episode = Episode(first)
    assert list(episode.images) == ["front"]
    assert episode.meta.task == "t"
    wrong = Mapped(SPEC, (0, 1), -1, 1.0, 0.0, {})
    with pytest.raises(ConfigurationError, match="2 joints, the arm has 7"):
        import_dataset(foreign, tmp_path / "two", KINEMATICS, wrong)
    other = Mapped(SPEC, tuple(range(7)), -1, 1.0, 0.0, {"front": "observation.images.none"})
    with pytest.raises(ConfigurationError, match="no video"):
        import_dataset(foreign, tmp_path / "three", KINEMATICS, other)


def test_what_is_no_dataset_is_refused(dataset, tmp_path):
    with pytest.raises(EpisodeError, match="No such file"):
        import_dataset(tmp_path, tmp_path / "out", KINEMATICS)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(EpisodeError, match=r"expected format v3\.0, got v2\.1"):
        import_dataset(tmp_path, tmp_path / "out", KINEMATICS)
    with pytest.raises(ConfigurationError, match="exists already"):
        export_dataset([], dataset)


def test_the_verb_goes_both_ways(episodes, tmp_path, capsys):
    folder = str(episodes[0].path.parent)
    assert cli.main(["lerobot", "export", folder, "--out", str(tmp_path / "set")]) == 0
    assert cli.main(["lerobot", "import", str(tmp_path / "set"), "--out", str(tmp_path / "e")]) == 0
    assert "3 episodes" in capsys.readouterr().out
    assert EpisodeSet.open(tmp_path / "e").steps == 18
