"""a = alpha a^VLA + (1 - alpha) a^Reasoner (arXiv 2509.22643), with rotations on SO(3)."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.types import ActionSpec, Representation

Floats = NDArray[np.float64]
Quaternion = tuple[float, float, float, float]
WINNER, POLICY, NEAREST = range(3)
SMALL = 1e-8


class Blender:
    """Blends macro-actions of one convention.

    Translations and joints are blended linearly; rotations along the shorter great arc of SO(3),
    whether they are quaternions or rotation vectors; a binary gripper is not blended.

    Args:
        spec: what the numbers mean.
        alpha: the policy's share in [0, 1].
        gripper_rule: ``winner`` takes a binary gripper from the plan, ``policy`` from the policy,
            ``nearest`` takes the one of open and closed that is nearest to the blended number.
    """

    def __init__(self, spec: ActionSpec, alpha: float, gripper_rule: str = "winner") -> None:
        has_rotation = spec.representation in (Representation.EE_DELTA, Representation.EE_POSE)
        rotation = spec.motion_indices[3:] if has_rotation else ()
        gripper, rule, ends = -1, WINNER, (0.0, 0.0)
        if spec.gripper is not None and spec.gripper.binary:
            gripper, ends = spec.gripper.index, (spec.gripper.open, spec.gripper.closed)
            rule = ("winner", "policy", "nearest").index(gripper_rule)
        self.alpha = alpha
        self._form = np.array(rotation, np.int64), gripper, rule, *ends

    def __call__(self, policy: Floats, plan: Floats) -> Floats:
        """Blend C plans (B, C, M, D) into the policy's action (B, M, D) of each of B states.

        What equals the policy's stays as it is, bit for bit.
        """
        return _blended(policy, plan, self.alpha, *self._form)


def blend(
    spec: ActionSpec, policy: Floats, plan: Floats, alpha: float, gripper_rule: str = "winner"
) -> Floats:
    """Blend the searched plan into the policy's chunk, see :class:`Blender`.

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
    own = np.ascontiguousarray(policy[None, : len(plan)])
    mixed = Blender(spec, alpha, gripper_rule)(own, np.ascontiguousarray(plan[None, None]))[0, 0]
    return np.concatenate([mixed, policy[len(plan) :]]) if spec.is_delta else mixed


@numba.njit(cache=True)
def _blended(
    policy: Floats,
    plan: Floats,
    alpha: float,
    rotation: NDArray[np.int64],
    gripper: int,
    rule: int,
    is_open: float,
    is_closed: float,
) -> Floats:
    blended = plan.copy()
    nodes, count, steps, size = plan.shape
    for b in range(nodes):
        for k in range(count):
            for m in range(steps):
                own, found, mixed = policy[b, m], plan[b, k, m], blended[b, k, m]
                for i in range(size):
                    if found[i] != own[i]:
                        mixed[i] = alpha * own[i] + (1.0 - alpha) * found[i]
                turned = False
                for i in rotation:
                    turned = turned or found[i] != own[i]
                if turned and alpha == 1.0:
                    for i in rotation:
                        mixed[i] = own[i]
                elif turned and len(rotation) == 3 and alpha > 0.0:
                    x, y, z = rotation
                    mixed[x], mixed[y], mixed[z] = _rotation_vector(
                        _between(
                            _quaternion(found[x], found[y], found[z]),
                            _quaternion(own[x], own[y], own[z]),
                            alpha,
                        )
                    )
                elif turned and len(rotation) == 4 and alpha > 0.0:
                    x, y, z, w = rotation
                    mixed[x], mixed[y], mixed[z], mixed[w] = _between(
                        (found[x], found[y], found[z], found[w]),
                        (own[x], own[y], own[z], own[w]),
                        alpha,
                    )
                if gripper >= 0 and rule == WINNER:
                    mixed[gripper] = found[gripper]
                elif gripper >= 0 and rule == POLICY:
                    mixed[gripper] = own[gripper]
                elif gripper >= 0:
                    opens = abs(mixed[gripper] - is_open) < abs(mixed[gripper] - is_closed)
                    mixed[gripper] = is_open if opens else is_closed
    return blended


@numba.njit(cache=True)
def _between(start: Quaternion, end: Quaternion, fraction: float) -> Quaternion:
    """Unit quaternion at ``fraction`` of the shorter great arc from ``start`` to ``end``.

    Shoemake, "Animating rotation with quaternion curves" (1985).
    """
    scale, other = 1.0 / _norm(start), 1.0 / _norm(end)
    cosine = start[0] * end[0] + start[1] * end[1] + start[2] * end[2] + start[3] * end[3]
    if cosine < 0.0:
        other = -other
    a, b, c, d = start[0] * scale, start[1] * scale, start[2] * scale, start[3] * scale
    e, f, g, h = end[0] * other, end[1] * other, end[2] * other, end[3] * other
    # The angle from the chord: exact for small angles, where the cosine is not.
    angle = 2.0 * math.atan2(
        _norm((e - a, f - b, g - c, h - d)), _norm((e + a, f + b, g + c, h + d))
    )
    sine = math.sin(angle)
    first, second = 1.0 - fraction, fraction
    if sine >= SMALL:
        first, second = math.sin(first * angle) / sine, math.sin(second * angle) / sine
    a, b, c, d = (
        first * a + second * e,
        first * b + second * f,
        first * c + second * g,
        first * d + second * h,
    )
    scale = 1.0 / _norm((a, b, c, d))
    return a * scale, b * scale, c * scale, d * scale


@numba.njit(cache=True)
def _norm(q: Quaternion) -> float:
    return math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])


@numba.njit(cache=True)
def _quaternion(x: float, y: float, z: float) -> Quaternion:
    angle = math.sqrt(x * x + y * y + z * z)
    scale = math.sin(0.5 * angle) / angle if angle > SMALL else 0.5
    return x * scale, y * scale, z * scale, math.cos(0.5 * angle)


@numba.njit(cache=True)
def _rotation_vector(q: Quaternion) -> tuple[float, float, float]:
    sign = -1.0 if q[3] < 0.0 else 1.0
    sine = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
    scale = 2.0 * math.atan2(sine, sign * q[3]) / sine if sine > SMALL else 2.0
    return sign * scale * q[0], sign * scale * q[1], sign * scale * q[2]
