"""From a searched tree to an answer: the winner at the root, and the line of actions it begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.selection import gumbel_scores
from vla_reasoner_ros.search.tree import CUT, NONE, Tree, best_edge, edges_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Root:
    """The root's F candidates as arrays; index is the candidate's id, 0 the policy's own.

    Attributes:
        edges: (F,) their edges.
        children: (F,) nodes; negative where nothing was imagined, or cut off.
        visits: (F,), 0 where nothing was imagined.
        values: (F,) discounted values Q; NaN where nothing was imagined.
        errors: (F,) standard error of Q: that of the mean of what was backed up, with one visit's
            worth of the root's own spread added, and the standard deviation of the value's ensemble
            at the leaves behind Q, which are taken to err together; NaN where nothing was imagined.
        priors: (F,) normalised densities.
        origins: (F,) numbers of who drew them.
    """

    edges: NDArray[np.int32]
    children: NDArray[np.int32]
    visits: NDArray[np.int32]
    values: Floats
    errors: Floats
    priors: Floats
    origins: NDArray[np.int16]


@dataclass(frozen=True)
class Choice:
    """The winner and how it compares with the policy's own candidate.

    Attributes:
        winner: id of the candidate with the best score by the decision rule.
        value: its Q.
        policy_value: Q of candidate 0.
        margin: value - policy_value.
        deviates: the winner exceeds the policy by more than the margin asked for.
        confidence: the winner's share of the root's visits.
    """

    winner: int
    value: float
    policy_value: float
    margin: float
    deviates: bool
    confidence: float


def candidates_of(tree: Tree, node: int, discount: float) -> Root:
    """Collect a node's candidates; empty arrays before it was expanded."""
    edges = edges_of(tree, node)
    children = tree.edges["child"][edges]
    present = np.maximum(children, 0)
    visits = np.where(children >= 0, tree.nodes["visits"][present], 0)
    count = np.maximum(visits, 1)
    spread = np.maximum(0.0, tree.nodes["square"][present] - tree.nodes["mean"][present] ** 2)
    common = max(0.0, tree.nodes["square"][node] - tree.nodes["mean"][node] ** 2)
    ensemble = tree.nodes["spread"][present]
    errors = np.sqrt((count * spread + common) / (count + 1) / count + ensemble**2)
    return Root(
        edges=edges,
        children=children,
        visits=visits,
        values=np.where(visits > 0, discount * tree.nodes["value"][present], np.nan),
        errors=np.where(visits > 0, discount * errors, np.nan),
        priors=tree.edges["prior"][edges].astype(np.float64),
        origins=tree.edges["origin"][edges],
    )


def choose_root(engine: Engine, root: Root) -> Choice:
    """Pick the winner among the candidates that were imagined.

    Raises:
        ModelError: the policy's own candidate was cut off, so nothing can be compared with it.
    """
    parameters = engine.parameters
    if len(root.children) and root.children[0] == CUT:
        raise ModelError("search: the state after the policy's own macro-action cannot be used")
    if not len(root.children) or root.visits[0] == 0:
        raise ModelError("search: it ended before the policy's own macro-action was imagined")
    scores = root.values
    if parameters.decision == "lower_bound":
        scores = root.values - parameters.bound_width * root.errors
    if parameters.decision == "visits":
        if parameters.method == "tree" and parameters.selection == "gumbel":
            scores = gumbel_scores(engine.tree, engine.rules, 0) + engine.rules.noise[: len(scores)]
        scores = np.where(root.visits == root.visits.max(), scores, -np.inf)
    winner = int(np.argmax(np.where(root.visits > 0, scores, -np.inf)))
    margin = float(root.values[winner] - root.values[0])
    return Choice(
        winner=winner,
        value=float(root.values[winner]),
        policy_value=float(root.values[0]),
        margin=margin,
        deviates=winner != 0 and margin > parameters.margin,
        confidence=float(root.visits[winner] / root.visits.sum()),
    )


def state_after(tree: Tree, candidate: int) -> int | None:
    """The node that a root candidate leads to; None where nothing was imagined, or it was cut off.

    Args:
        tree: after a search, also after one that never began.
        candidate: its id.
    """
    edges = edges_of(tree, 0)
    child = int(tree.edges["child"][edges[candidate]]) if candidate < len(edges) else NONE
    return child if child >= 0 else None


def line_from(engine: Engine, winner: int, steps: int) -> Floats:
    """The actions that the tree recommends: the winner's, then its best children's in turn.

    Args:
        engine: whose tree was searched.
        winner: id of the root's candidate.
        steps: actions wanted; the line is as long as the tree goes, and at least one macro-action.

    Returns:
        (L, D) actions, L a multiple of the macro-action's.
    """
    tree, discount = engine.tree, engine.parameters.discount
    edge = int(edges_of(tree, 0)[winner])
    line = [tree.action[edge]]
    while len(line) * engine.macro_steps < steps:
        edge = int(best_edge(tree, int(tree.edges["child"][edge]), discount))
        if edge == NONE:
            break
        line.append(tree.action[edge])
    return np.concatenate(line).astype(np.float64).reshape(-1, engine.spec.dimensions)
