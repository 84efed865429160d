"""The core's data as plain message fields and back, without ROS: bags and live topics share it.

What comes in is anything with a message's fields, from rclpy or from a bag; what goes out are plain
values that :func:`vla_reasoner_ros.data.message_types.serialize` writes.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.data.images import decode_image
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    ObservationError,
    SearchReportError,
)
from vla_reasoner_ros.search.statistics import SearchStatistics, Status, TreeSnapshot
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    ChunkSource,
    FloatArray,
    GripperSpec,
    Observation,
)

OBSERVATION = "vla_reasoner_ros/msg/Observation"
ACTION_CHUNK = "vla_reasoner_ros/msg/ActionChunk"
SEARCH_STATISTICS = "vla_reasoner_ros/msg/SearchStatistics"
SEARCH_TREE = "vla_reasoner_ros/msg/SearchTree"
SIMULATOR_STATE = "vla_reasoner_ros/msg/SimulatorState"

SOURCES = {
    ChunkSource.SEARCH: 0,
    ChunkSource.BLEND: 1,
    ChunkSource.POLICY: 2,
    ChunkSource.HOLD: 3,
}
"""The numbers of ``msg/ActionChunk.msg``."""

_NODE_LISTS = ("parents", "visits", "values", "leaf_values", "priors", "depths", "origins")
_CANDIDATE_LISTS = tuple(
    f"candidate_{name}" for name in ("ids", "visits", "values", "priors", "origins")
)

Fields = dict[str, Any]


def image_fields(image: Any, stamp_ns: int, frame: str = "") -> Fields:
    """An ``rgb8`` image of (H, W, 3) uint8 RGB pixels."""
    height, width, channels = image.shape
    return {
        "header": {"stamp": stamp_ns, "frame_id": frame},
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "step": width * channels,
        "data": np.ascontiguousarray(image).tobytes(),
    }


def observation_fields(observation: Observation) -> Fields:
    """The fields of an observation; a simulator's state travels on a topic of its own."""
    stamp_ns = observation.stamp_ns
    position = dict(zip("xyz", observation.ee_position, strict=True))
    orientation = dict(zip("xyzw", observation.ee_quaternion, strict=True))
    return {
        "header": {"stamp": stamp_ns, "frame_id": observation.ee_frame},
        "image_names": list(observation.images),
        "images": [image_fields(i, stamp_ns, n) for n, i in observation.images.items()],
        "joint_state": {
            "header": {"stamp": stamp_ns},
            "name": list(observation.joint_names),
            "position": observation.joint_positions,
            "velocity": observation.joint_velocities,
        },
        "ee_pose": {"position": position, "orientation": orientation},
        "gripper": observation.gripper,
        "instruction": observation.instruction,
        "stream_names": list(observation.ages),
        "stream_ages": list(observation.ages.values()),
    }


def observation_from_message(
    message: Any, simulator_state: FloatArray | None = None
) -> Observation:
    """The observation of a message.

    Args:
        message: the message.
        simulator_state: the simulator's full state at the same stamp, where one is known.

    Raises:
        ObservationError: parallel arrays differ in length, or a part is unusable.
    """
    _require_parallel(message.image_names, message.images, "image_names", "images")
    _require_parallel(message.stream_names, message.stream_ages, "stream_names", "stream_ages")
    position, rotation = message.ee_pose.position, message.ee_pose.orientation
    return Observation(
        stamp_ns=to_nanoseconds(message.header.stamp),
        images={
            name: decode_image(image, f"observation image {name}")
            for name, image in zip(message.image_names, message.images, strict=True)
        },
        joint_names=tuple(message.joint_state.name),
        joint_positions=np.array(message.joint_state.position),
        joint_velocities=np.array(message.joint_state.velocity),
        ee_position=np.array([position.x, position.y, position.z]),
        ee_quaternion=np.array([rotation.x, rotation.y, rotation.z, rotation.w]),
        ee_frame=message.header.frame_id,
        gripper=message.gripper,
        instruction=message.instruction,
        ages=dict(zip(message.stream_names, map(float, message.stream_ages), strict=True)),
        simulator_state=simulator_state,
    )


def _require_parallel(first: Any, second: Any, first_name: str, second_name: str) -> None:
    if len(first) != len(second):
        raise ObservationError(
            f"observation: {len(first)} {first_name} for {len(second)} {second_name}"
        )


def chunk_fields(chunk: ActionChunk, stamp_ns: int) -> Fields:
    """The fields of a chunk published at ``stamp_ns``."""
    spec, gripper = chunk.spec, chunk.spec.gripper
    fields: Fields = {
        "header": {"stamp": stamp_ns, "frame_id": spec.frame},
        "observation_stamp": chunk.observation_stamp_ns,
        "sequence": chunk.sequence,
        "representation": spec.representation.value,
        "names": list(spec.names),
        "dt": spec.dt,
        "steps": chunk.steps,
        "dimensions": spec.dimensions,
        "actions": chunk.actions,
        "gripper_index": -1,
        "consumed": chunk.consumed,
        "source": SOURCES[chunk.source],
        "confidence": chunk.confidence,
    }
    if gripper is not None:
        fields |= {f"gripper_{name}": value for name, value in dataclasses.asdict(gripper).items()}
    return fields


def chunk_from_message(message: Any) -> ActionChunk:
    """The chunk of a message.

    Raises:
        ActionChunkError: the numbers contradict one another, are not finite, or a word is unknown.
    """
    sources = {number: source for source, number in SOURCES.items()}
    if message.source not in sources:
        raise ActionChunkError(
            f"action chunk: source {message.source} is unknown; known are {sorted(sources)}"
        )
    if len(message.names) != message.dimensions:
        raise ActionChunkError(
            f"action chunk: {len(message.names)} names for {message.dimensions} dimensions"
        )
    if len(message.actions) != message.steps * message.dimensions:
        raise ActionChunkError(
            f"action chunk: {len(message.actions)} numbers, expected {message.steps} steps x "
            f"{message.dimensions} dimensions"
        )
    try:
        spec = ActionSpec(
            representation=message.representation,
            names=tuple(message.names),
            frame=message.header.frame_id,
            dt=message.dt,
            gripper=_gripper(message),
        )
    except (ConfigurationError, ValueError) as error:
        raise ActionChunkError(f"action chunk: {error}") from error
    return ActionChunk(
        spec=spec,
        actions=np.array(message.actions).reshape(message.steps, message.dimensions),
        observation_stamp_ns=to_nanoseconds(message.observation_stamp),
        sequence=message.sequence,
        source=sources[message.source],
        consumed=message.consumed,
        confidence=message.confidence,
    )


def _gripper(message: Any) -> GripperSpec | None:
    if message.gripper_index == -1:
        return None
    return GripperSpec(
        index=message.gripper_index,
        open=message.gripper_open,
        closed=message.gripper_closed,
        binary=message.gripper_binary,
    )


def statistics_fields(statistics: SearchStatistics, stamp_ns: int) -> Fields:
    """The fields of one decision's statistics, published at ``stamp_ns``."""
    fields = dict(vars(statistics))
    observation_stamp_ns = fields.pop("observation_stamp_ns")
    return {
        "header": {"stamp": stamp_ns},
        "observation_stamp": observation_stamp_ns,
        **fields,
        "stage_names": list(statistics.stage_names),
        "stage_ms": list(statistics.stage_ms),
    }


def statistics_from_message(message: Any) -> SearchStatistics:
    """The statistics of a message.

    Raises:
        SearchReportError: an unknown status, or lists that belong together differ in length.
    """
    if message.status not in set(Status):
        raise SearchReportError(
            f"search statistics: status is {message.status}, expected one of "
            f"{', '.join(f'{status.value} ({status.name})' for status in Status)}"
        )
    for together in (("stage_names", "stage_ms"), _CANDIDATE_LISTS):
        lengths = {name: len(getattr(message, name)) for name in together}
        _require_one_length("search statistics", lengths)
    names = [f.name for f in dataclasses.fields(SearchStatistics) if hasattr(message, f.name)]
    values = {name: _plain(getattr(message, name)) for name in names}
    return SearchStatistics(
        **values
        | {
            "observation_stamp_ns": to_nanoseconds(message.observation_stamp),
            "status": Status(message.status),
            "stage_names": tuple(message.stage_names),
            "stage_ms": tuple(map(float, message.stage_ms)),
        }
    )


def tree_fields(
    tree: TreeSnapshot, observation_stamp_ns: int, sequence: int, stamp_ns: int
) -> Fields:
    """The fields of a search tree; see ``msg/SearchTree.msg``."""
    nodes, macro_steps, dimensions = tree.actions.shape
    return {
        "header": {"stamp": stamp_ns},
        "observation_stamp": observation_stamp_ns,
        "sequence": sequence,
        "nodes": nodes,
        "macro_steps": macro_steps,
        "dimensions": dimensions,
        "origins": list(tree.origins),
        **{
            name: getattr(tree, name)
            for name in (
                "parents",
                "visits",
                "values",
                "leaf_values",
                "priors",
                "depths",
                "actions",
                "ee_positions",
            )
        },
    }


def tree_from_message(message: Any) -> TreeSnapshot:
    """The tree of a message, its states unknown (slots -1).

    Raises:
        SearchReportError: the arrays do not fit the numbers of nodes, steps and dimensions, a
            parent does not come before its node, or a count is too large.
    """
    nodes, steps, dimensions = message.nodes, message.macro_steps, message.dimensions
    lengths = {name: len(getattr(message, name)) for name in _NODE_LISTS}
    _require_one_length("search tree", {"nodes": nodes, **lengths})
    positions = len(message.ee_positions)
    for name, found, expected in (
        ("actions", len(message.actions), nodes * steps * dimensions),
        ("ee_positions", positions, 3 * nodes if positions else 0),
    ):
        if found != expected:
            raise SearchReportError(
                f"search tree: {name} has {found} numbers, expected {expected} for {nodes} nodes"
            )
    return TreeSnapshot(
        parents=_parents(np.array(message.parents, dtype=np.int64)),
        visits=_counts("visits", message.visits),
        values=np.array(message.values),
        leaf_values=np.array(message.leaf_values),
        priors=np.array(message.priors),
        depths=_counts("depths", message.depths),
        origins=tuple(message.origins),
        actions=np.array(message.actions).reshape(nodes, steps, dimensions),
        slots=np.full(nodes, -1, dtype=np.int64),
        ee_positions=np.array(message.ee_positions).reshape(-1, 3),
    )


def _require_one_length(what: str, lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SearchReportError(f"{what}: expected lists of one length, got {found}")


def _parents(parents: NDArray[np.int64]) -> NDArray[np.int32]:
    """Parents that come before their nodes, so that no path through the tree is endless."""
    low = np.where(np.arange(len(parents)) == 0, -1, 0)
    wrong = np.flatnonzero((parents < low) | (parents >= np.arange(len(parents))))
    if len(wrong):
        node = int(wrong[0])
        expected = f"{low[node]} to {node - 1}" if node else "-1"
        raise SearchReportError(
            f"search tree: the parent of node {node} is {parents[node]}, expected {expected}"
        )
    return parents.astype(np.int32)


def _counts(name: str, counts: Any) -> NDArray[np.int32]:
    found = np.array(counts, dtype=np.int64)
    if found.size and found.max() > np.iinfo(np.int32).max:
        raise SearchReportError(f"search tree: {name} has {found.max()}, expected below 2^31")
    return found.astype(np.int32)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, array.array)) else value
