"""LeRobot datasets, format v3.0, to episodes and back, without the lerobot package.

Tables are Parquet, pictures are MP4 as OpenCV writes and reads them, so pictures that went through
a dataset are close to the originals, not equal: even one colour all over comes back up to 4 of 255
off. Only what LeRobot's own reader needs is written:
``meta/info.json``, ``meta/tasks.parquet``, ``meta/episodes/``, ``meta/stats.json``, ``data/`` and
``videos/``. What our episodes need beside that stands in ``info.json`` under ``vla_reasoner_ros``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.data.bag_episodes import robot_hash
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import SUFFIX, Episode, EpisodeWriter, Kind
from vla_reasoner_ros.data.ingest import ForwardKinematics
from vla_reasoner_ros.data.seeds import RANGES
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.files import digest, write_atomically
from vla_reasoner_ros.types import ActionSpec, FloatArray, Observation

VERSION = "v3.0"
INFO, TASKS, STATS = "meta/info.json", "meta/tasks.parquet", "meta/stats.json"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
EXECUTED, EXECUTED_ARRAY = "executed_action", "executed_actions"
"""Feature for what moved the arm where that is not the action, and its array in episodes."""
OURS = "vla_reasoner_ros"
CODEC = "mp4v"
ARM_TOLERANCE = 0.01
"""Distance, m, of the end effector from where a dataset has it at which the arm is another one."""


@dataclass(frozen=True)
class Mapped:
    """What a foreign dataset's numbers mean.

    Attributes:
        spec: the convention of its actions; its ``dt`` must be the dataset's.
        joints: numbers of the state that are the arm's joint positions, rad, in its order.
        gripper: number of the state that is the gripper; negative is none, which counts as open.
        gripper_open, gripper_closed: what that number is for an open and a closed gripper.
        cameras: name in our episodes to key of the dataset.
        task: name of the task for our episodes.

    Raises:
        ConfigurationError: a field is of another type, or open and closed are one number.
    """

    spec: ActionSpec
    joints: tuple[int, ...]
    gripper: int
    gripper_open: float
    gripper_closed: float
    cameras: Mapping[str, str]
    task: str = ""

    def __post_init__(self) -> None:
        joints, cameras = self.joints, self.cameras
        listed = isinstance(joints, (list, tuple))
        if not listed or not all(type(index) is int and index >= 0 for index in joints):
            raise ConfigurationError(f"joints: expected a list of indices, got {joints!r}")
        if type(self.gripper) is not int:
            raise ConfigurationError(f"gripper: expected an index, got {self.gripper!r}")
        for name in ("gripper_open", "gripper_closed"):
            if type(getattr(self, name)) not in (int, float):
                raise ConfigurationError(f"{name}: expected a number, got {getattr(self, name)!r}")
        if self.gripper >= 0 and self.gripper_open == self.gripper_closed:
            raise ConfigurationError(
                f"gripper_open and gripper_closed: expected two numbers, got {self.gripper_open} "
                "twice"
            )
        if not isinstance(cameras, Mapping) or not all(
            isinstance(k, str) for k in cameras.values()
        ):
            raise ConfigurationError(f"cameras: expected names and keys, got {cameras!r}")
        object.__setattr__(self, "joints", tuple(joints))


def export_dataset(episodes: EpisodeSet, folder: str | Path) -> Path:
    """Write episodes as a dataset.

    Args:
        episodes: of one contract.
        folder: must not be there.

    Raises:
        ConfigurationError: the folder is there, or a camera's height or width is odd.
        EpisodeError: a video cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigurationError(f"dataset {folder}: exists already")
    for name, (height, width) in episodes.cameras.items():
        if height % 2 or width % 2:
            raise ConfigurationError(
                f"camera {name!r}: {height} x {width} pixels, expected an even height and width; "
                "a video would lose a row or column"
            )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    first, spec = episodes[0], episodes.action_spec
    fps = 1.0 / spec.dt
    tasks = sorted({episode.meta.instruction for episode in episodes})
    table: dict[str, list[Any]] = {STATE: [], ACTION: []}
    if any(episode.meta.executed == EXECUTED_ARRAY for episode in episodes):
        table[EXECUTED] = []
    rows, begun, about = [], 0, []
    for number, episode in enumerate(episodes):
        for name, images in episode.images.items():
            target = part / VIDEO.format(video_key=IMAGES + name, chunk_index=0, file_index=number)
            _write_video(target, images, fps)
        count = len(episode)
        table[STATE] += list(np.column_stack([episode["joint_positions"], episode["gripper"]]))
        table[ACTION] += list(episode.actions)
        if EXECUTED in table:
            table[EXECUTED] += list(episode.executed_actions)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.meta.instruction],
            "length": count,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": begun,
            "dataset_to_index": begun + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name in episode.cameras:
            key = f"videos/{IMAGES}{name}"
            row |= {
                f"{key}/chunk_index": 0,
                f"{key}/file_index": number,
                f"{key}/from_timestamp": 0.0,
                f"{key}/to_timestamp": count / fps,
            }
        rows.append(row)
        about.append(
            {n: getattr(episode.meta, n) for n in ("task", "seed", "success")}
            | {"kind": episode.meta.kind.value, "executed": episode.meta.executed}
            | {"ee_position": episode["ee_position"][0].tolist()}
        )
        begun += count
    lengths = [len(episode) for episode in episodes]
    frames = np.concatenate([np.arange(n) for n in lengths])
    task_of = [tasks.index(e.meta.instruction) for e in episodes for _ in range(len(e))]
    vector = pa.list_(pa.float32())
    _write_table(
        part / DATA.format(chunk_index=0, file_index=0),
        pa.table(
            {
                **{k: pa.array([r.tolist() for r in v], vector) for k, v in table.items()},
                "timestamp": pa.array(frames / fps, pa.float32()),
                "frame_index": pa.array(frames, pa.int64()),
                "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths), pa.int64()),
                "index": pa.array(np.arange(begun), pa.int64()),
                "task_index": pa.array(task_of, pa.int64()),
            }
        ),
    )
    _write_table(part / EPISODES, pa.Table.from_pylist(rows))
    tasks_table = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks})
    # The index as pandas keeps it, by which LeRobot finds a task's number.
    pandas = {"index_columns": ["__index_level_0__"], "columns": [], "column_indexes": []}
    _write_table(part / TASKS, tasks_table.replace_schema_metadata({"pandas": json.dumps(pandas)}))
    stats = {key: _statistics(np.array(values)) for key, values in table.items()}
    write_atomically(part / STATS, json.dumps(stats).encode())
    info = {
        "codebase_version": VERSION,
        "robot_type": "",
        "total_episodes": len(episodes),
        "total_frames": begun,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": fps if fps % 1 else int(fps),
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": _features(first, fps, table),
        OURS: {
            "action_spec": spec.to_mapping(),
            "joint_names": list(first.meta.joint_names),
            "ee_frame": first.meta.ee_frame,
            "episodes": about,
        },
    }
    write_atomically(part / INFO, json.dumps(info, indent=1).encode())
    part.replace(folder)
    return folder


def import_dataset(
    source: str | Path,
    folder: str | Path,
    kinematics: ForwardKinematics,
    mapped: Mapped | None = None,
) -> list[Path]:
    """Turn a dataset into episodes; those that were made of it before are kept.

    Args:
        source: the dataset.
        folder: where the episodes go.
        kinematics: of the arm, for the end effector's pose.
        mapped: what its numbers mean; None where this package wrote it.

    Raises:
        EpisodeError: there is no dataset of this version, or it does not hold what it says.
        ConfigurationError: the mapping or the arm does not fit, or the folder has episodes of the
            dataset's name that were made of something else.
    """
    root = Path(source)
    info = _read_info(root)
    ours: dict[str, Any] = info.get(OURS, {})
    if mapped is None and not ours:
        raise ConfigurationError(f"dataset {root}: say what its numbers mean")
    names = kinematics.robot.joint_names
    mapping = mapped or _own_mapping(root, info, kinematics.robot)
    if abs(mapping.spec.dt * info["fps"] - 1.0) > 1e-6:
        raise ConfigurationError(
            f"dataset {root}: {info['fps']} Hz, the actions' dt is {mapping.spec.dt} s"
        )
    if len(mapping.joints) != len(names):
        raise ConfigurationError(
            f"dataset {root}: {len(mapping.joints)} joints, the arm has {len(names)}"
        )
    _claim(root, Path(folder), mapping, kinematics.robot)
    paths = []
    for row, table in _episodes(root, info):
        number = int(row["episode_index"])
        about = _about(root, ours, number, required=mapped is None)
        path = Path(folder) / f"{root.name}-{number:06d}{SUFFIX}"
        paths.append(path)
        if path.exists():
            continue
        writer = EpisodeWriter(mapping.spec)
        pictures = {
            name: _read_video(root, info, key, row) for name, key in mapping.cameras.items()
        }
        executed = [None] * len(table[ACTION])
        if about.get("executed") == EXECUTED_ARRAY:
            executed = list(_column(table, EXECUTED, root))
        steps = _steps(table, row, pictures, mapping, kinematics)
        for (observation, action), moved in zip(steps, executed, strict=True):
            if mapped is None and not len(writer):
                _require_arm(root, about, observation, kinematics.robot)
            writer.append(observation, action, executed=moved)
        writer.write(
            path,
            task=str(about.get("task", mapping.task)),
            seed=int(about.get("seed", RANGES["training"].start + number)),
            success=bool(about.get("success", True)),
            kind=about.get("kind", Kind.EXPERT.value),
        )
    return paths


def _claim(root: Path, folder: Path, mapping: Mapped, robot: Robot) -> None:
    """Say in the folder what its episodes of a dataset's name are made of, before there is one.

    Raises:
        ConfigurationError: they are made of something else, or nothing says of what.
    """
    tables = sorted(path for part in ("meta", "data") for path in (root / part).rglob("*.parquet"))
    videos = [(path.name, path.stat().st_size) for path in sorted((root / "videos").rglob("*.mp4"))]
    made_of = (digest([root / INFO, *tables]), videos, mapping, robot_hash(robot))
    told = json.dumps({"made_of": hashlib.sha256(repr(made_of).encode()).hexdigest()}).encode()
    index = folder / f"{root.name}.json"
    if index.is_file() and index.read_bytes() == told:
        return
    if any(folder.glob(f"{root.name}-{'[0-9]' * 6}{SUFFIX}")):
        raise ConfigurationError(
            f"dataset {root}: {folder} has episodes {root.name}-* of another dataset, mapping or "
            "arm, or that do not say of what; remove them, or take another folder"
        )
    write_atomically(index, told)


def _about(root: Path, ours: Mapping[str, Any], number: int, required: bool) -> dict[str, Any]:
    """What our part of ``info.json`` says of an episode."""
    told = ours.get("episodes", [])
    if number < len(told):
        return dict(told[number])
    if required:
        raise EpisodeError(
            f"dataset {root}: {INFO} describes {len(told)} episodes under {OURS}, and there is an "
            f"episode {number}; it was added by others, so say what the numbers mean"
        )
    return {}


def _require_arm(
    root: Path, about: Mapping[str, Any], observation: Observation, robot: Robot
) -> None:
    """Refuse an arm of the same joint names whose end effector is elsewhere."""
    expected = np.array(about.get("ee_position", observation.ee_position))
    distance = float(np.linalg.norm(observation.ee_position - expected))
    if distance > ARM_TOLERANCE:
        raise ConfigurationError(
            f"dataset {root}: the end effector begins at {expected.round(3).tolist()} m, that of "
            f"robot {robot.name!r} is at {observation.ee_position.round(3).tolist()} m then; it is "
            "another arm or tool"
        )


def _own_mapping(root: Path, info: Mapping[str, Any], robot: Robot) -> Mapped:
    """What the numbers of a dataset of ours mean.

    Raises:
        EpisodeError: our part of ``info.json`` is broken.
        ConfigurationError: it is of another arm.
    """
    cameras = {key.removeprefix(IMAGES): key for key in info["features"] if key.startswith(IMAGES)}
    try:
        spec = ActionSpec.from_mapping(info[OURS]["action_spec"])
        names, frame = tuple(info[OURS]["joint_names"]), str(info[OURS]["ee_frame"])
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"dataset {root}: {INFO}: {OURS} is broken: {error!r}") from error
    if (names, frame) != (robot.joint_names, robot.base_frame):
        raise ConfigurationError(
            f"dataset {root}: joints {', '.join(names)} in frame {frame!r}; robot {robot.name!r} "
            f"has {', '.join(robot.joint_names)} in {robot.base_frame!r}"
        )
    return Mapped(spec, tuple(range(len(names))), len(names), 1.0, 0.0, cameras)


def _steps(
    table: Mapping[str, NDArray[Any]],
    row: Mapping[str, Any],
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]],
    mapping: Mapped,
    kinematics: ForwardKinematics,
) -> Iterator[tuple[Observation, FloatArray]]:
    states, actions = table[STATE], table[ACTION]
    count = len(states)
    last = max(*mapping.joints, mapping.gripper)
    if states.ndim != 2 or last >= states.shape[1]:
        raise ConfigurationError(
            f"episode {row['episode_index']}: {STATE} has shape {states.shape[1:]}, the mapping "
            f"takes number {last} of it"
        )
    for name, images in pictures.items():
        if len(images) != count:
            raise EpisodeError(
                f"episode {row['episode_index']}: {len(images)} pictures of {name!r} for {count} "
                "steps"
            )
    joints = states[:, list(mapping.joints)]
    velocities = np.gradient(joints, mapping.spec.dt, axis=0) if count > 1 else joints * 0.0
    span = mapping.gripper_open - mapping.gripper_closed
    for step in range(count):
        position, quaternion = kinematics.forward(joints[step])
        opening = 1.0
        if mapping.gripper >= 0:
            opening = (states[step, mapping.gripper] - mapping.gripper_closed) / span
        observation = Observation(
            stamp_ns=round(step * mapping.spec.dt * 1e9),
            images={name: images[step] for name, images in pictures.items()},
            joint_names=kinematics.robot.joint_names,
            joint_positions=joints[step],
            joint_velocities=velocities[step],
            ee_position=position,
            ee_quaternion=quaternion,
            gripper=float(opening),
            instruction=str(row["tasks"][0]),
            ee_frame=kinematics.robot.base_frame,
        )
        yield observation, actions[step]


def _read_info(root: Path) -> dict[str, Any]:
    try:
        info = json.loads((root / INFO).read_text(encoding="utf-8"))
        version = info["codebase_version"]
    except OSError as error:
        raise EpisodeError(f"dataset {root}: {INFO}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EpisodeError(f"dataset {root}: {INFO} is broken: {error!r}") from error
    if version != VERSION:
        raise EpisodeError(
            f"dataset {root}: expected format {VERSION}, got {version}; LeRobot converts older ones"
        )
    fps = info.get("fps")
    if type(fps) not in (int, float) or fps <= 0:
        raise EpisodeError(f"dataset {root}: {INFO}: fps: expected pictures a second, got {fps!r}")
    for name, kind in (("features", dict), ("data_path", str)):
        if not isinstance(info.get(name), kind):
            raise EpisodeError(
                f"dataset {root}: {INFO}: {name}: expected {kind.__name__}, got {info.get(name)!r}"
            )
    return dict(info)


def _episodes(
    root: Path, info: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """Each episode's entry, and its states and actions, (T, S) and (T, D)."""
    files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise EpisodeError(f"dataset {root}: meta/episodes has no table")
    loaded: dict[tuple[int, int], pa.Table] = {}
    for file in files:
        for row in _read_table(file).to_pylist():
            place = int(row["data/chunk_index"]), int(row["data/file_index"])
            if place not in loaded:
                loaded.clear()
                loaded[place] = _read_table(
                    root / info["data_path"].format(chunk_index=place[0], file_index=place[1])
                )
            table = loaded[place]
            chosen = table.filter(pa.compute.equal(table["episode_index"], row["episode_index"]))
            if chosen.num_rows != row["length"]:
                raise EpisodeError(
                    f"dataset {root}: episode {row['episode_index']} has {chosen.num_rows} rows, "
                    f"its entry says {row['length']}"
                )
            yield (
                row,
                {
                    key: np.array(_column(chosen, key, root).to_pylist(), np.float64)
                    for key in (
                        STATE,
                        ACTION,
                        *([EXECUTED] if OURS in info and EXECUTED in info["features"] else []),
                    )
                },
            )


def _column(table: Any, key: str, root: Path) -> Any:
    try:
        return table[key]
    except KeyError as error:
        raise EpisodeError(f"dataset {root}: its tables have no column {key!r}") from error


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise EpisodeError(f"table {path}: cannot be read: {error}") from error


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _write_video(path: Path, images: NDArray[np.uint8], fps: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1:3]
    writer = _video_writer(path, fps, int(width), int(height))
    if not writer.isOpened():
        raise EpisodeError(f"video {path}: OpenCV cannot write {CODEC}")
    for image in images:
        writer.write(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))
    writer.release()
    # OpenCV does not say that a disk is full.
    capture, written = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        written += 1
    capture.release()
    if written != len(images):
        raise EpisodeError(
            f"video {path}: {written} of {len(images)} pictures could be written; is the disk full?"
        )


def _video_writer(path: Path, fps: float, width: int, height: int) -> cv2.VideoWriter:
    return cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODEC), fps, (width, height))


def _read_video(
    root: Path, info: Mapping[str, Any], key: str, row: Mapping[str, Any]
) -> list[NDArray[np.uint8]]:
    """The pictures of one episode."""
    if f"videos/{key}/file_index" not in row:
        raise ConfigurationError(f"dataset {root}: no video {key!r}")
    if not isinstance(info.get("video_path"), str):
        raise EpisodeError(
            f"dataset {root}: {INFO}: video_path: expected str, got {info.get('video_path')!r}"
        )
    path = root / info["video_path"].format(
        video_key=key,
        chunk_index=int(row[f"videos/{key}/chunk_index"]),
        file_index=int(row[f"videos/{key}/file_index"]),
    )
    first = round(float(row[f"videos/{key}/from_timestamp"]) * float(info["fps"]))
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise EpisodeError(f"video {path}: missing, or of a codec that OpenCV cannot read")
    pictures: list[NDArray[np.uint8]] = []
    for index in range(first + int(row["length"])):
        # Read one by one: seeking goes to the nearest key frame only.
        there, frame = capture.read()
        if not there:
            break
        if index >= first:
            pictures.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8))
    capture.release()
    return pictures


def _features(episode: Episode, fps: float, columns: Collection[str]) -> dict[str, Any]:
    features: dict[str, Any] = {
        STATE: {
            "dtype": "float32",
            "shape": [len(episode.meta.joint_names) + 1],
            "names": [*episode.meta.joint_names, "gripper"],
        },
        ACTION: {
            "dtype": "float32",
            "shape": [episode.meta.action_spec.dimensions],
            "names": list(episode.meta.action_spec.names),
        },
    }
    if EXECUTED in columns:
        features[EXECUTED] = features[ACTION]
    for name, (height, width) in episode.cameras.items():
        features[IMAGES + name] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.fps": fps, "video.codec": CODEC, "has_audio": False},
        }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        kind = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": kind, "shape": [1], "names": None}
    return features


def _statistics(values: NDArray[Any]) -> dict[str, Any]:
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("direction", choices=("import", "export"))
    parser.add_argument("source", type=Path, help="dataset to import, or episode folder to export")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--robot", default="fr3", help="arm of the dataset (default fr3)")
    parser.add_argument(
        "--mapping",
        type=Path,
        help="JSON with the fields of Mapped, for a dataset that this package did not write",
    )


def run(arguments: argparse.Namespace) -> int:
    """Import or export."""
    if arguments.direction == "export":
        episodes = EpisodeSet.open(arguments.source)
        export_dataset(episodes, arguments.out)
        print(f"{len(episodes)} episodes, {episodes.steps} steps in {arguments.out}")
        return 0
    mapped = None
    if arguments.mapping is not None:
        try:
            fields = json.loads(arguments.mapping.read_text(encoding="utf-8"))
            spec = ActionSpec.from_mapping(fields.pop("spec"))
            mapped = Mapped(spec=spec, **fields)
        except OSError as error:
            raise ConfigurationError(f"{arguments.mapping}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{arguments.mapping}: not a mapping: {error}") from error
    kinematics = Kinematics(load_robot(arguments.robot))
    paths = import_dataset(arguments.source, arguments.out, kinematics, mapped)
    print(f"{len(paths)} episodes in {arguments.out}")
    return 0
