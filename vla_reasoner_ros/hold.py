"""The last fallback: a chunk that keeps the arm where it is."""

from __future__ import annotations

import numpy as np

from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    ChunkSource,
    Observation,
    Representation,
)


def hold(spec: ActionSpec, steps: int, observation: Observation) -> ActionChunk:
    """Zero displacements, or the present joints or pose, and the opening that was measured.

    The arm controller sends no gripper command of such a chunk: the gripper goes on as it is.

    Args:
        spec: the convention of the chunk.
        steps: H.
        observation: where the arm is now.

    Raises:
        ObservationError: a joint, or the frame of the pose, is not in the observation.
    """
    action = np.zeros(spec.dimensions)
    motion = list(spec.motion_indices)
    if spec.representation is Representation.JOINT_POSITION:
        seen = dict(zip(observation.joint_names, observation.joint_positions.tolist(), strict=True))
        for index in motion:
            if spec.names[index] not in seen:
                raise ObservationError(
                    f"hold: joint {spec.names[index]!r} is not in the observation, which has "
                    f"{', '.join(seen)}"
                )
            action[index] = seen[spec.names[index]]
    elif spec.representation is Representation.EE_POSE:
        if observation.ee_frame != spec.frame:
            raise ObservationError(
                f"hold: actions are in frame {spec.frame!r}, the observed pose is in "
                f"{observation.ee_frame!r}"
            )
        action[motion] = np.concatenate([observation.ee_position, observation.ee_quaternion])
    gripper = spec.gripper
    if gripper is not None:
        opening = observation.gripper
        if gripper.binary:
            opening = float(opening > 0.5)
        action[gripper.index] = gripper.closed + opening * (gripper.open - gripper.closed)
    return ActionChunk(
        spec, np.tile(action, (steps, 1)), observation.stamp_ns, source=ChunkSource.HOLD
    )
