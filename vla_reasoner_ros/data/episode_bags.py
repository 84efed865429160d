"""Recorded episodes as rosbag2 recordings: what a robot with these streams would have published.

The inverse of :mod:`vla_reasoner_ros.data.bag_episodes`: such a bag replays, and gives the same
episode when it is read again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_reasoner_ros.data.bag_episodes import (
    EXECUTED_TOPIC,
    META,
    META_TOPIC,
    POSES,
    POSES_TOPIC,
    told_of,
)
from vla_reasoner_ros.data.bag_ingest import IMAGES, JOINT_STATE, STRING
from vla_reasoner_ros.data.bags import BagReader, BagWriter
from vla_reasoner_ros.data.contract import JOINT_STATES, Contract, load_contract
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import SUFFIX, Episode, EpisodeWriter
from vla_reasoner_ros.data.images import encode_png
from vla_reasoner_ros.data.message_types import NANOSECONDS
from vla_reasoner_ros.data.messages import (
    ACTION_CHUNK,
    SIMULATOR_STATE,
    chunk_fields,
    image_fields,
)
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.types import ActionChunk, FloatArray

START_NS = 1_000_000_000_000
STEP_NS = 1_000
"""Time of recording from one message of a moment to the next."""


def write_episode(path: str | Path, episode: Episode, contract: Contract) -> Path:
    """Write an episode as a bag, which appears whole or not at all.

    Args:
        path: the bag's folder; must not be there.
        episode: its observations must have the contract's cameras.
        contract: names the topics.

    Raises:
        ConfigurationError: the contract has a camera that the episode has not, another rate, or
            no joints for a gripper that the episode has.
        BagError: the folder is there already, or the disk is full.
    """
    _require_fit(episode, contract)
    path = Path(path)
    if path.exists():
        raise BagError(f"bag {path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        whole = Path(folder) / path.name
        _write(whole, episode, contract)
        whole.rename(path)
    return path


def _require_fit(episode: Episode, contract: Contract) -> None:
    meta, images = episode.meta, episode.images
    missing = sorted(set(contract.cameras) - set(images))
    if missing:
        raise ConfigurationError(f"episode {episode.path}: no camera {', '.join(missing)}")
    if abs(meta.action_spec.dt * contract.moments.rate - 1.0) > 1e-6:
        raise ConfigurationError(
            f"episode {episode.path}: {1 / meta.action_spec.dt:g} Hz, the contract has "
            f"{contract.moments.rate:g}"
        )
    # Without joints a gripper counts as open.
    if not contract.gripper.joints and (episode["gripper"] != 1.0).any():
        raise ConfigurationError(
            f"episode {episode.path}: its gripper is not always open, and the contract's gripper "
            "has no joints to say so"
        )


def _write(path: Path, episode: Episode, contract: Contract) -> None:
    meta, images, gripper = episode.meta, episode.images, contract.gripper
    # A stamp is later than its event by the stream's latency; messages come after all stamps.
    late_ns = {n: round(s.latency * NANOSECONDS) for n, s in contract.streams.items()}
    delay_ns = max(0, *late_ns.values())
    topics = {
        META_TOPIC: META,
        contract.moments.instruction: STRING,
        contract.joint_states.topic: JOINT_STATE,
        contract.actions.topic: ACTION_CHUNK,
        **{camera.topic: IMAGES[camera.type] for camera in contract.cameras.values()},
    }
    simulated = episode["simulator_state"].shape[1] > 0
    if simulated:
        topics["simulator_state"] = SIMULATOR_STATE
    if meta.object_names:
        topics[POSES_TOPIC] = POSES
    if meta.executed != "actions":
        topics[EXECUTED_TOPIC] = ACTION_CHUNK
    told = {
        "task": meta.task,
        "seed": meta.seed,
        "kind": meta.kind.value,
        "success": meta.success,
        "object_names": list(meta.object_names),
    }
    with BagWriter(path, compress=True, custom=_origin(episode, contract)) as bag:
        for topic, kind in topics.items():
            latched = topic in (META_TOPIC, contract.moments.instruction)
            bag.add_topic(f"/{topic}", kind, latched=latched)
        bag.write(f"/{META_TOPIC}", START_NS, {"data": json.dumps(told)})
        bag.write(f"/{contract.moments.instruction}", START_NS, {"data": meta.instruction})
        for step in range(len(episode)):
            stamp_ns = START_NS + round(step * meta.action_spec.dt * 1e9)
            header = {"stamp": stamp_ns}
            opening = float(episode["gripper"][step])
            count = len(gripper.joints)
            fingers = [gripper.closed + opening * (gripper.open - gripper.closed)] * count
            happened: list[tuple[str, object]] = []
            if simulated:
                happened.append(
                    (
                        "simulator_state",
                        {
                            "header": header,
                            "task": meta.task,
                            "seed": meta.seed,
                            "episode": 1,
                            "state": episode["simulator_state"][step],
                            "progress": float(episode.progress[step]),
                            "success": meta.success and step == len(episode) - 1,
                        },
                    )
                )
            if meta.object_names:
                poses = [_pose(pose) for pose in episode["object_poses"][step]]
                frame = {**header, "frame_id": meta.ee_frame}
                happened.append((POSES_TOPIC, {"header": frame, "poses": poses}))
            for topic, actions in (
                (contract.actions.topic, episode.actions),
                (EXECUTED_TOPIC, episode.executed_actions),
            ):
                if topic in topics:
                    action = actions[step : step + 1].astype(np.float64)
                    chunk = ActionChunk(meta.action_spec, action, stamp_ns, sequence=step + 1)
                    happened.append((topic, chunk_fields(chunk, stamp_ns)))
            happened.append(
                (
                    contract.joint_states.topic,
                    {
                        "header": {"stamp": stamp_ns + late_ns[JOINT_STATES]},
                        "name": [*meta.joint_names, *gripper.joints],
                        "position": np.append(episode["joint_positions"][step], fingers),
                        "velocity": np.append(episode["joint_velocities"][step], [0.0] * count),
                    },
                )
            )
            # The camera that moments are timed by comes last: nothing is missing then.
            reference = contract.moments.reference
            for name in sorted(contract.cameras, key=lambda name: name == reference):
                camera, image = contract.cameras[name], images[name][step]
                seen_ns = stamp_ns + late_ns[name]
                if camera.type == "image":
                    happened.append((camera.topic, image_fields(image, seen_ns, name)))
                else:
                    told_at = {"stamp": seen_ns}
                    png = {"header": told_at, "format": "png", "data": encode_png(image)}
                    happened.append((camera.topic, png))
            for number, (topic, message) in enumerate(happened):
                bag.write(f"/{topic}", stamp_ns + delay_ns + number * STEP_NS, message)


def _origin(episode: Episode, contract: Contract) -> dict[str, str]:
    """What a bag was made of, as it is kept with the bag."""
    digest = hashlib.sha256(repr(contract).encode()).hexdigest()
    return {"episode_sha256": episode.content_hash, "contract_sha256": digest}


def write_recording(
    path: str | Path, writer: EpisodeWriter, contract: Contract, **told: Any
) -> Path:
    """Write what an episode writer collected as a bag, which appears whole or not at all.

    Args:
        path: the bag's folder; must not be there.
        writer: holds the steps.
        contract: names the topics.
        told: task, seed, success and kind, as :meth:`EpisodeWriter.write` takes them.

    Raises:
        EpisodeError: the episode has no step.
        BagError: the folder is there already, or the disk is full.
    """
    path = Path(path)
    if path.exists():
        raise BagError(f"bag {path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        episode = Episode(writer.write(Path(folder) / f"episode{SUFFIX}", **told))
        return write_episode(path, episode, contract)


def read_told(path: str | Path) -> dict[str, Any]:
    """What a bag of :func:`write_episode` says of itself: task, seed, kind, success, object names.

    Raises:
        BagError: it is no such bag.
    """
    with BagReader(path) as bag:
        for message in bag.messages([f"/{META_TOPIC}"]):
            return told_of(bag.deserialize(message).data)
    raise BagError(f"bag {path}: no message on /{META_TOPIC}; no episode was written there")


def _pose(pose: FloatArray) -> dict[str, dict[str, float]]:
    return {
        "position": dict(zip("xyz", pose[:3], strict=True)),
        "orientation": dict(zip("xyzw", pose[3:], strict=True)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("episodes", nargs="+", type=Path, help="episode folders")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--out", type=Path, default=Path("data/bags"), help="folder for the bags")


def run(arguments: argparse.Namespace) -> int:
    """Write every episode that is not there yet as a bag of its own.

    Raises:
        BagError: a bag has an episode's name and was made of something else.
        ConfigurationError: two episodes have one name, or an episode does not fit the contract.
    """
    contract = load_contract(arguments.contract)
    episodes = EpisodeSet.open(*arguments.episodes)
    bags = _bags_of(episodes, arguments.out)
    there = {path for path, episode in bags.items() if _is_there(path, episode, contract)}
    written = 0
    for number, (path, episode) in enumerate(bags.items(), 1):
        if path not in there:
            write_episode(path, episode, contract)
            written += 1
        if number % 20 == 0 or number == len(episodes):
            print(f"export-bags: {number}/{len(episodes)} episodes", file=sys.stderr)
    print(f"{written} bags written, {len(episodes)} in {arguments.out}")
    return 0


def _bags_of(episodes: EpisodeSet, folder: Path) -> Mapping[Path, Episode]:
    """Each episode by the bag that it is written to."""
    bags: dict[Path, Episode] = {}
    for episode in episodes:
        path = folder / episode.path.stem
        if path in bags:
            raise ConfigurationError(
                f"episodes {bags[path].path} and {episode.path}: both would be bag {path}; export "
                "them into folders of their own"
            )
        bags[path] = episode
    return bags


def _is_there(path: Path, episode: Episode, contract: Contract) -> bool:
    """Whether a bag of this episode and contract was written before.

    Raises:
        BagError: what has the name was made of something else, or does not say of what.
    """
    if not path.exists():
        return False
    with BagReader(path) as bag:
        made_of = bag.custom
    expected = _origin(episode, contract)
    differing = [name for name, value in expected.items() if made_of.get(name) != value]
    if differing:
        said = ", ".join(f"{name} {made_of.get(name, 'unknown')}" for name in differing)
        wanted = ", ".join(f"{name} {expected[name]}" for name in differing)
        raise BagError(
            f"bag {path}: exists already with {said}, expected {wanted} for {episode.path}; remove "
            "it, or take another folder"
        )
    return True
