"""Which candidate of a node is tried next: ucb with density pseudo-counts, puct or gumbel."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.tree import NONE, WAVE, Tree, best_edge, edges_of

UCB, PUCT, GUMBEL = range(3)
TRY_ALL, PARENT, CONSTANT = range(3)
SMALLEST_PRIOR = 1e-30
"""Keeps the logarithm of a prior finite."""


class Rules(NamedTuple):
    """The parameters of the search as the compiled kernels take them; see SearchParameters."""

    selection: int
    exploration: float
    first_play: int
    first_play_value: float
    normalise: bool
    value_resolution: float
    virtual_loss: float
    widening: bool
    widening_factor: float
    widening_exponent: float
    widening_shrink: float
    visit_offset: float
    value_scale: float
    depth: int
    rollout: bool
    discount: float
    best_child: bool
    pessimism: float
    uncertainty_limit: float  # 0 is off
    fan: int
    drawn: int
    noise: NDArray[np.float64]  # (F,) Gumbel noise of the root's candidates
    schedule: NDArray[np.int32]  # (S,) visits that the s-th simulation's root child has had


def rules_of(parameters: SearchParameters) -> Rules:
    """Translate the parameters."""
    return Rules(
        selection=("ucb", "puct", "gumbel").index(parameters.selection),
        exploration=parameters.exploration,
        first_play=("try_all", "parent", "constant").index(parameters.first_play),
        first_play_value=parameters.first_play_value,
        normalise=parameters.normalise,
        value_resolution=parameters.value_resolution,
        virtual_loss=parameters.virtual_loss,
        widening=parameters.widening.enabled,
        widening_factor=parameters.widening.factor,
        widening_exponent=parameters.widening.exponent,
        widening_shrink=parameters.widening.shrink,
        visit_offset=parameters.gumbel.visit_offset,
        value_scale=parameters.gumbel.value_scale,
        depth=parameters.depth,
        rollout=parameters.rollout,
        discount=parameters.discount,
        best_child=parameters.backup == "max",
        pessimism=parameters.pessimism,
        uncertainty_limit=parameters.uncertainty_limit,
        fan=parameters.fan,
        drawn=parameters.drawn,
        noise=np.zeros(parameters.fan),
        schedule=halving_schedule(
            min(parameters.gumbel.considered, parameters.fan),
            max(1, parameters.simulations),
        ),
    )


def halving_schedule(considered: int, simulations: int) -> NDArray[np.int32]:
    """Sequential halving (Karnin et al., 2013) as a list of visit counts.

    Simulation s goes to the best candidate among those with exactly ``schedule[s]`` visits: every
    round gives each of the considered candidates the same number of visits, then drops half.

    Args:
        considered: candidates in the first round.
        simulations: length of the list.
    """
    if considered <= 1:
        return np.arange(simulations, dtype=np.int32)
    rounds = math.ceil(math.log2(considered))
    schedule: list[int] = []
    visits = [0] * considered
    left = considered
    while len(schedule) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            schedule.extend(visits[:left])
            for i in range(left):
                visits[i] += 1
        left = max(2, left // 2)
    return np.array(schedule[:simulations], np.int32)


@numba.njit(cache=True)
def wants_candidates(tree: Tree, rules: Rules, node: int) -> bool:
    """Whether an expanded node has tried all its candidates and its visits allow for more."""
    count = tree.edge_count[node]
    if not rules.widening or count >= rules.fan:
        return False
    visits = tree.visits[node] + tree.in_flight[node]
    if count >= rules.widening_factor * visits**rules.widening_exponent:
        return False
    untried = np.any(tree.child[edges_of(tree, node)] == NONE)
    return not untried and best_edge(tree, node, rules.discount) != NONE


@numba.njit(cache=True)
def choose(tree: Tree, rules: Rules, node: int, untried: bool = False) -> int:
    """The edge of an expanded node to follow; NONE when every one is cut off or under way.

    With ``untried`` only candidates without a child are looked at.

    The root's first candidate, the policy's own, comes before all others: it is always scored.
    Ties go to the first.
    """
    first = tree.first_edge[node]
    if node == 0 and _is_open(tree, first) and _visits(tree, first) == 0:
        return first
    if rules.selection == GUMBEL:
        return _choose_gumbel(tree, rules, node, untried)
    visits = tree.visits[node] + tree.in_flight[node]
    unseen = _scaled(tree, rules, tree.value[node]) - rules.first_play_value
    if rules.first_play == CONSTANT:
        unseen = rules.first_play_value
    best, best_score = NONE, -np.inf
    for edge in edges_of(tree, node):
        if not _is_open(tree, edge) or (untried and tree.child[edge] != NONE):
            continue
        prior = tree.prior[edge]
        tried = _visits(tree, edge)
        if tried == 0 and rules.first_play == TRY_ALL:
            score = 1e12 * (1.0 + prior)
        else:
            if rules.selection == UCB:
                bonus = math.sqrt(math.log(1.0 + visits) / (1.0 + visits * prior))
            else:
                bonus = prior * math.sqrt(visits) / (1.0 + tried)
            score = _value(tree, rules, edge, unseen) + rules.exploration * bonus
        if score > best_score:
            best, best_score = edge, score
    return best


@numba.njit(cache=True)
def gumbel_scores(tree: Tree, rules: Rules, node: int) -> NDArray[np.float64]:
    """Log prior plus weighted value of every edge (Danihelka et al., 2022, eq. 8 and 10).

    Edges without a visit are completed by the mean of the node's own value and the prior-weighted
    mean of its visited children; values are scaled by the smallest and largest among the edges.
    """
    edges = edges_of(tree, node)
    visits, mass, weighted, most = 0, 0.0, 0.0, 0
    for edge in edges:
        child = tree.child[edge]
        if child >= 0 and tree.visits[child] > 0:
            visits += tree.visits[child]
            most = max(most, tree.visits[child])
            mass += tree.prior[edge]
            weighted += tree.prior[edge] * rules.discount * tree.value[child]
    completion = tree.leaf_value[node]
    if mass > 0.0:
        completion = (completion + visits * weighted / mass) / (1.0 + visits)
    scores = np.empty(len(edges))
    for i, edge in enumerate(edges):
        child = tree.child[edge]
        seen = child >= 0 and tree.visits[child] > 0
        scores[i] = rules.discount * tree.value[child] if seen else completion
    low, high = scores.min(), scores.max()
    weight = (rules.visit_offset + most) * rules.value_scale
    for i, edge in enumerate(edges):
        value = (scores[i] - low) / max(high - low, rules.value_resolution)
        log_prior = math.log(max(float(tree.prior[edge]), SMALLEST_PRIOR))
        scores[i] = log_prior + weight * value
    return scores


@numba.njit(cache=True)
def _choose_gumbel(tree: Tree, rules: Rules, node: int, untried: bool) -> int:
    scores = gumbel_scores(tree, rules, node)
    started = tree.visits[node] - 1 + tree.in_flight[node]
    best, best_score = NONE, -np.inf
    if node == 0:
        due = rules.schedule[min(started, len(rules.schedule) - 1)]
    else:
        top = scores.max()
        total = 0.0
        for i in range(len(scores)):
            scores[i] = math.exp(scores[i] - top)
            total += scores[i]
    for i, edge in enumerate(edges_of(tree, node)):
        if not _is_open(tree, edge) or (untried and tree.child[edge] != NONE):
            continue
        tried = _visits(tree, edge)
        if node == 0:
            # A candidate with just the due visits wins; failing one, the nearest to it.
            score = scores[i] + rules.noise[i] - 1e9 * abs(tried - due)
        else:
            score = scores[i] / total - tried / (1.0 + started)
        if score > best_score:
            best, best_score = edge, score
    return best


@numba.njit(cache=True)
def _is_open(tree: Tree, edge: int) -> bool:
    child = tree.child[edge]
    if child == NONE:
        return True
    if child < 0 or tree.visits[child] == 0:
        return False
    return tree.blocked[child] != tree.counters[WAVE]


@numba.njit(cache=True)
def _visits(tree: Tree, edge: int) -> int:
    child = tree.child[edge]
    return tree.visits[child] + tree.in_flight[child] if child >= 0 else 0


@numba.njit(cache=True)
def _scaled(tree: Tree, rules: Rules, value: float) -> float:
    if not rules.normalise:
        return value
    return (value - tree.bounds[0]) / max(tree.bounds[1] - tree.bounds[0], rules.value_resolution)


@numba.njit(cache=True)
def _value(tree: Tree, rules: Rules, edge: int, unseen: float) -> float:
    child = tree.child[edge]
    if child < 0:
        return unseen
    under_way = tree.in_flight[child] / (tree.visits[child] + tree.in_flight[child])
    value = _scaled(tree, rules, rules.discount * tree.value[child])
    return value - rules.virtual_loss * under_way
