"""What the tree must beat: best of N, random shooting, CEM and MPPI with as many imagined steps.

All of them roll out sequences of ``depth`` macro-actions, score the last state, and write every
rollout as a chain into the same tree, so that deciding, blending and reporting are shared. The
first sequence is the policy's own; the mean that CEM and MPPI end with is a candidate like any
other and must win by its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.search.base import Models, doubted, evaluated, fault_of, refuse
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.candidates import POLICY, CandidateSource
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import (
    LARGEST_VALUE,
    Ints,
    Tree,
    add_edge,
    back_up,
    cut_off,
    new_node,
)
from vla_reasoner_ros.search.wave import moments
from vla_reasoner_ros.types import ActionSpec

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


class Rollouts:
    """Draws, imagines and scores sequences within one budget.

    Shapes: C sequences, d = depth, A = M * D numbers in a macro-action.

    Attributes:
        calls: batched calls of the world model so far.
        sequences: that the budget allows in all.
        source: draws macro-actions.
    """

    def __init__(
        self,
        tree: Tree,
        models: Models,
        source: CandidateSource,
        segments: Floats,
        budget: Budget,
        rng: np.random.Generator,
        stages: Stages,
        parameters: SearchParameters,
        spec: ActionSpec,
    ) -> None:
        self.parameters = parameters
        self.rng = rng
        self.calls = 0
        self.sequences = budget.allowed // parameters.depth
        self.source = source
        self._tree, self._models, self._spec = tree, models, spec
        self._segments, self._budget, self._stages = segments, budget, stages

    def policy_sequence(self) -> Floats:
        """(d, A) the policy's own chunk, then its last macro-action again."""
        last = len(self._segments) - 1
        return self._segments[[min(i, last) for i in range(self.parameters.depth)]]

    def draw(self, count: int, around: Floats) -> tuple[Floats, tuple[str, ...]]:
        """Sequences whose every macro-action is drawn from the prior, given a reference each.

        Args:
            count: C.
            around: (d, A) the references; past the policy's chunk a sequence's reference is its own
                last macro-action.

        Returns:
            (C, d, A) sequences, and who drew each one's first macro-action.
        """
        drawn = np.empty((count, *around.shape))
        origins: tuple[str, ...] = ()
        if count == 0:
            return drawn, origins
        for level, reference in enumerate(around):
            if level < len(self._segments) or level == 0:
                actions, names = self._ask(reference[None], count)
                drawn[:, level] = actions[0, 1:]
                origins = origins or names[1:]
            else:
                drawn[:, level] = self._ask(drawn[:, level - 1], 1)[0][:, 1]
        return drawn, origins

    def score(self, sequences: Floats, origins: tuple[str, ...]) -> Floats:
        """Imagine sequences (C, d, A), as they would be executed, in waves; value where they end.

        Returns:
            (C',) values of the sequences that there was budget for, -inf for one that was cut off.
        """
        depth, wave = self.parameters.depth, self.parameters.wave
        scores: list[float] = []
        identifiers = self.source.identify(origins)
        sequences = self.source.as_executed(self.policy_sequence(), sequences)
        while len(scores) < len(sequences):
            group = slice(len(scores), min(len(scores) + wave, len(sequences)))
            allowed = self._budget.begin_wave((group.stop - group.start) * depth, depth) // depth
            if allowed == 0:
                break
            group = slice(group.start, group.start + allowed)
            scores.extend(self._imagine(sequences[group], identifiers[group]))
            self._budget.end_wave(allowed * depth)
        return np.array(scores)

    def _ask(self, reference: Floats, count: int) -> tuple[Floats, tuple[str, ...]]:
        drawn = self.source.ask(self._models, reference, count, self.rng)
        refuse(fault_of(drawn.actions, drawn.log_density))
        self._stages.lap("prior")
        return drawn.actions, drawn.origins

    def _imagine(self, sequences: Floats, origins: NDArray[np.int16]) -> list[float]:
        count, depth, _ = sequences.shape
        leaves, doubt = np.zeros(count, np.int32), np.zeros(count)
        actions = sequences.astype(np.float32)
        shape = (count, -1, self._spec.dimensions)
        for level in range(depth):
            parents = leaves.astype(np.int64)
            extend(self._tree, leaves, actions[:, level], origins, self.sequences)
            children = leaves.astype(np.int64)
            self._stages.lap("select")
            self._models.step(parents, actions[:, level].reshape(shape), children)
            self.calls += 1
            if self._models.uncertainty is not None:
                doubt = np.maximum(doubt, doubted(self._models.uncertainty, children))
            self._stages.lap("world_model")
        values = evaluated(self._models, children)
        self._stages.lap("value")
        scores = [
            self._settle(int(leaf), *moments(values, i), doubt[i]) for i, leaf in enumerate(leaves)
        ]
        self._stages.lap("backup")
        return scores

    def _settle(self, leaf: int, mean: float, spread: float, doubt: float) -> float:
        parameters = self.parameters
        value, limit = mean - parameters.pessimism * spread, parameters.uncertainty_limit
        supported = limit == 0.0 or doubt <= limit
        if not (abs(value) <= LARGEST_VALUE and math.isfinite(doubt) and supported):
            cut_chain(self._tree, leaf)
            return -math.inf
        settle_chain(self._tree, leaf, value)
        back_up(self._tree, leaf, value, spread, parameters.discount, parameters.backup == "max")
        return value


def best_of_n(rollouts: Rollouts) -> None:
    """Different first macro-actions, then the policy's own chunk goes on."""
    own = rollouts.policy_sequence()
    drawn, origins = rollouts.draw(rollouts.sequences - 1, own[:1])
    sequences = np.tile(own, (rollouts.sequences, 1, 1))
    sequences[1:, 0] = drawn[:, 0]
    rollouts.score(sequences, (POLICY, *origins))


def random_shooting(rollouts: Rollouts) -> None:
    """Every macro-action of every sequence is drawn from the prior."""
    own = rollouts.policy_sequence()
    drawn, origins = rollouts.draw(rollouts.sequences - 1, own)
    rollouts.score(np.concatenate([own[None], drawn]), (POLICY, *origins))


def cross_entropy(rollouts: Rollouts) -> None:
    """CEM: refit a diagonal Gaussian to the best sequences, round by round.

    The first round is drawn from the prior; what does not move the arm (the gripper) is copied from
    one of the best. Rubinstein and Kroese, "The cross-entropy method" (2004).
    """
    own, cem, rng = rollouts.policy_sequence(), rollouts.parameters.cem, rollouts.rng
    rounds = _rounds(rollouts.sequences, cem.iterations)
    mean, deviation, elites = own, None, own[None]
    for index, count in enumerate(rounds):
        if deviation is None:
            drawn, origins = rollouts.draw(count - 1, own)
            sequences, names = np.concatenate([own[None], drawn]), (POLICY, *origins)
        else:
            sequences = elites[rng.integers(len(elites), size=count)].copy()
            noise = rng.standard_normal((count, *mean.shape)) * deviation
            sequences[..., rollouts.source.motion] = (mean + noise)[..., rollouts.source.motion]
            names = ("cem",) * count
            if index == len(rounds) - 1:
                sequences[-1] = mean
        scores = rollouts.score(rollouts.source.valid(sequences), names)
        if len(scores) < count:
            return
        best = np.argsort(-scores, kind="stable")[: max(2, math.ceil(cem.elite_fraction * count))]
        best = best[np.isfinite(scores[best])]
        if not len(best):
            return
        elites = sequences[best]
        mean, deviation = elites.mean(0), elites.std(0)
        mean[..., ~rollouts.source.motion] = elites[0][..., ~rollouts.source.motion]


def path_integral(rollouts: Rollouts) -> None:
    """MPPI: average the sequences by exp(value / temperature), and draw around the average.

    Williams et al., "Information theoretic MPC" (2017), with the prior's draws as disturbances.
    What does not move the arm is taken from the best sequence.
    """
    own, mppi = rollouts.policy_sequence(), rollouts.parameters.mppi
    rounds = _rounds(rollouts.sequences - 1, mppi.iterations)
    nominal = own
    for count in rounds:
        drawn, origins = rollouts.draw(count - 1, nominal)
        name = POLICY if nominal is own else "mppi"
        sequences = np.concatenate([nominal[None], drawn])
        scores = rollouts.score(rollouts.source.valid(sequences), (name, *origins))
        if len(scores) < count or not np.isfinite(scores).any():
            return
        weights = np.exp((scores - scores.max()) / mppi.temperature)
        nominal = np.tensordot(weights / weights.sum(), sequences, 1)
        nominal[..., ~rollouts.source.motion] = sequences[scores.argmax()][
            ..., ~rollouts.source.motion
        ]
    name = POLICY if nominal is own else "mppi"
    rollouts.score(rollouts.source.valid(nominal[None]), (name,))


RIVALS: dict[str, Callable[[Rollouts], None]] = {
    "best_of_n": best_of_n,
    "shooting": random_shooting,
    "cem": cross_entropy,
    "mppi": path_integral,
}


def _rounds(sequences: int, iterations: int) -> list[int]:
    """Sizes of at most ``iterations`` rounds, nearly the same, none of them empty."""
    iterations = max(1, min(iterations, sequences // 2))
    size, rest = divmod(sequences, iterations)
    return [size + (i < rest) for i in range(iterations)] if sequences else []


@kernel
def extend(
    tree: Tree, leaves: Ints, actions: Singles, origins: NDArray[np.int16], root_fan: int
) -> None:
    """Lengthen chains by one edge and node each; ``leaves`` (C,) become the new nodes.

    An edge of the root has the prior ``1 / root_fan``.
    """
    for i in range(len(leaves)):
        node = leaves[i]
        prior = 1.0 / root_fan if node == 0 else 1.0
        edge = add_edge(tree, node, actions[i], prior, origins[i])
        leaves[i] = new_node(tree, node, edge, tree.nodes[node].depth + 1)
        tree.edges[edge].child = leaves[i]


@kernel
def settle_chain(tree: Tree, leaf: int, value: float) -> None:
    """States inside a chain are not valued themselves: they stand for where it ends."""
    node = leaf
    while node != 0:
        tree.nodes[node].leaf_value = value
        node = tree.nodes[node].parent


@kernel
def cut_chain(tree: Tree, leaf: int) -> None:
    """Close the root's edge to a chain whose end must not be used."""
    node = leaf
    while tree.nodes[node].parent != 0:
        node = tree.nodes[node].parent
    cut_off(tree, node)
