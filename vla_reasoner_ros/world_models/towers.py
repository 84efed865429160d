"""From an image to a heat map per object: convolutions of our own, or a frozen vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.world_models.vision import FrozenVision

if TYPE_CHECKING:
    from vla_reasoner_ros.world_models.encoder import EncoderConfig


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Same shape in and out."""
        return functional.relu(features + self.body(features))


def _down(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class Sighting:
    """Where one camera sees the objects; B images, K objects.

    Attributes:
        logits: (B, K, S*S + 1) over the cells of the heat map, the last one for "not in view".
        points: (B, K, 2) expected image position given that it is in view, -1..1, x right y down.
        summary: (B, K, 4) position, probability of being in view, spread of the heat map.
        features: (B, K, C) features where the heat map is.
    """

    logits: Tensor
    points: Tensor
    summary: Tensor
    features: Tensor


class _HeatMaps(nn.Module):
    """What all towers end with: a heat map per object, and where its mass is."""

    def _see(self, config: EncoderConfig, cells: int) -> None:
        """Make the last layers.

        Args:
            config: channels and objects.
            cells: of the heat maps a side, S.
        """
        _, middle, coarse = config.channels
        objects = len(config.layout.objects)
        self.heat = nn.Conv2d(middle, 4 * objects, 1)
        self.absent = nn.Linear(coarse, objects)
        centres = (torch.arange(cells) + 0.5) / cells * 2.0 - 1.0
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], dim=-1).reshape(-1, 2), persistent=False)

    def _sight(self, decoded: Tensor, coarse: Tensor) -> Sighting:
        """From (B, middle, S/2, S/2) and coarse features to what is seen."""
        maps, absent = self.heat(decoded), self.absent(coarse.mean(dim=(2, 3)))
        # Positions need all the digits, also where training computes in bfloat16.
        with torch.autocast(decoded.device.type, enabled=False):
            return self._locate(maps.float(), absent.float(), decoded.float())

    def _locate(self, maps: Tensor, absent: Tensor, decoded: Tensor) -> Sighting:
        """Spatial soft-argmax of (B, 4 K, S/2, S/2) maps, four sub-cells to a cell."""
        maps = functional.pixel_shuffle(maps, 2).flatten(2)
        logits = torch.cat([maps, absent[:, :, None]], dim=2)
        heat = maps.softmax(dim=-1)
        points = heat @ self.grid
        spread = (heat @ self.grid.square() - points.square()).clamp_min(1e-8).sum(-1, keepdim=True)
        in_view = torch.sigmoid(maps.logsumexp(-1) - absent)[..., None]
        side = decoded.shape[-1]
        pooled = heat.unflatten(-1, (side, 2, side, 2)).sum(dim=(3, 5)).flatten(2)
        features = pooled @ decoded.flatten(2).transpose(1, 2)
        summary = torch.cat([points * in_view, in_view, spread.sqrt()], dim=-1)
        return Sighting(logits, points, summary, features)


class Tower(_HeatMaps):
    """One camera's convolutions, from an image to a heat map per object at half resolution."""

    def __init__(self, config: EncoderConfig, proprioception: int, deep: int) -> None:
        super().__init__()
        fine, middle, coarse = config.channels
        self.stem = _down(5, fine, 5)
        self.encode_middle = nn.Sequential(_down(fine, middle, 3), ResidualBlock(middle))
        self.to_coarse = _down(middle, coarse, 3)
        self.condition = nn.Linear(proprioception, coarse)
        self.encode_coarse = nn.Sequential(*[ResidualBlock(coarse) for _ in range(deep)])
        self.back = nn.Conv2d(coarse, middle, 1)
        self.decode = ResidualBlock(middle)
        self._see(config, config.image_size // 2)
        pixels = (torch.arange(config.image_size) + 0.5) / config.image_size * 2.0 - 1.0
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y]), persistent=False)

    def forward(self, images: Tensor, proprioception: Tensor) -> Sighting:
        """Look for every object.

        Args:
            images: (B, 3, 96, 96), centred near zero.
            proprioception: (B, P).
        """
        count = images.shape[0]
        coordinates = self.coordinates.expand(count, -1, -1, -1)
        inputs = torch.cat([images, coordinates], dim=1)
        middle = self.encode_middle(self.stem(inputs.to(memory_format=torch.channels_last)))
        coarse = self.to_coarse(middle)
        coarse = self.encode_coarse(coarse + self.condition(proprioception)[:, :, None, None])
        decoded = middle + functional.interpolate(self.back(coarse), scale_factor=2.0)
        return self._sight(self.decode(decoded), coarse)


class FrozenTower(_HeatMaps):
    """One camera's heat maps read off the patches of a frozen vision encoder.

    Args:
        config: channels and objects.
        proprioception: width of the arm's part, P.
        deep: residual blocks at the resolution of the patches.
        vision: the frozen encoder, whose weights are not this module's.
    """

    def __init__(
        self, config: EncoderConfig, proprioception: int, deep: int, vision: FrozenVision
    ) -> None:
        super().__init__()
        _, middle, coarse = config.channels
        self._vision = vision
        self.to_coarse = nn.Conv2d(vision.channels, coarse, 1)
        self.condition = nn.Linear(proprioception, coarse)
        self.encode_coarse = nn.Sequential(*[ResidualBlock(coarse) for _ in range(deep)])
        self.back = nn.Conv2d(coarse, middle, 1)
        self.decode = ResidualBlock(middle)
        self._see(config, 4 * vision.settings.grid)

    def forward(self, images: Tensor, proprioception: Tensor) -> Sighting:
        """Look for every object.

        Args:
            images: (B, 3, 96, 96) in -1..1.
            proprioception: (B, P).
        """
        features = self._vision.of_pixels((images + 1.0) / 2.0).to(images.device)
        # What inference made cannot be learned through; a copy of it can.
        coarse = self.to_coarse(features.clone())
        coarse = self.encode_coarse(coarse + self.condition(proprioception)[:, :, None, None])
        decoded = functional.interpolate(self.back(coarse), scale_factor=2.0, mode="bilinear")
        return self._sight(self.decode(decoded), coarse)
