"""The tree: arrays that are made once, and the compiled kernels that grow it.

A node is an imagined state; its index is the number of the state in the world model's memory. An
edge is a candidate macro-action of a node, imagined or not; the edges of a node are a linked list.
Nothing is allocated while deciding and nothing is freed by :func:`reset`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

NONE = -1
"""No parent, no child yet."""
CUT = -2
"""The child of an edge that was cut off: out of support, or imagined as something not finite."""

NODES, EDGES, WAVE, PRUNED, LEAVES, DEPTHS = range(6)
"""Places in :attr:`Tree.counters`; LEAVES and DEPTHS count evaluated leaves and sum their depth."""

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


class Tree(NamedTuple):
    """N nodes at most, E edges at most, A numbers in a macro-action.

    Visits add up: ``visits[node] == own + sum(visits[children])``, where ``own`` is 1 for a node
    that was valued itself, 0 for one that a rollout only passed, and more for one whose value was
    backed up again for want of children (the depth limit, or all children cut off).
    """

    parent: Ints  # (N,) NONE for the root
    edge: Ints  # (N,) the edge that leads here; NONE for the root
    depth: Ints  # (N,)
    first_edge: Ints  # (N,) NONE until it has candidates
    last_edge: Ints  # (N,)
    edge_count: Ints  # (N,)
    visits: Ints  # (N,) backed-up visits; 0 while the state is being imagined, or cut off
    in_flight: Ints  # (N,) visits under way in the current wave
    waiting: Ints  # (N,) of them, those that wait here for candidates to be drawn
    blocked: Ints  # (N,) the wave in which nothing beneath is free any more
    value: Floats  # (N,) V, seen from this node: mean of what was backed up, or the best child's
    mean: Floats  # (N,) mean of what was backed up
    square: Floats  # (N,) its mean square
    leaf_value: Floats  # (N,) what the value model said of the state itself
    sibling: Ints  # (E,) the next edge of the same node; NONE after the last
    child: Ints  # (E,) node, NONE or CUT
    prior: NDArray[np.float32]  # (E,) normalised among its siblings
    origin: NDArray[np.int16]  # (E,) who drew it
    action: NDArray[np.float32]  # (E, A)
    counters: NDArray[np.int64]  # (6,)
    bounds: Floats  # (2,) smallest and largest value so far


NODE_FIELDS = ("visits", "value", "mean", "square", "leaf_value")
EDGE_FIELDS = ("prior", "origin", "action")
"""What stays as it is when a subtree becomes the tree."""


def new_tree(nodes: int, edges: int, width: int) -> Tree:
    """Allocate an empty tree; an edge holds ``width`` numbers, A."""
    tree = Tree(
        parent=np.zeros(nodes, np.int32),
        edge=np.zeros(nodes, np.int32),
        depth=np.zeros(nodes, np.int32),
        first_edge=np.zeros(nodes, np.int32),
        last_edge=np.zeros(nodes, np.int32),
        edge_count=np.zeros(nodes, np.int32),
        visits=np.zeros(nodes, np.int32),
        in_flight=np.zeros(nodes, np.int32),
        waiting=np.zeros(nodes, np.int32),
        blocked=np.zeros(nodes, np.int32),
        value=np.zeros(nodes),
        mean=np.zeros(nodes),
        square=np.zeros(nodes),
        leaf_value=np.zeros(nodes),
        sibling=np.zeros(edges, np.int32),
        child=np.zeros(edges, np.int32),
        prior=np.zeros(edges, np.float32),
        origin=np.zeros(edges, np.int16),
        action=np.zeros((edges, width), np.float32),
        counters=np.zeros(6, np.int64),
        bounds=np.zeros(2),
    )
    reset(tree)
    return tree


def edge_capacity(nodes: int, depth: int, fan: int, drawn: int = 0) -> int:
    """Edges that a tree can need.

    Nodes at the depth limit are not expanded, and every expanded node has a child. So of the
    nodes beneath the root at most ``(depth - 1) / depth`` are expanded, and at depth i at most
    ``fan ** i``. Each has at most ``fan`` edges; if candidates are only drawn once all others have
    been tried, at most ``1 + drawn`` without a child.

    Args:
        nodes: capacity N.
        depth: limit of the depth.
        fan: candidates that a node may have.
        drawn: candidates drawn at once, if a node draws again when all have been tried; else 0.
    """
    inner, level = 1, 1
    for _ in range(1, depth):
        level *= fan
        inner += level
        if inner >= nodes:
            break
    expanded = min(inner, 1 + (nodes - 1) * (depth - 1) // depth)
    if drawn:
        return min(expanded * fan, nodes - 1 + expanded * (1 + drawn))
    return expanded * fan


def size_in_bytes(tree: Tree) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in tree)


@numba.njit(cache=True)
def reset(tree: Tree) -> None:
    """Empty the tree but for an unevaluated root."""
    tree.counters[:] = 0
    tree.bounds[0], tree.bounds[1] = np.inf, -np.inf
    new_node(tree, NONE, NONE, 0)


@numba.njit(cache=True)
def new_node(tree: Tree, parent: int, edge: int, depth: int) -> int:
    """Add a node that waits for its value; the caller knows that there is room."""
    node = tree.counters[NODES]
    tree.counters[NODES] = node + 1
    tree.parent[node] = parent
    tree.edge[node] = edge
    tree.depth[node] = depth
    tree.first_edge[node] = NONE
    tree.last_edge[node] = NONE
    tree.edge_count[node] = 0
    tree.visits[node] = 0
    tree.in_flight[node] = 0
    tree.waiting[node] = 0
    tree.blocked[node] = NONE
    tree.value[node] = 0.0
    tree.mean[node] = 0.0
    tree.square[node] = 0.0
    tree.leaf_value[node] = 0.0
    return node


@numba.njit(cache=True)
def add_edge(tree: Tree, node: int, action: NDArray[np.float32], prior: float, origin: int) -> int:
    """Give a node one more candidate; returns its edge."""
    edge = tree.counters[EDGES]
    tree.counters[EDGES] = edge + 1
    if tree.first_edge[node] == NONE:
        tree.first_edge[node] = edge
    else:
        tree.sibling[tree.last_edge[node]] = edge
    tree.last_edge[node] = edge
    tree.edge_count[node] += 1
    tree.sibling[edge] = NONE
    tree.child[edge] = NONE
    tree.action[edge] = action
    tree.prior[edge] = prior
    tree.origin[edge] = origin
    return edge


@numba.njit(cache=True)
def edges_of(tree: Tree, node: int) -> Ints:
    """The edges of a node, in the order in which they came; a root candidate's place is its id."""
    edges = np.empty(tree.edge_count[node], np.int32)
    edge = tree.first_edge[node]
    for i in range(len(edges)):
        edges[i] = edge
        edge = tree.sibling[edge]
    return edges


@numba.njit(cache=True)
def attach(
    tree: Tree,
    nodes: Ints,
    actions: Floats,
    log_density: Floats,
    origins: NDArray[np.int16],
    fan: int,
    temperature: float,
    support_floor: float,
    discount: float,
) -> None:
    """Give nodes their candidates, or more of them.

    A node without draws takes the reference first, unless a rollout has put it there, then the
    draws. A node that has draws gets more around its best; without that best itself, and with at
    most its prior.

    Args:
        tree: the tree.
        nodes: (B,).
        actions: (B, 1 + K, A) references and draws.
        log_density: (B, 1 + K), up to a constant per node.
        origins: (B, 1 + K) who drew them.
        fan: candidates that a node may have.
        temperature: priors are ``density ** (1 / temperature)``, normalised among siblings.
        support_floor: draws this many nats below the best are cut off, never the reference; 0 cuts
            none.
        discount: factor per edge.
    """
    for row in range(len(nodes)):
        node = nodes[row]
        best = log_density[row].max()
        weight, begin = 1.0, min(1, tree.edge_count[node])
        if tree.edge_count[node] > 1:
            weight = tree.prior[best_edge(tree, node, discount)]
        elif begin == 1:
            tree.prior[tree.first_edge[node]] = np.exp((log_density[row, 0] - best) / temperature)
        for i in range(begin, min(actions.shape[1], begin + fan - tree.edge_count[node])):
            below = best - log_density[row, i] if best > -np.inf else 0.0
            prior = weight * np.exp(-below / temperature)
            edge = add_edge(tree, node, actions[row, i].astype(np.float32), prior, origins[row, i])
            if i > 0 and support_floor > 0.0 and below > support_floor:
                tree.child[edge] = CUT
                tree.prior[edge] = 0.0
                tree.counters[PRUNED] += 1
        edges = edges_of(tree, node)
        tree.prior[edges] /= tree.prior[edges].sum()


@numba.njit(cache=True)
def back_up(tree: Tree, leaf: int, value: float, discount: float, best_child: bool) -> None:
    """Carry a leaf's value to the root and count the visit.

    Args:
        tree: the tree.
        leaf: where the value was found.
        value: V(leaf).
        discount: factor per edge.
        best_child: a node is worth its best child, not the mean of what was backed up through it.
    """
    node = leaf
    while node != NONE:
        visits = tree.visits[node] + 1
        tree.visits[node] = visits
        tree.mean[node] += (value - tree.mean[node]) / visits
        tree.square[node] += (value * value - tree.square[node]) / visits
        if best_child and node != leaf:
            tree.value[node] = discount * tree.value[tree.child[best_edge(tree, node, discount)]]
        else:
            tree.value[node] = tree.mean[node]
        tree.bounds[0] = min(tree.bounds[0], tree.value[node])
        tree.bounds[1] = max(tree.bounds[1], tree.value[node])
        value *= discount
        node = tree.parent[node]
    tree.counters[LEAVES] += 1
    tree.counters[DEPTHS] += tree.depth[leaf]


@numba.njit(cache=True)
def best_edge(tree: Tree, node: int, discount: float) -> int:
    """The edge of the visited child with the largest value, the first of equals; NONE if none."""
    best, best_value = NONE, -np.inf
    edge = tree.first_edge[node]
    while edge != NONE:
        child = tree.child[edge]
        if child >= 0 and tree.visits[child] > 0 and discount * tree.value[child] > best_value:
            best, best_value = edge, discount * tree.value[child]
        edge = tree.sibling[edge]
    return best


@numba.njit(cache=True)
def mark_path(tree: Tree, leaf: int, change: int) -> None:
    """Add to the visits under way on the path from a leaf to the root."""
    node = leaf
    while node != NONE:
        tree.in_flight[node] += change
        node = tree.parent[node]


@numba.njit(cache=True)
def cut_off(tree: Tree, node: int) -> None:
    """Close the edge to a node whose state must not be used; the node stays empty."""
    tree.child[tree.edge[node]] = CUT
    tree.prior[tree.edge[node]] = 0.0
    tree.counters[PRUNED] += 1


@numba.njit(cache=True)
def subtree(tree: Tree, top: int) -> Ints:
    """The evaluated nodes beneath ``top``, itself first, parents before children."""
    inside = np.zeros(tree.counters[NODES], np.bool_)
    found = np.empty(tree.counters[NODES], np.int32)
    count = 0
    for node in range(top, tree.counters[NODES]):
        parent = tree.parent[node]
        if tree.visits[node] > 0 and (node == top or (parent != NONE and inside[parent])):
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
    edges = edges_of(tree, top)
    children = tree.child[edges]
    visits = np.where(children >= 0, tree.visits[np.maximum(children, 0)], 0)
    order = np.lexsort((-tree.prior[edges], -visits))[: fan - 1]
    for edge in np.delete(edges, order):
        if tree.child[edge] >= 0:
            tree.parent[tree.child[edge]] = NONE
    kept = subtree(tree, top)[1:]
    renamed = np.full(tree.counters[NODES], NONE, np.int32)
    renamed[kept] = np.arange(1, 1 + len(kept))
    renamed[top] = 0

    blocks = [edges[np.sort(order)], *(edges_of(tree, node) for node in kept)]
    counts = np.array([len(block) for block in blocks])
    old_edges = np.concatenate(blocks)
    candidates = {name: getattr(tree, name)[old_edges] for name in EDGE_FIELDS}
    children = tree.child[old_edges]
    children = np.where(children >= 0, renamed[np.maximum(children, 0)], children)
    nodes = {name: getattr(tree, name)[kept] for name in NODE_FIELDS}
    parents, depths = renamed[tree.parent[kept]], tree.depth[kept] - 1

    reset(tree)
    inner, outer = slice(1, 1 + len(kept)), slice(1, 1 + len(old_edges))
    for name, values in (nodes | candidates).items():
        getattr(tree, name)[inner if name in nodes else outer] = values
    tree.parent[inner], tree.depth[inner] = parents, depths
    tree.in_flight[inner], tree.waiting[inner], tree.blocked[inner] = 0, 0, NONE
    places = np.arange(1, 1 + len(old_edges), dtype=np.int32)
    tree.child[outer] = children
    tree.edge[children[children >= 0]] = places[children >= 0]
    firsts = 1 + np.cumsum(counts) - counts
    lasts = firsts + counts - 1
    tree.sibling[outer] = places + 1
    tree.sibling[lasts[counts > 0]] = NONE
    owners = slice(0, 1 + len(kept))
    tree.first_edge[owners] = np.where(counts > 0, firsts, NONE)
    tree.last_edge[owners] = np.where(counts > 0, lasts, NONE)
    tree.edge_count[owners] = counts

    tree.child[0], tree.origin[0], tree.action[0] = NONE, origin, reference
    tree.sibling[0] = tree.first_edge[0]
    tree.first_edge[0], tree.edge_count[0] = 0, 1 + counts[0]
    tree.last_edge[0] = max(0, tree.last_edge[0])
    root_edges = slice(0, 1 + counts[0])
    tree.prior[0] = tree.prior[root_edges][1:].max(initial=np.finfo(np.float32).tiny)
    tree.prior[root_edges] /= tree.prior[root_edges].sum()
    tree.counters[NODES], tree.counters[EDGES] = 1 + len(kept), 1 + len(old_edges)
    return kept.astype(np.int64), np.arange(1, 1 + len(kept), dtype=np.int64)


def settle_root(tree: Tree, value: float, discount: float, best_child: bool) -> None:
    """Evaluate the root of a kept tree: its own value and its children's, weighted by visits."""
    children = tree.child[edges_of(tree, 0)]
    children = children[children >= 0]
    visits = tree.visits[children]
    total = 1 + int(visits.sum())
    values = discount * tree.value[children]
    tree.visits[0], tree.leaf_value[0] = total, value
    tree.mean[0] = (value + visits @ (discount * tree.mean[children])) / total
    tree.square[0] = (value**2 + visits @ (discount**2 * tree.square[children])) / total
    tree.value[0] = values.max() if best_child and len(children) else tree.mean[0]
    seen: Floats = tree.value[: tree.counters[NODES]]
    tree.bounds[0], tree.bounds[1] = float(np.min(seen)), float(np.max(seen))
