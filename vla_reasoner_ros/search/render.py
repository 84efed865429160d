"""A search tree for people: as indented text, and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.statistics import TreeSnapshot


def to_text(tree: TreeSnapshot, candidates: int = 8, depth: int = 3) -> str:
    """One line per node, the most visited children first.

    Args:
        tree: a snapshot.
        candidates: children shown of each node.
        depth: levels shown.
    """
    lines: list[str] = []

    def show(node: int) -> None:
        action = ", ".join(f"{value:+.3f}" for value in tree.actions[node].sum(0))
        lines.append(
            f"{'  ' * tree.depths[node]}{tree.origins[node]}  visits {tree.visits[node]}  "
            f"value {tree.values[node]:.3f}  leaf {tree.leaf_values[node]:.3f}  "
            f"prior {tree.priors[node]:.3f}" + (f"  action [{action}]" if node else "")
        )
        if tree.depths[node] < depth:
            for child in _children(tree, node)[:candidates]:
                show(int(child))

    show(0)
    return "\n".join(lines)


def to_picture(tree: TreeSnapshot, path: str | Path, title: str = "") -> None:
    """Draw a tree: a node's area is its visits, its colour its value, squares are the policy's own.

    Args:
        tree: a snapshot.
        path: where to write; the suffix chooses the format.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    places = _places(tree)
    figure = Figure(figsize=(9.0, 1.2 + 1.5 * (1 + tree.depths.max())), layout="constrained")
    axes = figure.add_subplot()
    for node in range(1, tree.nodes):
        parent = tree.parents[node]
        width = 0.3 + 3.0 * tree.visits[node] / tree.visits[0]
        ends = places[[parent, node]], -tree.depths[[parent, node]]
        axes.plot(*ends, color="0.75", linewidth=width, zorder=1)
    own = np.array([origin == "policy" for origin in tree.origins])
    colours = {"vmin": tree.values.min(), "vmax": tree.values.max(), "cmap": "viridis"}
    for marker, chosen in (("o", ~own), ("s", own)):
        points = axes.scatter(
            places[chosen],
            -tree.depths[chosen],
            s=12.0 + 500.0 * np.sqrt(tree.visits[chosen] / tree.visits[0]),
            c=tree.values[chosen],
            marker=marker,
            edgecolors="black",
            linewidths=0.5,
            zorder=2,
            **colours,
        )
    axes.set_yticks(-np.arange(1 + tree.depths.max()), np.arange(1 + tree.depths.max()))
    axes.set_ylabel("depth, macro-actions")
    axes.set_xticks([])
    axes.margins(y=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(title)
    figure.colorbar(points, label="value", pad=0.02)
    figure.savefig(path, dpi=120)


def _children(tree: TreeSnapshot, node: int) -> NDArray[np.int64]:
    children = np.flatnonzero(tree.parents == node)
    return children[np.lexsort((-tree.values[children], -tree.visits[children]))]


def _places(tree: TreeSnapshot) -> NDArray[np.float64]:
    """Leaves side by side, every other node above the middle of its children."""
    places = np.zeros(tree.nodes)
    next_free = 0.0

    def place(node: int) -> None:
        nonlocal next_free
        children = np.flatnonzero(tree.parents == node)
        if not len(children):
            places[node] = next_free
            next_free += 1.0
            return
        for child in children:
            place(int(child))
        places[node] = places[children].mean()

    place(0)
    return places
