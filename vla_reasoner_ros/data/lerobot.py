"""LeRobot datasets, format v3.0, to episodes and back, without the lerobot package.

Tables are Parquet, pictures are MP4 as OpenCV writes and reads them, so pictures that went through
a dataset are close to the originals, not equal. Only what LeRobot's own reader needs is written:
``meta/info.json``, ``meta/tasks.parquet``, ``meta/episodes/``, ``meta/stats.json``, ``data/`` and
``videos/``. What our episodes need beside that stands in ``info.json`` under ``vla_reasoner_ros``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import SUFFIX, Episode, EpisodeWriter, Kind
from vla_reasoner_ros.data.ingest import ForwardKinematics
from vla_reasoner_ros.data.seeds import RANGES
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.types import ActionSpec, FloatArray, Observation

VERSION = "v3.0"
INFO, TASKS, STATS = "meta/info.json", "meta/tasks.parquet", "meta/stats.json"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
OURS = "vla_reasoner_ros"
CODEC = "mp4v"


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
    """

    spec: ActionSpec
    joints: tuple[int, ...]
    gripper: int
    gripper_open: float
    gripper_closed: float
    cameras: Mapping[str, str]
    task: str = ""


def export_dataset(episodes: EpisodeSet, folder: str | Path) -> Path:
    """Write episodes as a dataset.

    Args:
        episodes: of one contract.
        folder: must not be there.

    Raises:
        ConfigurationError: the folder is there.
        EpisodeError: a video cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigurationError(f"dataset {folder}: exists already")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    first, spec = episodes[0], episodes.action_spec
    fps = 1.0 / spec.dt
    tasks = sorted({episode.meta.instruction for episode in episodes})
    table: dict[str, list[Any]] = {n: [] for n in ("state", "action")}
    rows, begun, about = [], 0, []
    for number, episode in enumerate(episodes):
        for name, images in episode.images.items():
            target = part / VIDEO.format(video_key=IMAGES + name, chunk_index=0, file_index=number)
            _write_video(target, images, fps)
        count = len(episode)
        table["state"] += list(np.column_stack([episode["joint_positions"], episode["gripper"]]))
        table["action"] += list(episode.actions)
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
            | {"kind": episode.meta.kind.value}
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
                STATE: pa.array([r.tolist() for r in table["state"]], vector),
                ACTION: pa.array([r.tolist() for r in table["action"]], vector),
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
    columns = {STATE: table["state"], ACTION: table["action"]}
    stats = {key: _statistics(np.array(values)) for key, values in columns.items()}
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
        "features": _features(first, fps),
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
    """Turn a dataset into episodes; those that are there already are kept.

    Args:
        source: the dataset.
        folder: where the episodes go.
        kinematics: of the arm, for the end effector's pose.
        mapped: what its numbers mean; None where this package wrote it.

    Raises:
        EpisodeError: there is no dataset of this version, or it does not hold what it says.
        ConfigurationError: the mapping does not fit.
    """
    root = Path(source)
    info = _read_info(root)
    ours: dict[str, Any] = info.get(OURS, {})
    if mapped is None and not ours:
        raise ConfigurationError(f"dataset {root}: say what its numbers mean")
    names = kinematics.robot.joint_names
    mapping = mapped or _own_mapping(ours, info, len(names))
    if abs(mapping.spec.dt * info["fps"] - 1.0) > 1e-6:
        raise ConfigurationError(
            f"dataset {root}: {info['fps']} Hz, the actions' dt is {mapping.spec.dt} s"
        )
    if len(mapping.joints) != len(names):
        raise ConfigurationError(
            f"dataset {root}: {len(mapping.joints)} joints, the arm has {len(names)}"
        )
    paths = []
    for row, table in _episodes(root, info):
        number = int(row["episode_index"])
        about = ours["episodes"][number] if ours else {}
        path = Path(folder) / f"{root.name}-{number:06d}{SUFFIX}"
        paths.append(path)
        if path.exists():
            continue
        writer = EpisodeWriter(mapping.spec)
        pictures = {
            name: _read_video(root, info, key, row) for name, key in mapping.cameras.items()
        }
        for observation, action in _steps(table, row, pictures, mapping, kinematics):
            writer.append(observation, action)
        writer.write(
            path,
            task=str(about.get("task", mapping.task)),
            seed=int(about.get("seed", RANGES["training"].start + number)),
            success=bool(about.get("success", True)),
            kind=about.get("kind", Kind.EXPERT.value),
        )
    return paths


def _own_mapping(ours: Mapping[str, Any], info: Mapping[str, Any], joints: int) -> Mapped:
    cameras = {key.removeprefix(IMAGES): key for key in info["features"] if key.startswith(IMAGES)}
    spec = ActionSpec.from_mapping(ours["action_spec"])
    return Mapped(spec, tuple(range(joints)), joints, 1.0, 0.0, cameras)


def _steps(
    table: Mapping[str, NDArray[Any]],
    row: Mapping[str, Any],
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]],
    mapping: Mapped,
    kinematics: ForwardKinematics,
) -> Iterator[tuple[Observation, FloatArray]]:
    states, actions = table[STATE], table[ACTION]
    count = len(states)
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
            columns = {k: np.array(chosen[k].to_pylist(), np.float64) for k in (STATE, ACTION)}
            yield row, columns


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
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*CODEC), fps, (int(width), int(height))
    )
    if not writer.isOpened():
        raise EpisodeError(f"video {path}: OpenCV cannot write {CODEC}")
    for image in images:
        writer.write(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))
    writer.release()


def _read_video(
    root: Path, info: Mapping[str, Any], key: str, row: Mapping[str, Any]
) -> list[NDArray[np.uint8]]:
    """The pictures of one episode."""
    if f"videos/{key}/file_index" not in row:
        raise ConfigurationError(f"dataset {root}: no video {key!r}")
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


def _features(episode: Episode, fps: float) -> dict[str, Any]:
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
