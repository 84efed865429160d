"""From episodes to the numbers that are published: success, differences, decision times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_reasoner_ros.evaluation.statistics import (
    PairedDifference,
    Proportion,
    paired_difference,
    wilson,
)

Episodes = Sequence[Mapping[str, Any]]


def paired(episodes: Episodes, arms: Sequence[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Episodes by task and seed, then by arm; only cases that every arm has finished."""
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    for episode in episodes:
        cases.setdefault((episode["task"], episode["seed"]), {})[episode["arm"]] = episode
    return {
        case: found for case, found in sorted(cases.items()) if all(arm in found for arm in arms)
    }


def success(episodes: Episodes, arm: str) -> Proportion:
    """Success of one arm."""
    outcomes = [bool(episode["success"]) for episode in episodes if episode["arm"] == arm]
    return wilson(sum(outcomes), len(outcomes))


def difference(episodes: Episodes, base: str, arm: str) -> PairedDifference | None:
    """Success of ``arm`` minus success of ``base`` on the cases of both; None without any."""
    cases = paired(episodes, (base, arm)).values()
    if not cases:
        return None
    return paired_difference(
        [case[base]["success"] for case in cases], [case[arm]["success"] for case in cases]
    )


def decision_times(episodes: Episodes, arm: str) -> dict[str, float | None]:
    """Percentiles of the time of a decision, ms; None without any."""
    times = [t for episode in episodes if episode["arm"] == arm for t in episode["decision_ms"]]
    if not times:
        return {"p50": None, "p95": None}
    return {
        "p50": round(float(np.percentile(times, 50)), 2),
        "p95": round(float(np.percentile(times, 95)), 2),
    }


def command_counts(episodes: Episodes, arm: str) -> dict[str, int] | None:
    """Trajectories sent to the simulated arm, rejected by it, and samples that broke a limit.

    None where none of the arm's episodes was driven by trajectories.
    """
    judged = [
        commands
        for episode in episodes
        if episode["arm"] == arm and (commands := episode.get("commands"))
    ]
    if not judged:
        return None
    return {name: sum(counts[name] for counts in judged) for name in judged[0]}


def summarise(episodes: Episodes, arms: Sequence[str], base: str = "policy") -> dict[str, Any]:
    """The published numbers: ``overall`` and ``tasks.NAME``.

    Each has ``n``, ``success.ARM`` and ``success_interval.ARM`` (fractions), ``decision_ms.ARM``
    (p50 and p95), ``world_model_calls.ARM`` (mean per decision), ``commands.ARM`` (see
    :func:`command_counts`), ``differences.ARM`` against the base (points, interval in points,
    gained, lost, McNemar's p). The difference of the arm ``search`` (without one, of the first
    that is not the base) also stands in ``difference_points``, ``difference_interval`` and
    ``mcnemar_p``.

    Args:
        episodes: summaries; only cases that every arm has finished are counted.
        arms: names of the arms.
        base: the arm that the others are compared with, where it is among them.
    """
    cases = paired(episodes, arms)
    kept = [case[arm] for case in cases.values() for arm in arms]
    tasks = sorted({task for task, _ in cases})
    return {
        "overall": _block(kept, arms, base),
        "tasks": {
            task: _block([e for e in kept if e["task"] == task], arms, base) for task in tasks
        },
    }


def _block(episodes: Episodes, arms: Sequence[str], base: str) -> dict[str, Any]:
    rates = {arm: success(episodes, arm) for arm in arms}
    block: dict[str, Any] = {
        "n": next(iter(rates.values())).n if rates else 0,
        "success": {arm: rate.rate if rate.n else None for arm, rate in rates.items()},
        "success_interval": {arm: [rate.low, rate.high] for arm, rate in rates.items()},
        "decision_ms": {arm: decision_times(episodes, arm) for arm in arms},
        "world_model_calls": {arm: _calls(episodes, arm) for arm in arms},
        "commands": {arm: command_counts(episodes, arm) for arm in arms},
    }
    others = [arm for arm in arms if arm != base] if base in arms else []
    block["differences"] = {
        arm: _comparison(found) for arm in others if (found := difference(episodes, base, arm))
    }
    headline = "search" if "search" in others else others[0] if others else ""
    first = block["differences"].get(headline)
    block["difference_points"] = first["points"] if first else None
    block["difference_interval"] = first["interval"] if first else None
    block["mcnemar_p"] = first["mcnemar_p"] if first else None
    return block


def _comparison(found: PairedDifference) -> dict[str, Any]:
    return {
        "points": 100.0 * found.difference,
        "interval": [100.0 * found.low, 100.0 * found.high],
        "gained": found.gained,
        "lost": found.lost,
        "mcnemar_p": found.mcnemar_p,
    }


def _calls(episodes: Episodes, arm: str) -> float:
    calls = [c for e in episodes if e["arm"] == arm for c in e["world_model_calls"]]
    return round(float(np.mean(calls)), 2) if calls else 0.0
