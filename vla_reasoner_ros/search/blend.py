"""a = alpha a^VLA + (1 - alpha) a^Reasoner (arXiv 2509.22643), with rotations on SO(3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.types import ActionSpec, Representation

Floats = NDArray[np.float64]
Quaternion = tuple[float, float, float, float]
WINNER, POLICY, NEAREST = range(3)
SMALL = 1e-8


class Mix(NamedTuple):
    """How actions are blended, as the compiled kernels take it; see :func:`mix_of`."""

    alpha: float
    motion: NDArray[np.int64]  # dimensions that move the arm
    rotation: NDArray[np.int64]  # of them a rotation vector (3,), a quaternion (4,), or none
    size: int  # D, numbers in an action
    gripper: int  # dimension of a binary gripper, or -1
    gripper_rule: int
    is_open: float
    is_closed: float


def mix_of(spec: ActionSpec, alpha: float, gripper_rule: str = "winner") -> Mix:
    """The blend of actions of one convention.

    Translations and joints are blended linearly; rotations along the shorter great arc of SO(3),
    whether they are quaternions or rotation vectors; a binary gripper is not blended.

    Args:
        spec: what the numbers of an action mean.
        alpha: the policy's share in [0, 1].
        gripper_rule: ``winner`` takes a binary gripper from the plan, ``policy`` from the policy,
            ``nearest`` takes the one of open and closed that is nearest to the blended number.
    """
    has_rotation = spec.representation in (Representation.EE_DELTA, Representation.EE_POSE)
    gripper = spec.gripper if spec.gripper is not None and spec.gripper.binary else None
    return Mix(
        alpha=alpha,
        motion=np.array(spec.motion_indices, np.int64),
        rotation=np.array(spec.motion_indices[3:] if has_rotation else (), np.int64),
        size=spec.dimensions,
        gripper=gripper.index if gripper else -1,
        gripper_rule=("winner", "policy", "nearest").index(gripper_rule),
        is_open=gripper.open if gripper else 0.0,
        is_closed=gripper.closed if gripper else 0.0,
    )


def blend(
    spec: ActionSpec, policy: Floats, plan: Floats, alpha: float, gripper_rule: str = "winner"
) -> Floats:
    """Blend the searched plan into the policy's chunk, see :func:`mix_of`.

    Args:
        spec: what the numbers mean.
        policy: (H, D) the policy's chunk.
        plan: (L, D) the searched actions, L <= H.
        alpha: the policy's share in [0, 1]; 1 gives the policy's chunk bit for bit.
        gripper_rule: of a binary gripper.

    Returns:
        (H, D) the policy's actions after the plan has ended are kept where actions are
        displacements; absolute targets would jump back there, so such a chunk ends with the plan,
        (L, D).
    """
    if alpha == 1.0:
        return policy.copy()
    own = policy[: len(plan)].reshape(1, -1)
    mixed = blended(mix_of(spec, alpha, gripper_rule), own, plan.reshape(1, -1)).reshape(plan.shape)
    return np.concatenate([mixed, policy[len(plan) :]]) if spec.is_delta else mixed


@kernel
def blended(mix: Mix, policy: Floats, plans: Floats) -> Floats:
    """Blend plans (C, L) into the policy's actions (1, L) or (C, L), L a multiple of D."""
    mixed = plans.copy()
    for row in range(len(plans)):
        mix_into(mix, policy[min(row, len(policy) - 1)], mixed[row])
    return mixed


@kernel
def mix_into(mix: Mix, policy: Floats, plan: Floats) -> None:
    """Blend the policy's actions (L,) into a plan (L,) in place.

    What equals the policy's stays as it is, bit for bit.
    """
    if mix.alpha == 0.0 and mix.gripper_rule == WINNER:
        return
    for first in range(0, len(plan), mix.size):
        gripper = first + mix.gripper
        command = plan[gripper] if mix.gripper >= 0 else 0.0
        turned = False
        for i in mix.rotation:
            turned = turned or plan[first + i] != policy[first + i]
        turn = _turn(mix, policy, plan, first) if turned else (0.0, 0.0, 0.0, 1.0)
        for i in range(first, first + mix.size):
            if plan[i] != policy[i]:
                plan[i] = mix.alpha * policy[i] + (1.0 - mix.alpha) * plan[i]
        if turned:
            for place, i in enumerate(mix.rotation):
                plan[first + i] = turn[place]
        if mix.gripper >= 0:
            if mix.gripper_rule == WINNER:
                plan[gripper] = command
            elif mix.gripper_rule == POLICY:
                plan[gripper] = policy[gripper]
            else:
                opens = abs(plan[gripper] - mix.is_open) < abs(plan[gripper] - mix.is_closed)
                plan[gripper] = mix.is_open if opens else mix.is_closed


@kernel
def _turn(mix: Mix, policy: Floats, plan: Floats, first: int) -> Quaternion:
    """The blended rotation of the action at ``first``.

    A quaternion, or a rotation vector and a number without meaning.
    """
    x, y, z = first + mix.rotation[0], first + mix.rotation[1], first + mix.rotation[2]
    if len(mix.rotation) == 4:
        w = first + mix.rotation[3]
        return _between(
            _unit((plan[x], plan[y], plan[z], plan[w])),
            _unit((policy[x], policy[y], policy[z], policy[w])),
            mix.alpha,
        )
    turn = _rotation_vector(
        _between(
            _quaternion(plan[x], plan[y], plan[z]),
            _quaternion(policy[x], policy[y], policy[z]),
            mix.alpha,
        )
    )
    return turn[0], turn[1], turn[2], 0.0


@kernel
def _between(start: Quaternion, end: Quaternion, fraction: float) -> Quaternion:
    """At ``fraction`` of the shorter great arc between unit quaternions.

    Shoemake, "Animating rotation with quaternion curves" (1985).
    """
    a, b, c, d = start
    e, f, g, h = end
    if a * e + b * f + c * g + d * h < 0.0:
        e, f, g, h = -e, -f, -g, -h
    # The angle from the chord: exact for small angles, where the cosine is not.
    chord = _norm((e - a, f - b, g - c, h - d))
    across = _norm((e + a, f + b, g + c, h + d))
    angle, sine = 2.0 * math.atan2(chord, across), 0.5 * chord * across
    first, second = 1.0 - fraction, fraction
    if sine >= SMALL:
        first, second = math.sin(first * angle) / sine, math.sin(second * angle) / sine
    return _unit(
        (
            first * a + second * e,
            first * b + second * f,
            first * c + second * g,
            first * d + second * h,
        )
    )


@kernel
def _unit(q: Quaternion) -> Quaternion:
    scale = 1.0 / _norm(q)
    return q[0] * scale, q[1] * scale, q[2] * scale, q[3] * scale


@kernel
def _norm(q: Quaternion) -> float:
    return math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])


@kernel
def _quaternion(x: float, y: float, z: float) -> Quaternion:
    angle = math.sqrt(x * x + y * y + z * z)
    scale = math.sin(0.5 * angle) / angle if angle > SMALL else 0.5
    return x * scale, y * scale, z * scale, math.cos(0.5 * angle)


@kernel
def _rotation_vector(q: Quaternion) -> tuple[float, float, float]:
    sign = -1.0 if q[3] < 0.0 else 1.0
    sine = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
    scale = 2.0 * math.atan2(sine, sign * q[3]) / sine if sine > SMALL else 2.0
    return sign * scale * q[0], sign * scale * q[1], sign * scale * q[2]
