"""From a prior's draws to a node's candidates: the reference, and the draws nearest to it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.priors.base import Candidates
from vla_reasoner_ros.rotations import with_unit_quaternions
from vla_reasoner_ros.search.base import Models, drawn
from vla_reasoner_ros.search.blend import Mix, blended, mix_into
from vla_reasoner_ros.search.selection import Rules
from vla_reasoner_ros.search.tree import (
    CUT,
    NONE,
    PRUNED,
    Floats,
    Ints,
    Tree,
    add_edge,
    best_edge,
)
from vla_reasoner_ros.types import ActionSpec

POLICY = "policy"
"""The origin of every reference: the policy's own segment, or what continues it."""
POLICY_ORIGIN = 0
"""Its place in :attr:`CandidateSource.origins`, and so in the tree."""


class CandidateSource:
    """Draws candidates for batches of nodes.

    Args:
        macro_steps: actions on an edge, M.
        spec: what the D numbers of an action mean.
        mix: how what was drawn is blended into what it was drawn around before it is imagined.

    Attributes:
        origins: names of who drew candidates; the tree holds places in this list.
        motion: (M * D,) whether a number of a macro-action moves the arm.
        mix: as given.
    """

    def __init__(self, macro_steps: int, spec: ActionSpec, mix: Mix) -> None:
        self.origins = [POLICY]
        self.mix = mix
        self._spec = spec
        self._shape = (macro_steps, spec.dimensions)
        mask = np.zeros(self._shape, np.bool_)
        mask[:, list(spec.motion_indices)] = True
        self.motion = mask.reshape(-1)
        self._identifiers: dict[tuple[str, ...], NDArray[np.int16]] = {}

    def identify(self, origins: tuple[str, ...]) -> NDArray[np.int16]:
        """Numbers for names of origins, into :attr:`origins`."""
        if origins not in self._identifiers:
            for name in origins:
                if name not in self.origins:
                    self.origins.append(name)
            self._identifiers[origins] = np.array(
                [self.origins.index(name) for name in origins], np.int16
            )
        return self._identifiers[origins]

    def valid(self, actions: Floats) -> Floats:
        """Macro-actions (..., M * D) whose orientations are unit quaternions again."""
        split = actions.reshape(*actions.shape[:-1], *self._shape)
        return with_unit_quaternions(self._spec, split).reshape(actions.shape)

    def as_executed(self, policy: Floats, plans: Floats) -> Floats:
        """Plans (C, d, M * D) blended into the policy's (d, M * D), if that is done at this end."""
        return blended(self.mix, policy.reshape(1, -1), plans.reshape(len(plans), -1)).reshape(
            plans.shape
        )

    def ask(
        self, models: Models, reference: Floats, count: int, rng: np.random.Generator
    ) -> Candidates:
        """Draw ``count`` candidates around each of B references (B, M * D).

        Returns:
            As drawn, the reference first: actions (B, 1 + count, M * D).

        Raises:
            ModelError: the prior's answer has the wrong form.
        """
        return drawn(models, reference.reshape(-1, *self._shape), count, rng)


@kernel
def attach(
    tree: Tree,
    rules: Rules,
    mix: Mix,
    nodes: Ints,
    scale: Floats,
    actions: Floats,
    log_density: Floats,
    origins: NDArray[np.int16],
) -> None:
    """Give nodes their candidates, or more of them.

    A node without draws takes the reference first, unless a rollout has put it there, then the
    draws. A node that has draws gets more around its best; without that best itself, and with at
    most its prior. Draws further than ``rules.support_floor`` nats below the best are cut off,
    never the reference. Priors are ``density ** (1 / temperature)``, normalised among siblings.

    Args:
        tree: the tree.
        rules: how many candidates are kept, and which.
        mix: blends every draw into the reference.
        nodes: (B,).
        scale: (B,) draws are moved to this share of their distance from the reference.
        actions: (B, 1 + K, M * D) references and draws.
        log_density: (B, 1 + K), up to a constant per node.
        origins: (1 + K,) who drew them.
    """
    rule = rules.numbers[0]
    action = np.empty(actions.shape[2])
    for row in range(len(nodes)):
        node = nodes[row]
        kept = nearest(mix, actions[row], rule.kept)
        best = -np.inf
        for column in kept:
            best = max(best, log_density[row, column])
        weight, begin = 1.0, min(1, tree.nodes[node].edge_count)
        if tree.nodes[node].edge_count > 1:
            weight = tree.edges[best_edge(tree, node, rule.discount)].prior
        elif begin == 1:
            below = _below(best, log_density[row, 0])
            tree.edges[tree.nodes[node].first_edge].prior = np.exp(-below / rule.prior_temperature)
        for i in range(begin, min(len(kept), begin + rule.fan - tree.nodes[node].edge_count)):
            column = kept[i]
            below = _below(best, log_density[row, column])
            prior = weight * np.exp(-below / rule.prior_temperature)
            action[:] = actions[row, column]
            if i > 0:
                _pull(mix, actions[row, 0], action, scale[row])
                mix_into(mix, actions[row, 0], action)
            edge = add_edge(tree, node, action, prior, origins[column])
            if i > 0 and rule.support_floor > 0.0 and below > rule.support_floor:
                tree.edges[edge].child = CUT
                tree.edges[edge].prior = 0.0
                tree.counters[PRUNED] += 1
        _normalise(tree, node)


@kernel
def _below(best: float, log_density: float) -> float:
    """Nats by which a density lies below the best; 0 where all of them are zero."""
    return best - log_density if best > -np.inf else 0.0


@kernel
def nearest(mix: Mix, actions: Floats, keep: int) -> NDArray[np.int64]:
    """The draws of one node nearest to its reference, which is column 0 and comes first.

    Every number that moves the arm is weighed by the spread of the node's own draws around the
    reference, so that metres and radians count alike; a gripper's flip is not a distance.

    Args:
        mix: knows what moves the arm.
        actions: (1 + K, M * D).
        keep: draws kept; all of them when there are no more.

    Returns:
        (1 + keep,) columns, nearest first where not all are kept.
    """
    columns, width = actions.shape
    if keep >= columns - 1:
        return np.arange(columns)
    distance = np.zeros(columns - 1)
    for first in range(0, width, mix.size):
        for i in mix.motion:
            deviation = (actions[1:, first + i] - actions[0, first + i]) ** 2
            spread = deviation.mean()
            if spread > 0.0:
                distance += deviation / spread
    kept = np.zeros(1 + keep, np.int64)
    kept[1:] = 1 + np.argsort(distance, kind="mergesort")[:keep]
    return kept


@kernel
def _pull(mix: Mix, reference: Floats, action: Floats, share: float) -> None:
    """Move an action to a share of its distance from the reference, in place."""
    if share == 1.0:
        return
    for first in range(0, len(action), mix.size):
        if len(mix.rotation) == 4:
            # A quaternion and its negative are one rotation: take the one on the reference's side.
            product = 0.0
            for i in mix.rotation:
                product += action[first + i] * reference[first + i]
            for i in mix.rotation:
                action[first + i] = math.copysign(1.0, product) * action[first + i]
        for i in mix.motion:
            centre = reference[first + i]
            action[first + i] = centre + share * (action[first + i] - centre)
        if len(mix.rotation) == 4:
            square = 0.0
            for i in mix.rotation:
                square += action[first + i] ** 2
            for i in mix.rotation:
                action[first + i] /= np.sqrt(square)


@kernel
def _normalise(tree: Tree, node: int) -> None:
    total, edge = 0.0, tree.nodes[node].first_edge
    while edge != NONE:
        total += tree.edges[edge].prior
        edge = tree.edges[edge].sibling
    if total == 0.0:  # All that is left underflowed or was cut off.
        return
    edge = tree.nodes[node].first_edge
    while edge != NONE:
        tree.edges[edge].prior /= total
        edge = tree.edges[edge].sibling
