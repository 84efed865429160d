"""Train the action-conditioned predictor of the world model `vjepa2_ac` on recorded episodes.

As in V-JEPA 2-AC (arXiv 2506.09985, section 3.1): the mean absolute error of the features one step
ahead from each seen frame, plus that of a rollout which goes on from what was imagined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.trainer import Batch, TrainerParameters, train
from vla_reasoner_ros.training.vision_latents import (
    VisionEpisode,
    add_recording_arguments,
    load_recordings,
    spread,
)
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.predictor import Predictor, PredictorConfig
from vla_reasoner_ros.world_models.vjepa2_ac import MODEL_NAME


class Windows:
    """Stretches of H macro-actions of M actions.

    Args:
        episodes: recorded ones.
        horizons: H.
        macro_steps: M.
        every: steps between the starts of two stretches.

    Raises:
        ConfigurationError: no episode is long enough.
    """

    def __init__(
        self, episodes: list[VisionEpisode], horizons: int, macro_steps: int, every: int = 1
    ) -> None:
        self._episodes, self._horizons, self._macro_steps = episodes, horizons, macro_steps
        span = horizons * macro_steps
        self._starts = [
            (number, start)
            for number, episode in enumerate(episodes)
            for start in range(0, len(episode) - span, every)
        ]
        if not self._starts:
            raise ConfigurationError(
                f"{MODEL_NAME}: no recorded episode has more than {span} steps, which "
                f"{horizons} macro-actions of {macro_steps} need"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Latents (B, H + 1, Z) and actions (B, H, M, D) of some stretches."""
        span, macro = self._horizons * self._macro_steps, self._macro_steps
        latents, actions = [], []
        for index in indices:
            number, start = self._starts[index]
            episode = self._episodes[number]
            latents.append(episode.latents(np.arange(start, start + span + 1, macro)))
            actions.append(
                episode.actions[start : start + span].reshape(-1, macro, _width(episode))
            )
        return {
            "latents": torch.from_numpy(np.stack(latents)),
            "actions": torch.from_numpy(np.stack(actions)),
        }


def _width(episode: VisionEpisode) -> int:
    return int(episode.actions.shape[1])


def predictor_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Teacher forcing and rollout; ``copy`` is the features' error of saying that all stays."""
    latents, actions = batch["latents"], batch["actions"]
    horizons = actions.shape[1]
    layout = module.config.layout  # type: ignore[union-attr]
    members = module(latents[:, :-1].flatten(0, 1), actions.flatten(0, 1))
    one = members.unflatten(1, (-1, horizons))
    features, state = _errors(module, one, latents[:, 1:])
    total = features + state
    rolled, imagined = latents.new_zeros(()), one[:, :, 0]
    for step in range(1, horizons):
        imagined = module(imagined, actions[:, step])
        rolled = rolled + sum(_errors(module, imagined, latents[:, step + 1])) / (horizons - 1)
    positions = one[..., :3] - latents[:, 1:, :3]
    before, after = (layout.split(part)[1] for part in (latents[:, :-1], latents[:, 1:]))
    return {
        "loss": total + rolled,
        "features": features,
        "copy": (before - after).abs().mean(),
        "position_m": positions.norm(dim=-1).mean(),
        "rollout": rolled,
    }


def _errors(module: nn.Module, imagined: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute errors of features, and of the state in its deviations."""
    layout = module.config.layout  # type: ignore[union-attr]
    state, features = (
        a - b for a, b in zip(layout.split(imagined), layout.split(seen), strict=True)
    )
    return features.abs().mean(), (state / module.state_std).abs().mean()  # type: ignore[operator]


def take_spread(network: Predictor, episodes: list[VisionEpisode]) -> None:
    """Have a network normalise actions and states by what recordings have."""
    for name, attribute in (("action", "actions"), ("state", "states")):
        rows = np.concatenate([getattr(episode, attribute) for episode in episodes])
        for buffer, values in zip(("mean", "std"), spread(rows), strict=True):
            getattr(network, f"{name}_{buffer}").copy_(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_recording_arguments(parser)
    parser.add_argument("--macro-steps", type=COUNT, default=4, help="actions of one imagined step")
    parser.add_argument("--horizons", type=COUNT, default=2, help="imagined steps of a rollout")
    parser.add_argument("--members", type=COUNT, default=1, help="predictors in the ensemble")
    parser.add_argument("--width", type=COUNT, default=384, help="of the predictor")
    parser.add_argument("--layers", type=COUNT, default=6, help="of the predictor")
    parser.add_argument("--heads", type=COUNT, default=6, help="of its attention")
    parser.add_argument("--batch-size", type=COUNT, default=32, help="stretches a step")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("data/training/vision_model"),
        help="folder of checkpoints and learning curves",
    )


def run(arguments: argparse.Namespace) -> int:
    """Encode what is not yet, train, save."""
    recordings = load_recordings(arguments)
    encoder, spec = recordings.encoder, recordings.spec
    sizes = {name: getattr(arguments, name) for name in ("members", "width", "layers", "heads")}
    if sizes["width"] % sizes["heads"]:
        raise ConfigurationError(
            f"{MODEL_NAME}: width {sizes['width']} is no multiple of {sizes['heads']} heads"
        )
    config = PredictorConfig(encoder.layout, spec.dimensions, arguments.macro_steps, **sizes)
    network = initialised(arguments.seed, lambda: Predictor(config))
    take_spread(network, recordings.training)
    parameters = TrainerParameters(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=3e-4,
        evaluate_every=max(1, min(500, arguments.steps)),
        threads=arguments.threads,
        seed=arguments.seed,
    )
    sides = [
        Windows(side, arguments.horizons, arguments.macro_steps)
        for side in (recordings.training, recordings.held_out)
    ]
    result = train(
        network,
        predictor_loss,
        *sides,
        parameters,
        arguments.work,
        title="vision model",
        identity=recordings.data | {"encoder": encoder.fingerprint, "sizes": config.to_card()},
    )
    save_model(
        arguments.models / MODEL_NAME,
        network.state_dict(),
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=recordings.data,
            metrics={"held_out": result.metrics, "best_step": result.best_step},
            **encoder.to_card(),
            action_spec=spec.to_mapping(),
        ),
    )
    return 0
