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
from vla_reasoner_ros.kernels import kernel
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
        moved: the dimensions of an action that displacements are added to.
        gripper: the gripper's dimension, or -1.
        gripper_ends: the sum of its two commands: the opposite of one is this less that.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self._motion = list(spec.motion_indices)
        self.gripper_ends = spec.gripper.open + spec.gripper.closed if spec.gripper else 0.0
        self._is_pose = spec.representation is Representation.EE_POSE
        self.moved = np.array(self._motion[:3] if self._is_pose else self._motion, np.int64)
        self.gripper = -1 if spec.gripper is None else spec.gripper.index
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
        if not self.spec.is_delta:
            displacements = np.cumsum(displacements, axis=2)
        actions = _displaced(
            reference, displacements, self.moved, flips, self.gripper, self.gripper_ends
        )
        if self._is_pose:
            quaternion = self._motion[3:]
            turn = from_rotation_vector(displacements[..., 3:])
            actions[..., quaternion] = product(turn, actions[..., quaternion])
        return actions

    def displacements(self, actions: Floats, reference: Floats) -> Floats:
        """The inverse of :meth:`displace` for the motion: (B, K, M, T)."""
        away = _difference(actions, reference, self.moved)
        if self._is_pose:
            quaternion = self._motion[3:]
            own = conjugate(reference[:, None][..., quaternion])
            turn = to_rotation_vector(product(actions[..., quaternion], own))
            away = np.concatenate([away, turn], axis=-1)
        if not self.spec.is_delta:
            away = np.diff(away, axis=2, prepend=0.0)
        return away

    def flips(self, actions: Floats, reference: Floats) -> NDArray[np.bool_]:
        """(B, K) whether the gripper's mean command lies nearer the reference's opposite."""
        if self.gripper < 0:
            return np.zeros(actions.shape[:2], np.bool_)
        return _flipped(actions, reference, self.gripper, self.gripper_ends)


@kernel
def _displaced(
    reference: Floats,
    displacements: Floats,
    moved: NDArray[np.int64],
    flips: NDArray[np.bool_],
    gripper: int,
    ends: float,
) -> Floats:
    """Add displacements to the moved dimensions, and mirror the gripper about ``ends / 2``."""
    nodes, count, steps, _ = displacements.shape
    actions = np.empty((nodes, count, steps, reference.shape[2]))
    for b in range(nodes):
        for k in range(count):
            for m in range(steps):
                actions[b, k, m] = reference[b, m]
                for i in range(len(moved)):
                    actions[b, k, m, moved[i]] += displacements[b, k, m, i]
                if gripper >= 0 and flips[b, k]:
                    actions[b, k, m, gripper] = ends - actions[b, k, m, gripper]
    return actions


@kernel
def _difference(actions: Floats, reference: Floats, moved: NDArray[np.int64]) -> Floats:
    """(B, K, M, I) actions less their references in the I moved dimensions."""
    nodes, count, steps, _ = actions.shape
    away = np.empty((nodes, count, steps, len(moved)))
    for b in range(nodes):
        for k in range(count):
            for m in range(steps):
                for i in range(len(moved)):
                    away[b, k, m, i] = actions[b, k, m, moved[i]] - reference[b, m, moved[i]]
    return away


@kernel
def _flipped(actions: Floats, reference: Floats, gripper: int, ends: float) -> NDArray[np.bool_]:
    """Whether the mean gripper command lies nearer to the mirrored than to the own one."""
    nodes, count = actions.shape[:2]
    flips = np.empty((nodes, count), np.bool_)
    steps = actions.shape[2]
    for b in range(nodes):
        own = 0.0
        for m in range(steps):
            own += reference[b, m, gripper] / steps
        for k in range(count):
            command = 0.0
            for m in range(steps):
                command += actions[b, k, m, gripper] / steps
            flips[b, k] = abs(command - (ends - own)) < abs(command - own)
    return flips
