"""What the search would have done where somebody else drove, and what it makes of what they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.statistics import SearchStatistics, TreeSnapshot
from vla_reasoner_ros.types import ActionSpec, FloatArray

LEAST_SPREAD = 1e-4
"""Standard deviation of the candidates, m or rad, below which it counts as this."""


@dataclass(frozen=True)
class Comparison:
    """A demonstrated macro-action among the candidates of a search.

    Attributes:
        rank: candidates with a better value than the one nearest to it; 0 is best.
        candidates: how many there were.
        value: of that nearest candidate.
        distance: to it, in standard deviations of the candidates; a gripper that does the opposite
            counts as one more.
        policy_distance: to the policy's own, likewise.
        winner_distance: to the search's winner, likewise.
    """

    rank: int
    candidates: int
    value: float
    distance: float
    policy_distance: float
    winner_distance: float


def would_deviate(statistics: SearchStatistics) -> bool:
    """Whether the search would rather not do what the policy proposed, whoever drove."""
    return statistics.chosen_id != 0 and statistics.margin > statistics.margin_required


def compare(demonstrated: FloatArray, tree: TreeSnapshot, spec: ActionSpec) -> Comparison | None:
    """Find a demonstrated macro-action among the root's candidates.

    Args:
        demonstrated: (M, D) what was really done.
        tree: of the decision; its edges have M actions.
        spec: the convention of both.

    Returns:
        None when the tree has no candidate, or its macro-action another length.
    """
    children = np.flatnonzero(tree.depths == 1)
    if not len(children) or tree.actions.shape[1:] != demonstrated.shape:
        return None
    actions, values = tree.actions[children], tree.values[children]
    motion = list(spec.motion_indices)
    spread = np.maximum(actions[:, :, motion].std(axis=0), LEAST_SPREAD)
    distances = np.sqrt(
        (((actions - demonstrated)[:, :, motion] / spread) ** 2).mean(axis=(1, 2))
    ) + _gripper_differs(actions, demonstrated, spec)
    nearest = int(distances.argmin())
    own = [i for i, child in enumerate(children) if tree.origins[child] == "policy"]
    return Comparison(
        rank=int((values > values[nearest]).sum()),
        candidates=len(children),
        value=float(values[nearest]),
        distance=float(distances[nearest]),
        policy_distance=float(distances[own[0]]) if own else float("nan"),
        winner_distance=float(distances[int(values.argmax())]),
    )


def _gripper_differs(
    actions: FloatArray, demonstrated: FloatArray, spec: ActionSpec
) -> NDArray[np.float64]:
    if spec.gripper is None:
        return np.zeros(len(actions))
    index, middle = spec.gripper.index, 0.5 * (spec.gripper.open + spec.gripper.closed)
    told = actions[:, :, index].mean(axis=1) > middle
    done = demonstrated[:, index].mean() > middle
    return (told != done).astype(np.float64)


@dataclass(frozen=True)
class Agreement:
    """Shadow mode in numbers, over the decisions of a replay that searched.

    Attributes:
        decisions: decisions with a search.
        would_deviate: share in which the search would have done something else.
        value_gained: mean of the winner's imagined value less the policy's own, over those.
        compared: decisions with a demonstration to compare with.
        rank: mean rank of the demonstrated action among the candidates, as a share: 0 is best,
            0.5 what chance gives.
        nearer: of the decisions in which the search would have done something else, the share in
            which what was done is nearer to the search's winner than to the policy's own.
    """

    decisions: int
    would_deviate: float
    value_gained: float
    compared: int
    rank: float
    nearer: float

    def lines(self) -> list[str]:
        """As a person reads it."""
        if not self.decisions:
            return ["no decision made a search"]
        said = [
            f"the search would have done something else in {self.would_deviate:.0%} of "
            f"{self.decisions} decisions, and expects {self.value_gained:+.4f} of value from it",
        ]
        if self.compared:
            said.append(
                f"what was really done ranks at {self.rank:.0%} of the candidates (0 % is the best "
                f"valued, 50 % chance), over {self.compared} decisions"
            )
            if np.isfinite(self.nearer):
                said.append(
                    f"where the two differ, it is nearer to the search's choice than to the "
                    f"policy's in {self.nearer:.0%}"
                )
        return said


def agreement(rows: Sequence[dict[str, Any]]) -> Agreement:
    """Sum up the rows of a replay's table."""
    searched = [row for row in rows if row["margin"] is not None]
    other = [row for row in searched if row["would_deviate"]]
    compared = [row for row in searched if row["demonstrated_rank"] is not None]
    nearer = [
        row["winner_distance"] < row["policy_distance"] for row in compared if row["would_deviate"]
    ]

    def mean(numbers: list[Any]) -> float:
        return float(np.mean(numbers)) if numbers else float("nan")

    return Agreement(
        decisions=len(searched),
        would_deviate=mean([row["would_deviate"] for row in searched]),
        value_gained=mean([row["margin"] for row in other]) if other else 0.0,
        compared=len(compared),
        rank=mean([row["demonstrated_rank"] / max(1, row["candidates"] - 1) for row in compared]),
        nearer=mean(nearer),
    )
