"""Unit quaternions x y z w (..., 4) and rotation vectors (..., 3) in rad, of actions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.types import ActionSpec, Representation

Floats = NDArray[np.float64]
SMALL = 1e-8


def from_rotation_vector(vector: Floats) -> Floats:
    """Quaternions of rotation vectors (rad)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    scale = np.where(angle > SMALL, np.sin(angle / 2) / np.maximum(angle, SMALL), 0.5)
    return np.concatenate([vector * scale, np.cos(angle / 2)], axis=-1)


def to_rotation_vector(quaternion: Floats) -> Floats:
    """Rotation vectors (rad) of at most half a turn."""
    quaternion = np.where(quaternion[..., 3:] < 0.0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternion[..., 3:])
    return quaternion[..., :3] * np.where(sine > SMALL, angle / np.maximum(sine, SMALL), 2.0)


def with_unit_quaternions(spec: ActionSpec, actions: Floats) -> Floats:
    """Scale the quaternions of end-effector poses (..., D) to unit length; others are as given."""
    if spec.representation is not Representation.EE_POSE:
        return actions
    actions = actions.copy()
    indices = list(spec.motion_indices[3:])
    quaternion = actions[..., indices]
    actions[..., indices] = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return actions


def product(left: Floats, right: Floats) -> Floats:
    """Hamilton product: the rotation ``right``, then ``left``."""
    x, y, z, w = np.moveaxis(left, -1, 0)
    a, b, c, d = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            w * a + x * d + y * c - z * b,
            w * b - x * c + y * d + z * a,
            w * c + x * b - y * a + z * d,
            w * d - x * a - y * b - z * c,
        ],
        axis=-1,
    )


def conjugate(quaternion: Floats) -> Floats:
    """The inverse of unit quaternions."""
    return quaternion * np.array([-1.0, -1.0, -1.0, 1.0])
