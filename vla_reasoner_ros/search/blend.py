"""a = alpha a^VLA + (1 - alpha) a^Reasoner (arXiv 2509.22643), with rotations on SO(3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.rotations import from_rotation_vector, slerp, to_rotation_vector
from vla_reasoner_ros.types import ActionSpec, Representation

Floats = NDArray[np.float64]


def blend(
    spec: ActionSpec, policy: Floats, plan: Floats, alpha: float, gripper_rule: str = "winner"
) -> Floats:
    """Blend the searched plan into the policy's chunk.

    Translations and joints are blended linearly; rotations along the shorter great arc of SO(3),
    whether they are quaternions or rotation vectors; a binary gripper is not blended.

    Args:
        spec: what the numbers mean.
        policy: (H, D) the policy's chunk.
        plan: (L, D) the searched actions, L <= H.
        alpha: the policy's share in [0, 1]; 1 gives the policy's chunk bit for bit.
        gripper_rule: ``winner`` takes a binary gripper from the plan, ``policy`` from the policy,
            ``nearest`` takes the one of open and closed that is nearest to the blended number.

    Returns:
        (H, D) the policy's actions after the plan has ended are kept where actions are
        displacements; absolute targets would jump back there, so such a chunk ends with the plan,
        (L, D).
    """
    if alpha == 1.0:
        return policy.copy()
    own = policy[: len(plan)]
    mixed = plan.copy() if alpha == 0.0 else alpha * own + (1.0 - alpha) * plan
    rotation = list(spec.motion_indices[3:])
    if alpha > 0.0 and spec.representation is Representation.EE_DELTA:
        start, end = (from_rotation_vector(a[:, rotation]) for a in (plan, own))
        mixed[:, rotation] = to_rotation_vector(slerp(start, end, alpha))
    elif alpha > 0.0 and spec.representation is Representation.EE_POSE:
        mixed[:, rotation] = slerp(plan[:, rotation], own[:, rotation], alpha)
    gripper = spec.gripper
    if gripper is not None and gripper.binary:
        i = gripper.index
        if gripper_rule == "nearest":
            blended = alpha * own[:, i] + (1.0 - alpha) * plan[:, i]
            is_open = abs(blended - gripper.open) < abs(blended - gripper.closed)
            mixed[:, i] = np.where(is_open, gripper.open, gripper.closed)
        else:
            mixed[:, i] = (plan if gripper_rule == "winner" else own)[:, i]
    return np.concatenate([mixed, policy[len(plan) :]]) if spec.is_delta else mixed
