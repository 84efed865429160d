"""One decision of a replay as a row of its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.data.motion import actions_of
from vla_reasoner_ros.evaluation import shadow
from vla_reasoner_ros.evaluation.replay_live import Live
from vla_reasoner_ros.evaluation.replay_record import Row
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.types import ActionSpec, Decision, Observation

FELL_BACK = (Status.DEADLINE, Status.POLICY, Status.HOLD)
COPIED = (
    "sequence",
    "fallback_reason",
    "margin_required",
    "deviated",
    "alpha",
    "gate",
    "drift_tripped",
    "tree_reused",
    "simulations",
    "simulations_budget",
    "world_model_calls",
    "nodes",
    "pruned",
    "mean_depth",
    "root_entropy",
    "seed",
    "chosen_id",
    "candidate_ids",
    "candidate_visits",
    "candidate_values",
    "candidate_priors",
    "candidate_origins",
)
"""Columns that are fields of the statistics under the same name."""


@dataclass(frozen=True)
class Circumstances:
    """What a row tells beside the decision.

    Attributes:
        episode: beginnings before this one.
        first_ns: stamp of the bag's first observation.
        recorded_ns: when the observation was complete, by the recorder's clock.
        deadline_ms: what live decisions are allowed, ms; 0 is unlimited.
        faults: what went wrong since the last decision, in words.
        truth: true progress and success, where a simulator was recorded.
    """

    episode: int
    first_ns: int
    recorded_ns: int
    deadline_ms: float
    faults: Sequence[str] = ()
    truth: tuple[float, bool] | None = None


def decision_row(
    observation: Observation, decision: Decision, live: Live | None, around: Circumstances
) -> Row:
    """The row of a decision, without what was done next; see :func:`demonstration`.

    Args:
        observation: what was decided on.
        decision: it.
        live: the decision that was recorded for the same observation.
        around: what else there is to tell.
    """
    said, chunk, own = decision.statistics, decision.chunk, decision.policy_chunk
    searched = decision.tree is not None
    missed = bool(around.deadline_ms) and said.time_ms > around.deadline_ms
    faults = list(around.faults)
    if missed:
        faults.append(f"deadline missed: {said.time_ms:.1f} of {around.deadline_ms:g} ms")
    if said.fallback_reason and said.status in FELL_BACK:
        faults.append(f"fell back: {said.fallback_reason}")
    progress, success = around.truth or (None, None)

    def known(number: float) -> float | None:
        return float(number) if searched and math.isfinite(number) else None

    return {
        **{name: getattr(said, name) for name in COPIED},
        "episode": around.episode,
        "stamp_ns": observation.stamp_ns,
        "time_s": (observation.stamp_ns - around.first_ns) * 1e-9,
        "recorded_ns": around.recorded_ns,
        "instruction": observation.instruction,
        "source": chunk.source.value,
        "status": said.status.name.lower(),
        "value_seen": known(said.root_value),
        "value_policy": known(said.policy_value),
        "value_chosen": known(said.chosen_value),
        "margin": known(said.margin),
        "would_deviate": searched and shadow.would_deviate(said),
        "drift": known(said.drift),
        "decision_ms": said.time_ms,
        "deadline_ms": around.deadline_ms,
        "deadline_missed": missed,
        "stage_ms": list(said.stage_ms),
        "depth": said.max_depth,
        "confidence": chunk.confidence,
        "consumed": chunk.consumed,
        "actions": chunk.actions.ravel().tolist(),
        "policy_actions": None if own is None else own.actions.ravel().tolist(),
        "ee_position": observation.ee_position.tolist(),
        "gripper": observation.gripper,
        **_as_live(decision, live),
        "progress": progress,
        "success": success,
        "faults": faults,
    }


def _as_live(decision: Decision, live: Live | None) -> Row:
    if live is None:
        return {"live_source": None, "live_ms": None, "live_equal": None}
    same = None if live.actions is None else np.array_equal(live.actions, decision.chunk.actions)
    return {
        "live_source": live.source or None,
        "live_ms": live.statistics.time_ms,
        "live_equal": None if same is None else bool(same),
    }


def demonstration(seen: Sequence[Observation], decision: Decision, spec: ActionSpec) -> Row:
    """The columns that say what was really done, and where it ranks among the candidates.

    Args:
        seen: what was decided on and the observations after it, one action each.
        decision: it.
        spec: the convention of the actions.

    Returns:
        Nothing where two observations are not one action apart.
    """
    done = actions_of(seen, spec)
    if done is None:
        return {}
    row: Row = {"demonstrated": done.ravel().tolist()}
    found = None if decision.tree is None else shadow.compare(done, decision.tree, spec)
    if found is not None:
        row |= {
            "demonstrated_rank": found.rank,
            "candidates": found.candidates,
            "demonstrated_value": found.value,
            "demonstrated_distance": found.distance,
            "policy_distance": found.policy_distance,
            "winner_distance": found.winner_distance,
        }
    return row
