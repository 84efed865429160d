"""What a report card measures: choosing among the candidates of one decision, and imagining.

Arrays in, numbers out; whose values and imaginations they are is :mod:`report_card`'s affair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.training.branches import EXPERT, PILOT
from vla_reasoner_ros.training.latents import BranchLatents
from vla_reasoner_ros.training.world_model import MOVED
from vla_reasoner_ros.world_models.encoder import LatentLayout

Float64 = NDArray[np.float64]
LEAST_SPREAD = 0.01
"""Standard deviation of true progress below which the candidates of a decision have no order."""


def rank_correlations(values: Float64, true: Float64) -> Float64:
    """Spearman's correlation of each decision's candidates; NaN where they have no true order.

    Args:
        values: (D, C).
        true: (D, C).

    Returns:
        (D,).
    """
    found = np.full(len(true), np.nan)
    for i, (value, truth) in enumerate(zip(values, true, strict=True)):
        if truth.std() >= LEAST_SPREAD:
            found[i] = 0.0 if np.ptp(value) == 0.0 else stats.spearmanr(value, truth).statistic
    return found


def choice(values: Float64, true: Float64) -> dict[str, Float64]:
    """What taking the best-valued candidate truly brings, per decision.

    Args:
        values: (D, C), the pilot's own first.
        true: (D, C) true progress of the outcomes.

    Returns:
        gain: (D,) over the pilot's own; regret: (D,) below the best there was; possible: (D,) the
        best over the pilot's own.
    """
    chosen = np.take_along_axis(true, values.argmax(axis=1)[:, None], axis=1)[:, 0]
    best = true.max(axis=1)
    return {
        "gain": chosen - true[:, PILOT],
        "regret": best - chosen,
        "possible": best - true[:, PILOT],
    }


def cluster_interval(
    measure: Float64, cluster: NDArray, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean whose samples come in clusters (scenes); NaN left out."""
    valid = np.isfinite(measure)
    _, index = np.unique(cluster[valid], return_inverse=True)
    sums = np.bincount(index, weights=measure[valid])
    counts = np.bincount(index)
    picks = rng.integers(0, len(sums), (draws, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def calibration_error(values: Float64, true: Float64, bins: int = 10) -> float:
    """Mean difference of value and truth over bins of the value, weighted by their counts."""
    index = np.clip((values * bins).astype(int), 0, bins - 1)
    gaps = [
        abs(values[index == i].mean() - true[index == i].mean()) * (index == i).mean()
        for i in range(bins)
        if (index == i).any()
    ]
    return float(np.sum(gaps))


def chance_above(above: Float64, below: Float64) -> float:
    """Probability that one of the first exceeds one of the second (area under the ROC curve)."""
    return float(stats.mannwhitneyu(above, below).statistic / (len(above) * len(below)))


def ranking_measures(
    values: Float64, branches: BranchLatents, rng: np.random.Generator
) -> dict[str, Any]:
    """Everything about choosing among the candidates of one decision.

    Args:
        values: (D, C) of the outcomes after one macro-action.
        branches: the decisions.
        rng: draws the bootstrap.

    Raises:
        ConfigurationError: in no decision do the candidates truly differ.
    """
    true = branches.outcome_progress[:, :, 0].astype(np.float64)
    correlation = rank_correlations(values, true)
    outcome = choice(values, true)
    ordered = np.isfinite(correlation)
    if not ordered.any():
        raise ConfigurationError(
            f"branches: in none of the {len(branches)} decisions do the candidates truly differ; "
            "there is nothing to rank"
        )
    offset = (values - values.mean(axis=1, keepdims=True)) - (
        true - true.mean(axis=1, keepdims=True)
    )
    rank_low, rank_high = cluster_interval(correlation, branches.scene, rng)
    gain_low, gain_high = cluster_interval(outcome["gain"], branches.scene, rng)
    return {
        "decisions": len(branches),
        "decisions_with_an_order": int(ordered.sum()),
        "rank_correlation": float(np.nanmean(correlation)),
        "rank_low": rank_low,
        "rank_high": rank_high,
        "rank_by_task": {
            task: float(np.nanmean(correlation[branches.task == task]))
            for task in sorted({str(t) for t in branches.task[ordered]})
        },
        "gain": float(outcome["gain"].mean()),
        "gain_low": gain_low,
        "gain_high": gain_high,
        "possible_gain": float(outcome["possible"].mean()),
        "expert_gain": float((true[:, EXPERT] - true[:, PILOT]).mean()),
        "regret": float(outcome["regret"].mean()),
        "harmed": float((outcome["gain"] < -LEAST_SPREAD).mean()),
        "true_spread": float(true.std(axis=1).mean()),
        "error_within_decision": float(offset.std(axis=1).mean()),
        "error_over_spread": float(offset.std(axis=1).mean() / true.std(axis=1).mean()),
        "error": float(np.abs(values - true).mean()),
        "calibration_error": calibration_error(values.ravel(), true.ravel()),
        "rank_over_all_states": float(stats.spearmanr(values.ravel(), true.ravel()).statistic),
    }


def dynamics_measures(
    layout: LatentLayout, imagined: NDArray, with_others: NDArray, branches: BranchLatents
) -> dict[str, Any]:
    """Errors by horizon, against copying what was seen, and against the true state, m.

    Args:
        layout: of the latents.
        imagined: (D, C, H, Z).
        with_others: (D, C, H, Z), imagined with another candidate's actions.
        branches: the decisions.
    """
    count = len(layout.objects)

    def places(latents: NDArray) -> tuple[NDArray, NDArray]:
        objects = latents[..., layout.slices["object_position"]]
        return (
            latents[..., layout.slices["ee_position"]],
            objects.reshape(*objects.shape[:-1], count, 3),
        )

    arm, objects = places(imagined)
    other_arm, _ = places(with_others)
    true_arm, true_objects = places(branches.true_outcomes)
    root_arm, root = places(branches.root[:, None, None])
    _, true_root = places(branches.true_root[:, None, None])
    moved = np.linalg.norm(true_objects - true_root, axis=-1) > MOVED
    error = np.linalg.norm(objects - true_objects, axis=-1)
    copied = np.linalg.norm(root - true_objects, axis=-1)
    drift = np.linalg.norm(objects - root, axis=-1)
    arm_error = np.linalg.norm(arm - true_arm, axis=-1).mean(axis=(0, 1))
    arm_copied = np.linalg.norm(root_arm - true_arm, axis=-1).mean(axis=(0, 1))
    every = error.mean(axis=(0, 1, 3))
    other_error = np.linalg.norm(other_arm - true_arm, axis=-1).mean(axis=(0, 1))
    by_horizon = range(moved.shape[2])
    moved_error = [float(error[:, :, h][moved[:, :, h]].mean()) for h in by_horizon]
    copy_error = [float(copied[:, :, h][moved[:, :, h]].mean()) for h in by_horizon]
    return {
        "encoder_error_m": float(np.linalg.norm(root - true_root, axis=-1).mean()),
        "arm_error_m": arm_error.tolist(),
        "arm_copy_last_error_m": arm_copied.tolist(),
        "arm_error_ratio": float((arm_error / arm_copied).max()),
        "arm_error_of_other_actions_m": other_error.tolist(),
        "action_sensitivity": float((other_error / arm_error).min()),
        "object_error_m": every.tolist(),
        "object_error_last_m": float(every[-1]),
        "moved_object_error_m": moved_error,
        "copy_last_error_m": copy_error,
        "object_error_ratio": float(max(np.divide(moved_error, copy_error))),
        "drift_of_untouched_objects_m": [
            float(drift[:, :, h][~moved[:, :, h]].mean()) for h in by_horizon
        ],
    }


def failure_measures(values: Float64, now: Float64, branches: BranchLatents) -> dict[str, Any]:
    """Whether actions that do harm are imagined to do harm.

    A world model that never saw a failure imagines none. A setback is a candidate after which the
    task is truly further from done than before, an advance one after which it is closer.

    Args:
        values: (D, C) of the imagined outcomes after one macro-action.
        now: (D,) value of the state that was seen.
        branches: the decisions.
    """
    true = branches.outcome_progress[:, :, 0] - branches.progress[:, None]
    imagined = values - now[:, None]
    setbacks, advances = true < -LEAST_SPREAD, true > LEAST_SPREAD
    measures: dict[str, Any] = {"setbacks": int(setbacks.sum()), "advances": int(advances.sum())}
    if setbacks.any():
        measures["setbacks_imagined_as_such"] = float((imagined[setbacks] < 0.0).mean())
    if setbacks.any() and advances.any():
        measures["setbacks_recognised"] = chance_above(imagined[advances], imagined[setbacks])
    return measures
