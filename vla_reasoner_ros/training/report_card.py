"""Judge the learned models on held-out branched decisions; the verdict decides what may drive.

Correlation over all states flatters (a value may know how far an episode is and still not tell two
candidates apart), so everything here is measured within one decision: do the candidates' values
rank them as their true outcomes do, and what is truly gained by taking the best-valued one instead
of the pilot's own? Once with outcomes that the true simulator rendered, once with imagined ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import models_fingerprint, write_atomically
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.training.branches import scenes_of
from vla_reasoner_ros.training.latents import (
    BranchLatents,
    EpisodeLatents,
    load_branches,
    load_episodes,
)
from vla_reasoner_ros.training.measures import (
    Float64,
    chance_above,
    dynamics_measures,
    failure_measures,
    ranking_measures,
)
from vla_reasoner_ros.values.progress import MODEL_NAME as VALUE_NAME
from vla_reasoner_ros.values.progress import ProgressNetwork, load_progress
from vla_reasoner_ros.world_models.encoder import MODEL_NAME as ENCODER_NAME
from vla_reasoner_ros.world_models.encoder import Encoder
from vla_reasoner_ros.world_models.latent import MODEL_NAME as DYNAMICS_NAME
from vla_reasoner_ros.world_models.latent import DynamicsNetwork, load_dynamics

FILE_NAME = "report_card.json"
MARKS: dict[str, tuple[str, float, str]] = {
    "rank_correlation": ("at least", 0.5, "within-decision rank correlation"),
    "gain_low": ("above", 0.0, "lower 95 % bound of the true gain over the pilot's own"),
    "monotonicity": ("at least", 0.8, "rank correlation of value and time on successes"),
    "success_over_failure": ("at least", 0.8, "chance that a success ends above a failure"),
    "calibration_error": ("below", 0.05, "mean gap of value and true progress over ten bins"),
    "error_over_spread": (
        "below",
        1.0,
        "error between the candidates of a decision against their true spread",
    ),
    "closed_loop_low": (
        "above",
        0.0,
        "lower 95 % bound of the success gained over the policy, in points",
    ),
    "encoder_error_m": ("below", 0.01, "position error of objects where they are seen, m"),
    "object_error_last_m": ("below", 0.02, "the same after the last imagined macro-action, m"),
    "object_error_ratio": ("below", 1.0, "error of moved objects against copying, every horizon"),
    "arm_error_ratio": ("below", 0.5, "error of the arm against copying, every horizon"),
    "setbacks_recognised": (
        "at least",
        0.8,
        "chance that an advance is imagined better than a setback",
    ),
    "action_sensitivity": ("at least", 2.0, "arm error with another's actions against its own"),
}
"""Measure to its pass mark; what a report does not measure is not judged.

Error over spread: a value whose error within a decision is as large as what the candidates truly
differ by chooses at random.
"""
VALUE_MARKS = (
    "rank_correlation",
    "gain_low",
    "error_over_spread",
    "calibration_error",
    "monotonicity",
    "success_over_failure",
)
WORLD_MODEL_MARKS = (
    "rank_correlation",
    "gain_low",
    "encoder_error_m",
    "object_error_last_m",
    "object_error_ratio",
    "arm_error_ratio",
    "action_sensitivity",
    "setbacks_recognised",
    "closed_loop_low",
)
REQUIRED = ("closed_loop_low",)
"""Measures without which a model that has them among its marks does not pass.

Ranking the candidates of recorded decisions is not enough for a world model: a search looks for
what its model gets wrong in its favour. Only episodes show whether that happens.
"""
LEAST_PAIRS = 100
"""Scenes that policy and search must both have driven for the closed loop to count.

With fewer, where the two differ in a quarter of the scenes, the interval is wider than 20 points.
"""


def judge(measures: dict[str, Any], marks: tuple[str, ...]) -> dict[str, Any]:
    """Compare measures with their pass marks.

    Returns:
        passed, failures in words, the marks as they were met, and the measures.
    """
    failures, met = [], []
    for name in marks:
        relation, mark, meaning = MARKS[name]
        if name not in measures:
            if name in REQUIRED:
                failures.append(f"{meaning}: not measured")
            continue
        value = measures[name]
        ok = {"at least": value >= mark, "above": value > mark, "below": value < mark}[relation]
        met.append({"measure": name, "relation": relation, "mark": mark, "passed": bool(ok)})
        if not ok:
            failures.append(f"{meaning}: {value:.3f}, expected {relation} {mark:g}")
    return {"passed": not failures, "failures": failures, "marks": met, "measures": measures}


@torch.inference_mode()
def values_of(network: ProgressNetwork, latents: NDArray, sentences: NDArray) -> Float64:
    """(D, C) mean of the ensemble for (D, C, Z) latents and (D, S) sentences."""
    rows = [
        network(torch.from_numpy(np.array(row)), torch.from_numpy(np.array(text[None]))).mean(0)
        for row, text in zip(latents, sentences, strict=True)
    ]
    return torch.stack(rows).double().numpy()


@torch.inference_mode()
def imagine(
    network: DynamicsNetwork, branches: BranchLatents, actions: NDArray | None = None
) -> NDArray[np.float32]:
    """(D, C, H, Z) imagined latents of the recorded actions, or of others of the same shape."""
    actions = branches.actions if actions is None else actions
    candidates = actions.shape[1]
    found = []
    for root, own in zip(branches.root, actions, strict=True):
        now = torch.from_numpy(np.repeat(root[None], candidates, axis=0))
        steps = []
        for horizon in range(actions.shape[2]):
            now = network(now, torch.from_numpy(np.ascontiguousarray(own[:, horizon]))).latents
            now = now.mean(dim=0)
            steps.append(now)
        found.append(torch.stack(steps, dim=1).numpy())
    return np.stack(found)


def unseen(episodes: EpisodeSet, branches: Sequence[Path]) -> EpisodeSet:
    """The held-out episodes, but for those whose scene decisions for training were recorded in.

    Args:
        episodes: all that were recorded.
        branches: folders of held-out decisions; those for training are in ``train`` beside each.

    Raises:
        EpisodeError: none is left.
        ConfigurationError: a file there is none of branched decisions.
    """
    _, held_out = episodes.split(0.1)
    beside = {folder.resolve().parent / "train" for folder in branches}
    seeds = set().union(*(scenes_of(folder) for folder in beside))
    kept = [episode for episode in held_out if episode.meta.seed not in seeds]
    return EpisodeSet(kept, held_out.name)


def episode_measures(network: ProgressNetwork, episodes: list[EpisodeLatents]) -> dict[str, Any]:
    """Whether the value rises along successes and tells them from failures at the end."""
    values = [values_of(network, e.encoded[None], e.sentence[None])[0] for e in episodes]
    measures: dict[str, Any] = {"episodes": len(episodes)}
    rises = [
        stats.spearmanr(v, np.arange(len(v))).statistic
        for v, e in zip(values, episodes, strict=True)
        if e.success and len(v) > 4
    ]
    ends = {
        success: np.array(
            [v[-1] for v, e in zip(values, episodes, strict=True) if e.success == success]
        )
        for success in (True, False)
    }
    if rises:
        measures["monotonicity"] = float(np.mean(rises))
    if len(ends[True]) and len(ends[False]):
        measures["success_over_failure"] = chance_above(ends[True], ends[False])
        measures["failures"] = len(ends[False])
    return measures


def closed_loop_measures(path: Path, folder: Path, arm: str = "search_learned") -> dict[str, Any]:
    """What episodes with the learned world model showed, from a file of ``vla-reasoner evaluate``.

    Args:
        path: its results, with the policy alone as the reference.
        folder: of the models that are judged.
        arm: the arm that searches with the learned world model.

    Raises:
        ConfigurationError: unreadable, the arm was not compared with the policy, the episodes are
            of other models, or there are too few of them.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        overall, drove = results["overall"], str(results["facts"]["models"])
        difference = overall["differences"][arm]
        low, high = difference["interval"]
        measures = {
            "closed_loop_episodes": int(overall["n"]),
            "closed_loop_policy": float(overall["success"]["policy"]),
            "closed_loop_success": float(overall["success"][arm]),
            "closed_loop_points": float(difference["points"]),
            "closed_loop_low": float(low),
            "closed_loop_high": float(high),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"closed loop {path}: expected results of vla-reasoner evaluate with the arms policy "
            f"and {arm}: {error!r}"
        ) from error
    judged = models_fingerprint(folder)
    if drove != judged:
        raise ConfigurationError(
            f"closed loop {path}: expected episodes with the models in {folder}, whose fingerprint "
            f"is {judged}; they were driven by others, {drove}: evaluate again"
        )
    if measures["closed_loop_episodes"] < LEAST_PAIRS:
        raise ConfigurationError(
            f"closed loop {path}: expected at least {LEAST_PAIRS} scenes that policy and {arm} "
            f"both drove, got {measures['closed_loop_episodes']}: evaluate more"
        )
    return measures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--branches",
        type=Path,
        nargs="+",
        default=[Path("data/branches/held_out")],
        help="folders of branched decisions that no training saw",
    )
    parser.add_argument("--episodes", type=Path, nargs="*", default=[], help="recorded episodes")
    parser.add_argument(
        "--closed-loop",
        type=Path,
        help="results of evaluate --arms policy,search_learned with these models, of "
        f"{LEAST_PAIRS} scenes or more; needed for the world model to pass",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("data/latents"),
        help="folder of what the encoder made of pictures",
    )
    parser.add_argument("--models", type=Path, help="folder of the models; default the shipped")
    parser.add_argument("--threads", type=COUNT, default=1, help="of the processor")
    parser.add_argument("--seed", type=WHOLE, default=0, help="of the bootstrap")
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, judge, print, and write the card beside the models.

    Returns:
        0, also when a model fails: a red card is a result.
    """
    folder = arguments.models or models_directory()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(arguments.seed)
    driven: dict[str, Any] = {}
    if arguments.closed_loop is not None:
        driven = closed_loop_measures(arguments.closed_loop, folder)
    encoder = Encoder.load(folder)
    branches = load_branches(arguments.branches, encoder, arguments.cache)
    network, value_card = load_progress(folder)
    if value_card.get("encoder") != encoder.fingerprint:
        raise ConfigurationError(f"{VALUE_NAME} in {folder}: trained on another encoder")
    episodes: list[EpisodeLatents] = []
    if arguments.episodes:
        recorded = recordings_of(arguments, arguments.episodes)
        episodes = load_episodes(unseen(recorded, arguments.branches), encoder, arguments.cache)

    seen = values_of(network, branches.outcomes, branches.sentence)
    value = ranking_measures(seen, branches, rng) | episode_measures(network, episodes)
    card: dict[str, Any] = {
        "data": {
            "decisions": len(branches),
            "scenes": len(np.unique(branches.scene)),
            "candidates": int(branches.actions.shape[1]),
            "seeds": [int(branches.scene.min()), int(branches.scene.max())],
        },
        "encoder": encoder.fingerprint,
        "values": {"progress": judge(value, VALUE_MARKS)},
        "world_models": {},
    }
    if (folder / f"{DYNAMICS_NAME}.safetensors").exists():
        dynamics, dynamics_card = load_dynamics(folder, encoder)
        imagined = imagine(dynamics, branches)
        others = imagine(dynamics, branches, np.roll(branches.actions, 1, axis=1))
        values = values_of(network, imagined[:, :, 0], branches.sentence)
        now = values_of(network, branches.root[:, None], branches.sentence)[:, 0]
        world_model = (
            ranking_measures(values, branches, rng)
            | failure_measures(values, now, branches)
            | dynamics_measures(encoder.layout, imagined, others, branches)
            | driven
        )
        entry = judge(world_model, WORLD_MODEL_MARKS)
        # It drives through the value: where that is red, so is the search.
        of_value = card["values"]["progress"]["failures"]
        entry["failures"] += [f"its value is red: {failure}" for failure in of_value]
        entry["passed"] = not entry["failures"]
        entry["weights"] = {
            ENCODER_NAME: encoder.fingerprint,
            VALUE_NAME: value_card["tensors_sha256"],
            DYNAMICS_NAME: dynamics_card["tensors_sha256"],
        }
        card["world_models"]["latent"] = entry
    _print(card)
    text = json.dumps(_rounded(card), indent=2) + "\n"
    write_atomically(folder / FILE_NAME, text.encode())
    return 0


def _print(card: dict[str, Any]) -> None:
    data = card["data"]
    print(f"{data['decisions']} held-out decisions of {data['scenes']} scenes")
    columns = {**card["values"], **card["world_models"]}
    print(f"{'':38}" + "".join(f"{name:>14}" for name in columns))
    measured: list[str] = []
    for entry in columns.values():
        measured += [name for name in entry["measures"] if name not in measured]
    for name in measured:
        cells = [_cell(entry["measures"].get(name)) for entry in columns.values()]
        if any(cells):
            print(f"{name:38}" + "".join(f"{cell:>14}" for cell in cells))
    for name, entry in columns.items():
        print(f"{name}: {'passed' if entry['passed'] else 'FAILED'}")
        for failure in entry["failures"]:
            print(f"  {failure}")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{v:.4f}" for v in value)
    return "" if value is None or isinstance(value, dict) else f"{value:.4g}"


def _rounded(value: Any) -> Any:
    """Five significant digits are enough for a report."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
