"""Reading a search tree that is given as flat arrays by name: candidates and imagined paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.candidates import POLICY

CHOSEN, REJECTED = "chosen", "rejected"
ROLES = (REJECTED, POLICY, CHOSEN)


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
    """The root, a child of it, and on along the best children: the line that would be executed."""
    parents, visits, values = (np.asarray(tree[n]) for n in ("parents", "visits", "values"))
    path = [0, node]
    while True:
        visited = np.flatnonzero((parents == path[-1]) & (visits > 0))
        if not len(visited):
            return path
        path.append(int(visited[values[visited].argmax()]))


@dataclass(frozen=True)
class ImaginedPath:
    """Where a root candidate is imagined to lead the end effector.

    Attributes:
        candidate: its id; 0 is the policy's own.
        role: ``chosen`` (the search's winner), ``policy`` or ``rejected``.
        value: of the candidate's node.
        shade: place of the value between the lowest and the highest of the paths, 0 to 1.
        points: (K, 3) positions from the state seen now on along the best children, m, in the frame
            of the actions.
    """

    candidate: int
    role: str
    value: float
    shade: float
    points: NDArray[np.float64]


def imagined_paths(
    tree: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[ImaginedPath, ...]:
    """The paths of a tree's root candidates, what matters most last.

    Args:
        tree: the fields of SearchTree by name, as of ``vars(TreeSnapshot)``.
        statistics: the fields of SearchStatistics of the same decision.

    Returns:
        None at all where the world model knows no positions.
    """
    positions = np.asarray(tree["ee_positions"], dtype=np.float64).reshape(-1, 3)
    if len(positions) != len(tree["parents"]) or not np.isfinite(positions).all():
        return ()
    roots = root_candidates(tree, statistics)
    values = {number: float(tree["values"][node]) for number, node in roots.items()}
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    paths = [
        ImaginedPath(
            number,
            CHOSEN if number == statistics["chosen_id"] else POLICY if number == 0 else REJECTED,
            values[number],
            (values[number] - low) / (high - low) if high > low else 1.0,
            positions[principal_path(tree, node)],
        )
        for number, node in roots.items()
    ]
    return tuple(sorted(paths, key=lambda path: (ROLES.index(path.role), path.value)))
