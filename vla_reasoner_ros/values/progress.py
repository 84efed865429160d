"""A learned value: progress toward the instruction, read off the structured latent.

The paper regresses linear progress from images (arXiv 2509.22643, eq. 7). What is learned here is
dense task progress, from where things are. Each member of the ensemble picks by attention which
object the sentence is about and which one it shall go to, and looks at distances between these
and the fingers; distances are what candidates of one decision differ in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.values.compiled_progress import (
    FAR,
    HAND_CENTRE,
    HEIGHT_SCALE,
    HEIGHTS,
    NEAR,
    OPENING_SCALE,
    OPENINGS,
    THING_CENTRE,
    CompiledProgress,
)
from vla_reasoner_ros.values.latent_value import LatentValue
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.encoder import LatentLayout, rotation_matrix
from vla_reasoner_ros.world_models.ensemble import EnsembleLinear, EnsembleMlp

MODEL_NAME = "progress_value"
ROLES = 2
"""What a sentence names: the object to move, and where it shall go."""


@dataclass(frozen=True)
class ValueConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        layout: what the latent is made of.
        sentence: width of the sentence vector.
        members: networks in the ensemble, E.
        hidden: width of their hidden layers.
        words: width that the sentence is projected to.
    """

    layout: LatentLayout = field(default_factory=LatentLayout)
    sentence: int = 384
    members: int = 3
    hidden: int = 192
    words: int = 24


def distances(vectors: Tensor) -> Tensor:
    """(..., 3) displacements, m, to (..., 11) features that resolve afar and nearby."""
    horizontal = vectors[..., :2].norm(dim=-1, keepdim=True)
    length = vectors.norm(dim=-1, keepdim=True)
    parts = torch.cat([vectors, horizontal, length], dim=-1)
    near = torch.cat([vectors, horizontal, length, horizontal], dim=-1)
    return torch.cat([parts / FAR, torch.tanh(near / NEAR)], dim=-1)


class ProgressNetwork(nn.Module):
    """An ensemble of networks on latents and a sentence vector."""

    def __init__(self, config: ValueConfig) -> None:
        super().__init__()
        self.config = config
        objects = len(config.layout.objects)
        self.attention = EnsembleMlp(config.members, (config.sentence, 64, ROLES * objects))
        self.words = EnsembleLinear(config.members, config.sentence, config.words)
        inputs = self._features(
            torch.zeros(config.members, 1, config.layout.width),
            torch.zeros(config.members, 1, ROLES, objects),
        ).shape[-1]
        hidden = config.hidden
        self.body = EnsembleMlp(config.members, (inputs + config.words, hidden, hidden, hidden, 1))

    def forward(self, latents: Tensor, sentences: Tensor) -> Tensor:
        """Progress in (0, 1).

        Args:
            latents: (B, Z).
            sentences: (B, S) unit vectors, or (1, S) when all latents share one.

        Returns:
            (E, B).
        """
        members = self.config.members
        batch = latents.shape[0]
        attention = self.roles(sentences).softmax(dim=-1).expand(-1, batch, -1, -1)
        words = self.words(sentences.expand(members, -1, -1)).expand(-1, batch, -1)
        features = self._features(latents.expand(members, -1, -1), attention)
        return torch.sigmoid(self.body(torch.cat([features, words], dim=-1))[..., 0])

    def compiled(self, precision: str = "float32") -> CompiledProgress:
        """The same progress for inference on the processor.

        Raises:
            ConfigurationError: a precision that the processor does not have.
        """
        return CompiledProgress(self.body.compiled(precision), self.config.layout)

    @torch.inference_mode()
    def understood(self, sentence: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What features need of a sentence (1, S): attention (E, 2, K) and words (E, W)."""
        attention = self.roles(sentence).softmax(dim=-1)[:, 0]
        words = self.words(sentence.expand(self.config.members, -1, -1))[:, 0]
        return attention.numpy(), words.numpy()

    def roles(self, sentences: Tensor) -> Tensor:
        """(E, B, 2, K) logits of which object each role falls to, from (B, S) sentence vectors."""
        objects = len(self.config.layout.objects)
        return self.attention(sentences).unflatten(-1, (ROLES, objects))

    def _features(self, latents: Tensor, attention: Tensor) -> Tensor:
        """(E, B, F) what the two attended objects, the fingers and the sentence's scene show."""
        layout = self.config.layout
        blocks, objects = layout.blocks, len(layout.objects)
        hand = layout.get(latents, "ee_position")
        columns = layout.get(latents, "ee_rotation")
        gripper = layout.get(latents, "gripper")
        positions = layout.get(latents, "object_position")
        rotation = rotation_matrix(columns)

        def of_blocks(part: Tensor) -> Tensor:
            return functional.pad(part, (0, 0, 0, objects - blocks))

        properties = torch.cat(
            [
                positions,
                layout.get(latents, "object_up")[..., None],
                100.0 * layout.get(latents, "object_error")[..., None],
                of_blocks(layout.get(latents, "block_held")[..., None]),
                of_blocks(layout.get(latents, "block_yaw")),
            ],
            dim=-1,
        )
        chosen = attention @ properties
        thing, goal = chosen[..., 0, :], chosen[..., 1, :]
        to_thing = hand - thing[..., :3]
        in_hand = torch.einsum("ebji,ebj->ebi", rotation, to_thing)
        return torch.cat(
            [
                distances(to_thing),
                distances(in_hand),
                distances(thing[..., :3] - goal[..., :3]),
                distances(hand - goal[..., :3]),
                (hand - hand.new_tensor(HAND_CENTRE)) / 0.1,
                (thing[..., :3] - hand.new_tensor(THING_CENTRE)) / 0.1,
                torch.tanh((thing[..., 2:3] - hand.new_tensor(HEIGHTS)) / HEIGHT_SCALE),
                thing[..., 3:],
                goal[..., 3:],
                columns,
                gripper,
                torch.tanh((gripper - gripper.new_tensor(OPENINGS)) / OPENING_SCALE),
            ],
            dim=-1,
        )


def load_progress(folder: Path) -> tuple[ProgressNetwork, dict[str, Any]]:
    """The trained network, for inference, and its card.

    Raises:
        ConfigurationError: weights are missing, corrupt or of another architecture.
    """
    tensors, card = load_model(folder / MODEL_NAME, MODEL_NAME)
    network = ProgressNetwork(ValueConfig.from_card(card["architecture"]))
    load_into(network, tensors, MODEL_NAME)
    return network.eval().requires_grad_(False), card


class ProgressValue(LatentValue):
    """The learned value.

    Args:
        models_dir: folder of the weights; empty takes the shipped ones.
        precision: of the networks, ``float32`` or ``bfloat16``.

    Raises:
        ConfigurationError: weights are missing, corrupt or of another architecture, or the
            processor does not have the precision.
    """

    name = "progress"

    def __init__(self, models_dir: str = "", precision: str = "float32") -> None:
        folder = Path(models_dir) if models_dir else models_directory()
        self._network, card = load_progress(folder)
        self._progress = self._network.compiled(precision)
        super().__init__(str(card.get("encoder", "")), self._network.config.layout.width)

    def _read(self, sentence: Tensor) -> None:
        self._sentence = self._network.understood(sentence)

    def _progress_of(self, latents: Tensor) -> NDArray[np.float64]:
        return self._progress(latents.numpy(), *self._sentence)
