"""Reading a search tree that is given as flat arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.candidates import POLICY


def root_candidates(tree: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[int, int]:
    """Candidate id to node: the root's child with the candidate's visits, value and prior.

    The statistics list the most visited candidates only; the policy's own and the winner are found
    by their values where they are not among them.

    Args:
        tree: ``parents``, ``visits``, ``values``, ``priors`` and ``origins``, (N,) each.
        statistics: the fields of SearchStatistics of the same decision.
    """
    parents, visits = (np.asarray(tree[name]) for name in ("parents", "visits"))
    values, priors = (np.asarray(tree[name], dtype=float) for name in ("values", "priors"))
    free = np.flatnonzero(parents == 0)
    own = np.array([origin == POLICY for origin in tree["origins"]], dtype=bool)
    found: dict[int, int] = {}

    def take(number: int, distance: NDArray[np.float64], nodes: NDArray[np.int64]) -> None:
        nonlocal free
        if len(nodes):
            found[number] = int(nodes[distance.argmin()])
            free = free[free != found[number]]

    columns = (statistics[f"candidate_{name}"] for name in ("ids", "visits", "values", "priors"))
    for number, visited, value, prior in zip(*columns, strict=True):
        same = free[visits[free] == visited]
        take(int(number), abs(values[same] - value) + abs(priors[same] - prior), same)
    for number, value in (
        (0, statistics["policy_value"]),
        (int(statistics["chosen_id"]), statistics["chosen_value"]),
    ):
        if number not in found:
            same = free[own[free] == (number == 0)]
            take(number, abs(values[same] - value), same)
    return found


def principal_path(tree: Mapping[str, Any], node: int) -> list[int]:
    """The root, a child of it, and on along the most visited children."""
    path = [0, node]
    while True:
        children = [i for i, parent in enumerate(tree["parents"]) if parent == path[-1]]
        visited = [i for i in children if tree["visits"][i] > 0]
        if not visited:
            return path
        path.append(max(visited, key=lambda i: tree["visits"][i]))
