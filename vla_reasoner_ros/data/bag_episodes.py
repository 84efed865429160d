"""Recorded bags to episodes that the trainers read, through the ingest of the live camera node.

Each bag is read once: its episodes are named by a hash of its contents, the contract and the
options, and an index that is written last says that they are complete. A contract maps anyone's own
topics; where no action was recorded, the measured motion is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import STORAGES, BagMessage, BagReader
from vla_reasoner_ros.data.contract import Contract, load_contract
from vla_reasoner_ros.data.episodes import SUFFIX, EpisodeWriter, Kind
from vla_reasoner_ros.data.ingest import ForwardKinematics
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.data.messages import ACTION_CHUNK, SIMULATOR_STATE, chunk_from_message
from vla_reasoner_ros.data.motion import TIMING, action_between, follows
from vla_reasoner_ros.data.seeds import RANGES
from vla_reasoner_ros.errors import BagError, ConfigurationError, EpisodeError, VlaReasonerError
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
    """What a bag has between two restarts of its time, all but the observations by stamp."""

    observations: list[Observation] = field(default_factory=list)

    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)
    executed: dict[int, ActionChunk] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    poses: dict[int, FloatArray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def beside(self, observation: Observation) -> tuple[bool, ...]:
        """Which of the parts of a step were recorded for an observation."""
        stamp_ns = observation.stamp_ns
        wanted = [self.states, self.executed, *([self.poses] if self.objects else [])]
        return tuple(stamp_ns in known for known in wanted)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects whose poses are recorded."""
        return tuple(self.meta.get("object_names", ()))


@dataclass
class _Part:
    """Observations in a row.

    Attributes:
        recorded: what else was recorded in that time.
        run: number of the first part of the same demonstration.
        observations: they.
        whole: whether the demonstration ends with it.
        success: newest verdict of a recorded simulator; None where there is none on a
            demonstration's end.
    """

    recorded: _Recorded
    run: int
    observations: list[Observation]
    whole: bool = True
    success: bool | None = None


def episodes_from_bag(
    path: str | Path,
    contract: Contract,
    folder: str | Path,
    options: ImportOptions | None = None,
    kinematics: ForwardKinematics | None = None,
) -> tuple[list[Path], list[str]]:
    """Turn a bag into episodes, unless that was done before.

    A new episode begins where the instruction changes, a simulator begins another one, time starts
    over, or an observation is missing. What a missing observation parts is one demonstration: its
    parts have one seed, and without a simulator's word only the last of them may be a success.

    Args:
        path: the bag.
        contract: what an observation is made of, and which actions to take.
        folder: where the episodes go.
        options: what the bag does not say.
        kinematics: of the contract's robot; None loads it.

    Returns:
        The files, and what is wrong with the bag.

    Raises:
        BagError: the bag does not fit the contract, mixes action conventions, or no episode is in
            it.
        ConfigurationError: the contract's robot cannot be loaded.
    """
    options = options or ImportOptions()
    if kinematics is None:
        kinematics = Kinematics(load_robot(contract.moments.robot))
    robot = robot_hash(kinematics.robot)
    with BagReader(path) as bag:
        name = content_hash(bag.files, contract, options)
        index = Path(folder) / f"{name}.json"
        if index.is_file():
            known = json.loads(index.read_text(encoding="utf-8"))
            if known.get("robot") == robot:
                return [Path(folder) / file for file in known["episodes"]], known["problems"]
            for file in known["episodes"]:
                (Path(folder) / file).unlink(missing_ok=True)
        ingest = BagIngest(bag, contract, options.instruction, options.namespace, kinematics)
        unusable: dict[str, list[str]] = {}
        segments = [_Recorded()]
        for moment in ingest.moments(
            _listeners(bag, ingest, segments, unusable),
            lambda: segments.append(_Recorded(meta=segments[-1].meta)),
        ):
            segments[-1].observations.append(moment.observation)
        problems = [*bag.problems, *ingest.problems]
    problems += [f"{t}: {len(e)} messages not used; the last: {e[-1]}" for t, e in unusable.items()]
    parts, gaps = _parts(segments, contract)
    problems += _said_of_gaps(gaps, contract)
    files, short = [], 0
    try:
        spec = _chunk_spec(segments)
        for number, part in enumerate(parts):
            file = Path(folder) / f"{name}-{number}{SUFFIX}"
            if _write(file, part, spec, contract, options, f"{name}{part.run}"):
                files.append(file)
            else:
                short += 1
    except (ConfigurationError, EpisodeError) as error:
        raise BagError(f"bag {path}: {error}") from error
    if short:
        problems.append(
            f"{short} times fewer than {SHORTEST} observations in a row with an action: too few "
            "for an episode"
        )
    if not files:
        raise BagError(f"bag {path}: no episode in it; {'; '.join(problems) or 'it is empty'}")
    known = {
        "bag": str(path),
        "episodes": [file.name for file in files],
        "problems": problems,
        "robot": robot,
    }
    write_atomically(index, json.dumps(known, indent=1).encode())
    return files, problems


def robot_hash(robot: Robot) -> str:
    """A hash of what an observation takes from a robot's file."""
    frames = [(f.name, f.translation.tolist(), f.rpy.tolist()) for f in robot.tool_frames]
    taken = (robot.joint_names, robot.base_frame, robot.convention, robot.dh.tolist(), frames)
    return hashlib.sha256(repr(taken).encode()).hexdigest()[:16]


def content_hash(files: Sequence[Path], contract: Contract, options: ImportOptions) -> str:
    """A hash of a bag's contents and of how it is read."""
    digest = hashlib.sha256(repr((contract, options)).encode())
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16]


def told_of(text: str) -> dict[str, Any]:
    """What a bag says of its episode.

    Raises:
        BagError: it is not what :mod:`.episode_bags` writes.
    """
    kinds = {"task": str, "seed": int, "kind": str, "success": bool, "object_names": list}
    try:
        told = json.loads(text)
        right = isinstance(told, dict) and all(
            isinstance(told[name], kind) for name, kind in kinds.items() if name in told
        )
        if right:
            Kind(told.get("kind", Kind.EXPERT))
    except ValueError:
        right = False
    if not right:
        raise BagError(f"expected JSON with {', '.join(kinds)} of an episode, got {text[:80]!r}")
    return dict(told)


def _listeners(
    bag: BagReader,
    ingest: BagIngest,
    segments: list[_Recorded],
    unusable: dict[str, list[str]],
) -> Mapping[str, Any]:
    """What takes the messages beside the streams; errors go to ``unusable`` by topic."""
    actions = ingest.contract.actions

    def chunk_came(fields: Any) -> None:
        chunk = chunk_from_message(fields)
        segments[-1].chunks.append((to_nanoseconds(fields.header.stamp), chunk))

    def executed_came(fields: Any) -> None:
        chunk = chunk_from_message(fields)
        segments[-1].executed[chunk.observation_stamp_ns] = chunk

    def state_came(fields: Any) -> None:
        segments[-1].states[to_nanoseconds(fields.header.stamp)] = fields

    def poses_came(fields: Any) -> None:
        poses = [
            (*_numbers(p.position, "xyz"), *_numbers(p.orientation, "xyzw")) for p in fields.poses
        ]
        segments[-1].poses[to_nanoseconds(fields.header.stamp)] = np.array(poses).reshape(-1, 7)

    def meta_came(fields: Any) -> None:
        segments[-1].meta = told_of(fields.data)

    def usable(take: Callable[[Any], None]) -> Callable[[BagMessage], None]:
        def came(message: BagMessage) -> None:
            try:
                take(bag.deserialize(message))
            except VlaReasonerError as error:
                unusable.setdefault(message.topic, []).append(str(error))

        return came

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
            listeners[found] = usable(take)
        elif topic == actions.topic and actions.source == "chunks":
            raise BagError(f"bag {bag.path}: topic {topic} with action chunks is missing")
    return listeners


def _numbers(message: Any, names: str) -> tuple[float, ...]:
    return tuple(float(getattr(message, name)) for name in names)


def _parts(segments: Sequence[_Recorded], contract: Contract) -> tuple[list[_Part], list[float]]:
    """Observations in a row, and the intervals, s, at which a demonstration lacks some."""
    parts: list[_Part] = []
    gaps: list[float] = []
    dt = 1.0 / contract.moments.rate
    for recorded in segments:
        if recorded.observations:
            parts.append(_Part(recorded, len(parts), recorded.observations[:1]))
        for before, observation in itertools.pairwise(recorded.observations):
            if not _same_run(recorded, before, observation):
                parts.append(_Part(recorded, len(parts), [observation]))
            elif follows(before, observation, dt) and (
                recorded.beside(before) == recorded.beside(observation)
            ):
                parts[-1].observations.append(observation)
            else:
                gaps.append((observation.stamp_ns - before.stamp_ns) * 1e-9)
                parts[-1].whole = False
                parts.append(_Part(recorded, parts[-1].run, [observation]))
    for _, run in itertools.groupby(parts, lambda part: part.run):
        _judge(list(run))
    return parts, gaps


def _same_run(recorded: _Recorded, before: Observation, after: Observation) -> bool:
    """Whether two observations are of one demonstration."""
    states = (recorded.states.get(one.stamp_ns) for one in (before, after))
    told = {int(state.episode) for state in states if state is not None}
    return before.instruction == after.instruction and len(told) < 2


def _judge(run: Sequence[_Part]) -> None:
    """Give each part of a demonstration its newest verdict, and the last one the newest of all."""
    newest = None
    for part in run:
        states = (part.recorded.states.get(one.stamp_ns) for one in part.observations)
        own = [bool(state.success) for state in states if state is not None][-1:]
        newest = own[0] if own else newest
        part.success = bool(own and own[0])
    run[-1].success = newest


def _said_of_gaps(gaps: Sequence[float], contract: Contract) -> list[str]:
    """What is to be said of the intervals, s, at which demonstrations lack something."""
    if not gaps:
        return []
    dt = 1.0 / contract.moments.rate
    said = (
        f"{len(gaps)} gaps within demonstrations: unless a simulator says otherwise, only what "
        "comes after the last may be a success"
    )
    intervals = [interval for interval in gaps if abs(interval - dt) > TIMING * dt]
    if intervals:
        usual = float(np.median(intervals))
        said += f"; observations {usual:.3f} s apart, expected {dt:.3f} s within {TIMING:.0%}"
        if usual < (2.0 - TIMING) * dt:  # less than what one missing observation leaves
            said += (
                f": the pictures of {contract.moments.reference} must come at a multiple of the "
                f"contract's {contract.moments.rate:g} Hz"
            )
    return [said]


def _chunk_spec(segments: Sequence[_Recorded]) -> ActionSpec | None:
    """The convention of all action chunks of a bag; None without any.

    Raises:
        ConfigurationError: they have several.
    """
    chunks = [chunk for recorded in segments for _, chunk in recorded.chunks]
    for chunk in chunks[1:]:
        _require_convention(chunk, chunks[0].spec)
    return chunks[0].spec if chunks else None


def _require_convention(chunk: ActionChunk, spec: ActionSpec) -> None:
    if chunk.spec != spec:
        spec.require_same(
            chunk.spec, "the first action", f"that of {chunk.observation_stamp_ns} ns"
        )


def _write(
    file: Path,
    part: _Part,
    chunk_spec: ActionSpec | None,
    contract: Contract,
    options: ImportOptions,
    name: str,
) -> bool:
    """Write one episode; whether there was enough for one."""
    recorded, observations = part.recorded, part.observations
    first = observations[0]
    spec = chunk_spec or motion_spec(contract, first.joint_names, first.ee_frame)
    objects = recorded.objects
    writer = EpisodeWriter(spec, objects)
    for number, observation in enumerate(observations):
        if chunk_spec is not None:
            action = _commanded(recorded.chunks, observation.stamp_ns)
        elif number + 1 < len(observations):
            action = action_between(observation, observations[number + 1], spec)
        else:
            action = None
        if action is None:
            continue
        stamp_ns = observation.stamp_ns
        state, executed = recorded.states.get(stamp_ns), recorded.executed.get(stamp_ns)
        if state is not None and len(state.state):
            observation = replace(observation, simulator_state=np.array(state.state))
        if executed is not None:
            _require_convention(executed, spec)
        writer.append(
            observation,
            action,
            None if state is None else float(state.progress),
            recorded.poses.get(stamp_ns) if objects else None,
            None if executed is None else executed.actions[0],
        )
    if len(writer) < SHORTEST:
        return False
    meta, last = recorded.meta, recorded.states.get(observations[-1].stamp_ns)
    seeds = RANGES["training"]
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    success = options.success if part.success is None else part.success
    writer.write(
        file,
        task=str(meta.get("task", options.task or ("" if last is None else last.task))),
        seed=int(meta.get("seed", seeds.start + digest % len(seeds))),
        success=bool(meta.get("success", success)) if part.whole else success,
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


PART = re.compile(r"part_\d+")


def bags_in(folders: Sequence[Path]) -> list[Path]:
    """The bags of some folders: each folder that holds bag files, or is one; hidden ones are not.

    Raises:
        BagError: there is none.
    """
    found: list[Path] = []
    suffixes = (*STORAGES.values(), *(f"{suffix}.zstd" for suffix in STORAGES.values()))
    for folder in folders:
        if not folder.exists():
            raise BagError(f"bag {folder}: there is none")
        files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
        bags = dict.fromkeys(
            path if path == folder else path.parent
            for path in files
            if path.is_file()
            and path.name.endswith(suffixes)
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        # A part that was not finished lies in a folder of its own within its recording's.
        found += [b for b in bags if not (PART.fullmatch(b.name) and b.parent in bags)]
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
