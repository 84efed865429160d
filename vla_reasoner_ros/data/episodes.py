"""Recorded episodes: one safetensors file each, self-describing, memory-mapped when read.

Row t of every array belongs to one moment: what was seen at t, and the action that was then taken.
The arrays of a file:

=====================  =================  ========  ===============================================
name                   shape              type      meaning
=====================  =================  ========  ===============================================
``image/<camera>``     (T, H, W, 3)       uint8     RGB
``joint_positions``    (T, J)             float32   rad
``joint_velocities``   (T, J)             float32   rad/s
``ee_position``        (T, 3)             float32   m, in ``ee_frame``
``ee_quaternion``      (T, 4)             float32   x y z w, in ``ee_frame``
``gripper``            (T,)               float32   opening, 0 closed to 1 open
``actions``            (T, D)             float32   SI units of the action spec
``progress``           (T,)               float32   true progress in [0, 1]; NaN where unknown
``simulator_state``    (T, S)             float64   full state; S = 0 when not recorded
``object_poses``       (T, K, 7)          float32   x y z (m) and x y z w, in ``ee_frame``
=====================  =================  ========  ===============================================

Everything else stands as JSON in the file's header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from vla_reasoner_ros.errors import EpisodeError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.types import ActionSpec, Observation
from vla_reasoner_ros.weights import tensors_hash

FORMAT = "1"
SUFFIX = ".safetensors"
IMAGE = "image/"
_TYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_ARRAYS = (
    "joint_positions",
    "joint_velocities",
    "ee_position",
    "ee_quaternion",
    "gripper",
    "actions",
    "progress",
    "simulator_state",
    "object_poses",
)

Float32 = NDArray[np.float32]


class Kind(str, Enum):
    """Who acted."""

    EXPERT = "expert"
    NOISY_EXPERT = "noisy_expert"
    """Disturbed actions were executed; the expert's answer to each state is recorded."""
    POLICY = "policy"


@dataclass(frozen=True)
class EpisodeMeta:
    """What an episode is about.

    Attributes:
        instruction: what to do, in words.
        task: the task's name; empty on real recordings.
        seed: the seed of scene and disturbances; its hash decides training or held out.
        success: whether the task was done.
        kind: who acted.
        action_spec: the convention of ``actions``.
        joint_names: the J joints.
        ee_frame: the frame of end-effector and object poses.
        object_names: the K tracked objects, in the order of ``object_poses``.
        executed: name of the array that moved the arm: ``actions``, or ``executed_actions`` where
            a disturbance was added to what is recorded as the right answer.
    """

    instruction: str
    task: str
    seed: int
    success: bool
    kind: Kind
    action_spec: ActionSpec
    joint_names: tuple[str, ...]
    ee_frame: str = "base"
    object_names: tuple[str, ...] = ()
    executed: str = "actions"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        object.__setattr__(self, "object_names", tuple(self.object_names))

    def to_json(self) -> str:
        """The header text."""
        fields = dataclasses.asdict(self) | {"action_spec": self.action_spec.to_mapping()}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeMeta:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        fields["action_spec"] = ActionSpec.from_mapping(fields["action_spec"])
        return cls(**fields)


class EpisodeWriter:
    """Collects the steps of one episode and writes it when it is over."""

    def __init__(self, action_spec: ActionSpec, object_names: Sequence[str] = ()) -> None:
        self._spec = action_spec
        self._object_names = tuple(object_names)
        self._rows: list[dict[str, NDArray[Any]]] = []
        self._first: Observation | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def append(
        self,
        observation: Observation,
        action: NDArray[np.floating],
        progress: float | None = None,
        object_poses: NDArray[np.floating] | None = None,
        executed: NDArray[np.floating] | None = None,
    ) -> None:
        """Add one step.

        Args:
            observation: what was seen before acting.
            action: (D,) the answer to it, SI units; what is to be imitated.
            progress: true progress in [0, 1], None when unknown.
            object_poses: (K, 7) of the named objects.
            executed: (D,) what moved the arm, where it is not ``action``.

        Raises:
            EpisodeError: a width, camera or joint set that differs from the spec or from the first
                step, or an action that is not finite.
        """
        step = len(self._rows)
        row: dict[str, NDArray[Any]] = {
            IMAGE + name: image for name, image in observation.images.items()
        }
        row |= {
            "joint_positions": _f32(observation.joint_positions),
            "joint_velocities": _f32(observation.joint_velocities),
            "ee_position": _f32(observation.ee_position),
            "ee_quaternion": _f32(observation.ee_quaternion),
            "gripper": _f32(observation.gripper),
            "actions": self._action(action, step),
            "progress": _f32(math.nan if progress is None else progress),
            "simulator_state": np.zeros(0)
            if observation.simulator_state is None
            else np.asarray(observation.simulator_state, dtype=np.float64),
            "object_poses": _f32(np.zeros((0, 7)) if object_poses is None else object_poses),
        }
        if executed is not None:
            row["executed_actions"] = self._action(executed, step)
        if row["object_poses"].shape != (len(self._object_names), 7):
            raise EpisodeError(
                f"step {step}: expected a pose of 7 numbers for each of {self._object_names}, got "
                f"shape {row['object_poses'].shape}"
            )
        if self._rows:
            shapes = {name: array.shape for name, array in row.items()}
            expected = {name: array.shape for name, array in self._rows[0].items()}
            if shapes != expected:
                raise EpisodeError(f"step {step}: arrays {shapes}, the first step has {expected}")
        else:
            self._first = observation
        self._rows.append(row)

    def write(
        self, path: str | Path, *, task: str, seed: int, success: bool, kind: Kind | str
    ) -> Path:
        """Write the episode atomically; the instruction is the first observation's.

        Raises:
            EpisodeError: it has no step.
        """
        if self._first is None:
            raise EpisodeError(f"episode {path}: it has no step")
        arrays = {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        meta = EpisodeMeta(
            instruction=self._first.instruction,
            task=task,
            seed=seed,
            success=success,
            kind=Kind(kind),
            action_spec=self._spec,
            joint_names=self._first.joint_names,
            ee_frame=self._first.ee_frame,
            object_names=self._object_names,
            executed="executed_actions" if "executed_actions" in arrays else "actions",
        )
        text = meta.to_json()
        digest = hashlib.sha256((text + tensors_hash(arrays)).encode()).hexdigest()
        header = {"format": FORMAT, "episode": text, "content_sha256": digest}
        write_atomically(path, safetensors.numpy.save(arrays, metadata=header))
        return Path(path)

    def _action(self, action: NDArray[np.floating], step: int) -> Float32:
        array = _f32(action)
        if array.shape != (self._spec.dimensions,):
            raise EpisodeError(
                f"step {step}: expected an action of {self._spec.dimensions} numbers "
                f"{self._spec.names}, got shape {array.shape}"
            )
        _require_finite(array[None], self._spec, f"step {step}")
        return array


class Episode:
    """One recorded episode; arrays are read-only views of the file, read when touched.

    Raises:
        EpisodeError: the file is missing, cut off, no episode, or its actions are not finite.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, self._start, size = _read_header(self.path)
        metadata = header.pop("__metadata__", {})
        try:
            if metadata["format"] != FORMAT:
                raise EpisodeError(
                    f"episode {self.path}: expected format {FORMAT}, got {metadata['format']}"
                )
            self.meta = EpisodeMeta.from_json(metadata["episode"])
            self.content_hash: str = metadata["content_sha256"]
            self._layout = {
                name: (_TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"])
                for name, entry in header.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, EpisodeError):
                raise
            raise EpisodeError(
                f"episode {self.path}: the header is not an episode's: {error!r}"
            ) from error
        missing = [name for name in _ARRAYS if name not in self._layout]
        if missing:
            raise EpisodeError(f"episode {self.path}: missing {', '.join(missing)}")
        lengths = {name: shape[0] if shape else 0 for name, (_, shape, _) in self._layout.items()}
        if len(set(lengths.values())) != 1 or not len(self):
            raise EpisodeError(f"episode {self.path}: arrays of different lengths {lengths}")
        end = self._start + max(offsets[1] for _, _, offsets in self._layout.values())
        if end != size:
            raise EpisodeError(f"episode {self.path}: expected {end} bytes, got {size}")
        if self.actions.shape != (len(self), self.meta.action_spec.dimensions):
            raise EpisodeError(
                f"episode {self.path}: expected actions of {self.meta.action_spec.names}, got "
                f"shape {self.actions.shape}"
            )
        _require_finite(self.actions, self.meta.action_spec, f"episode {self.path}")

    def __len__(self) -> int:
        return int(self._layout["actions"][1][0])

    def __getitem__(self, name: str) -> NDArray[Any]:
        """An array by its name in the file, without copying."""
        if name not in self._layout:
            raise EpisodeError(
                f"episode {self.path}: there is no array {name!r}; there are "
                f"{', '.join(sorted(self._layout))}"
            )
        dtype, shape, (start, end) = self._layout[name]
        return self._memory[start:end].view(dtype).reshape(shape)

    @property
    def images(self) -> dict[str, NDArray[np.uint8]]:
        """Camera name to (T, H, W, 3)."""
        return {name: self[IMAGE + name] for name in self.cameras}

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name to (height, width), pixels."""
        return {
            name[len(IMAGE) :]: shape[1:3]
            for name, (_, shape, _) in sorted(self._layout.items())
            if name.startswith(IMAGE)
        }

    @property
    def actions(self) -> Float32:
        """(T, D) the answers to imitate, SI units."""
        return self["actions"]

    @property
    def executed_actions(self) -> Float32:
        """(T, D) what moved the arm; differs from ``actions`` where a disturbance was added."""
        return self[self.meta.executed]

    @property
    def progress(self) -> Float32:
        """(T,) true progress."""
        return self["progress"]

    @property
    def contract(self) -> dict[str, Any]:
        """What episodes of one set must share."""
        return {
            "action_spec": self.meta.action_spec,
            "joint_names": self.meta.joint_names,
            "ee_frame": self.meta.ee_frame,
            "cameras": self.cameras,
        }

    def observation(self, step: int) -> Observation:
        """What was seen at a step; its stamp counts from the episode's start."""
        state = self["simulator_state"][step]
        return Observation(
            stamp_ns=round(step * self.meta.action_spec.dt * 1e9),
            images={name: images[step] for name, images in self.images.items()},
            joint_names=self.meta.joint_names,
            joint_positions=self["joint_positions"][step],
            joint_velocities=self["joint_velocities"][step],
            ee_position=self["ee_position"][step],
            ee_quaternion=self["ee_quaternion"][step],
            gripper=float(self["gripper"][step]),
            instruction=self.meta.instruction,
            ee_frame=self.meta.ee_frame,
            simulator_state=state if state.size else None,
        )

    def verify(self) -> None:
        """Read everything and compare with the hash in the header.

        Raises:
            EpisodeError: the contents changed since they were written.
        """
        arrays = {name: self[name] for name in self._layout}
        text = self.meta.to_json() + tensors_hash(arrays)
        if hashlib.sha256(text.encode()).hexdigest() != self.content_hash:
            raise EpisodeError(f"episode {self.path}: corrupt, the contents do not fit their hash")

    @cached_property
    def _memory(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=self._start)


def _f32(value: Any) -> Float32:
    return np.asarray(value, dtype=np.float32)


def _require_finite(actions: Float32, spec: ActionSpec, name: str) -> None:
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        step, dimension = bad[0]
        raise EpisodeError(
            f"{name}: action {spec.names[dimension]} in row {step} is {actions[step, dimension]}, "
            "expected finite numbers"
        )


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begin, and the file's size, bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise EpisodeError(f"episode {path}: not a safetensors file, or cut off")
            header = json.loads(file.read(length))
    except OSError as error:
        raise EpisodeError(f"episode {path}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(f"episode {path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise EpisodeError(f"episode {path}: the header is not a JSON object")
    return header, 8 + length, size
