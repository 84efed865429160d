"""The data that flows between the rooms: observations, action chunks and decisions.

All quantities are SI units and radians, frames are right-handed (REP-103), quaternions are
``x y z w``. Times are integer nanoseconds of the node's clock. Everything here is immutable and
checks itself when it is made, so that a wrong width or a NaN is found where it enters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError, ObservationError

if TYPE_CHECKING:  # a decision carries what the search says; the search knows nothing of decisions
    from vla_reasoner_ros.search.statistics import SearchStatistics, TreeSnapshot

FloatArray = NDArray[np.float64]


class Representation(str, Enum):
    """What the numbers of an action mean."""

    JOINT_POSITION = "joint_position"
    """Target joint positions, rad."""
    JOINT_DELTA = "joint_delta"
    """Joint displacement from the previous target, rad."""
    EE_DELTA = "end_effector_delta"
    """Displacement from the previous target: translation x y z (m), rotation vector (rad).

    Both are expressed in ``ActionSpec.frame``: the rotation is applied from the left.
    """
    EE_POSE = "end_effector_pose"
    """Target pose in ``ActionSpec.frame``: position x y z (m), quaternion x y z w."""


MOTION_DIMENSIONS = {Representation.EE_DELTA: 6, Representation.EE_POSE: 7}


class ChunkSource(str, Enum):
    """Who made the chunk: the chain of fallbacks is search, blend, policy, hold."""

    SEARCH = "search"
    BLEND = "blend"
    POLICY = "policy"
    HOLD = "hold"


@dataclass(frozen=True)
class GripperSpec:
    """Where the gripper sits in an action and what its numbers mean.

    Attributes:
        index: the dimension of the action that commands the gripper.
        open: the value that means fully open.
        closed: the value that means fully closed.
        binary: whether only these two values are meant; a binary gripper is never blended.
    """

    index: int
    open: float = 1.0
    closed: float = 0.0
    binary: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.open) and np.isfinite(self.closed)) or self.open == self.closed:
            raise ConfigurationError(
                f"gripper: open and closed must be finite and differ, got {self.open} and "
                f"{self.closed}"
            )

    def opening(self, value: float) -> float:
        """The commanded opening as a fraction, 0 closed to 1 open; not clamped."""
        return (value - self.closed) / (self.open - self.closed)


@dataclass(frozen=True)
class ActionSpec:
    """The convention of an action vector of ``D = len(names)`` numbers.

    Attributes:
        representation: what the motion dimensions mean.
        names: one name per dimension: joint names, or x y z rx ry rz / x y z qx qy qz qw, and the
            gripper's.
        frame: the frame of end-effector actions; the empty string for joint actions.
        dt: seconds from one action of a chunk to the next.
        gripper: the gripper's dimension and convention, or None when the policy has none.

    Raises:
        ConfigurationError: the parts contradict one another.
    """

    representation: Representation
    names: tuple[str, ...]
    frame: str
    dt: float
    gripper: GripperSpec | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "representation", Representation(self.representation))
        object.__setattr__(self, "names", tuple(self.names))
        if not np.isfinite(self.dt) or self.dt <= 0.0:
            raise ConfigurationError(f"action spec: dt must be positive seconds, got {self.dt}")
        if len(set(self.names)) != len(self.names):
            raise ConfigurationError(f"action spec: names repeat in {self.names}")
        gripper = self.gripper
        if gripper is not None and not 0 <= gripper.index < len(self.names):
            raise ConfigurationError(
                f"action spec: gripper index {gripper.index} is outside the {len(self.names)} "
                "dimensions"
            )
        expected = MOTION_DIMENSIONS.get(self.representation)
        if expected is not None and len(self.motion_indices) != expected:
            raise ConfigurationError(
                f"action spec: {self.representation.value} needs {expected} motion dimensions, "
                f"got {len(self.motion_indices)} in {self.names}"
            )
        if expected is not None and not self.frame:
            raise ConfigurationError(
                f"action spec: {self.representation.value} needs a frame, got an empty one"
            )

    @property
    def dimensions(self) -> int:
        """The width D of an action."""
        return len(self.names)

    @property
    def motion_indices(self) -> tuple[int, ...]:
        """The dimensions that move the arm, in order: all but the gripper's."""
        skip = -1 if self.gripper is None else self.gripper.index
        return tuple(i for i in range(len(self.names)) if i != skip)

    @property
    def is_delta(self) -> bool:
        """Whether actions are displacements, to be decoded against one observation."""
        return self.representation in (Representation.JOINT_DELTA, Representation.EE_DELTA)

    def to_mapping(self) -> dict[str, Any]:
        """As plain values that JSON and YAML can hold."""
        return {
            "representation": self.representation.value,
            "names": list(self.names),
            "frame": self.frame,
            "dt": self.dt,
            "gripper": None if self.gripper is None else dataclasses.asdict(self.gripper),
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ActionSpec:
        """The inverse of :meth:`to_mapping`.

        Raises:
            ConfigurationError: a field is missing, unknown or contradicts another.
        """
        try:
            gripper = values["gripper"]
            return cls(**{**values, "gripper": None if gripper is None else GripperSpec(**gripper)})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"action spec: {values!r} is none: {error!r}") from error

    def require_same(self, other: ActionSpec, mine: str, theirs: str) -> None:
        """Refuse a different convention, naming every part that differs.

        Args:
            other: the convention to compare with.
            mine: the name of the component that this spec belongs to.
            theirs: the name of the component that ``other`` belongs to.

        Raises:
            ConfigurationError: any part differs.
        """
        differences = [
            f"{name}: {mine} has {getattr(self, name)!r}, {theirs} has {getattr(other, name)!r}"
            for name in ("representation", "names", "frame", "gripper")
            if getattr(self, name) != getattr(other, name)
        ]
        if not np.isclose(self.dt, other.dt, rtol=1e-6):
            differences.append(f"dt: {mine} has {self.dt} s, {theirs} has {other.dt} s")
        if differences:
            raise ConfigurationError("action conventions differ; " + "; ".join(differences))


@dataclass(frozen=True)
class ActionChunk:
    """A sequence of H actions of one convention.

    Attributes:
        spec: the convention.
        actions: (H, D), float64. Action i is due at ``observation_stamp_ns + (i + 1) * dt``.
        observation_stamp_ns: the stamp of the observation that the chunk was made from.
        sequence: counts the decisions of one planner, from 1.
        source: who made it.
        consumed: actions of the chunk that ran out while the planner was thinking, as measured at
            publication.
        confidence: share of root visits on the chosen candidate, [0, 1]; 1 for the plain policy.

    Raises:
        ActionChunkError: wrong shape, no action, or a non-finite number.
    """

    spec: ActionSpec
    actions: FloatArray
    observation_stamp_ns: int
    sequence: int = 0
    source: ChunkSource = ChunkSource.POLICY
    consumed: int = 0
    confidence: float = 1.0

    def __post_init__(self) -> None:
        actions = np.array(self.actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != self.spec.dimensions:
            raise ActionChunkError(
                f"action chunk: expected (steps >= 1, {self.spec.dimensions}) numbers for "
                f"{self.spec.names}, got shape {actions.shape}"
            )
        if not np.isfinite(actions).all():
            step, dimension = np.argwhere(~np.isfinite(actions))[0]
            raise ActionChunkError(
                f"action chunk: {self.spec.names[dimension]} at step {step} is "
                f"{actions[step, dimension]}, expected finite numbers"
            )
        actions.setflags(write=False)
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "source", ChunkSource(self.source))

    @property
    def steps(self) -> int:
        """The number H of actions."""
        return int(self.actions.shape[0])


@dataclass(frozen=True)
class Observation:
    """What the robot sees and feels at one moment.

    Attributes:
        stamp_ns: the moment, nanoseconds of the node's clock.
        images: camera name to (H, W, 3) uint8, RGB.
        joint_names: the J arm joints, in order.
        joint_positions: (J,), rad.
        joint_velocities: (J,), rad/s.
        ee_position: (3,), m, in ``ee_frame``.
        ee_quaternion: (4,), x y z w, in ``ee_frame``.
        ee_frame: the frame of the end-effector pose.
        gripper: opening as a fraction, 0 closed to 1 open.
        instruction: what to do, in words.
        ages: stream name to its age in seconds at ``stamp_ns``.
        simulator_state: the full state of a simulator; None on a robot. Only what is declared
            privileged may read it.

    Raises:
        ObservationError: wrong shape, type or a non-finite number.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    joint_names: tuple[str, ...]
    joint_positions: FloatArray
    joint_velocities: FloatArray
    ee_position: FloatArray
    ee_quaternion: FloatArray
    gripper: float
    instruction: str
    ee_frame: str = "base"
    ages: Mapping[str, float] = field(default_factory=dict)
    simulator_state: FloatArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        joints = len(self.joint_names)
        for name, size in (
            ("joint_positions", joints),
            ("joint_velocities", joints),
            ("ee_position", 3),
            ("ee_quaternion", 4),
        ):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (size,):
                raise ObservationError(
                    f"observation: {name} needs {size} numbers, got shape {value.shape}"
                )
            if not np.isfinite(value).all():
                raise ObservationError(f"observation: {name} is not finite: {value.tolist()}")
            object.__setattr__(self, name, value)
        norm = float(np.linalg.norm(self.ee_quaternion))
        if abs(norm - 1.0) > 1e-3:
            raise ObservationError(f"observation: ee_quaternion has norm {norm}, expected 1")
        if not np.isfinite(self.gripper):
            raise ObservationError(f"observation: gripper is {self.gripper}, expected a fraction")
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ObservationError(
                    f"observation: image '{name}' needs (H, W, 3) uint8, got {image.shape} "
                    f"{image.dtype}"
                )


@dataclass(frozen=True)
class Decision:
    """One answer of the Reasoner.

    Attributes:
        chunk: what the arm should do.
        policy_chunk: what the frozen policy proposed; None when the policy itself failed.
        statistics: everything that the decision can say about itself.
        tree: the search tree as flat arrays; None when no search was run.
    """

    chunk: ActionChunk
    policy_chunk: ActionChunk | None
    statistics: SearchStatistics
    tree: TreeSnapshot | None = None
