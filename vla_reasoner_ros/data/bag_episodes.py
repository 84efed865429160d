"""Recorded bags to episodes that the trainers read, through the ingest of the live camera node.

Each bag is read once: its episodes are named by a hash of its contents, the contract and the
options, and an index that is written last says that they are complete. A contract maps anyone's own
topics; where no action was recorded, the measured motion is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import STORAGES, BagMessage, BagReader
from vla_reasoner_ros.data.contract import Contract, load_contract
from vla_reasoner_ros.data.episodes import SUFFIX, EpisodeWriter, Kind
from vla_reasoner_ros.data.ingest import ForwardKinematics
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.data.messages import ACTION_CHUNK, SIMULATOR_STATE, chunk_from_message
from vla_reasoner_ros.data.motion import action_between, follows
from vla_reasoner_ros.data.seeds import RANGES
from vla_reasoner_ros.errors import ActionChunkError, BagError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    FloatArray,
    GripperSpec,
    Observation,
    Representation,
)

META_TOPIC, META = "episode", "std_msgs/msg/String"
"""JSON with task, seed, kind and success, in bags that :mod:`.episode_bags` writes."""
EXECUTED_TOPIC = "executed_action"
POSES_TOPIC, POSES = "object_poses", "geometry_msgs/msg/PoseArray"
SHORTEST = 2
"""Steps below which what lies between two gaps is no episode."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class ImportOptions:
    """What a bag does not say.

    Attributes:
        task: the task's name.
        success: whether its episodes did what was asked; a recorded simulator knows better.
        kind: who acted.
        instruction: where the bag has none.
        namespace: of the topics.
    """

    task: str = ""
    success: bool = True
    kind: str = Kind.EXPERT.value
    instruction: str = ""
    namespace: str = ""


def motion_spec(contract: Contract, joint_names: Sequence[str], frame: str) -> ActionSpec:
    """The convention of the actions that a measured motion is turned into.

    Args:
        contract: says which.
        joint_names: of the arm, for joint actions.
        frame: of the observed end effector.
    """
    wanted = contract.actions
    names: tuple[str, ...] = tuple(joint_names)
    if wanted.representation == Representation.EE_DELTA.value:
        names = ("x", "y", "z", "rx", "ry", "rz")
    elif wanted.representation == Representation.EE_POSE.value:
        names = ("x", "y", "z", "qx", "qy", "qz", "qw")
    cartesian = wanted.representation.startswith("end_effector")
    return ActionSpec(
        Representation(wanted.representation),
        (*names, "gripper"),
        frame if cartesian else "",
        1.0 / contract.moments.rate,
        GripperSpec(len(names), wanted.gripper_open, wanted.gripper_closed, wanted.gripper_binary),
    )


@dataclass
class _Recorded:
    """What a bag has beside its observations, by stamp."""

    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)
    executed: dict[int, ActionChunk] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    poses: dict[int, FloatArray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def episodes_from_bag(
    path: str | Path,
    contract: Contract,
    folder: str | Path,
    options: ImportOptions | None = None,
    kinematics: ForwardKinematics | None = None,
) -> tuple[list[Path], list[str]]:
    """Turn a bag into episodes, unless that was done before.

    A new episode begins where the instruction changes, a simulator begins another one, or an
    observation is missing.

    Args:
        path: the bag.
        contract: what an observation is made of, and which actions to take.
        folder: where the episodes go.
        options: what the bag does not say.
        kinematics: of the contract's robot; None loads it.

    Returns:
        The files, and what is wrong with the bag.

    Raises:
        BagError: the bag does not fit the contract, or no episode is in it.
    """
    options = options or ImportOptions()
    with BagReader(path) as bag:
        name = content_hash(bag.files, contract, options)
        index = Path(folder) / f"{name}.json"
        if index.is_file():
            known = json.loads(index.read_text(encoding="utf-8"))
            return [Path(folder) / file for file in known["episodes"]], known["problems"]
        ingest = BagIngest(bag, contract, options.instruction, options.namespace, kinematics)
        recorded, restarts = _Recorded(), []
        listeners = _listeners(bag, ingest, recorded)
        observations: list[Observation] = []
        for moment in ingest.moments(listeners, lambda: restarts.append(len(observations))):
            observations.append(moment.observation)
        problems = [*bag.problems, *ingest.problems]
    files = []
    for number, part in enumerate(_parts(observations, restarts, recorded, contract)):
        file = Path(folder) / f"{name}-{number}{SUFFIX}"
        written = _write(file, part, recorded, contract, options, f"{name}{number}")
        if written:
            files.append(file)
        else:
            problems.append(f"{len(part)} observations in a row are too few for an episode")
    if not files:
        raise BagError(f"bag {path}: no episode in it; {'; '.join(problems) or 'it is empty'}")
    known = {"bag": str(path), "episodes": [file.name for file in files], "problems": problems}
    write_atomically(index, json.dumps(known, indent=1).encode())
    return files, problems


def content_hash(files: Sequence[Path], contract: Contract, options: ImportOptions) -> str:
    """A hash of a bag's contents and of how it is read."""
    digest = hashlib.sha256(repr((contract, options)).encode())
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16]


def _listeners(bag: BagReader, ingest: BagIngest, recorded: _Recorded) -> Mapping[str, Any]:
    actions = ingest.contract.actions

    def chunk_came(message: BagMessage) -> None:
        fields = bag.deserialize(message)
        try:
            chunk = chunk_from_message(fields)
        except ActionChunkError as error:
            bag.problems.append(str(error))
            return
        recorded.chunks.append((to_nanoseconds(fields.header.stamp), chunk))

    def executed_came(message: BagMessage) -> None:
        chunk = chunk_from_message(bag.deserialize(message))
        recorded.executed[chunk.observation_stamp_ns] = chunk

    def state_came(message: BagMessage) -> None:
        fields = bag.deserialize(message)
        recorded.states[to_nanoseconds(fields.header.stamp)] = fields

    def poses_came(message: BagMessage) -> None:
        fields = bag.deserialize(message)
        poses = [
            (*_numbers(p.position, "xyz"), *_numbers(p.orientation, "xyzw")) for p in fields.poses
        ]
        recorded.poses[to_nanoseconds(fields.header.stamp)] = np.array(poses).reshape(-1, 7)

    def meta_came(message: BagMessage) -> None:
        recorded.meta = json.loads(bag.deserialize(message).data)

    wanted = {
        EXECUTED_TOPIC: (ACTION_CHUNK, executed_came),
        "simulator_state": (SIMULATOR_STATE, state_came),
        POSES_TOPIC: (POSES, poses_came),
        META_TOPIC: (META, meta_came),
    }
    if actions.source != "motion":
        wanted[actions.topic] = (ACTION_CHUNK, chunk_came)
    listeners = {}
    for topic, (kind, take) in wanted.items():
        found = ingest.find(topic)
        if found is not None and bag.topics[found].type == kind:
            listeners[found] = take
        elif topic == actions.topic and actions.source == "chunks":
            raise BagError(f"bag {bag.path}: topic {topic} with action chunks is missing")
    return listeners


def _numbers(message: Any, names: str) -> tuple[float, ...]:
    return tuple(float(getattr(message, name)) for name in names)


def _parts(
    observations: list[Observation],
    restarts: list[int],
    recorded: _Recorded,
    contract: Contract,
) -> list[list[Observation]]:
    """Observations in a row."""
    parts: list[list[Observation]] = []
    dt = 1.0 / contract.moments.rate
    for number, observation in enumerate(observations):
        before = parts[-1][-1] if parts else None
        joined = (
            before is not None
            and number not in restarts
            and follows(before, observation, dt)
            and _episode(recorded, before) == _episode(recorded, observation)
        )
        if joined:
            parts[-1].append(observation)
        else:
            parts.append([observation])
    return parts


def _episode(recorded: _Recorded, observation: Observation) -> int | None:
    state = recorded.states.get(observation.stamp_ns)
    return None if state is None else int(state.episode)


def _write(
    file: Path,
    part: list[Observation],
    recorded: _Recorded,
    contract: Contract,
    options: ImportOptions,
    name: str,
) -> bool:
    """Write one episode; whether there was enough for one."""
    by_chunks = bool(recorded.chunks)
    spec = (
        recorded.chunks[0][1].spec
        if by_chunks
        else motion_spec(contract, part[0].joint_names, part[0].ee_frame)
    )
    meta = recorded.meta
    objects = tuple(meta.get("object_names", ()))
    writer = EpisodeWriter(spec, objects)
    for number, observation in enumerate(part):
        if by_chunks:
            action = _commanded(recorded.chunks, observation.stamp_ns)
        elif number + 1 < len(part):
            action = action_between(observation, part[number + 1], spec)
        else:
            action = None
        if action is None:
            continue
        stamp_ns = observation.stamp_ns
        state, executed = recorded.states.get(stamp_ns), recorded.executed.get(stamp_ns)
        if state is not None and len(state.state):
            observation = replace(observation, simulator_state=np.array(state.state))
        writer.append(
            observation,
            action,
            None if state is None else float(state.progress),
            recorded.poses.get(stamp_ns) if objects else None,
            None if executed is None else executed.actions[0],
        )
    if len(writer) < SHORTEST:
        return False
    last = recorded.states.get(part[-1].stamp_ns)
    seeds = RANGES["training"]
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    success = options.success if last is None else bool(last.success)
    writer.write(
        file,
        task=str(meta.get("task", options.task or ("" if last is None else last.task))),
        seed=int(meta.get("seed", seeds.start + digest % len(seeds))),
        success=bool(meta.get("success", success)),
        kind=meta.get("kind", options.kind),
    )
    return True


def _commanded(chunks: list[tuple[int, ActionChunk]], stamp_ns: int) -> FloatArray | None:
    """The action that runs after a moment: of the newest chunk published by then."""
    published = [chunk for told_ns, chunk in chunks if told_ns <= stamp_ns]
    if not published:
        return None
    chunk = published[-1]
    index = round((stamp_ns - chunk.observation_stamp_ns) * 1e-9 / chunk.spec.dt)
    if index < chunk.steps:
        return np.array(chunk.actions[index])
    held = np.array(chunk.actions[-1])  # it has run out, and the arm holds
    if chunk.spec.is_delta:
        held[list(chunk.spec.motion_indices)] = 0.0
    return held


def bags_in(folders: Sequence[Path]) -> list[Path]:
    """The bags of some folders: each folder that holds bag files, or is one.

    Raises:
        BagError: there is none.
    """
    found: list[Path] = []
    suffixes = (*STORAGES.values(), *(f"{suffix}.zstd" for suffix in STORAGES.values()))
    for folder in folders:
        if not folder.exists():
            raise BagError(f"bag {folder}: there is none")
        files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
        found += dict.fromkeys(
            path if path == folder else path.parent
            for path in files
            if path.is_file() and path.name.endswith(suffixes)
        )
    if not found:
        raise BagError(f"no bag in {', '.join(map(str, folders))}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bags", nargs="+", type=Path, help="bags, or folders with bags")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--out", type=Path, default=Path("data/imported"), help="episode folder")
    parser.add_argument("--task", default="", help="name of the task")
    parser.add_argument("--failure", action="store_true", help="the episodes did not succeed")
    parser.add_argument(
        "--kind",
        choices=[k.value for k in Kind],
        default=Kind.EXPERT.value,
        help="who acted (default: an expert)",
    )
    parser.add_argument("--instruction", default="", help="where a bag has none")
    parser.add_argument("--namespace", default="", help="of the topics")


def run(arguments: argparse.Namespace) -> int:
    """Import every bag; one that is unusable is said and left out."""
    contract = load_contract(arguments.contract)
    options = ImportOptions(
        arguments.task,
        not arguments.failure,
        arguments.kind,
        arguments.instruction,
        arguments.namespace,
    )
    kinematics = Kinematics(load_robot(contract.moments.robot))
    bags, count, failed = bags_in(arguments.bags), 0, 0
    for number, bag in enumerate(bags, 1):
        try:
            files, problems = episodes_from_bag(bag, contract, arguments.out, options, kinematics)
        except BagError as error:
            failed += 1
            print(f"import-bags: {error}", file=sys.stderr)
            continue
        count += len(files)
        print(f"import-bags: {number}/{len(bags)} {bag}: {len(files)} episodes", file=sys.stderr)
        for problem in problems:
            print(f"  note: {problem}", file=sys.stderr)
    print(f"{count} episodes of {len(bags) - failed} bags in {arguments.out}")
    return int(failed == len(bags))
