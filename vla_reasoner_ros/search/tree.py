"""The tree: arrays that are made once, and the compiled kernels that grow it.

A node is an imagined state; its index is the number of the state in the world model's memory. An
edge is a candidate macro-action of a node, imagined or not; the edges of a node are a linked list.
Nothing is allocated while deciding and nothing is freed by :func:`reset`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.kernels import kernel

NONE = -1
"""No parent, no child yet."""
CUT = -2
"""The child of an edge that was cut off: out of support, or imagined as something not finite."""

NODES, EDGES, WAVE, PRUNED, LEAVES, DEPTHS = range(6)
"""Places in :attr:`Tree.counters`; LEAVES and DEPTHS count evaluated leaves and sum their depth."""

LARGEST_VALUE = 1e150
"""Values beyond are cut off as infinite ones are: their squares would be."""

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]
Records = NDArray[Any]


NODE = np.dtype(
    [
        ("parent", np.int32),  # NONE for the root
        ("edge", np.int32),  # the edge that leads here; NONE for the root
        ("depth", np.int32),
        ("first_edge", np.int32),  # NONE until it has candidates
        ("last_edge", np.int32),
        ("edge_count", np.int32),
        ("visits", np.int32),  # backed up; 0 while the state is being imagined, or cut off
        ("in_flight", np.int32),  # visits under way in the current wave
        ("waiting", np.int32),  # of them, those that wait here for candidates to be drawn
        ("blocked", np.int32),  # the wave in which nothing beneath is free any more
        ("value", np.float64),  # V: mean of what was backed up, or the best child's
        ("mean", np.float64),  # of what was backed up
        ("square", np.float64),  # its mean square
        ("leaf_value", np.float64),  # what the value model said when the node was made
        ("spread", np.float64),  # standard deviation of the value's ensemble behind ``value``
    ],
    align=True,
)
EDGE = np.dtype(
    [
        ("sibling", np.int32),  # the next edge of the same node; NONE after the last
        ("child", np.int32),  # node, NONE or CUT
        ("prior", np.float32),  # normalised among its siblings
        ("origin", np.int32),  # who drew it
    ]
)


class Tree(NamedTuple):
    """N nodes at most, E edges at most, A numbers in a macro-action.

    Visits add up: ``visits[node] == own + sum(visits[children])``, where ``own`` is 1 for a node
    that was valued itself, 0 for one that a rollout only passed, and more for one whose value was
    backed up again for want of children (the depth limit, or all children cut off).
    """

    nodes: Records  # (N,) of NODE
    edges: Records  # (E,) of EDGE
    action: NDArray[np.float32]  # (E, A)
    counters: NDArray[np.int64]  # (6,)
    bounds: Floats  # (2,) smallest and largest value so far


NODE_FIELDS = ("visits", "value", "mean", "square", "leaf_value", "spread")
EDGE_FIELDS = ("prior", "origin")
"""What stays as it is when a subtree becomes the tree."""


def new_tree(nodes: int, edges: int, width: int) -> Tree:
    """Allocate an empty tree; an edge holds ``width`` numbers, A."""
    tree = Tree(
        nodes=np.zeros(nodes, NODE),
        edges=np.zeros(edges, EDGE),
        action=np.zeros((edges, width), np.float32),
        counters=np.zeros(6, np.int64),
        bounds=np.zeros(2),
    )
    reset(tree)
    return tree


def edge_capacity(
    nodes: int,
    depth: int,
    fan: int,
    drawn: int = 0,
    exhaustive: bool = False,
    childless: bool = False,
) -> int:
    """Edges that a tree can need.

    Nodes at the depth limit are not expanded, and every expanded node has a child. So of the
    nodes beneath the root at most ``(depth - 1) / depth`` are expanded, and at depth i at most
    ``fan ** i``. Each has at most ``fan`` edges; if candidates are only drawn once all others have
    been tried, at most ``1 + drawn`` without a child.

    If moreover no node is expanded before all its siblings exist, then P expanded nodes with
    expanded children have ``fan P`` children, E - 1 of them expanded, and the other E - P expanded
    nodes have one child each: ``E - 1 <= fan P`` and ``1 + fan P + E - P <= nodes``.

    Args:
        nodes: capacity N.
        depth: limit of the depth.
        fan: candidates that a node may have.
        drawn: candidates drawn at once, if a node draws again when all have been tried; else 0.
        exhaustive: every candidate of a node is tried before any twice, without rollouts.
        childless: expanded nodes may have lost all their children, as in a kept subtree, which
            leaves behind the states that were cut off: only their number bounds them then.
    """
    inner, level = 1, 1
    for _ in range(1, depth):
        level *= fan
        inner += level
        if inner >= nodes:
            break
    if childless:
        return min(inner, nodes) * fan
    expanded = min(inner, 1 + (nodes - 1) * (depth - 1) // depth)
    if exhaustive:
        expanded = min(expanded, 1 + max(0, fan * (nodes - 2) // (2 * fan - 1)))
    if drawn:
        return min(expanded * fan, nodes - 1 + expanded * (1 + drawn))
    return expanded * fan


def size_in_bytes(tree: Tree) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in tree)


@kernel
def reset(tree: Tree) -> None:
    """Empty the tree but for an unevaluated root."""
    tree.counters[:] = 0
    tree.bounds[0], tree.bounds[1] = np.inf, -np.inf
    new_node(tree, NONE, NONE, 0)


@kernel
def new_node(tree: Tree, parent: int, edge: int, depth: int) -> int:
    """Add a node that waits for its value; the caller knows that there is room."""
    node = tree.counters[NODES]
    tree.counters[NODES] = node + 1
    tree.nodes[node].parent = parent
    tree.nodes[node].edge = edge
    tree.nodes[node].depth = depth
    tree.nodes[node].first_edge = NONE
    tree.nodes[node].last_edge = NONE
    tree.nodes[node].edge_count = 0
    tree.nodes[node].visits = 0
    tree.nodes[node].in_flight = 0
    tree.nodes[node].waiting = 0
    tree.nodes[node].blocked = NONE
    tree.nodes[node].value = 0.0
    tree.nodes[node].mean = 0.0
    tree.nodes[node].square = 0.0
    tree.nodes[node].leaf_value = 0.0
    tree.nodes[node].spread = 0.0
    return node


@kernel
def add_edge(tree: Tree, node: int, action: Numbers, prior: float, origin: int) -> int:
    """Give a node one more candidate (A,); returns its edge."""
    edge = tree.counters[EDGES]
    tree.counters[EDGES] = edge + 1
    if tree.nodes[node].first_edge == NONE:
        tree.nodes[node].first_edge = edge
    else:
        tree.edges[tree.nodes[node].last_edge].sibling = edge
    tree.nodes[node].last_edge = edge
    tree.nodes[node].edge_count += 1
    tree.edges[edge].sibling = NONE
    tree.edges[edge].child = NONE
    for i in range(len(action)):
        tree.action[edge, i] = action[i]
    tree.edges[edge].prior = prior
    tree.edges[edge].origin = origin
    return edge


@kernel
def edges_of(tree: Tree, node: int) -> Ints:
    """The edges of a node, in the order in which they came; a root candidate's place is its id."""
    edges = np.empty(tree.nodes[node].edge_count, np.int32)
    edge = tree.nodes[node].first_edge
    for i in range(len(edges)):
        edges[i] = edge
        edge = tree.edges[edge].sibling
    return edges


@kernel
def back_up(
    tree: Tree, leaf: int, value: float, spread: float, discount: float, best_child: bool
) -> None:
    """Carry a leaf's value to the root and count the visit.

    Args:
        tree: the tree.
        leaf: where the value was found.
        value: V(leaf).
        spread: standard deviation of the value's ensemble at the leaf.
        discount: factor per edge.
        best_child: a node is worth its best child, not the mean of what was backed up through it.
    """
    node, child, before = leaf, NONE, 0.0
    while node != NONE:
        visits = tree.nodes[node].visits + 1
        worth, known = tree.nodes[node].value, tree.nodes[node].visits > 0
        tree.nodes[node].visits = visits
        tree.nodes[node].mean += (value - tree.nodes[node].mean) / visits
        tree.nodes[node].square += (value * value - tree.nodes[node].square) / visits
        if best_child and child != NONE:
            _take_best(tree, node, child, before, discount)
        else:
            tree.nodes[node].value = tree.nodes[node].mean
            tree.nodes[node].spread += (spread - tree.nodes[node].spread) / visits
        tree.bounds[0] = min(tree.bounds[0], tree.nodes[node].value)
        tree.bounds[1] = max(tree.bounds[1], tree.nodes[node].value)
        value *= discount
        spread *= discount
        node, child, before = tree.nodes[node].parent, node, worth if known else np.nan
    tree.counters[LEAVES] += 1
    tree.counters[DEPTHS] += tree.nodes[leaf].depth


@kernel
def _take_best(tree: Tree, node: int, child: int, before: float, discount: float) -> None:
    """Make a node worth its best child after one child has changed.

    The other children need a look only where the changed one is new or was the best.

    Args:
        tree: the tree.
        node: the parent.
        child: the child that has changed.
        before: its value before; NaN for a new one.
        discount: factor per edge.
    """
    value = discount * tree.nodes[child].value
    was_other = discount * before < tree.nodes[node].value
    if not was_other:
        child = tree.edges[best_edge(tree, node, discount)].child
        value = discount * tree.nodes[child].value
    elif value <= tree.nodes[node].value:
        return
    tree.nodes[node].value = value
    tree.nodes[node].spread = discount * tree.nodes[child].spread


@kernel
def best_edge(tree: Tree, node: int, discount: float) -> int:
    """The edge of the visited child with the largest value, the first of equals; NONE if none."""
    best, best_value = NONE, -np.inf
    edge = tree.nodes[node].first_edge
    while edge != NONE:
        child = tree.edges[edge].child
        if (
            child >= 0
            and tree.nodes[child].visits > 0
            and discount * tree.nodes[child].value > best_value
        ):
            best, best_value = edge, discount * tree.nodes[child].value
        edge = tree.edges[edge].sibling
    return best


@kernel
def mark_path(tree: Tree, leaf: int, change: int) -> None:
    """Add to the visits under way on the path from a leaf to the root."""
    node = leaf
    while node != NONE:
        tree.nodes[node].in_flight += change
        node = tree.nodes[node].parent


@kernel
def cut_off(tree: Tree, node: int) -> None:
    """Close the edge to a node whose state must not be used; the node stays empty."""
    tree.edges[tree.nodes[node].edge].child = CUT
    tree.edges[tree.nodes[node].edge].prior = 0.0
    tree.counters[PRUNED] += 1


@kernel
def subtree(tree: Tree, top: int) -> Ints:
    """The evaluated nodes beneath ``top``, itself first, parents before children."""
    inside = np.zeros(tree.counters[NODES], np.bool_)
    found = np.empty(tree.counters[NODES], np.int32)
    count = 0
    for node in range(top, tree.counters[NODES]):
        parent = tree.nodes[node].parent
        if tree.nodes[node].visits > 0 and (node == top or (parent != NONE and inside[parent])):
            inside[node] = True
            found[count] = node
            count += 1
    return found[:count]


def re_root(
    tree: Tree, top: int, reference: NDArray[np.float32], origin: int, fan: int, discount: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make the subtree beneath an expanded node the whole tree, with a new first candidate.

    The new root waits for its own value (see :func:`settle_root`), as the state seen is not quite
    the one imagined. Its first candidate is the policy's new proposal, with the prior of the best
    of the kept ones; where that makes one too many, the least visited is dropped.

    Args:
        tree: the tree.
        top: the node that becomes the root.
        reference: (A,) the policy's new first macro-action.
        origin: who drew it.
        fan: candidates that a node may have.
        discount: factor per edge.

    Returns:
        Where the imagined states are, and where they must be copied to.
    """
    own_edges, kept = _worth_keeping(tree, top, fan)
    renamed = np.full(tree.counters[NODES], NONE, np.int32)
    renamed[kept] = np.arange(1, 1 + len(kept))
    renamed[top] = 0

    blocks = [own_edges, *(edges_of(tree, node) for node in kept)]
    counts = np.array([len(block) for block in blocks])
    old_edges = np.concatenate(blocks)
    candidates = {name: tree.edges[name][old_edges] for name in EDGE_FIELDS}
    actions = tree.action[old_edges]
    children = tree.edges["child"][old_edges]
    children = np.where(children >= 0, renamed[np.maximum(children, 0)], children)
    nodes: dict[str, Any] = {name: tree.nodes[name][kept] for name in NODE_FIELDS}
    nodes |= {"parent": renamed[tree.nodes["parent"][kept]], "depth": tree.nodes["depth"][kept] - 1}
    nodes |= {"in_flight": 0, "waiting": 0, "blocked": NONE}

    reset(tree)
    inner, outer = slice(1, 1 + len(kept)), slice(1, 1 + len(old_edges))
    for name, values in nodes.items():
        tree.nodes[name][inner] = values
    for name, values in candidates.items():
        tree.edges[name][outer] = values
    tree.action[outer] = actions
    places = np.arange(1, 1 + len(old_edges), dtype=np.int32)
    tree.edges["child"][outer] = children
    tree.nodes["edge"][children[children >= 0]] = places[children >= 0]
    _link(tree, counts)
    _put_first(tree, reference, origin, int(counts[0]))
    tree.counters[NODES], tree.counters[EDGES] = 1 + len(kept), 1 + len(old_edges)
    return kept.astype(np.int64), np.arange(1, 1 + len(kept), dtype=np.int64)


def _worth_keeping(tree: Tree, top: int, fan: int) -> tuple[Ints, Ints]:
    """Edges of a new root, room left for one more, and the nodes beneath them.

    The least visited of too many is dropped, its child loses its parent.
    """
    edges = edges_of(tree, top)
    children = tree.edges["child"][edges]
    visits = np.where(children >= 0, tree.nodes["visits"][np.maximum(children, 0)], 0)
    order = np.lexsort((-tree.edges["prior"][edges], -visits))[: fan - 1]
    for edge in np.delete(edges, order):
        if tree.edges["child"][edge] >= 0:
            tree.nodes["parent"][tree.edges["child"][edge]] = NONE
    return edges[np.sort(order)], subtree(tree, top)[1:]


def _link(tree: Tree, counts: NDArray[np.int64]) -> None:
    """Make lists of edges that lie one after the other, from edge 1 on, ``counts`` a node."""
    total = int(counts.sum())
    firsts = 1 + np.cumsum(counts) - counts
    lasts = firsts + counts - 1
    tree.edges["sibling"][1 : 1 + total] = np.arange(2, 2 + total)
    tree.edges["sibling"][lasts[counts > 0]] = NONE
    owners = slice(0, len(counts))
    tree.nodes["first_edge"][owners] = np.where(counts > 0, firsts, NONE)
    tree.nodes["last_edge"][owners] = np.where(counts > 0, lasts, NONE)
    tree.nodes["edge_count"][owners] = counts


def _put_first(tree: Tree, reference: NDArray[np.float32], origin: int, others: int) -> None:
    """Make edge 0 the root's first candidate, with the prior of the best of the ``others``."""
    tree.edges["child"][0], tree.edges["origin"][0], tree.action[0] = NONE, origin, reference
    tree.edges["sibling"][0] = tree.nodes["first_edge"][0]
    tree.nodes["first_edge"][0], tree.nodes["edge_count"][0] = 0, 1 + others
    tree.nodes["last_edge"][0] = max(0, tree.nodes["last_edge"][0])
    priors = tree.edges["prior"][: 1 + others]
    priors[0] = priors[1:].max(initial=np.finfo(np.float32).tiny)
    priors /= priors.sum()


def settle_root(tree: Tree, value: float, spread: float, discount: float, best_child: bool) -> None:
    """Evaluate the root of a kept tree: its own value and its children's, weighted by visits."""
    children = tree.edges["child"][edges_of(tree, 0)]
    children = children[children >= 0]
    visits = tree.nodes["visits"][children]
    total = 1 + int(visits.sum())
    values = discount * tree.nodes["value"][children]
    tree.nodes["visits"][0], tree.nodes["leaf_value"][0] = total, value
    tree.nodes["mean"][0] = (value + visits @ (discount * tree.nodes["mean"][children])) / total
    tree.nodes["square"][0] = (
        value**2 + visits @ (discount**2 * tree.nodes["square"][children])
    ) / total
    spreads = discount * tree.nodes["spread"][children]
    if best_child and len(children):
        tree.nodes["value"][0], tree.nodes["spread"][0] = values.max(), spreads[values.argmax()]
    else:
        tree.nodes["value"][0] = tree.nodes["mean"][0]
        tree.nodes["spread"][0] = (spread + visits @ spreads) / total
    seen: Floats = tree.nodes["value"][: tree.counters[NODES]]
    tree.bounds[0], tree.bounds[1] = float(np.min(seen)), float(np.max(seen))
