"""What a foreign policy's numbers mean, and how they become ours: the one place where it is said.

A checkpoint knows neither the names of this robot's cameras nor whether its third number is metres
of displacement or a normalised fraction. :class:`Convention` states it, from a YAML file, and turns
observations into the model's inputs and the model's numbers into chunks in SI units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    ModelError,
    ObservationError,
)
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.policies.state import joint_indices, require_parts, state_vector
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, Observation, Representation


class RotationForm(str, Enum):
    """How the model writes a rotation; the names say the order of the numbers."""

    ROTATION_VECTOR = "rotation_vector"
    EULER_XYZ = "euler_xyz"
    """Roll, pitch, yaw about fixed axes, rad."""
    QUATERNION_XYZW = "quaternion_xyzw"
    QUATERNION_WXYZ = "quaternion_wxyz"
    SIX_D = "rotation_6d"
    """The first two columns of the rotation matrix (Zhou et al., arXiv 1812.07035)."""


_ROTATION_WIDTH = {
    RotationForm.ROTATION_VECTOR: 3,
    RotationForm.EULER_XYZ: 3,
    RotationForm.QUATERNION_XYZW: 4,
    RotationForm.QUATERNION_WXYZ: 4,
    RotationForm.SIX_D: 6,
}
BASE, TOOL = "base", "tool"


@dataclass(frozen=True)
class Convention:
    """The meaning of a model's inputs and outputs.

    Attributes:
        action: what leaves, in SI units.
        cameras: the model's name of an image to this robot's camera.
        image_size: height and width of every image, pixels.
        horizon: actions in a chunk, H; 0 takes what the model itself says.
        state: the model's name of a state vector to its parts, see
            :data:`~vla_reasoner_ros.policies.state.PARTS`.
        joint_names: the joints of the state and of relative joint actions.
        rotation: how the model writes the rotations of end-effector actions; None is our own form,
            the rotation vector of displacements and the quaternion x y z w of poses.
        scale: metres or radians per unit of each of the model's motion numbers, where its
            controller scaled them; empty is 1.
        delta_frame: ``base``, or ``tool`` where displacements are in the moving tool's axes.
        relative_to_state: whether joint positions leave the model as differences from the joints
            measured when the chunk was made.
        control_frame: the link that end-effector actions move.
        example_instruction: one that the policy knows.
    """

    action: ActionSpec
    cameras: Mapping[str, str]
    image_size: tuple[int, int] = (224, 224)
    horizon: int = 0
    state: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joint_names: tuple[str, ...] = ()
    rotation: RotationForm | None = None
    scale: tuple[float, ...] = ()
    delta_frame: str = BASE
    relative_to_state: bool = False
    control_frame: str = ""
    example_instruction: str = "pick up the object"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], owner: str) -> Convention:
        """Read it from what a YAML file says.

        Args:
            values: the fields, ``action`` as :meth:`ActionSpec.to_mapping` writes it.
            owner: what messages call the policy.

        Raises:
            ConfigurationError: a field is missing, unknown, or contradicts another.
        """
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                f"{owner}: expected a mapping as convention, got {type(values).__name__}"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ConfigurationError(
                f"{owner}: convention has no field {unknown[0]!r}; it has {', '.join(known)}"
            )
        for name in ("action", "cameras"):
            if name not in values:
                raise ConfigurationError(f"{owner}: convention needs {name!r}")
        fields = dict(values)
        try:
            fields["action"] = ActionSpec.from_mapping({"gripper": None, **fields["action"]})
            fields["cameras"] = {str(k): str(v) for k, v in dict(fields["cameras"]).items()}
            fields["state"] = {k: tuple(v) for k, v in dict(fields.get("state") or {}).items()}
            height, width = fields.get("image_size", (224, 224))
            fields["image_size"] = (int(height), int(width))
            fields["joint_names"] = tuple(fields.get("joint_names") or ())
            fields["scale"] = tuple(float(x) for x in fields.get("scale") or ())
            form = fields.get("rotation")
            fields["rotation"] = None if form is None else RotationForm(form)
        except ConfigurationError as error:
            raise ConfigurationError(f"{owner}: {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"{owner}: convention: {error}") from error
        made = cls(**fields)
        made._check(owner)
        return made

    def _check(self, owner: str) -> None:
        for parts in self.state.values():
            require_parts(parts, self.joint_names, owner)
        representation = self.action.representation
        if self.delta_frame not in (BASE, TOOL):
            raise ConfigurationError(
                f"{owner}: delta_frame is {BASE!r} or {TOOL!r}, got {self.delta_frame!r}"
            )
        if self.delta_frame == TOOL and representation is not Representation.EE_DELTA:
            raise ConfigurationError(
                f"{owner}: delta_frame {TOOL!r} needs end-effector displacements, got "
                f"{representation.value}"
            )
        if self.rotation is not None and not self._moves_end_effector:
            raise ConfigurationError(f"{owner}: {representation.value} has no rotation form")
        if self.relative_to_state:
            motion = tuple(self.action.names[i] for i in self.action.motion_indices)
            if representation is not Representation.JOINT_POSITION:
                raise ConfigurationError(
                    f"{owner}: relative_to_state needs joint_position, got {representation.value}"
                )
            if motion != self.joint_names:
                raise ConfigurationError(
                    f"{owner}: relative_to_state needs joint_names to be the action's joints "
                    f"{motion}, got {self.joint_names}"
                )
        if self.scale and len(self.scale) != self._motion_width:
            raise ConfigurationError(
                f"{owner}: scale needs {self._motion_width} numbers, got {len(self.scale)}"
            )
        gripper = self.action.gripper
        if (
            gripper is not None
            and gripper.index != self.action.dimensions - 1
            and self._motion_width != len(self.action.motion_indices)
        ):
            raise ConfigurationError(
                f"{owner}: rotation {self._form.value} needs the gripper to be the last dimension, "
                f"it is number {gripper.index} of {self.action.names}"
            )
        if self.horizon < 0:
            raise ConfigurationError(f"{owner}: horizon must be positive, got {self.horizon}")

    @property
    def _moves_end_effector(self) -> bool:
        return self.action.representation in (Representation.EE_DELTA, Representation.EE_POSE)

    @property
    def _form(self) -> RotationForm:
        if self.rotation is not None:
            return self.rotation
        if self.action.representation is Representation.EE_POSE:
            return RotationForm.QUATERNION_XYZW
        return RotationForm.ROTATION_VECTOR

    @property
    def _motion_width(self) -> int:
        if self._moves_end_effector:
            return 3 + _ROTATION_WIDTH[self._form]
        return len(self.action.motion_indices)

    @property
    def raw_width(self) -> int:
        """Numbers of one action of the model."""
        return self._motion_width + (self.action.gripper is not None)

    def spec(self, name: str, horizon: int | None = None) -> PolicySpec:
        """What a policy of this convention takes and gives."""
        return PolicySpec(
            name=name,
            cameras=dict.fromkeys(self.cameras.values(), self.image_size),
            action=self.action,
            horizon=self.horizon or horizon or 1,
            control_frame=self.control_frame,
            example_instruction=self.example_instruction,
            state=tuple(part for parts in self.state.values() for part in parts),
            joint_names=self.joint_names,
        )

    def images(self, observation: Observation, owner: str) -> dict[str, NDArray[np.uint8]]:
        """The model's images by the model's names, (H, W, 3) uint8 RGB.

        Raises:
            ObservationError: a camera is missing or has another size.
        """
        for camera in self.cameras.values():
            if camera not in observation.images:
                raise ObservationError(
                    f"{owner}: camera {camera!r} is missing; the observation has "
                    f"{', '.join(sorted(observation.images)) or 'none'}"
                )
            found = observation.images[camera].shape[:2]
            if found != self.image_size:
                raise ObservationError(
                    f"{owner}: camera {camera!r} needs {self.image_size[0]}x{self.image_size[1]} "
                    f"pixels (height x width), got {found[0]}x{found[1]}"
                )
        return {name: observation.images[camera] for name, camera in self.cameras.items()}

    def states(self, observation: Observation, owner: str) -> dict[str, NDArray[np.float32]]:
        """The model's state vectors by the model's names.

        Raises:
            ObservationError: a joint is missing, or the pose is in another frame than the actions.
        """
        reads_pose = any(part.startswith("ee_") for parts in self.state.values() for part in parts)
        if (reads_pose or self.delta_frame == TOOL) and self.action.frame:
            _require_frame(observation, self.action.frame, owner)
        return {
            name: state_vector(parts, self.joint_names, observation)
            for name, parts in self.state.items()
        }

    def chunk(self, raw: Any, observation: Observation, owner: str) -> ActionChunk:
        """The model's numbers as a chunk.

        Args:
            raw: (H, R) floats as the model gives them, its normalisation already undone; more than
                ``horizon`` rows are cut.
            observation: what they answer.
            owner: what messages call the policy.

        Raises:
            ModelError: another type or shape, too few rows, or numbers that are not finite.
        """
        array = self._checked(raw, owner)
        actions = np.empty((len(array), self.action.dimensions))
        gripper = self.action.gripper
        index = array.shape[1] if gripper is None else gripper.index
        if gripper is not None and index == self.action.dimensions - 1:
            index = array.shape[1] - 1
        motion = np.delete(array, index, axis=1) if gripper is not None else array.copy()
        if self.scale:
            motion *= self.scale
        actions[:, self.action.motion_indices] = self._motion(motion, observation, owner)
        if gripper is not None:
            value = array[:, index]
            if gripper.binary:
                nearer_open = np.abs(value - gripper.open) < np.abs(value - gripper.closed)
                value = np.where(nearer_open, gripper.open, gripper.closed)
            actions[:, gripper.index] = value
        try:
            return ActionChunk(self.action, actions, observation.stamp_ns)
        except ActionChunkError as error:
            raise ModelError(f"{owner}: {error}") from error

    @property
    def invertible(self) -> bool:
        """Whether :meth:`raw` can turn actions back into the model's."""
        own = {
            Representation.EE_DELTA: RotationForm.ROTATION_VECTOR,
            Representation.EE_POSE: RotationForm.QUATERNION_XYZW,
        }.get(self.action.representation)
        return (own is None or self._form is own) and self.delta_frame != TOOL

    def raw(self, actions: FloatArray, observation: Observation, owner: str) -> FloatArray:
        """The inverse of :meth:`chunk` for joint actions and for rotations in our own form.

        Args:
            actions: (H, D) in SI units of the spec.
            observation: what they are relative to, where they are.
            owner: what messages call the policy.

        Returns:
            (H, R) in the model's units.

        Raises:
            ActionChunkError: the model writes rotations otherwise, or displacements in its tool.
        """
        if not self.invertible:
            raise ActionChunkError(
                f"{owner}: actions cannot be turned back into {self._form.value} in the "
                f"{self.delta_frame} frame"
            )
        motion = actions[:, self.action.motion_indices]
        if self.relative_to_state:
            motion = (
                motion - observation.joint_positions[joint_indices(self.joint_names, observation)]
            )
        raw = actions.astype(np.float64)
        raw[:, self.action.motion_indices] = motion / self.scale if self.scale else motion
        return raw

    def _checked(self, raw: Any, owner: str) -> FloatArray:
        array = np.asarray(raw)
        if array.dtype.kind != "f":
            raise ModelError(f"{owner}: expected floating-point actions, got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != self.raw_width or len(array) < 1:
            raise ModelError(
                f"{owner}: expected actions of {self.raw_width} numbers "
                f"(convention of {self.action.names}), got shape {array.shape}"
            )
        if self.horizon and len(array) < self.horizon:
            raise ModelError(f"{owner}: expected {self.horizon} actions, got {len(array)}")
        array = array[: self.horizon or None].astype(np.float64)
        if not np.isfinite(array).all():
            step, dimension = np.argwhere(~np.isfinite(array))[0]
            raise ModelError(
                f"{owner}: number {dimension} of action {step} is {array[step, dimension]}, "
                "expected finite numbers"
            )
        return array

    def _motion(self, motion: FloatArray, observation: Observation, owner: str) -> FloatArray:
        """(H, R) of the model to (H, M) of the spec."""
        if not self._moves_end_effector:
            if self.relative_to_state:
                indices = joint_indices(self.joint_names, observation)
                motion = motion + observation.joint_positions[indices]
            return motion
        position, numbers = motion[:, :3], motion[:, 3:]
        if self.action.representation is Representation.EE_POSE:
            return np.concatenate([position, self._rotations(numbers, owner).as_quat()], axis=1)
        if self._form is RotationForm.ROTATION_VECTOR:
            rotation = numbers
        else:
            rotation = self._rotations(numbers, owner).as_rotvec()
        if self.delta_frame == TOOL:
            _require_frame(observation, self.action.frame, owner)
            position, rotation = _out_of_tool_frame(
                position, rotation, Rotation.from_quat(observation.ee_quaternion)
            )
        return np.concatenate([position, rotation], axis=1)

    def _rotations(self, numbers: FloatArray, owner: str) -> Rotation:
        if self._form is RotationForm.ROTATION_VECTOR:
            return Rotation.from_rotvec(numbers)
        if self._form is RotationForm.EULER_XYZ:
            return Rotation.from_euler("xyz", numbers)
        if self._form is RotationForm.SIX_D:
            first, second = numbers[:, :3], numbers[:, 3:]
            length = np.linalg.norm(first, axis=1, keepdims=True)
            _require_rotations(length[:, 0], owner)
            first = first / length
            second = second - first * np.sum(first * second, axis=1, keepdims=True)
            length = np.linalg.norm(second, axis=1, keepdims=True)
            _require_rotations(length[:, 0], owner)
            second = second / length
            columns = [first, second, np.cross(first, second)]
            return Rotation.from_matrix(np.stack(columns, axis=2))
        _require_rotations(np.linalg.norm(numbers, axis=1), owner)
        if self._form is RotationForm.QUATERNION_WXYZ:
            numbers = np.roll(numbers, -1, axis=1)
        return Rotation.from_quat(numbers)


def _require_rotations(norms: FloatArray, owner: str) -> None:
    """Refuse numbers too small to say a direction."""
    if (norms < 1e-3).any():
        raise ModelError(f"{owner}: numbers of norm {norms.min():.2g} are no rotation")


def _require_frame(observation: Observation, frame: str, owner: str) -> None:
    if observation.ee_frame != frame:
        raise ObservationError(
            f"{owner}: expected the end-effector pose in frame {frame!r}, got "
            f"{observation.ee_frame!r}"
        )


def _out_of_tool_frame(
    position: FloatArray, rotation: FloatArray, orientation: Rotation
) -> tuple[FloatArray, FloatArray]:
    """Displacements (H, 3) in the axes of the tool as it turns, to the base frame's axes."""
    moved, turned = np.empty_like(position), np.empty_like(rotation)
    for step in range(len(position)):
        moved[step] = orientation.apply(position[step])
        turned[step] = orientation.apply(rotation[step])
        orientation = Rotation.from_rotvec(turned[step]) * orientation
    return moved, turned
