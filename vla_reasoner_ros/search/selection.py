"""Which candidate of a node is tried next: ucb with density pseudo-counts, puct or gumbel.

With Q the discounted value of a candidate and P its prior density, normalised among its siblings, n
its visits and N its node's, those under way included, and c the exploration:

- ``puct``: Q + c P sqrt(N) / (1 + n) (Silver et al., "Mastering the game of Go without human
  knowledge", 2017);
- ``ucb``: Q + c sqrt(ln(1 + N) / (1 + N P)) (arXiv 2509.22643; its exact formula is not public);
- ``gumbel``: sequential halving at the root, below it what the improved policy lacks in visits
  (Danihelka et al., "Policy improvement by planning with Gumbel", 2022, section 5).

Q is scaled by the smallest and largest value backed up so far (Schrittwieser et al., "Mastering
Atari, Go, chess and shogi by planning with a learned model", 2020, eq. 5). Visits under way lower
it (virtual loss; Chaslot et al., "Parallel Monte-Carlo tree search", 2008).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.tree import NONE, WAVE, Records, Tree, best_edge, edges_of

UCB, PUCT, GUMBEL = range(3)
TRY_ALL, PARENT, CONSTANT = range(3)
SMALLEST_PRIOR = 1e-30
"""Keeps the logarithm of a prior finite."""


RULE = np.dtype(
    [
        ("selection", np.int32),
        ("first_play", np.int32),
        ("depth", np.int32),
        ("fan", np.int32),
        ("drawn", np.int32),
        ("kept", np.int32),
        ("normalise", np.bool_),
        ("widening", np.bool_),
        ("rollout", np.bool_),
        ("best_child", np.bool_),
        ("exploration", np.float64),
        ("first_play_value", np.float64),
        ("value_resolution", np.float64),
        ("virtual_loss", np.float64),
        ("widening_factor", np.float64),
        ("widening_exponent", np.float64),
        ("widening_shrink", np.float64),
        ("visit_offset", np.float64),
        ("value_scale", np.float64),
        ("discount", np.float64),
        ("pessimism", np.float64),
        ("prior_temperature", np.float64),
        ("support_floor", np.float64),  # 0 is off
        ("uncertainty_limit", np.float64),  # 0 is off
    ],
    align=True,
)


class Rules(NamedTuple):
    """The parameters of the search as the compiled kernels take them; see SearchParameters.

    One record instead of many arguments: a kernel's call costs by the number of its arguments.
    """

    numbers: Records  # (1,) of RULE
    noise: NDArray[np.float64]  # (F,) Gumbel noise of the root's candidates
    schedule: NDArray[np.int32]  # (S,) visits that the root child of the s-th visit has had


def rules_of(parameters: SearchParameters) -> Rules:
    """Translate the parameters."""
    numbers = np.zeros(1, RULE)
    values = {
        "selection": ("ucb", "puct", "gumbel").index(parameters.selection),
        "first_play": ("try_all", "parent", "constant").index(parameters.first_play),
        "kept": min(parameters.branching, parameters.drawn),
        "widening": parameters.widening.enabled,
        "widening_factor": parameters.widening.factor,
        "widening_exponent": parameters.widening.exponent,
        "widening_shrink": parameters.widening.shrink,
        "visit_offset": parameters.gumbel.visit_offset,
        "value_scale": parameters.gumbel.value_scale,
        "best_child": parameters.backup == "max",
    }
    for name in numbers.dtype.names or ():
        numbers[name] = values[name] if name in values else getattr(parameters, name)
    return Rules(
        numbers=numbers,
        noise=np.zeros(parameters.fan),
        schedule=_schedule(parameters),
    )


def _schedule(parameters: SearchParameters) -> NDArray[np.int32]:
    """The schedule for as many visits of the root's candidates as the budget is sure to afford.

    A candidate's first visit imagines ``longest`` macro-actions, each other one at most one less.
    """
    considered = min(parameters.gumbel.considered, parameters.fan)
    simulations, longest = max(1, parameters.simulations), parameters.longest
    visits, left = simulations // longest, simulations - considered * longest
    if longest > 1 and left > 0:
        visits = considered + (left - 1) // (longest - 1)
    return halving_schedule(considered, max(1, visits), simulations)


def halving_schedule(considered: int, visits: int, length: int) -> NDArray[np.int32]:
    """Sequential halving (Karnin et al., 2013) as a list of visit counts.

    The s-th visit goes to the best candidate among those with exactly ``schedule[s]`` visits: every
    round gives each of the considered candidates the same number of visits, then drops half.

    Args:
        considered: candidates in the first round.
        visits: that the rounds share; further ones go to the last two candidates.
        length: of the list.
    """
    if considered <= 1:
        return np.arange(length, dtype=np.int32)
    rounds = math.ceil(math.log2(considered))
    schedule: list[int] = []
    tried = [0] * considered
    left = considered
    while len(schedule) < length:
        for _ in range(max(1, visits // (rounds * left))):
            schedule.extend(tried[:left])
            for i in range(left):
                tried[i] += 1
        left = max(2, left // 2)
    return np.array(schedule[:length], np.int32)


@kernel
def wants_candidates(tree: Tree, rules: Rules, node: int) -> bool:
    """Whether an expanded node has tried all its candidates and its visits allow for more."""
    rule = rules.numbers[0]
    count = tree.nodes[node].edge_count
    if not rule.widening or count >= rule.fan:
        return False
    visits = tree.nodes[node].visits + tree.nodes[node].in_flight
    if count >= rule.widening_factor * visits**rule.widening_exponent:
        return False
    edge = tree.nodes[node].first_edge
    while edge != NONE:
        if tree.edges[edge].child == NONE:
            return False
        edge = tree.edges[edge].sibling
    return best_edge(tree, node, rule.discount) != NONE


@kernel
def choose(tree: Tree, rules: Rules, node: int, untried: bool = False) -> int:
    """The edge of an expanded node to follow; NONE when every one is cut off or under way.

    With ``untried`` only candidates without a child are looked at.

    The root's first candidate, the policy's own, comes before all others: it is always scored.
    Ties go to the first.
    """
    first = tree.nodes[node].first_edge
    if node == 0 and _is_open(tree, first) and _visits(tree, first) == 0:
        return first
    if rules.numbers[0].selection == GUMBEL:
        return _choose_gumbel(tree, rules, node, untried)
    return _choose_by_score(tree, rules, node, untried)


@kernel
def _choose_by_score(tree: Tree, rules: Rules, node: int, untried: bool) -> int:
    """The open edge with the largest score by puct or ucb, see the module."""
    rule = rules.numbers[0]
    low, scale = 0.0, 1.0
    if rule.normalise:
        low = tree.bounds[0]
        scale = 1.0 / max(tree.bounds[1] - low, rule.value_resolution)
    unseen = rule.first_play_value
    if rule.first_play != CONSTANT:
        unseen = (tree.nodes[node].value - low) * scale - rule.first_play_value
    visits = tree.nodes[node].visits + tree.nodes[node].in_flight
    bonus, logarithm = rule.exploration * math.sqrt(visits), 0.0
    if rule.selection == UCB:
        logarithm = math.log(1.0 + visits)
    best, best_score, edge = NONE, -np.inf, tree.nodes[node].first_edge
    while edge != NONE:
        child, prior = tree.edges[edge].child, tree.edges[edge].prior
        here, edge = edge, tree.edges[edge].sibling
        if child == NONE:
            if rule.first_play == TRY_ALL:
                score = 1e12 * (1.0 + prior)
            elif rule.selection == UCB:
                score = unseen + rule.exploration * math.sqrt(logarithm / (1.0 + visits * prior))
            else:
                score = unseen + bonus * prior
        elif untried or not _is_free(tree, child):
            continue
        else:
            flying = tree.nodes[child].in_flight
            tried = tree.nodes[child].visits + flying
            value = (rule.discount * tree.nodes[child].value - low) * scale
            if flying:
                value -= rule.virtual_loss * flying / tried
            if rule.selection == UCB:
                score = value + rule.exploration * math.sqrt(logarithm / (1.0 + visits * prior))
            else:
                score = value + bonus * prior / (1.0 + tried)
        if score > best_score:
            best, best_score = here, score
    return best


@kernel
def gumbel_scores(tree: Tree, rules: Rules, node: int) -> NDArray[np.float64]:
    """Log prior plus weighted value of every edge (Danihelka et al., 2022, eq. 8 and 10).

    Edges without a visit are completed by the mean of the node's own value and the prior-weighted
    mean of its visited children; values are scaled by the smallest and largest among the edges.
    """
    rule = rules.numbers[0]
    edges = edges_of(tree, node)
    visits, mass, weighted, most = 0, 0.0, 0.0, 0
    for edge in edges:
        child = tree.edges[edge].child
        if child >= 0 and tree.nodes[child].visits > 0:
            visits += tree.nodes[child].visits
            most = max(most, tree.nodes[child].visits)
            mass += tree.edges[edge].prior
            weighted += tree.edges[edge].prior * rule.discount * tree.nodes[child].value
    completion = tree.nodes[node].leaf_value
    if mass > 0.0:
        completion = (completion + visits * weighted / mass) / (1.0 + visits)
    scores = np.empty(len(edges))
    for i, edge in enumerate(edges):
        child = tree.edges[edge].child
        seen = child >= 0 and tree.nodes[child].visits > 0
        scores[i] = rule.discount * tree.nodes[child].value if seen else completion
    low, high = scores.min(), scores.max()
    weight = (rule.visit_offset + most) * rule.value_scale
    for i, edge in enumerate(edges):
        value = (scores[i] - low) / max(high - low, rule.value_resolution)
        log_prior = math.log(max(float(tree.edges[edge].prior), SMALLEST_PRIOR))
        scores[i] = log_prior + weight * value
    return scores


@kernel
def _choose_gumbel(tree: Tree, rules: Rules, node: int, untried: bool) -> int:
    """The open edge that is due at the root; below it, the one that has the fewest visits too few.

    Due is, by the schedule, the best-scored of those with so many visits. Below the root it is the
    largest ``pi(a) - n(a) / (1 + sum n)`` of the improved policy pi = softmax(scores) (Danihelka et
    al., 2022, section 5).
    """
    scores = gumbel_scores(tree, rules, node)
    edges = edges_of(tree, node)
    started = 0
    for edge in edges:
        started += _visits(tree, edge)
    best, best_score = NONE, -np.inf
    if node == 0:
        due = rules.schedule[min(started, len(rules.schedule) - 1)]
    else:
        top = scores.max()
        total = 0.0
        for i in range(len(scores)):
            scores[i] = math.exp(scores[i] - top)
            total += scores[i]
    for i, edge in enumerate(edges):
        if not _is_open(tree, edge) or (untried and tree.edges[edge].child != NONE):
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


@kernel
def _is_open(tree: Tree, edge: int) -> bool:
    child = tree.edges[edge].child
    return child == NONE or _is_free(tree, child)


@kernel
def _is_free(tree: Tree, child: int) -> bool:
    """Whether a child, or CUT, can be descended to in this wave."""
    if child < 0 or tree.nodes[child].visits == 0:
        return False
    return tree.nodes[child].blocked != tree.counters[WAVE]


@kernel
def _visits(tree: Tree, edge: int) -> int:
    child = tree.edges[edge].child
    return tree.nodes[child].visits + tree.nodes[child].in_flight if child >= 0 else 0
