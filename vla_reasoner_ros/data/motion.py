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
    """The action (D,) whose result is the next observation; see :func:`actions_along`."""
    return np.asarray(actions_along((before, after), spec)[0])


def actions_along(observations: Sequence[Observation], spec: ActionSpec) -> FloatArray:
    """The actions whose results are the next observations.

    They are read from the measured motion: what a controller was told runs ahead of that by its
    lag.

    Args:
        observations: T of them, one action apart.
        spec: the convention wanted; its frame must be the observations'.

    Returns:
        (T - 1, D) SI units. A binary gripper is told to open where it is more than half open at the
        action's end.

    Raises:
        EpisodeError: the convention needs another frame or other joints than were observed.
    """
    after = observations[1:]
    actions = np.zeros((len(after), spec.dimensions))
    if not after:
        return actions
    actions[:, list(spec.motion_indices)] = _motion(observations, spec)
    if spec.gripper is not None:
        opening = np.array([one.gripper for one in after])
        if spec.gripper.binary:
            opening = (opening > 0.5).astype(np.float64)
        span = spec.gripper.open - spec.gripper.closed
        actions[:, spec.gripper.index] = spec.gripper.closed + opening * span
    return actions


def _motion(observations: Sequence[Observation], spec: ActionSpec) -> FloatArray:
    """The (T - 1, D) actions without the gripper's column."""
    kind, after = spec.representation, observations[1:]
    if kind in (Representation.EE_DELTA, Representation.EE_POSE):
        for one in after:
            if spec.frame != one.ee_frame:
                raise EpisodeError(
                    f"actions in frame {spec.frame!r}: the end effector was observed in "
                    f"{one.ee_frame!r}"
                )
        positions = np.array([one.ee_position for one in observations])
        quaternions = np.array([one.ee_quaternion for one in observations])
        if kind is Representation.EE_POSE:
            return np.concatenate([positions[1:], quaternions[1:]], axis=1)
        turned = to_rotation_vector(product(quaternions[1:], conjugate(quaternions[:-1])))
        return np.concatenate([np.diff(positions, axis=0), turned], axis=1)
    names = [spec.names[index] for index in spec.motion_indices]
    for one in after:
        if list(one.joint_names) != names:
            raise EpisodeError(f"actions of joints {names}: observed are {one.joint_names}")
    joints = np.array([one.joint_positions for one in observations])
    return np.diff(joints, axis=0) if kind is Representation.JOINT_DELTA else joints[1:]


def actions_of(observations: Sequence[Observation], spec: ActionSpec) -> FloatArray | None:
    """(T - 1, D) actions of T observations; None where two are not one action apart."""
    pairs = itertools.pairwise(observations)
    if not all(follows(before, after, spec.dt) for before, after in pairs):
        return None
    return actions_along(observations, spec)
