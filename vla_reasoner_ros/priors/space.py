"""Macro-actions seen from a reference: how far each action moves away from it, and the gripper.

A displacement has T numbers per action: joints (rad), or translation (m) and rotation vector (rad)
of the end effector. It is meant per action: displacements of absolute targets add up along the
macro-action, as those of deltas do by themselves, so that one scale serves all representations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.rotations import conjugate, from_rotation_vector, product, to_rotation_vector
from vla_reasoner_ros.types import ActionSpec, GripperSpec, Representation

Floats = NDArray[np.float64]

TRANSLATION_STD = 0.012
"""m per action: 0.3 of the range of demonstrated translations helped most in our first ablation."""
ROTATION_STD = 0.02
"""rad per action, of the end effector or of a joint."""

DEFAULT_SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    frame="base",
    dt=0.1,
    gripper=GripperSpec(index=6),
)


def action_spec(value: ActionSpec | Mapping[str, Any] | None) -> ActionSpec:
    """The convention from an option: a mapping as YAML holds it, or the shipped policy's if None.

    Raises:
        ConfigurationError: not an action convention.
    """
    if value is None:
        return DEFAULT_SPEC
    return value if isinstance(value, ActionSpec) else ActionSpec.from_mapping(value)


class MotionSpace:
    """Displacements of one convention.

    Attributes:
        spec: the convention.
        size: T, numbers in a displacement.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self._motion = list(spec.motion_indices)
        self._is_pose = spec.representation is Representation.EE_POSE
        self.size = 6 if self._is_pose else len(self._motion)

    def deviations(self, std: Sequence[float] | None, name: str) -> Floats:
        """Standard deviations (T,) from an option; None takes the defaults per representation.

        Raises:
            ConfigurationError: not T positive finite numbers.
        """
        if std is None:
            is_ee = self.spec.representation in (Representation.EE_DELTA, Representation.EE_POSE)
            translation = [TRANSLATION_STD] * 3 if is_ee else []
            std = translation + [ROTATION_STD] * (self.size - len(translation))
        values = np.asarray(std, dtype=np.float64)
        if values.shape != (self.size,) or not (np.isfinite(values) & (values > 0.0)).all():
            raise ConfigurationError(
                f"{name}: std needs {self.size} positive numbers (m, rad), got {std}; a zero would "
                "make the covariance singular"
            )
        return values

    def displace(
        self, reference: Floats, displacements: Floats, flips: NDArray[np.bool_]
    ) -> Floats:
        """Move away from references.

        Args:
            reference: (B, M, D).
            displacements: (B, K, M, T).
            flips: (B, K) whether the gripper does the opposite of the reference.

        Returns:
            (B, K, M, D) actions.
        """
        actions = np.repeat(reference[:, None], displacements.shape[1], axis=1)
        if not self.spec.is_delta:
            displacements = np.cumsum(displacements, axis=2)
        if self._is_pose:
            position, quaternion = self._motion[:3], self._motion[3:]
            actions[..., position] += displacements[..., :3]
            turn = from_rotation_vector(displacements[..., 3:])
            actions[..., quaternion] = product(turn, actions[..., quaternion])
        elif self._motion == list(range(self.size)):
            actions[..., : self.size] += displacements
        else:
            actions[..., self._motion] += displacements
        gripper = self.spec.gripper
        if gripper is not None and flips.any():
            command = actions[..., gripper.index]
            mirrored = gripper.open + gripper.closed - command
            actions[..., gripper.index] = np.where(flips[:, :, None], mirrored, command)
        return actions

    def displacements(self, actions: Floats, reference: Floats) -> Floats:
        """The inverse of :meth:`displace` for the motion: (B, K, M, T)."""
        reference = reference[:, None]
        if self._is_pose:
            position, quaternion = self._motion[:3], self._motion[3:]
            turn = product(actions[..., quaternion], conjugate(reference[..., quaternion]))
            away = np.concatenate(
                [
                    actions[..., position] - reference[..., position],
                    to_rotation_vector(turn),
                ],
                axis=-1,
            )
        else:
            away = actions[..., self._motion] - reference[..., self._motion]
        if not self.spec.is_delta:
            away = np.diff(away, axis=2, prepend=0.0)
        return away

    def flips(self, actions: Floats, reference: Floats) -> NDArray[np.bool_]:
        """(B, K) whether the gripper's mean command lies nearer the reference's opposite."""
        gripper = self.spec.gripper
        if gripper is None:
            return np.zeros(actions.shape[:2], np.bool_)
        command = actions[..., gripper.index].mean(-1)
        own = reference[..., gripper.index].mean(-1)[:, None]
        other = gripper.open + gripper.closed - own
        return np.abs(command - other) < np.abs(command - own)
