"""What the learned world model imagines, as pictures under those that were recorded.

From one step of a recorded episode the recorded actions are imagined, one macro-action after the
other, and the decoder draws each state. For people to look at; nothing is decided by it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data.episodes import Episode
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.world_models.decoder import MODEL_NAME, Decoder
from vla_reasoner_ros.world_models.encoder import Encoder
from vla_reasoner_ros.world_models.latent import DynamicsNetwork, load_dynamics

GAP = 2
"""White pixels between two pictures."""


@dataclass(frozen=True)
class Imagination:
    """The models that imagine and draw; they belong together.

    Attributes:
        encoder: sees where it begins.
        dynamics: imagine on.
        decoder: draws.
    """

    encoder: Encoder
    dynamics: DynamicsNetwork
    decoder: Decoder

    @classmethod
    def load(cls, folder: Path) -> Imagination:
        """From their weights.

        Raises:
            ConfigurationError: weights are missing or corrupt, or were trained on another encoder.
        """
        encoder, decoder = Encoder.load(folder), Decoder.load(folder)
        if decoder.encoder != encoder.fingerprint:
            raise ConfigurationError(
                f"{MODEL_NAME} in {folder}: trained on the encoder {decoder.encoder[:12]}, the "
                f"encoder there is {encoder.fingerprint[:12]}; train it again"
            )
        return cls(encoder, load_dynamics(folder, encoder)[0], decoder)

    @torch.inference_mode()
    def latents(self, episode: Episode, step: int, count: int) -> torch.Tensor:
        """(count + 1, Z) what is seen at a step, and imagined after each macro-action from there.

        Args:
            episode: recorded; its executed actions are imagined.
            step: where it begins.
            count: macro-actions.

        Raises:
            ConfigurationError: the episode ends before.
        """
        macro = self.dynamics.config.macro_steps
        if step + count * macro >= len(episode):
            raise ConfigurationError(
                f"episode {episode.path}: {count} macro-actions of {macro} from step {step} on "
                f"need {step + count * macro + 1} steps, it has {len(episode)}"
            )
        latents = [self.encoder.encode([episode.observation(step)])]
        for first in range(step, step + count * macro, macro):
            actions = np.array(episode.executed_actions[None, first : first + macro])
            imagined = self.dynamics(latents[-1], torch.from_numpy(actions))
            latents.append(imagined.latents.mean(dim=0))
        return torch.cat(latents)

    def pictures(self, episode: Episode, step: int, count: int) -> NDArray[np.uint8]:
        """(H, W, 3) RGB: by camera a row of what was recorded and below it what was imagined.

        Args:
            episode: recorded.
            step: where the imagination begins; the first column.
            count: macro-actions; a column each.

        Raises:
            ConfigurationError: the episode ends before.
        """
        steps = step + self.dynamics.config.macro_steps * np.arange(count + 1)
        rows = []
        for camera, drawn in self.decoder.draw(self.latents(episode, step, count)).items():
            shape = drawn.shape[1:3]
            recorded = episode.images[camera][steps]
            seen = [cv2.resize(image, shape, interpolation=cv2.INTER_AREA) for image in recorded]
            rows += [np.stack(seen), drawn]
        gap = ((0, 0), (GAP, 0), (GAP, 0), (0, 0))
        padded = [np.pad(row, gap, constant_values=255) for row in rows]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in padded])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("episode", type=Path, help="a file that demo-data wrote")
    parser.add_argument("--step", type=WHOLE, default=0, help="where the imagination begins")
    parser.add_argument("--count", type=COUNT, default=5, help="macro-actions imagined")
    parser.add_argument("--models", type=Path, help="folder of the weights; the shipped")
    parser.add_argument("--scale", type=COUNT, default=3, help="pixels a pixel")
    parser.add_argument("--out", type=Path, default=Path("imagined.png"), help="picture to write")


def run(arguments: argparse.Namespace) -> int:
    """Imagine, draw, write the picture."""
    models = Imagination.load(arguments.models or models_directory())
    picture = models.pictures(Episode(arguments.episode), arguments.step, arguments.count)
    large = picture.repeat(arguments.scale, axis=0).repeat(arguments.scale, axis=1)
    _, encoded = cv2.imencode(".png", cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    write_atomically(arguments.out, encoded.tobytes())
    print(f"{arguments.out}: by camera recorded above imagined, a macro-action a column")
    return 0
