"""The latent dynamics as compiled functions: what :class:`DynamicsNetwork` says, without its calls.

A wave of the search has a handful of states, for which PyTorch's hundred small operations cost ten
times their arithmetic. Training stays with the network; a test holds the two against one another.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.perceptron import Buffer, Perceptron
from vla_reasoner_ros.world_models.base import Slots
from vla_reasoner_ros.world_models.encoder import LatentLayout

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
TRANSLATION_SCALE = 0.02
"""Typical translation of one action, m."""
ROTATION_SCALE = 0.1
"""Typical rotation of one action, rad."""
STAY_BELOW = 0.05
"""An object whose contact probability is lower does not move at all."""
FAR, NEAR = 0.1, 0.02
"""Scales of a distance: linear afar, saturating nearby, m."""
POSE = 13
"""Numbers about where the arm arrives: position (3), displacement (3), rotation (6), gripper."""


class Places(NamedTuple):
    """Where the parts of a latent begin, and how many there are; see :class:`LatentLayout`."""

    ee_position: int
    ee_rotation: int
    gripper: int
    joint_velocity: int
    object_position: int
    object_error: int
    block_yaw: int
    object_up: int
    block_held: int
    joints: int
    objects: int
    blocks: int


def places_of(layout: LatentLayout) -> Places:
    """A layout as the compiled functions take it."""
    starts = {name: part.start for name, part in layout.slices.items()}
    return Places(**starts, joints=layout.joints, objects=len(layout.objects), blocks=layout.blocks)


class CompiledDynamics:
    """Macro-actions on latents, for an ensemble of E members.

    Args:
        arm: the perceptrons that say where the arm arrives.
        objects: those that say what becomes of each object.
        layout: of the latents.
        mean: (3,) of end-effector positions, m.
        scale: (3,) of end-effector positions, m.
    """

    def __init__(
        self,
        arm: Perceptron,
        objects: Perceptron,
        layout: LatentLayout,
        mean: NDArray[Any],
        scale: NDArray[Any],
    ) -> None:
        self._arm, self._objects = arm, objects
        self._places = places_of(layout)
        self._mean, self._scale = mean.astype(np.float64), scale.astype(np.float64)
        self._arm_inputs, self._object_inputs = Buffer(), Buffer()

    def step(
        self,
        states: Floats,
        variance: Floats,
        parents: Slots,
        actions: Floats,
        children: Slots,
    ) -> bool:
        """Imagine B macro-actions.

        Args:
            states: (N, Z) latents; the children's rows are written.
            variance: (N,) between the members, m^2, summed along the path; so is this.
            parents: (B,) rows.
            actions: (B, M, 7) end-effector deltas and gripper opening commands, SI units.
            children: (B,) rows, none of them a parent.

        Returns:
            Whether what was imagined is finite.
        """
        p, batch = self._places, len(parents)
        arm = self._arm_inputs(1, batch, self._arm.inputs)
        _fill_arm(states, parents, actions, p, self._mean, self._scale, arm)
        moved = self._arm(arm)
        things = self._object_inputs(self._objects.members, batch * p.objects, self._objects.inputs)
        poses = np.empty((self._objects.members, batch, POSE))
        _fill_objects(states, parents, actions, p, arm, moved, things, poses)
        outcome = self._objects(things)
        return bool(_conclude(states, variance, parents, children, p, moved, outcome, poses))


@kernel
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)
    return power / (1.0 + power)


@kernel
def rotation_of_columns(columns: NDArray[Any], matrix: Doubles) -> None:
    """Write the rotation matrix (3, 3) nearest, by Gram-Schmidt, to two columns (6,)."""
    length, dot = 0.0, 0.0
    for i in range(3):
        length += float(columns[i]) ** 2
    length = max(math.sqrt(length), 1e-12)
    for i in range(3):
        matrix[i, 0] = columns[i] / length
        dot += matrix[i, 0] * columns[3 + i]
    length = 0.0
    for i in range(3):
        matrix[i, 1] = columns[3 + i] - dot * matrix[i, 0]
        length += matrix[i, 1] ** 2
    length = max(math.sqrt(length), 1e-12)
    for i in range(3):
        matrix[i, 1] /= length
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        matrix[i, 2] = matrix[j, 0] * matrix[k, 1] - matrix[k, 0] * matrix[j, 1]


@kernel
def _turn(vector: Doubles, matrix: Doubles) -> None:
    """Turn a rotation matrix (3, 3), from the left, by a rotation vector (3,), rad."""
    angle = max(math.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2), 1e-8)
    x, y, z = vector[0] / angle, vector[1] / angle, vector[2] / angle
    sine, versine = math.sin(angle), 1.0 - math.cos(angle)
    for i in range(3):
        a, b, c = matrix[0, i], matrix[1, i], matrix[2, i]
        # Rodrigues: v + sin(angle) (k x v) + (1 - cos(angle)) k x (k x v).
        u, v, w = y * c - z * b, z * a - x * c, x * b - y * a
        matrix[0, i] = a + sine * u + versine * (y * w - z * v)
        matrix[1, i] = b + sine * v + versine * (z * u - x * w)
        matrix[2, i] = c + sine * w + versine * (x * v - y * u)


@kernel
def _near_and_far(vectors: Doubles, row: Floats, begin: int) -> int:
    """Write n distances as 2 n features; returns the next place."""
    count = len(vectors)
    for i in range(count):
        row[begin + i] = vectors[i] / FAR
        row[begin + count + i] = math.tanh(vectors[i] / NEAR)
    return begin + 2 * count


@kernel
def _fill_arm(
    states: Floats,
    parents: Slots,
    actions: Floats,
    p: Places,
    mean: Doubles,
    scale: Doubles,
    out: Floats,
) -> None:
    """Write the arm network's inputs (1, B, F): arm and actions, then where the objects are."""
    away = np.empty(3 * p.objects)
    for b in range(len(parents)):
        state, row = states[parents[b]], out[0, b]
        at = 0
        for i in range(3):
            row[at + i] = (state[p.ee_position + i] - mean[i]) / scale[i]
        at += 3
        for i in range(7):
            row[at + i] = state[p.ee_rotation + i]  # two columns, then the gripper
        at += 7
        for i in range(p.joints):
            row[at + i] = state[p.joint_velocity + i]
        at += p.joints
        for m in range(actions.shape[1]):
            for i in range(3):
                row[at + i] = actions[b, m, i] / TRANSLATION_SCALE
                row[at + 3 + i] = actions[b, m, 3 + i] / ROTATION_SCALE
            row[at + 6] = 2.0 * actions[b, m, 6] - 1.0
            at += 7
        for k in range(p.objects):
            for i in range(3):
                away[3 * k + i] = state[p.object_position + 3 * k + i] - state[p.ee_position + i]
        _near_and_far(away, row, at)


@kernel
def _path(
    state: Floats,
    actions: Floats,
    moved: Floats,
    p: Places,
    places: Doubles,
    rotations: Doubles,
    pose: Doubles,
) -> None:
    """Commanded poses of the hand (M + 1), its own first, and where it arrives (POSE,).

    Positions are bent to end where the arm is thought to arrive.
    """
    steps = len(actions)
    vector = np.empty(3)
    rotation_of_columns(state[p.ee_rotation : p.ee_rotation + 6], rotations[0])
    for i in range(3):
        places[0, i] = state[p.ee_position + i]
    for m in range(steps):
        rotations[m + 1] = rotations[m]
        for i in range(3):
            places[m + 1, i] = places[m, i] + actions[m, i]
            vector[i] = actions[m, 3 + i]
        _turn(vector, rotations[m + 1])
    for i in range(3):
        bend = TRANSLATION_SCALE * moved[i]
        for m in range(steps):
            places[m + 1, i] += bend * (m + 1) / steps
        pose[i] = places[steps, i]
        pose[3 + i] = places[steps, i] - places[0, i]
        vector[i] = ROTATION_SCALE * moved[3 + i]
    arrived = rotations[steps].copy()
    _turn(vector, arrived)
    for i in range(3):
        pose[6 + i], pose[9 + i] = arrived[i, 0], arrived[i, 1]
    # The fingers close or open fully within a macro-action unless something stops them.
    pose[12] = sigmoid(3.0 * (2.0 * actions[steps - 1, 6] - 1.0) + 4.0 * moved[6])


@kernel
def _fill_objects(
    states: Floats,
    parents: Slots,
    actions: Floats,
    p: Places,
    arm: Floats,
    moved: Floats,
    out: Floats,
    poses: Doubles,
) -> None:
    """Write the object network's inputs (E, B K, F), and where each member's arm arrives."""
    members, steps = len(moved), actions.shape[1]
    places, rotations = np.empty((steps + 1, 3)), np.empty((steps + 1, 3, 3))
    in_hand = np.empty(3 * (steps + 1))
    hand_at = p.objects + 6
    for b in range(len(parents)):
        state = states[parents[b]]
        for k in range(p.objects):
            _fill_shared(state, p, arm[0, b], k, out[0, b * p.objects + k], len(in_hand), steps)
            for e in range(1, members):
                out[e, b * p.objects + k] = out[0, b * p.objects + k]
        for e in range(members):
            _path(state, actions[b], moved[e, b], p, places, rotations, poses[e, b])
            for k in range(p.objects):
                row = out[e, b * p.objects + k]
                # What counts for a grasp is where things are in the hand when the fingers close.
                for m in range(steps + 1):
                    for i in range(3):
                        total = 0.0
                        for j in range(3):
                            away = state[p.object_position + 3 * k + j] - places[m, j]
                            total += rotations[m, j, i] * away
                        in_hand[3 * m + i] = total
                _near_and_far(in_hand, row, hand_at)
                for i in range(3):
                    row[len(row) - 4 + i] = poses[e, b, 3 + i] / TRANSLATION_SCALE
                row[len(row) - 1] = poses[e, b, 12]


@kernel
def _fill_shared(
    state: Floats, p: Places, arm: Floats, k: int, row: Floats, hand: int, steps: int
) -> None:
    """Write what all members see alike of one object; ``hand`` numbers are left out."""
    away, between = np.empty(3), np.empty(3 * p.objects)
    for i in range(p.objects):
        row[i] = 1.0 if i == k else 0.0
    own = p.object_position + 3 * k
    for i in range(3):
        away[i] = state[own + i] - state[p.ee_position + i]
    at = _near_and_far(away, row, p.objects) + 2 * hand
    row[at] = state[own + 2] / FAR
    is_block = k < p.blocks
    row[at + 1] = state[p.block_yaw + 2 * k] if is_block else 0.0
    row[at + 2] = state[p.block_yaw + 2 * k + 1] if is_block else 0.0
    row[at + 3] = state[p.object_up + k]
    row[at + 4] = state[p.block_held + k] if is_block else 0.0
    row[at + 5] = 100.0 * state[p.object_error + k]
    for j in range(p.objects):
        for i in range(3):
            between[3 * j + i] = state[p.object_position + 3 * j + i] - state[own + i]
    at = _near_and_far(between, row, at + 6)
    for i in range(10 + p.joints + 7 * steps):
        row[at + i] = arm[i]


@kernel
def _conclude(
    states: Floats,
    variance: Floats,
    parents: Slots,
    children: Slots,
    p: Places,
    moved: Floats,
    outcome: Floats,
    poses: Doubles,
) -> bool:
    """Write the members' mean and what they disagree by; whether all of it is finite."""
    members = len(moved)
    width = states.shape[1]
    latents, mean = np.empty((members, width)), np.empty(width)
    rotation = np.empty((3, 3))
    first, last = p.object_position, p.object_position + 3 * p.objects
    finite = True
    for b in range(len(parents)):
        state = states[parents[b]]
        for e in range(members):
            rows = outcome[e, b * p.objects : (b + 1) * p.objects]
            _one_latent(state, p, moved[e, b], rows, poses[e, b], latents[e])
        for i in range(width):
            mean[i] = 0.0
            for e in range(members):
                mean[i] += latents[e, i] / members
            finite = finite and math.isfinite(mean[i])
        doubt = 0.0
        for i in range(width):
            if i < 3 or first <= i < last:
                for e in range(members):
                    doubt += (latents[e, i] - mean[i]) ** 2 / members
        # Columns of a mean of rotations are shorter than one; make a rotation of them again.
        rotation_of_columns(mean[p.ee_rotation : p.ee_rotation + 6], rotation)
        for i in range(3):
            mean[p.ee_rotation + i], mean[p.ee_rotation + 3 + i] = rotation[i, 0], rotation[i, 1]
        for i in range(width):
            states[children[b], i] = mean[i]
        variance[children[b]] = variance[parents[b]] + doubt
    return finite


@kernel
def _one_latent(
    state: Floats, p: Places, moved: Floats, outcome: Floats, pose: Doubles, out: Doubles
) -> None:
    """One member's (Z,) latent from its outputs (K, 11) about the objects."""
    for i in range(3):
        out[p.ee_position + i] = pose[i]
    for i in range(6):
        out[p.ee_rotation + i] = pose[6 + i]
    out[p.gripper] = pose[12]
    for i in range(p.joints):
        out[p.joint_velocity + i] = moved[7 + i]
    for k in range(p.objects):
        new = outcome[k]
        contact = sigmoid(new[0])
        if contact < STAY_BELOW:
            contact = 0.0
        share = sigmoid(new[1])
        for i in range(3):
            displacement = contact * (share * pose[3 + i] + 0.03 * new[2 + i])
            out[p.object_position + 3 * k + i] = state[p.object_position + 3 * k + i] + displacement
        growth = new[5] if new[5] > 20.0 else math.log1p(math.exp(new[5]))
        out[p.object_error + k] = state[p.object_error + k] + contact * 0.01 * growth
        out[p.object_up + k] = state[p.object_up + k] + contact * new[8]
        if k < p.blocks:
            for i in range(2):
                yaw = p.block_yaw + 2 * k + i
                out[yaw] = state[yaw] + contact * new[6 + i]
            out[p.block_held + k] = sigmoid(new[9])
