"""Which actions a recorded motion amounts to, in any action convention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from vla_reasoner_ros.errors import EpisodeError
from vla_reasoner_ros.rotations import conjugate, product, to_rotation_vector
from vla_reasoner_ros.types import ActionSpec, FloatArray, Observation, Representation

TIMING = 0.25
"""Deviation of the interval of two observations from the action's duration that is accepted."""


def follows(before: Observation, after: Observation, dt: float) -> bool:
    """Whether two observations are one action apart, of the same instruction."""
    seconds = (after.stamp_ns - before.stamp_ns) * 1e-9
    return abs(seconds - dt) <= TIMING * dt and after.instruction == before.instruction


def action_between(before: Observation, after: Observation, spec: ActionSpec) -> FloatArray:
    """The action whose result is the next observation.

    It is read from the measured motion: what a controller was told runs ahead of that by its lag.

    Args:
        before: at the action's beginning.
        after: at its end.
        spec: the convention wanted; its frame must be the observations'.

    Returns:
        (D,) SI units. A binary gripper is told to open where it is more than half open at the end.

    Raises:
        EpisodeError: the convention needs another frame or other joints than were observed.
    """
    action = np.zeros(spec.dimensions)
    kind = spec.representation
    if kind in (Representation.EE_DELTA, Representation.EE_POSE) and spec.frame != after.ee_frame:
        raise EpisodeError(
            f"actions in frame {spec.frame!r}: the end effector was observed in {after.ee_frame!r}"
        )
    if kind is Representation.EE_DELTA:
        turned = to_rotation_vector(product(after.ee_quaternion, conjugate(before.ee_quaternion)))
        motion = np.concatenate([after.ee_position - before.ee_position, turned])
    elif kind is Representation.EE_POSE:
        motion = np.concatenate([after.ee_position, after.ee_quaternion])
    else:
        names = [spec.names[index] for index in spec.motion_indices]
        if list(after.joint_names) != names:
            raise EpisodeError(f"actions of joints {names}: observed are {after.joint_names}")
        motion = np.array(after.joint_positions)
        if kind is Representation.JOINT_DELTA:
            motion = motion - before.joint_positions
    action[list(spec.motion_indices)] = motion
    if spec.gripper is not None:
        opening = after.gripper
        if spec.gripper.binary:
            opening = float(opening > 0.5)
        span = spec.gripper.open - spec.gripper.closed
        action[spec.gripper.index] = spec.gripper.closed + opening * span
    return action


def actions_of(observations: Sequence[Observation], spec: ActionSpec) -> FloatArray | None:
    """(T - 1, D) actions of T observations; None where two are not one action apart."""
    pairs = list(itertools.pairwise(observations))
    if not all(follows(before, after, spec.dt) for before, after in pairs):
        return None
    actions = [action_between(before, after, spec) for before, after in pairs]
    return np.array(actions).reshape(len(pairs), spec.dimensions)
