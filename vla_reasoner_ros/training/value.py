"""Train the progress value: regress dense progress, and rank the candidates of one decision.

The unit of training is a group of states that share an instruction: the outcomes of one decision's
candidates, as the encoder saw them and as the world model imagines them, or steps of one episode.
Besides the value itself, its differences within a group are regressed, since a search compares
nothing else, and pairs are ranked (Bradley and Terry's model). Where the task of a recording says
which objects its sentence is about, that is taught as well: from progress alone a network that
has seen a thousand scenes still mixes them up. ``--labels linear`` trains the paper's linear
progress i / (T - 1) on episodes instead (arXiv 2509.22643, eq. 7).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.data.episodes import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.training.latents import (
    BranchLatents,
    EpisodeLatents,
    Float32,
    load_branches,
    load_episodes,
)
from vla_reasoner_ros.training.trainer import Batch, TrainerParameters, train, training_device
from vla_reasoner_ros.values.progress import MODEL_NAME, ProgressNetwork, ValueConfig
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import Encoder, LatentLayout
from vla_reasoner_ros.world_models.latent import DynamicsNetwork, load_dynamics

GROUP = 16
"""States in a group."""
FAILURE_CAP = 0.4
"""The most that linear labels grant a failed episode."""
RANK_SCALE = 0.03
"""The difference of values at which a pair counts as well told apart."""
UNKNOWN = -1
"""A role that nobody says."""
KEEP = 0.8
"""Share of the groups that each member of the ensemble learns from."""


@dataclass(frozen=True)
class Groups:
    """N groups of G states.

    Attributes:
        latents: (N, G, Z).
        sentence: (N, S).
        progress: (N, G) label of each state.
        kind: (N,) 0 seen, 1 imagined, 2 steps of an episode.
        roles: (N, 2) which objects the sentence is about, by their places in the latent: the one
            to move and where it shall go; :data:`UNKNOWN` where nobody says.
    """

    latents: Float32
    sentence: Float32
    progress: Float32
    kind: NDArray[np.int64]
    roles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.progress)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Some groups; ``group`` numbers them in training, so that members can differ by it."""
        return {
            "latents": torch.from_numpy(self.latents[indices]),
            "sentence": torch.from_numpy(self.sentence[indices]),
            "progress": torch.from_numpy(self.progress[indices]),
            "kind": torch.from_numpy(self.kind[indices]),
            "roles": torch.from_numpy(self.roles[indices]),
            "group": torch.from_numpy(indices if rng is not None else indices * 0 - 1),
        }

    @classmethod
    def join(cls, parts: list[Groups]) -> Groups:
        """Put several sets together."""
        names = ("latents", "sentence", "progress", "kind", "roles")
        return cls(*[np.concatenate([getattr(p, n) for p in parts]) for n in names])


def roles_of(tasks: Sequence[str], layout: LatentLayout) -> NDArray[np.int64]:
    """(N, 2) the objects that tasks are about, see :class:`Groups`."""

    def place(name: str | None) -> int:
        return layout.objects.index(name) if name in layout.objects else UNKNOWN

    about = [
        (TASKS[name].block, TASKS[name].target) if name in TASKS else (None, None) for name in tasks
    ]
    return np.array([[place(block), place(target)] for block, target in about], dtype=np.int64)


def seen_groups(branches: BranchLatents, layout: LatentLayout) -> Groups:
    """The outcomes of each decision's candidates, as the encoder saw them rendered."""
    return Groups(
        branches.outcomes,
        branches.sentence,
        branches.outcome_progress[:, :, 0],
        np.zeros(len(branches), dtype=np.int64),
        roles_of(branches.task, layout),
    )


@torch.inference_mode()
def imagined_groups(branches: BranchLatents, dynamics: DynamicsNetwork) -> Groups:
    """The same outcomes as the world model imagines them, after one and more macro-actions."""
    count, candidates, horizons = branches.actions.shape[:3]
    now = torch.from_numpy(np.repeat(branches.root, candidates, axis=0))
    parts = []
    for horizon in range(horizons):
        actions = torch.from_numpy(
            branches.actions[:, :, horizon].reshape(-1, *branches.actions.shape[3:])
        )
        now = torch.cat(
            [
                dynamics(a, b).latents.mean(dim=0)
                for a, b in zip(now.split(1024), actions.split(1024), strict=True)
            ]
        )
        parts.append(
            Groups(
                now.numpy().reshape(count, candidates, -1),
                branches.sentence,
                branches.outcome_progress[:, :, horizon],
                np.ones(count, dtype=np.int64),
                roles_of(branches.task, dynamics.config.layout),
            )
        )
    return Groups.join(parts)


def episode_groups(
    episodes: list[EpisodeLatents], labels: str, layout: LatentLayout, rng: np.random.Generator
) -> Groups:
    """Random steps of each episode.

    Args:
        episodes: as latents.
        labels: ``dense`` takes the recorded progress, ``linear`` i / (T - 1), capped on failures.
        layout: of the latents.
        rng: picks the steps.

    Raises:
        ConfigurationError: dense labels of an episode that records no progress.
    """
    rows: list[tuple[Float32, Float32, Float32]] = []
    tasks: list[str] = []
    for episode in episodes:
        length = len(episode)
        progress = episode.progress
        if labels == "linear":
            cap = 1.0 if episode.success else FAILURE_CAP
            progress = np.linspace(0.0, 1.0, length, dtype=np.float32).clip(0.0, cap)
        elif np.isnan(progress).any():
            raise ConfigurationError("dense labels: an episode records no progress")
        for _ in range(max(1, length // GROUP)):
            steps = np.sort(rng.integers(0, length, GROUP))
            rows.append((episode.encoded[steps], episode.sentence, progress[steps]))
            tasks.append(episode.task)
    return Groups(
        *[np.stack([row[i] for row in rows]).astype(np.float32) for i in range(3)],
        np.full(len(rows), 2, dtype=np.int64),
        roles_of(tasks, layout),
    )


def value_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Regression of progress and of its differences, and a ranking of pairs."""
    latents, true = batch["latents"], batch["progress"]
    groups, size = true.shape
    sentences = batch["sentence"][:, None].expand(-1, size, -1).flatten(0, 1)
    with torch.autocast(latents.device.type, enabled=False):
        values = module(latents.flatten(0, 1), sentences).unflatten(-1, (groups, size))
    members = values.shape[0]
    # Members differ by what they learn from: a fixed pseudo-random subset of the groups each.
    number = batch["group"][None] * members
    number = number + torch.arange(members, device=number.device)[:, None]
    draw = ((number * 2654435761) % 4294967296).float() / 4294967296.0
    keep = ((draw < KEEP) | (batch["group"][None] < 0)).float()
    share = keep / keep.sum().clamp_min(1.0)

    def mean(per_group: Tensor) -> Tensor:
        return (per_group * share).sum()

    regression = functional.smooth_l1_loss(
        values, true.expand_as(values), beta=0.03, reduction="none"
    )
    centred = values - values.mean(dim=-1, keepdim=True)
    true_centred = (true - true.mean(dim=-1, keepdim=True)).expand_as(centred)
    differences = functional.smooth_l1_loss(centred, true_centred, beta=0.02, reduction="none")
    gap = true[:, :, None] - true[:, None, :]
    told = (values[..., :, None] - values[..., None, :]) * gap.sign()
    weight = (gap.abs() / 0.05).clamp_max(1.0) * (gap.abs() > 0.003)
    pairs = functional.softplus(-told / RANK_SCALE) * weight
    ranking = pairs.sum(dim=(-1, -2)) / weight.sum(dim=(-1, -2)).clamp_min(1.0)
    roles = batch["roles"].flatten().expand(members, -1)
    attention = functional.cross_entropy(
        module.roles(batch["sentence"]).flatten(1, 2).transpose(1, 2),  # type: ignore[operator]
        roles,
        ignore_index=UNKNOWN,
        reduction="sum",
    ) / (roles != UNKNOWN).sum().clamp_min(1)
    average = values.mean(dim=0)
    order = rank_correlation(average.detach(), true)
    return {
        "loss": 3.0 * mean(regression.mean(-1))
        + 6.0 * mean(differences.mean(-1))
        + 0.3 * mean(ranking)
        + 0.3 * attention,
        "error": (average - true).abs().mean(),
        "rank": order.mean(),
    }


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
    parser.add_argument("--labels", choices=["dense", "linear"], default="dense")
    parser.add_argument(
        "--imagined",
        type=Path,
        metavar="FOLDER",
        help="learn from outcomes imagined by the world model in this folder too; best by one that "
        "never saw these scenes, since it then errs as it will in use",
    )
    parser.add_argument("--cache", type=Path, default=Path("data/latents"))
    parser.add_argument("--models", type=Path, help="folder of the models; default the shipped")
    parser.add_argument("--batch-size", type=int, default=32, help="groups a step")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("data/training/value"))


def run(arguments: argparse.Namespace) -> int:
    """Encode what is not yet, train, save."""
    folder = arguments.models or models_directory()
    torch.set_num_threads(arguments.threads)
    encoder = Encoder.load(folder)
    encoder.network.to(training_device())
    rng = np.random.default_rng(arguments.seed)
    training, held_out, data = _groups(arguments, folder, encoder, rng)
    config = ValueConfig(layout=encoder.layout)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        network = ProgressNetwork(config)
    parameters = TrainerParameters(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=1e-3,
        weight_decay=1e-3,
        evaluate_every=500,
        threads=arguments.threads,
        seed=arguments.seed,
        bf16=False,
    )
    result = train(
        network,
        value_loss,
        training,
        held_out,
        parameters,
        arguments.work,
        title="value",
        identity=data | {"encoder": encoder.fingerprint, "architecture": config.to_card()},
    )
    ranks = ranks_by_kind(network, held_out)
    print(f"value: {ranks}")
    save_model(
        folder / MODEL_NAME,
        network.state_dict(),
        {
            "kind": MODEL_NAME,
            "architecture": config.to_card(),
            "encoder": encoder.fingerprint,
            "data": data,
            "seed": arguments.seed,
            "command": " ".join(["vla-reasoner", *sys.argv[1:]]),
            "metrics": {"held_out": result.metrics | ranks, "best_step": result.best_step},
            "licence": "Apache-2.0",
        },
        half=True,
    )
    return 0


def _groups(
    arguments: argparse.Namespace, folder: Path, encoder: Encoder, rng: np.random.Generator
) -> tuple[Groups, Groups, dict[str, Any]]:
    """Training groups, held-out groups, and what the card says of them."""
    data: dict[str, Any] = {"labels": arguments.labels}
    training, held_out = [], []
    if arguments.labels == "dense":
        sides = {
            side: load_branches([f / side for f in arguments.branches], encoder, arguments.cache)
            for side in ("train", "held_out")
        }
        data |= {"decisions": len(sides["train"]), "scenes": len(np.unique(sides["train"].scene))}
        training.append(seen_groups(sides["train"], encoder.layout))
        held_out.append(seen_groups(sides["held_out"], encoder.layout))
        if arguments.imagined:
            dynamics, card = load_dynamics(arguments.imagined, encoder)
            training.append(imagined_groups(sides["train"], dynamics))
            held_out.append(imagined_groups(sides["held_out"], dynamics))
            data["world_model"] = card["tensors_sha256"]
    elif not arguments.episodes:
        raise ConfigurationError("linear labels need --episodes")
    if arguments.episodes:
        seen, unseen = EpisodeSet.open(*arguments.episodes).split(0.1)
        parts = [load_episodes(side, encoder, arguments.cache) for side in (seen, unseen)]
        training.append(episode_groups(parts[0], arguments.labels, encoder.layout, rng))
        held_out.append(episode_groups(parts[1], arguments.labels, encoder.layout, rng))
        data |= {"episodes": len(seen), "episodes_sha256": seen.content_hash}
    return Groups.join(training), Groups.join(held_out), data
