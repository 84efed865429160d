"""One wave of the tree search: select W leaves, expand, and back up, as compiled kernels.

The W descents of a wave see one another through the visits under way. A descent that reaches a node
without candidates waits there until the whole wave's candidates have been drawn in one call, then
goes on. With W = 1 this is the textbook algorithm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.search.base import SOUND, fault_of
from vla_reasoner_ros.search.blend import Mix
from vla_reasoner_ros.search.candidates import POLICY_ORIGIN, attach
from vla_reasoner_ros.search.selection import Rules, choose, wants_candidates
from vla_reasoner_ros.search.tree import (
    CUT,
    LARGEST_VALUE,
    NONE,
    WAVE,
    Floats,
    Ints,
    Records,
    Tree,
    add_edge,
    back_up,
    best_edge,
    cut_off,
    mark_path,
    new_node,
)

NEW, WAITING, AGAIN, DROPPED = range(4)
"""What became of a descent: a state to imagine, a node without candidates, a node that cannot grow
(its own value is backed up again), nothing."""


DESCENT = np.dtype(
    [
        ("leaf", np.int32),  # the node that it ended at
        ("top", np.int32),  # the first node that it added
        ("kind", np.int32),  # NEW, WAITING, AGAIN or DROPPED
        ("doubt", np.float64),  # largest uncertainty of the states that it added
    ],
    align=True,
)


class Wave(NamedTuple):
    """Buffers of a wave of at most W leaves; A numbers in a macro-action."""

    descents: Records  # (W,) of DESCENT
    parents: NDArray[np.int64]  # (W,) states to imagine from
    children: NDArray[np.int64]  # (W,) states to imagine
    actions: NDArray[np.float32]  # (W, A)
    wanting: Ints  # (W,) nodes that need candidates
    reference: Floats  # (W, A) the macro-actions to draw around
    scale: Floats  # (W,) how far from it, relative to the prior


def new_wave(size: int, width: int) -> Wave:
    """Allocate the buffers."""
    return Wave(
        descents=np.zeros(size, DESCENT),
        parents=np.zeros(size, np.int64),
        children=np.zeros(size, np.int64),
        actions=np.zeros((size, width), np.float32),
        wanting=np.zeros(size, np.int32),
        reference=np.zeros((size, width)),
        scale=np.zeros(size),
    )


@kernel
def select(
    tree: Tree, rules: Rules, wave: Wave, segments: Floats, size: int
) -> tuple[int, int, int]:
    """Send at most ``size`` descents from the root, and list the states to imagine.

    Args:
        tree: the tree; its root has been evaluated.
        rules: how to choose.
        wave: buffers; all are written.
        segments: (S, A) the policy's own macro-actions, the references at depth 0 to S - 1; a
            deeper node's reference is the action that led to it.
        size: descents to start.

    Returns:
        Descents made, fewer than ``size`` when nothing more is free; nodes that need candidates;
        and, when there are none of these, the number B of states to imagine.
    """
    made, expanding = _descend(tree, rules, wave, segments, size)
    return made, expanding, 0 if expanding else _place(tree, rules, wave, made)


@kernel
def expand(
    tree: Tree,
    rules: Rules,
    wave: Wave,
    mix: Mix,
    actions: Floats,
    log_density: Floats,
    origins: NDArray[np.int16],
    made: int,
) -> int:
    """Give the wave's nodes their candidates, and list the states to imagine.

    Args:
        tree: the tree.
        rules: how to choose.
        wave: buffers; leaf, kind, parents, children and actions are written.
        mix: blends every draw into its reference.
        actions: (E, 1 + K, A) references and draws of the E nodes that need them.
        log_density: (E, 1 + K), up to a constant per node.
        origins: (1 + K,) who drew them.
        made: descents of the wave.

    Returns:
        The number B of states to imagine; negative, and nothing done, for a fault in the candidates
        (see :func:`fault_of`).
    """
    fault = fault_of(actions, log_density)
    if fault != SOUND:
        return fault
    count = len(actions)
    attach(
        tree, rules, mix, wave.wanting[:count], wave.scale[:count], actions, log_density, origins
    )
    return _place(tree, rules, wave, made)


@kernel
def roll_on(tree: Tree, rules: Rules, wave: Wave, segments: Floats, made: int) -> tuple[int, int]:
    """Lengthen the wave's new leaves above the depth limit by their reference macro-action.

    Args:
        tree: the tree.
        rules: the depth limit.
        wave: buffers; leaf, parents, children and actions are written, or, where nothing is left
            to imagine, the leaves to ``children``.
        segments: (S, A) as in :func:`select`.
        made: descents of the wave.

    Returns:
        The number B of states to imagine, and of leaves where there are none of these.
    """
    count, leaves = 0, 0
    for i in range(made):
        node = wave.descents[i].leaf
        if wave.descents[i].kind != NEW or tree.nodes[node].depth >= rules.numbers[0].depth:
            continue
        action = _reference(tree, segments, node)
        edge = add_edge(tree, node, action, 1.0, POLICY_ORIGIN)
        wave.descents[i].leaf = _add_child(tree, node, edge)
        tree.nodes[wave.descents[i].leaf].in_flight = 1
        _list_state(tree, wave, i, count)
        count += 1
    if count == 0:
        for i in range(made):
            if wave.descents[i].kind == NEW:
                wave.children[leaves] = wave.descents[i].leaf
                leaves += 1
    return count, leaves


@kernel
def note_doubt(wave: Wave, leaves: NDArray[np.int64], made: int, uncertainty: Floats) -> None:
    """Remember the uncertainty (B,) about states (B,) that were just imagined."""
    column = 0
    for i in range(made):
        if (
            column < len(leaves)
            and wave.descents[i].kind == NEW
            and wave.descents[i].leaf == leaves[column]
        ):
            doubt = uncertainty[column]
            wave.descents[i].doubt = max(wave.descents[i].doubt, doubt) if doubt == doubt else doubt
            column += 1


@kernel
def collect(tree: Tree, rules: Rules, wave: Wave, made: int, values: Floats) -> int:
    """Back up a wave, cutting off the states that must not be used.

    Args:
        tree: the tree.
        rules: discount, backup, pessimism and the limit of uncertainty.
        wave: the wave's leaves.
        made: descents of the wave.
        values: (K, B) values of the new leaves, one row per member of the ensemble.

    Returns:
        Values backed up again, without imagining anything.
    """
    rule = rules.numbers[0]
    column, again = 0, 0
    for i in range(made):
        kind, leaf = wave.descents[i].kind, wave.descents[i].leaf
        if kind == DROPPED:
            continue
        mark_path(tree, leaf, -1)
        if kind == AGAIN:
            again += 1
            known = tree.nodes[leaf]
            back_up(tree, leaf, known.leaf_value, known.spread, rule.discount, rule.best_child)
            continue
        mean, spread = moments(values, column)
        value, doubt = mean - rule.pessimism * spread, wave.descents[i].doubt
        column += 1
        unsupported = rule.uncertainty_limit > 0.0 and doubt > rule.uncertainty_limit
        if not (abs(value) <= LARGEST_VALUE and math.isfinite(doubt)) or unsupported:
            cut_off(tree, wave.descents[i].top)
            continue
        back_up(tree, leaf, value, spread, rule.discount, rule.best_child)
        node = leaf
        while node != tree.nodes[wave.descents[i].top].parent:
            tree.nodes[node].leaf_value = tree.nodes[node].value
            node = tree.nodes[node].parent
    return again


@kernel
def moments(values: Floats, column: int) -> tuple[float, float]:
    """Mean and standard deviation of one column of an ensemble's (K, B) values."""
    members = len(values)
    mean, square = 0.0, 0.0
    for k in range(members):
        mean += values[k, column] / members
    for k in range(members):
        square += (values[k, column] - mean) ** 2 / members
    return mean, math.sqrt(square)


@kernel
def _descend(tree: Tree, rules: Rules, wave: Wave, segments: Floats, size: int) -> tuple[int, int]:
    """Send descents down; returns how many were made, and nodes that need candidates."""
    tree.counters[WAVE] += 1
    depth = rules.numbers[0].depth
    made, expanding = 0, 0
    while made < size:
        node = 0
        kind = NONE
        while kind == NONE:
            if tree.nodes[node].depth >= depth:
                kind = AGAIN
            elif _can_wait(tree, rules, node):
                if tree.nodes[node].waiting == 0:
                    _request(tree, rules, wave, segments, node, expanding)
                    expanding += 1
                tree.nodes[node].waiting += 1
                kind = WAITING
            elif tree.nodes[node].edge_count <= 1:
                break
            else:
                edge = choose(tree, rules, node)
                if edge == NONE:
                    if _is_dead_end(tree, node):
                        kind = AGAIN
                    break
                if tree.edges[edge].child == NONE:
                    node = _add_child(tree, node, edge)
                    kind = NEW
                else:
                    node = tree.edges[edge].child
        if kind == NONE:
            tree.nodes[node].blocked = tree.counters[WAVE]
            if node == 0:
                break
            continue
        mark_path(tree, node, 1)
        descent = wave.descents[made]
        descent.leaf, descent.top, descent.kind = node, node, kind
        made += 1
    return made, expanding


@kernel
def _place(tree: Tree, rules: Rules, wave: Wave, made: int) -> int:
    """Let waiting descents go on to a candidate; returns the number of states to imagine."""
    count = 0
    for i in range(made):
        if wave.descents[i].kind == WAITING:
            node = wave.descents[i].leaf
            tree.nodes[node].waiting = 0
            mark_path(tree, node, -1)
            edge = choose(tree, rules, node, True)
            if edge == NONE:
                wave.descents[i].kind = DROPPED
                continue
            wave.descents[i].leaf = wave.descents[i].top = _add_child(tree, node, edge)
            wave.descents[i].kind = NEW
            mark_path(tree, wave.descents[i].leaf, 1)
        if wave.descents[i].kind == NEW:
            wave.descents[i].doubt = 0.0
            _list_state(tree, wave, i, count)
            count += 1
    return count


@kernel
def _can_wait(tree: Tree, rules: Rules, node: int) -> bool:
    """Whether a descent can wait at a node for one of the candidates that it will get."""
    rule = rules.numbers[0]
    there, waiting = tree.nodes[node].edge_count, tree.nodes[node].waiting
    if there <= 1:
        return waiting < min(rule.fan, 1 + rule.drawn) - there
    if waiting > 0:
        return waiting < min(rule.fan - there, rule.drawn)
    return wants_candidates(tree, rules, node)


@kernel
def _request(tree: Tree, rules: Rules, wave: Wave, segments: Floats, node: int, place: int) -> None:
    """Note a node that needs candidates, and where to draw them."""
    rule = rules.numbers[0]
    wave.wanting[place], wave.scale[place] = node, 1.0
    if tree.nodes[node].edge_count > 1:
        wave.reference[place] = tree.action[best_edge(tree, node, rule.discount)]
        rounds = (tree.nodes[node].edge_count - 1) // rule.drawn
        wave.scale[place] = rule.widening_shrink**rounds
    else:
        wave.reference[place] = _reference(tree, segments, node)


@kernel
def _reference(tree: Tree, segments: Floats, node: int) -> Floats:
    """(A,) the policy's own macro-action at the node's depth, past its chunk the parent's."""
    depth = tree.nodes[node].depth
    if depth < len(segments):
        return segments[depth]
    return tree.action[tree.nodes[node].edge].astype(np.float64)


@kernel
def _list_state(tree: Tree, wave: Wave, i: int, place: int) -> None:
    """Note the state at the end of a descent as one to imagine."""
    leaf = wave.descents[i].leaf
    wave.parents[place] = tree.nodes[leaf].parent
    wave.children[place] = leaf
    wave.actions[place] = tree.action[tree.nodes[leaf].edge]


@kernel
def _add_child(tree: Tree, node: int, edge: int) -> int:
    """Give a candidate its node, which the world model has yet to imagine."""
    leaf = new_node(tree, node, edge, tree.nodes[node].depth + 1)
    tree.edges[edge].child = leaf
    return leaf


@kernel
def _is_dead_end(tree: Tree, node: int) -> bool:
    """Whether every candidate of an expanded node was cut off."""
    edge = tree.nodes[node].first_edge
    while edge != NONE:
        if tree.edges[edge].child != CUT:
            return False
        edge = tree.edges[edge].sibling
    return True
