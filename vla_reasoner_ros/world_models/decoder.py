"""From a latent back to pictures, for people to look at; no decision is made by it.

Every pixel of a coarse grid reads the latent beside its own coordinates (spatial broadcast, Watters
et al. 2019, arXiv 1901.07017), so that things are drawn where the latent says that they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.encoder import LatentLayout

MODEL_NAME = "decoder"
SEEN = (
    "ee_position",
    "ee_rotation",
    "gripper",
    "object_position",
    "block_yaw",
    "object_up",
    "block_held",
)
"""Parts of the latent that a camera could see; velocities and errors are in no picture."""


@dataclass(frozen=True)
class DecoderConfig(NetworkConfig):
    """What a decoder is made of.

    Attributes:
        layout: of the latents.
        cameras: whose pictures it draws.
        image_size: pixels a side, a multiple of 4.
        width: of the layers that read the latent.
        channels: of the convolutions.
    """

    layout: LatentLayout = field(default_factory=LatentLayout)
    cameras: tuple[str, ...] = ("agent", "wrist")
    image_size: int = 48
    width: int = 96
    channels: int = 48


class _Picture(nn.Module):
    """One camera's picture."""

    grid: Tensor

    def __init__(self, config: DecoderConfig, inputs: int) -> None:
        super().__init__()
        cells, width, channels = config.image_size // 4, config.width, config.channels
        place = (torch.arange(cells) + 0.5) / cells * 2.0 - 1.0
        y, x = torch.meshgrid(place, place, indexing="ij")
        waves = [torch.sin(k * torch.pi * a) for k in (1, 2, 4) for a in (x, y)]
        self.register_buffer("grid", torch.stack([x, y, *waves])[None], persistent=False)
        self.read = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.at = nn.Conv2d(self.grid.shape[1], width, 1)
        self.draw = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, 4 * channels, 1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, seen: Tensor) -> Tensor:
        """(B, 3, S, S) from what (B, V) is to be seen."""
        return self.draw(self.at(self.grid) + self.read(seen)[:, :, None, None])


class DecoderNetwork(nn.Module):
    """Latents to pictures of each camera."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        inputs = len(self._seen(torch.zeros(config.layout.width)))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.pictures = nn.ModuleDict(
            {camera: _Picture(config, inputs) for camera in config.cameras}
        )

    def _seen(self, latents: Tensor) -> Tensor:
        slices = self.config.layout.slices
        return torch.cat([latents[..., slices[name]] for name in SEEN], dim=-1)

    @torch.no_grad()
    def normalise(self, latents: Tensor) -> None:
        """Take mean and scale of what is read from (N, Z) latents of the training data."""
        seen = self._seen(latents)
        self.mean.copy_(seen.mean(dim=0))
        self.scale.copy_(seen.std(dim=0).clamp_min(0.01))

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """(B, Z) latents to (B, 3, S, S) pictures by camera, 0 black to 1 white, not clipped."""
        seen = (self._seen(latents) - self.mean) / self.scale
        return {camera: picture(seen) for camera, picture in self.pictures.items()}


class Decoder:
    """Draws what a latent says.

    Args:
        network: trained.
        encoder: fingerprint of the encoder whose latents it was trained for.
    """

    def __init__(self, network: DecoderNetwork, encoder: str) -> None:
        self.network = network.eval()
        self.encoder = encoder

    @classmethod
    def load(cls, folder: Path | None = None) -> Decoder:
        """From its weights; ``folder`` None takes the shipped models'.

        Raises:
            ConfigurationError: there are none, or they are of another kind.
        """
        tensors, card = load_model((folder or models_directory()) / MODEL_NAME, MODEL_NAME)
        network = DecoderNetwork(DecoderConfig.from_card(card["architecture"]))
        load_into(network, tensors, MODEL_NAME)
        return cls(network, str(card["encoder"]))

    @torch.inference_mode()
    def draw(self, latents: Tensor) -> dict[str, NDArray[np.uint8]]:
        """(B, Z) latents to (B, S, S, 3) uint8 RGB pictures by camera."""
        pictures = self.network(latents)
        return {
            camera: (255.0 * picture.clamp(0.0, 1.0)).round().byte().permute(0, 2, 3, 1).numpy()
            for camera, picture in pictures.items()
        }
