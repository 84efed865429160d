"""Train the progress value: regress task progress, and rank the candidates of one decision.

The unit of training is a group of states that share an instruction
(:mod:`vla_reasoner_ros.training.value_groups`). Besides the value itself, its differences within a
group are regressed, since a search compares nothing else, and pairs are ranked (Bradley and Terry's
model). Where the task of a recording says which objects its sentence is about, that is taught as
well: from progress alone a network that has seen a thousand scenes still mixes them up.

``--labels`` says what a state is worth: ``dense``, the progress of the task's phases, on branched
decisions; ``linear``, the paper's i / (T - 1), on episodes; ``ranked``, nothing but the order of
the outcomes of one decision. ``--without-failures`` leaves out what demonstrations never show.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameter_text import parse_overrides
from vla_reasoner_ros.parameters import build, flatten, parameter
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.training.branches import branches_hash
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.distributed import first_alone
from vla_reasoner_ros.training.latents import BranchLatents, load_branches, load_episodes
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.trainer import Batch, train, training_device
from vla_reasoner_ros.training.value_groups import (
    UNKNOWN,
    Groups,
    episode_groups,
    imagined_groups,
    seen_groups,
    without_setbacks,
)
from vla_reasoner_ros.values.progress import MODEL_NAME, ProgressNetwork, ValueConfig
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import Encoder
from vla_reasoner_ros.world_models.latent import DynamicsNetwork, load_dynamics

LABELS = ("dense", "linear", "ranked")
HELD_OUT = 0.1
"""Share of the episodes that judge."""


@dataclass(frozen=True)
class ValueLossParameters:
    """What the value is trained for; all weights are shares of one sum."""

    regression: float = parameter(3.0, "Weight of the error of the value.", minimum=0.0)
    regression_beta: float = parameter(
        0.03, "Error at which its loss turns from a parabola to the error itself.", minimum=1e-4
    )
    differences: float = parameter(
        6.0, "Weight of the error of differences within a group.", minimum=0.0
    )
    differences_beta: float = parameter(0.02, "The same turn for differences.", minimum=1e-4)
    ranking: float = parameter(0.3, "Weight of the order of pairs within a group.", minimum=0.0)
    ranking_scale: float = parameter(
        0.03, "Difference of values at which a pair counts as well told apart.", minimum=1e-4
    )
    ranking_gap: float = parameter(
        0.05, "Difference of labels from which a pair counts in full.", minimum=1e-4
    )
    ranking_tie: float = parameter(
        0.003, "Difference of labels up to which a pair has no order.", minimum=0.0
    )
    roles: float = parameter(
        0.3, "Weight of telling which objects the sentence is about.", minimum=0.0
    )
    share: float = parameter(
        0.8,
        "Share of the groups that each member of the ensemble learns from.",
        minimum=0.05,
        maximum=1.0,
    )


def value_loss(
    parameters: ValueLossParameters,
) -> Callable[[nn.Module, Batch], dict[str, Tensor]]:
    """The objective: regression of progress and of its differences, and a ranking of pairs."""

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        latents, true = batch["latents"], batch["progress"]
        groups, size = true.shape
        sentences = batch["sentence"][:, None].expand(-1, size, -1).flatten(0, 1)
        with torch.autocast(latents.device.type, enabled=False):
            values = module(latents.flatten(0, 1), sentences).unflatten(-1, (groups, size))
        keep = _learned_by(values.shape[0], batch["group"], parameters.share)
        per_group = _group_terms(values, true, parameters)
        average = values.mean(dim=0)
        return {
            "loss": (per_group * keep / keep.sum().clamp_min(1.0)).sum()
            + parameters.roles * _roles_term(module, batch, values.shape[0]),
            "error": (average - true).abs().mean(),
            "rank": rank_correlation(average.detach(), true).mean(),
        }

    return loss


def _learned_by(members: int, group: Tensor, share: float) -> Tensor:
    """(E, N) 1 where a member learns from a group: a fixed pseudo-random subset each."""
    number = group[None] * members + torch.arange(members, device=group.device)[:, None]
    draw = ((number * 2654435761) % 4294967296).float() / 4294967296.0
    return ((draw < share) | (group[None] < 0)).float()


def _group_terms(values: Tensor, true: Tensor, parameters: ValueLossParameters) -> Tensor:
    """(E, N) loss of each member on each group, from (E, N, G) values and (N, G) labels."""
    regression = functional.smooth_l1_loss(
        values, true.expand_as(values), beta=parameters.regression_beta, reduction="none"
    )
    centred = values - values.mean(dim=-1, keepdim=True)
    true_centred = (true - true.mean(dim=-1, keepdim=True)).expand_as(centred)
    differences = functional.smooth_l1_loss(
        centred, true_centred, beta=parameters.differences_beta, reduction="none"
    )
    gap = true[:, :, None] - true[:, None, :]
    told = (values[..., :, None] - values[..., None, :]) * gap.sign()
    weight = (gap.abs() / parameters.ranking_gap).clamp_max(1.0)
    weight = weight * (gap.abs() > parameters.ranking_tie)
    pairs = functional.softplus(-told / parameters.ranking_scale) * weight
    ranking = pairs.sum(dim=(-1, -2)) / weight.sum(dim=(-1, -2)).clamp_min(1.0)
    return (
        parameters.regression * regression.mean(-1)
        + parameters.differences * differences.mean(-1)
        + parameters.ranking * ranking
    )


def _roles_term(module: nn.Module, batch: Batch, members: int) -> Tensor:
    """Cross-entropy of which objects the sentences are about, where somebody says."""
    roles = batch["roles"].flatten().expand(members, -1)
    attention = functional.cross_entropy(
        module.roles(batch["sentence"]).flatten(1, 2).transpose(1, 2),  # type: ignore[operator]
        roles,
        ignore_index=UNKNOWN,
        reduction="sum",
    )
    return attention / (roles != UNKNOWN).sum().clamp_min(1)


@torch.inference_mode()
def ranks_by_kind(network: ProgressNetwork, groups: Groups) -> dict[str, float]:
    """Mean rank correlation within the groups of each kind."""
    batch = groups.batch(np.arange(len(groups)), None)
    found = [
        network(latents, sentence[None]).mean(dim=0)
        for latents, sentence in zip(batch["latents"], batch["sentence"], strict=True)
    ]
    order = rank_correlation(torch.stack(found), batch["progress"]).numpy()
    names = ("seen", "imagined", "episode")
    return {
        f"rank_{name}": round(float(order[groups.kind == kind].mean()), 4)
        for kind, name in enumerate(names)
        if (groups.kind == kind).any()
    }


def rank_correlation(values: Tensor, true: Tensor) -> Tensor:
    """(N,) Spearman's correlation within each row of (N, G), ties by order; 0 where all is tied."""

    def ranks(x: Tensor) -> Tensor:
        order = x.argsort(dim=-1).argsort(dim=-1).float()
        return order - order.mean(dim=-1, keepdim=True)

    a, b = ranks(values), ranks(true)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-9)


RANKED = {"regression": 0.0, "differences": 0.0, "ranking": 1.0}
"""Weights of ``--labels ranked``: how much better an outcome is plays no part."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--branches",
        type=Path,
        nargs="+",
        default=[Path("data/branches")],
        help="folders of branched decisions",
    )
    parser.add_argument("--episodes", type=Path, nargs="*", default=[], help="recorded episodes")
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default=LABELS[0],
        help="what a state is worth: the task's phases, its place in an episode, or only which "
        "outcome of a decision is better",
    )
    parser.add_argument(
        "--without-failures",
        action="store_true",
        help="leave out failed episodes and outcomes that set the task back",
    )
    parser.add_argument(
        "--imagined",
        type=Path,
        metavar="FOLDER",
        help="learn from outcomes imagined by the world model in this folder too; best by one that "
        "never saw these scenes, since it then errs as it will in use",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the loss: {', '.join(flatten(ValueLossParameters()))}; may be repeated",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("data/latents"),
        help="folder of what the encoder made of pictures",
    )
    parser.add_argument("--models", type=Path, help="folder of the models; default the shipped")
    add_trainer_arguments(parser, "value", steps=6000, batch_size=32, samples="groups")
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Encode what is not yet, train, save."""
    folder = arguments.models or models_directory()
    weights = RANKED if arguments.labels == "ranked" else {}
    objective = build(ValueLossParameters, weights | parse_overrides(arguments.set))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder = Encoder.load(folder)
    encoder.network.to(training_device())
    rng = np.random.default_rng(arguments.seed)
    with first_alone():
        training, held_out, data = _groups(arguments, folder, encoder, rng)
    config = ValueConfig(layout=encoder.layout)
    network = initialised(arguments.seed, lambda: ProgressNetwork(config))
    parameters = trainer_parameters(arguments, weight_decay=1e-3, bf16=False)
    result = train(
        network,
        value_loss(objective),
        training,
        held_out,
        parameters,
        arguments.work,
        title="value",
        identity=data
        | {"encoder": encoder.fingerprint, "architecture": config.to_card()}
        | flatten(objective, "value_loss."),
    )
    ranks = ranks_by_kind(network, held_out)
    print(f"value: {ranks}")
    save_model(
        folder / MODEL_NAME,
        network.state_dict(),
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=data,
            metrics={"held_out": result.metrics | ranks, "best_step": result.best_step},
            encoder=encoder.fingerprint,
            loss=flatten(objective),
        ),
        half=True,
    )
    return 0


def _groups(
    arguments: argparse.Namespace, folder: Path, encoder: Encoder, rng: np.random.Generator
) -> tuple[Groups, Groups, dict[str, Any]]:
    """Training groups, held-out groups, and what the card says of them."""
    failures = not arguments.without_failures
    data: dict[str, Any] = {"labels": arguments.labels, "failures": failures}
    training, held_out = [], []
    if arguments.labels != "linear":
        dynamics = None
        if arguments.imagined:
            dynamics, card = load_dynamics(arguments.imagined, encoder)
            data["world_model"] = card["tensors_sha256"]
        data["branches_sha256"] = branches_hash(arguments.branches)
        for side, groups in (("train", training), ("held_out", held_out)):
            folders = [branches / side for branches in arguments.branches]
            branches = load_branches(folders, encoder, arguments.cache)
            # Every value is judged on all outcomes; what it learns from is what differs.
            groups += _outcomes(branches, encoder, dynamics, failures or side == "held_out")
            if side == "train":
                data |= {"decisions": len(branches), "scenes": len(np.unique(branches.scene))}
    elif not arguments.episodes:
        raise ConfigurationError("linear labels need --episodes")
    elif arguments.imagined:
        raise ConfigurationError(
            "linear labels are of recorded steps: --imagined has none for what was not recorded"
        )
    if arguments.episodes:
        seen, unseen = recordings_of(arguments, arguments.episodes).split(HELD_OUT)
        if not failures:
            seen = seen.where(success=True)
        labels = "linear" if arguments.labels == "linear" else "dense"
        for episodes, groups in ((seen, training), (unseen, held_out)):
            parts = load_episodes(episodes, encoder, arguments.cache)
            groups.append(episode_groups(parts, labels, encoder.layout, rng))
        data |= {"episodes": len(seen), "episodes_sha256": seen.content_hash}
    return Groups.join(training), Groups.join(held_out), data


def _outcomes(
    branches: BranchLatents, encoder: Encoder, dynamics: DynamicsNetwork | None, failures: bool
) -> list[Groups]:
    """The outcomes of decisions, seen and where there is a world model imagined."""
    parts = [seen_groups(branches, encoder.layout)]
    if dynamics is not None:
        parts.append(imagined_groups(branches, dynamics))
    if failures:
        return parts
    # Imagined groups follow one another by horizon, each with all decisions.
    return [
        without_setbacks(part, np.tile(branches.progress, len(part) // len(branches)))
        for part in parts
    ]
