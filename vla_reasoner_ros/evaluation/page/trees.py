"""Reading a search tree that is given as flat arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_reasoner_ros.search.candidates import POLICY


def root_candidates(tree: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[int, int]:
    """Candidate id to node: the root's child with the candidate's visits, value and prior.

    The statistics list the most visited candidates only; the policy's own and the winner are found
    by their values where they are not among them.

    Args:
        tree: ``parents``, ``visits``, ``values``, ``priors`` and ``origins``, (N,) each.
        statistics: the fields of SearchStatistics of the same decision.
    """
    free = [i for i, parent in enumerate(tree["parents"]) if parent == 0]
    columns = (statistics[f"candidate_{name}"] for name in ("ids", "visits", "values", "priors"))
    found = {}
    for number, visits, value, prior in zip(*columns, strict=True):
        same = [i for i in free if tree["visits"][i] == visits]
        if same:
            found[int(number)] = min(
                same,
                key=lambda i: abs(tree["values"][i] - value) + abs(tree["priors"][i] - prior),
            )
            free.remove(found[int(number)])
    for number, value in (
        (0, statistics["policy_value"]),
        (int(statistics["chosen_id"]), statistics["chosen_value"]),
    ):
        same = [i for i in free if (tree["origins"][i] == POLICY) == (number == 0)]
        if number not in found and same:
            found[number] = min(same, key=lambda i: abs(tree["values"][i] - value))
            free.remove(found[number])
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
