"""What a decision says about itself, field by field as in ``msg/SearchStatistics.msg``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.decide import Root
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.stages import STAGES
from vla_reasoner_ros.search.tree import DEPTHS, LEAVES, NODES, NONE, PRUNED

TOP = 16
"""Root candidates that the statistics list."""


class Status(IntEnum):
    """How a decision came about; numbers as in the message."""

    OK = 0
    DEADLINE = 1
    SKIPPED = 2
    POLICY = 3
    HOLD = 4


@dataclass
class SearchStatistics:
    """One decision in numbers; values are progress toward the instruction, 0 to 1.

    The fields are those of the message without its header, and mean the same; unknown numbers are
    NaN only where the message says so.
    """

    observation_stamp_ns: int = 0
    sequence: int = 0
    status: Status = Status.OK
    fallback_reason: str = ""
    seed: int = 0

    budget_ms: float = 0.0
    time_ms: float = 0.0
    deadline_missed: bool = False
    stage_names: tuple[str, ...] = STAGES
    stage_ms: tuple[float, ...] = (0.0,) * len(STAGES)

    simulations: int = 0
    simulations_budget: int = 0
    world_model_calls: int = 0
    nodes: int = 0
    pruned: int = 0
    max_depth: int = 0
    mean_depth: float = 0.0
    root_visits: int = 0
    root_value: float = 0.0
    root_entropy: float = 0.0

    candidate_ids: list[int] = field(default_factory=list)
    candidate_visits: list[int] = field(default_factory=list)
    candidate_values: list[float] = field(default_factory=list)
    candidate_priors: list[float] = field(default_factory=list)
    candidate_origins: list[str] = field(default_factory=list)

    chosen_id: int = 0
    chosen_value: float = 0.0
    policy_value: float = 0.0
    margin: float = 0.0
    margin_required: float = 0.0
    deviated: bool = False
    alpha: float = 1.0
    gate: str = "off"
    drift: float = math.nan
    drift_tripped: bool = False
    tree_reused: bool = False
    policy: str = ""
    world_model: str = ""
    value: str = ""
    prior: str = ""

    @property
    def executed_id(self) -> int:
        """The root candidate whose action drives the arm: the winner, or the policy's own."""
        return self.chosen_id if self.deviated else 0

    def fall_back(self, status: Status, reason: str) -> None:
        """State that the decision is not a full search's, and why."""
        self.status, self.fallback_reason = status, reason

    def note(self, remark: str) -> None:
        """Add to the reason something that went wrong beside the decision itself."""
        self.fallback_reason = "; ".join(filter(None, (self.fallback_reason, remark)))


@dataclass(frozen=True)
class TreeSnapshot:
    """A copy of one search tree, as in ``msg/SearchTree.msg``; node 0 is the root.

    States that were cut off are left out, and a node's parent comes before it.

    Attributes:
        parents: (N,) NONE for the root.
        visits: (N,).
        values: (N,) Q, worth to the parent: discounted once, but for the root.
        leaf_values: (N,) what the value model said.
        priors: (N,) normalised density among the siblings; 1 for the root.
        depths: (N,).
        origins: (N,) who drew the action: root, policy, kde, ...
        actions: (N, M, D) the action into each node; 0 for the root.
        slots: (N,) the states' numbers in the world model, valid until the next decision.
        ee_positions: (N, 3) imagined end-effector positions, m; (0, 3) when unknown.
    """

    parents: NDArray[np.int32]
    visits: NDArray[np.int32]
    values: NDArray[np.float64]
    leaf_values: NDArray[np.float64]
    priors: NDArray[np.float64]
    depths: NDArray[np.int32]
    origins: tuple[str, ...]
    actions: NDArray[np.float64]
    slots: NDArray[np.int64]
    ee_positions: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.parents)


def record_tree(statistics: SearchStatistics, engine: Engine, root: Root) -> None:
    """Write what the tree says into the statistics."""
    tree, names = engine.tree, engine.source.origins
    nodes = slice(0, int(tree.counters[NODES]))
    seen = tree.nodes["visits"][nodes] > 0
    statistics.nodes = int(seen.sum())
    statistics.pruned = int(tree.counters[PRUNED])
    statistics.max_depth = int(tree.nodes["depth"][nodes][seen].max(initial=0))
    statistics.mean_depth = float(tree.counters[DEPTHS] / max(1, tree.counters[LEAVES]))
    statistics.root_visits = int(tree.nodes["visits"][0])
    statistics.root_value = float(tree.nodes["leaf_value"][0])
    share = root.visits[root.visits > 0] / max(1, root.visits.sum())
    statistics.root_entropy = float(-(share * np.log(share)).sum())
    best = np.lexsort((np.arange(len(root.visits)), -np.nan_to_num(root.values), -root.visits))
    best = best[root.visits[best] > 0][:TOP]
    statistics.candidate_ids = best.tolist()
    statistics.candidate_visits = root.visits[best].tolist()
    statistics.candidate_values = root.values[best].tolist()
    statistics.candidate_priors = root.priors[best].tolist()
    statistics.candidate_origins = [names[i] for i in root.origins[best]]


def snapshot(engine: Engine) -> TreeSnapshot:
    """Copy the tree of the last search."""
    tree, names = engine.tree, engine.source.origins
    count = int(tree.counters[NODES])
    kept = np.flatnonzero(tree.nodes["visits"][:count] > 0)
    renamed = np.full(count + 1, NONE, np.int32)
    renamed[kept] = np.arange(len(kept))
    edges = tree.nodes["edge"][kept[1:]]
    shape = (len(kept), engine.macro_steps, engine.spec.dimensions)
    actions = np.zeros((len(kept), tree.action.shape[1]))
    actions[1:] = tree.action[edges]
    values = tree.nodes["value"][kept]
    values[1:] *= engine.parameters.discount
    return TreeSnapshot(
        parents=renamed[tree.nodes["parent"][kept]],
        visits=tree.nodes["visits"][kept],
        values=values,
        leaf_values=tree.nodes["leaf_value"][kept],
        priors=np.concatenate([[1.0], tree.edges["prior"][edges]]),
        depths=tree.nodes["depth"][kept],
        origins=("root", *(names[i] for i in tree.edges["origin"][edges])),
        actions=actions.reshape(shape),
        slots=kept.astype(np.int64),
    )
