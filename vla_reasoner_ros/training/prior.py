"""Fit the density over demonstrated actions that the search draws candidates from.

The bandwidth is Scott's rule times the factor that gives actions of held-out episodes the highest
likelihood, found by cross-validation over episodes: neighbouring actions of one episode are nearly
the same, so folds over single actions would choose kernels far too narrow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.episodes import Kind
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.priors.demonstrations import KIND, Demonstrations
from vla_reasoner_ros.priors.kde import KdePrior
from vla_reasoner_ros.training.cards import training_card
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.weights import save_model

FACTORS = tuple(np.geomspace(0.1, 3.0, 18).round(4).tolist())
"""Multiples of Scott's bandwidth that are tried."""

Actions = NDArray[np.float64]


def cross_validate(
    spec: ActionSpec, episodes: list[Actions], folds: int, count: int, rng: np.random.Generator
) -> dict[float, float]:
    """Held-out log-likelihood of each factor.

    Args:
        spec: the convention of the actions.
        episodes: (T, D) actions of each episode.
        folds: parts that are held out in turn.
        count: actions that the density is made of, at most.
        rng: deals the episodes out and draws the actions.

    Returns:
        Factor to mean log density of the motion of held-out actions.

    Raises:
        ConfigurationError: fewer episodes than folds, or fewer than two folds.
    """
    if not 2 <= folds <= len(episodes):
        raise ConfigurationError(
            f"--folds: expected 2 or more and at most one for each of the {len(episodes)} "
            f"successful episodes, got {folds}"
        )
    fold = rng.permutation(len(episodes)) % folds
    totals = np.zeros(len(FACTORS))
    for held_out in range(folds):
        kept = [e for e, part in zip(episodes, fold, strict=True) if part != held_out]
        left = [e for e, part in zip(episodes, fold, strict=True) if part == held_out]
        fitted, judged = subsample(kept, count, rng), subsample(left, count // 2, rng)
        for index, factor in enumerate(FACTORS):
            prior = KdePrior(demonstrations=Demonstrations.from_actions(spec, fitted, factor))
            totals[index] += prior.motion_log_density(judged).mean() / folds
    return dict(zip(FACTORS, totals.tolist(), strict=True))


def subsample(episodes: list[Actions], count: int, rng: np.random.Generator) -> Actions:
    """At most ``count`` of all episodes' actions, drawn without replacement, in their order."""
    actions = np.concatenate(episodes).astype(np.float64)
    if len(actions) <= count:
        return actions
    return actions[np.sort(rng.choice(len(actions), count, replace=False))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[Path("data/demos")], help="folders of episodes"
    )
    parser.add_argument("--output", type=Path, help="path without suffix; default the shipped")
    parser.add_argument("--count", type=COUNT, default=4096, help="actions kept, at most")
    parser.add_argument("--folds", type=COUNT, default=5, help="parts of the cross-validation")
    parser.add_argument("--seed", type=WHOLE, default=0, help="of all random numbers")
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fit on the expert's answers in successful episodes, and save."""
    if arguments.count < 2:
        raise ConfigurationError(f"--count: expected at least 2, got {arguments.count}")
    chosen = recordings_of(arguments, arguments.data)
    chosen = chosen.where(kind=(Kind.EXPERT, Kind.NOISY_EXPERT), success=True)
    spec = chosen.action_spec
    episodes = [episode.actions.astype(np.float64) for episode in chosen]
    rng = np.random.default_rng(arguments.seed)
    scores = cross_validate(spec, episodes, arguments.folds, arguments.count, rng)
    factor = max(scores, key=scores.__getitem__)
    data = Demonstrations.from_actions(spec, subsample(episodes, arguments.count, rng), factor)
    card = training_card(
        KIND,
        {"action_spec": spec.to_mapping(), "count": len(data.actions)},
        arguments,
        data={
            "sha256": chosen.content_hash,
            "episodes": chosen.counts(lambda e: f"{e.meta.kind.value} {e.meta.task}"),
            "steps": chosen.steps,
        },
        metrics={
            "bandwidth_factor": factor,
            "held_out_log_density": {str(f): round(score, 4) for f, score in scores.items()},
            "gripper_open_fraction": round(data.open_fraction, 4),
        },
    )
    stem = arguments.output or models_directory() / KIND
    tensors = {name: np.asarray(array) for name, array in data.tensors().items()}
    tensors["actions"] = tensors["actions"].astype(np.float32)
    save_model(stem, tensors, card)
    print(f"prior: {stem}.safetensors, {len(data.actions)} actions, {factor} times Scott's width")
    return 0
