"""The robot's state as a vector, in the order and form that a policy was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.errors import ConfigurationError, ObservationError
from vla_reasoner_ros.types import FloatArray, Observation


def _rotation(observation: Observation) -> Rotation:
    return Rotation.from_quat(observation.ee_quaternion)


PARTS: dict[str, Callable[[Observation], FloatArray]] = {
    "joint_positions": lambda o: o.joint_positions,
    "joint_velocities": lambda o: o.joint_velocities,
    "ee_position": lambda o: o.ee_position,
    "ee_quaternion_xyzw": lambda o: o.ee_quaternion,
    "ee_quaternion_wxyz": lambda o: np.roll(o.ee_quaternion, 1),
    "ee_rotation_vector": lambda o: _rotation(o).as_rotvec(),
    "ee_euler_xyz": lambda o: _rotation(o).as_euler("xyz"),
    "ee_rotation_6d": lambda o: _rotation(o).as_matrix()[:, :2].T.reshape(6),
    "gripper_opening": lambda o: np.array([o.gripper]),
    "gripper_closing": lambda o: np.array([1.0 - o.gripper]),
    "panda_fingers": lambda o: 0.04 * o.gripper * np.array([1.0, -1.0]),
    "zero": lambda o: np.zeros(1),
}
"""Name to the numbers: rad, rad/s, m; ``ee_euler_xyz`` is roll, pitch and yaw about fixed axes;
``ee_rotation_6d`` the first two columns of the rotation matrix; the gripper is a fraction;
``panda_fingers`` are the two finger joints, m, as robosuite and LIBERO write them."""

_WIDTHS = {
    "ee_position": 3,
    "ee_quaternion_xyzw": 4,
    "ee_quaternion_wxyz": 4,
    "ee_rotation_vector": 3,
    "ee_euler_xyz": 3,
    "ee_rotation_6d": 6,
    "gripper_opening": 1,
    "gripper_closing": 1,
    "panda_fingers": 2,
    "zero": 1,
}


def require_parts(parts: Sequence[str], joint_names: Sequence[str], owner: str) -> None:
    """Refuse an unknown part, or joints that nobody named.

    Raises:
        ConfigurationError: it says which, and what there is.
    """
    for part in parts:
        if part not in PARTS:
            raise ConfigurationError(
                f"{owner}: state part {part!r} is unknown; known are {', '.join(PARTS)}"
            )
        if part.startswith("joint_") and not joint_names:
            raise ConfigurationError(f"{owner}: state part {part!r} needs joint_names")


def width(parts: Sequence[str], joint_names: Sequence[str]) -> int:
    """Numbers of the vector."""
    return sum(_WIDTHS.get(part, len(joint_names)) for part in parts)


def state_vector(
    parts: Sequence[str], joint_names: Sequence[str], observation: Observation
) -> NDArray[np.float32]:
    """The state of an observation.

    Args:
        parts: names of :data:`PARTS`, in order.
        joint_names: the joints that ``joint_positions`` and ``joint_velocities`` stand for.
        observation: what was seen.

    Returns:
        (S,) float32.

    Raises:
        ObservationError: a joint is not in the observation.
    """
    picked: list[FloatArray] = []
    for part in parts:
        value = PARTS[part](observation)
        if part.startswith("joint_"):
            value = value[joint_indices(joint_names, observation)]
        picked.append(value)
    return np.concatenate(picked).astype(np.float32) if picked else np.zeros(0, np.float32)


def joint_indices(names: Sequence[str], observation: Observation) -> list[int]:
    """Where the joints stand in an observation.

    Raises:
        ObservationError: one is missing.
    """
    found = {name: index for index, name in enumerate(observation.joint_names)}
    missing = [name for name in names if name not in found]
    if missing:
        raise ObservationError(
            f"state: joint {missing[0]!r} is not in the observation, which has "
            f"{', '.join(observation.joint_names) or 'none'}"
        )
    return [found[name] for name in names]
