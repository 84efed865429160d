"""The progress network as compiled functions, for the few states of a wave at a time.

What only the sentence decides is worked out once per decision, by the network itself. A test holds
the two against one another.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.perceptron import Buffer, Perceptron
from vla_reasoner_ros.world_models.compiled_dynamics import (
    Places,
    places_of,
    rotation_of_columns,
    sigmoid,
)
from vla_reasoner_ros.world_models.encoder import LatentLayout

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
FAR, NEAR = 0.1, 0.03
"""Scales of a distance: linear afar, saturating nearby, m."""
HAND_CENTRE = (0.5, 0.0, 0.1)
THING_CENTRE = (0.5, 0.0, 0.05)
"""Middle of where the hand and things are, m, base frame."""
HEIGHTS, HEIGHT_SCALE = (0.0225, 0.0325, 0.0675), 0.01
"""Heights, m, that decide whether a block rests, is lifted or is past the edge of a plate."""
OPENINGS, OPENING_SCALE = (0.3, 0.56, 0.9), 0.1
"""Openings of the gripper that tell holding from empty."""
PROPERTIES = 8
"""Numbers about an object: position (3), upright, 100 times its error, held, yaw (2)."""


class CompiledProgress:
    """Progress of states under one sentence, for an ensemble of E members.

    Args:
        body: the perceptrons from features to the logit of progress.
        layout: of the latents.
    """

    def __init__(self, body: Perceptron, layout: LatentLayout) -> None:
        self._body = body
        self._places = places_of(layout)
        self._inputs = Buffer()

    def __call__(self, latents: Floats, attention: Floats, words: Floats) -> Doubles:
        """(E, B) progress.

        Args:
            latents: (B, Z).
            attention: (E, 2, K) shares of the objects in what is moved and in where it goes.
            words: (E, W) what else the sentence says.
        """
        inputs = self._inputs(self._body.members, len(latents), self._body.inputs)
        _fill(latents, attention, words, self._places, inputs)
        return _progress(self._body(inputs))


@kernel
def _progress(logits: Floats) -> Doubles:
    members, states, _ = logits.shape
    progress = np.empty((members, states))
    for e in range(members):
        for b in range(states):
            progress[e, b] = sigmoid(logits[e, b, 0])
    return progress


@kernel
def _properties(state: Floats, p: Places, out: Doubles) -> None:
    """Write the (K, PROPERTIES) numbers about the objects."""
    for k in range(p.objects):
        for i in range(3):
            out[k, i] = state[p.object_position + 3 * k + i]
        out[k, 3] = state[p.object_up + k]
        out[k, 4] = 100.0 * state[p.object_error + k]
        is_block = k < p.blocks
        out[k, 5] = state[p.block_held + k] if is_block else 0.0
        out[k, 6] = state[p.block_yaw + 2 * k] if is_block else 0.0
        out[k, 7] = state[p.block_yaw + 2 * k + 1] if is_block else 0.0


@kernel
def _distances(vector: Doubles, row: Floats, at: int) -> int:
    """Write a displacement (3,), m, as 11 features; returns the next place."""
    horizontal = math.sqrt(vector[0] ** 2 + vector[1] ** 2)
    length = math.sqrt(horizontal**2 + vector[2] ** 2)
    for i in range(3):
        row[at + i] = vector[i] / FAR
        row[at + 5 + i] = math.tanh(vector[i] / NEAR)
    row[at + 3], row[at + 4] = horizontal / FAR, length / FAR
    row[at + 8], row[at + 9] = math.tanh(horizontal / NEAR), math.tanh(length / NEAR)
    row[at + 10] = row[at + 8]
    return at + 11


@kernel
def _fill(latents: Floats, attention: Floats, words: Floats, p: Places, out: Floats) -> None:
    """Write the (E, B, F) features."""
    members = len(attention)
    properties, rotation = np.empty((p.objects, PROPERTIES)), np.empty((3, 3))
    thing, goal = np.empty(PROPERTIES), np.empty(PROPERTIES)
    for b in range(len(latents)):
        state = latents[b]
        _properties(state, p, properties)
        rotation_of_columns(state[p.ee_rotation : p.ee_rotation + 6], rotation)
        for e in range(members):
            for i in range(PROPERTIES):
                thing[i], goal[i] = 0.0, 0.0
                for k in range(p.objects):
                    thing[i] += attention[e, 0, k] * properties[k, i]
                    goal[i] += attention[e, 1, k] * properties[k, i]
            at = _fill_state(state, p, rotation, thing, goal, out[e, b])
            for i in range(words.shape[1]):
                out[e, b, at + i] = words[e, i]


@kernel
def _fill_state(
    state: Floats, p: Places, rotation: Doubles, thing: Doubles, goal: Doubles, row: Floats
) -> int:
    """Write what one member looks at in a state; returns the next place."""
    hand, away, in_hand = np.empty(3), np.empty(3), np.zeros(3)
    for i in range(3):
        hand[i] = state[p.ee_position + i]
        away[i] = hand[i] - thing[i]
    for i in range(3):
        for j in range(3):
            in_hand[i] += rotation[j, i] * away[j]
    at = _distances(away, row, 0)
    at = _distances(in_hand, row, at)
    at = _distances(thing[:3] - goal[:3], row, at)
    at = _distances(hand - goal[:3], row, at)
    gripper = state[p.gripper]
    for i in range(3):
        row[at + i] = (hand[i] - HAND_CENTRE[i]) / 0.1
        row[at + 3 + i] = (thing[i] - THING_CENTRE[i]) / 0.1
        row[at + 6 + i] = math.tanh((thing[2] - HEIGHTS[i]) / HEIGHT_SCALE)
        row[at + 26 + i] = math.tanh((gripper - OPENINGS[i]) / OPENING_SCALE)
    for i in range(5):
        row[at + 9 + i] = thing[3 + i]
        row[at + 14 + i] = goal[3 + i]
    for i in range(6):
        row[at + 19 + i] = state[p.ee_rotation + i]
    row[at + 25] = gripper
    return at + 29
