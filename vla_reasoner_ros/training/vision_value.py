"""Train the value `vision_progress` on recorded episodes, on a frozen vision encoder's latents.

Progress itself is regressed, and its differences between steps of one episode are ranked, since a
search compares nothing else. Labels: true progress where recorded (dense), or i / (T - 1), capped
on failures (linear, arXiv 2509.22643, eq. 7).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.trainer import Batch, TrainerParameters, train
from vla_reasoner_ros.training.value_groups import FAILURE_CAP
from vla_reasoner_ros.training.vision_latents import (
    Float32,
    VisionEpisode,
    add_recording_arguments,
    load_recordings,
    spread,
)
from vla_reasoner_ros.values.vision_progress import (
    MODEL_NAME,
    VisionProgressNetwork,
    VisionValueConfig,
)
from vla_reasoner_ros.weights import save_model

GROUP = 8
"""Steps of one episode in a group."""
RANK_SCALE = 0.05
"""The difference of values at which a pair counts as well told apart."""


class StepGroups:
    """Groups of G steps of an episode each, with their labels.

    Args:
        episodes: recorded ones.
        labels: ``dense`` or ``linear``.
        seed: draws the steps of the groups that judge; training draws anew each time.

    Raises:
        ConfigurationError: dense labels of an episode that records no progress.
    """

    def __init__(self, episodes: list[VisionEpisode], labels: str, seed: int = 0) -> None:
        self._episodes, self._seed = episodes, seed
        self._labels = [labels_of(episode, labels) for episode in episodes]
        self._of = [
            number
            for number, episode in enumerate(episodes)
            for _ in range(max(1, len(episode) // GROUP))
        ]

    def __len__(self) -> int:
        return len(self._of)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Latents (B, G, Z), sentences (B, 384) and progress (B, G) of some groups."""
        latents, sentences, progress = [], [], []
        for index in indices:
            draw = rng if rng is not None else np.random.default_rng([self._seed, int(index)])
            number = self._of[index]
            episode = self._episodes[number]
            steps = np.sort(draw.integers(0, len(episode), GROUP))
            latents.append(episode.latents(steps))
            sentences.append(episode.sentence)
            progress.append(self._labels[number][steps])
        rows = {"latents": latents, "sentence": sentences, "progress": progress}
        return {name: torch.from_numpy(np.stack(parts)) for name, parts in rows.items()}


def labels_of(episode: VisionEpisode, labels: str) -> Float32:
    """(T,) progress of an episode's steps.

    Raises:
        ConfigurationError: dense labels, and it records no progress.
    """
    if labels == "linear":
        cap = 1.0 if episode.success else FAILURE_CAP
        return np.linspace(0.0, 1.0, len(episode), dtype=np.float32).clip(0.0, cap)
    if np.isnan(episode.progress).any():
        raise ConfigurationError(
            f"{MODEL_NAME}: dense labels, but an episode records no progress; try --labels linear"
        )
    return episode.progress


def vision_value_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Regression of progress, and a ranking of the pairs of each group."""
    latents, true = batch["latents"], batch["progress"]
    groups, size = true.shape
    sentences = batch["sentence"].repeat_interleave(size, dim=0)
    values = module(latents.flatten(0, 1), sentences).unflatten(-1, (groups, size)).float()
    regression = functional.smooth_l1_loss(values, true.expand_as(values), beta=0.05)
    gap = true[:, :, None] - true[:, None, :]
    told = (values[..., :, None] - values[..., None, :]) * gap.sign()
    weight = (gap.abs() / 0.1).clamp_max(1.0).expand_as(told)
    ranking = (functional.softplus(-told / RANK_SCALE) * weight).sum() / weight.sum().clamp_min(1.0)
    return {
        "loss": 3.0 * regression + 0.3 * ranking,
        "error": (values.mean(dim=0) - true).abs().mean(),
        "ranked": ((told > 0.0) * weight).sum() / weight.sum().clamp_min(1e-6),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_recording_arguments(parser)
    parser.add_argument(
        "--labels",
        choices=["dense", "linear"],
        default="linear",
        help="place in the episode, or recorded progress",
    )
    parser.add_argument("--members", type=COUNT, default=3, help="networks in the ensemble")
    parser.add_argument("--width", type=COUNT, default=128, help="of the networks")
    parser.add_argument("--batch-size", type=COUNT, default=16, help="groups a step")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("data/training/vision_value"),
        help="folder of checkpoints and learning curves",
    )


def run(arguments: argparse.Namespace) -> int:
    """Encode what is not yet, train, save."""
    recordings = load_recordings(arguments)
    encoder = recordings.encoder
    config = VisionValueConfig(encoder.layout, members=arguments.members, width=arguments.width)
    network = initialised(arguments.seed, lambda: VisionProgressNetwork(config))
    states = np.concatenate([episode.states for episode in recordings.training])
    for buffer, values in zip(("state_mean", "state_std"), spread(states), strict=True):
        getattr(network, buffer).copy_(values)
    parameters = TrainerParameters(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=5e-4,
        weight_decay=1e-2,
        evaluate_every=max(1, min(500, arguments.steps)),
        threads=arguments.threads,
        seed=arguments.seed,
    )
    data = recordings.data | {"labels": arguments.labels}
    result = train(
        network,
        vision_value_loss,
        StepGroups(recordings.training, arguments.labels),
        StepGroups(recordings.held_out, arguments.labels),
        parameters,
        arguments.work,
        title="vision value",
        identity=data | {"encoder": encoder.fingerprint, "sizes": config.to_card()},
    )
    save_model(
        arguments.models / MODEL_NAME,
        network.state_dict(),
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=data,
            metrics={"held_out": result.metrics, "best_step": result.best_step},
            **encoder.to_card(),
        ),
    )
    return 0
