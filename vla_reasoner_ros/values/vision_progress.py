"""A learned value on the latents of a frozen vision encoder: progress toward the instruction.

The sentence attends to the cells of the pictures; what it finds there, with the arm's state, is
regressed to progress, which without labels is time in a successful episode (arXiv 2509.22643,
eq. 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.values.latent_value import LatentValue
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.vision_latents import VisionLayout

MODEL_NAME = "vision_progress"


@dataclass(frozen=True)
class VisionValueConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        layout: of the latents.
        sentence: width of the sentence vector.
        members: networks in the ensemble, E.
        width: of keys, values and hidden layers.
        heads: places of the pictures that a sentence looks at.
    """

    layout: VisionLayout
    sentence: int = 384
    members: int = 3
    width: int = 128
    heads: int = 4


class _Member(nn.Module):
    def __init__(self, config: VisionValueConfig) -> None:
        super().__init__()
        layout, width = config.layout, config.width
        self.heads = config.heads
        self.key = nn.Linear(layout.channels, width)
        self.content = nn.Linear(layout.channels, width)
        self.places = nn.Parameter(torch.randn(layout.tokens, width) * 0.1)
        self.query = nn.Linear(config.sentence, config.heads * width)
        inputs = config.heads * width + layout.state + width
        self.words = nn.Linear(config.sentence, width)
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.progress = nn.Linear(width, 1)

    def forward(self, state: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        keys, contents = self.key(tokens) + self.places, self.content(tokens) + self.places
        query = self.query(sentences).unflatten(-1, (self.heads, -1)).expand(len(tokens), -1, -1)
        attention = (query @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
        found = (attention @ contents).flatten(1)
        words = self.words(sentences).expand(len(tokens), -1)
        return torch.sigmoid(self.progress(self.body(torch.cat([found, state, words], -1)))[:, 0])


class VisionProgressNetwork(nn.Module):
    """An ensemble of networks on latents and a sentence vector.

    Args:
        config: the architecture.
    """

    def __init__(self, config: VisionValueConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(_Member(config) for _ in range(config.members))
        self.register_buffer("state_mean", torch.zeros(config.layout.state))
        self.register_buffer("state_std", torch.ones(config.layout.state))

    def forward(self, latents: Tensor, sentences: Tensor) -> Tensor:
        """Progress in (0, 1).

        Args:
            latents: (B, Z).
            sentences: (B, S) unit vectors, or (1, S) when all latents share one.

        Returns:
            (E, B).
        """
        state, tokens = self.config.layout.split(latents)
        state = (state - self.state_mean) / self.state_std
        return torch.stack([member(state, tokens, sentences) for member in self.members])


class VisionProgress(LatentValue):
    """The learned value.

    Args:
        models_dir: folder of weights and card; empty takes the shipped models'.

    Raises:
        ConfigurationError: weights are missing, corrupt or of another architecture.
    """

    name = MODEL_NAME

    def __init__(self, models_dir: str = "") -> None:
        folder = Path(models_dir) if models_dir else models_directory()
        tensors, card = load_model(folder / MODEL_NAME, MODEL_NAME)
        self._network = VisionProgressNetwork(VisionValueConfig.from_card(card["architecture"]))
        load_into(self._network, tensors, MODEL_NAME)
        self._network.eval().requires_grad_(False)
        encoder, checkpoint = str(card["encoder"]), card["vision"]["checkpoint"]
        width = self._network.config.layout.width
        super().__init__(encoder, width, f"the vision encoder {checkpoint}")

    def _move_to(self, device: torch.device) -> None:
        self._network.to(device)

    def _read(self, sentence: Tensor) -> None:
        self._sentence = sentence.to(self._network.state_mean.device)

    @torch.inference_mode()
    def _progress_of(self, latents: Tensor) -> NDArray[np.float64]:
        return self._network(latents, self._sentence).double().cpu().numpy()
