"""A small vision-language-action policy: two FiLM towers, keypoints, chunks of actions.

Each camera has a convolution tower whose features are modulated by the instruction and the robot's
state (FiLM; Perez et al., arXiv 1709.07871) and read out as keypoints by a spatial softmax (Levine
et al., arXiv 1504.00702). A perceptron turns keypoints, instruction and robot state into a chunk of
actions (Zhao et al., arXiv 2304.13705). All normalisation is part of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from vla_reasoner_ros.errors import (
    ConfigurationError,
    InstructionError,
    ModelError,
    ObservationError,
)
from vla_reasoner_ros.language import DIMENSIONS, SentenceEncoder, sentence_encoder
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Observation
from vla_reasoner_ros.weights import load_into, load_model

NAME = "small_vla"
KIND = "policy"
PROPRIOCEPTION = 10
"""Position (3), first two columns of the rotation matrix (6; Zhou et al., arXiv 1812.07035),
gripper opening (1)."""


@dataclass(frozen=True)
class Architecture:
    """Hyperparameters of the network.

    Attributes:
        cameras: the cameras' names, in the order of the towers.
        image_size: height and width of every image, pixels.
        horizon: actions in a chunk, H.
        motion_dimensions: numbers of an action that move the arm.
        fine_channels: of a tower's features at a quarter of the image's resolution.
        coarse_channels: at an eighth.
        blocks: residual blocks at the coarse resolution; there is one at the fine.
        keypoints: per tower.
        condition: width of the vector that modulates the towers.
        hidden: width of the perceptron.
    """

    cameras: tuple[str, ...] = ("agent", "wrist")
    image_size: tuple[int, int] = (96, 96)
    horizon: int = 8
    motion_dimensions: int = 6
    fine_channels: int = 32
    coarse_channels: int = 64
    blocks: int = 2
    keypoints: int = 48
    condition: int = 192
    hidden: int = 768

    @classmethod
    def from_card(cls, card: Mapping[str, Any], name: str) -> Architecture:
        """Read it from a card.

        Raises:
            ConfigurationError: the card's architecture has other fields than this class.
        """
        fields = dict(card["architecture"])
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != expected:
            raise ConfigurationError(
                f"architecture of {name}: expected {sorted(expected)}, the card has "
                f"{sorted(fields)}"
            )
        fields["cameras"] = tuple(fields["cameras"])
        fields["image_size"] = tuple(fields["image_size"])
        return cls(**fields)


class FilmBlock(nn.Module):
    """Residual block whose last normalisation is scaled and shifted by the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) features and (B, condition) to (B, C, H, W)."""
        inner = F.relu(self.first_norm(self.first(features)))
        inner = self.second_norm(self.second(inner))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return F.relu(features + inner * (1.0 + scale) + shift)


class Tower(nn.Module):
    """One camera's image to keypoints.

    Fine features have a quarter of the image's resolution, coarse ones an eighth; the heat maps of
    the keypoints are fine and read both, so that they are precise and know their surroundings.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        fine, coarse = architecture.fine_channels, architecture.coarse_channels
        self.stem = nn.Sequential(_convolution(3, 16, 5), _convolution(16, fine, 3))
        self.fine = FilmBlock(fine, architecture.condition)
        self.down = _convolution(fine, coarse, 3)
        self.coarse = nn.ModuleList(
            FilmBlock(coarse, architecture.condition) for _ in range(architecture.blocks)
        )
        self.fine_heat = nn.Conv2d(fine, architecture.keypoints, 1)
        self.coarse_heat = nn.Conv2d(coarse, architecture.keypoints, 1)

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 3 K): each keypoint's x, y in [-1, 1] and its heat."""
        fine = self.fine(self.stem(image), condition)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, condition)
        heat = self.fine_heat(fine).float()
        size = heat.shape[2:]
        around = self.coarse_heat(coarse).float()
        heat = heat + F.interpolate(around, size, mode="bilinear", align_corners=False)
        share = heat.flatten(2).softmax(dim=2).unflatten(2, size)
        rows = torch.linspace(-1.0, 1.0, size[0], device=heat.device)
        columns = torch.linspace(-1.0, 1.0, size[1], device=heat.device)
        x, y = share.sum(dim=2) @ columns, share.sum(dim=3) @ rows
        return torch.cat([x, y, torch.tanh(heat.amax(dim=(2, 3)) / 10.0)], dim=1)


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Halve the resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SmallVlaNetwork(nn.Module):
    """The network; see the module's docstring.

    Buffers hold the mean and the scale of proprioception and motion over the training data.
    """

    proprioception_mean: torch.Tensor
    proprioception_scale: torch.Tensor
    motion_mean: torch.Tensor
    motion_scale: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        self.towers = nn.ModuleList(Tower(a) for _ in a.cameras)
        self.condition = nn.Sequential(
            nn.Linear(DIMENSIONS + PROPRIOCEPTION, a.condition),
            nn.ReLU(),
            nn.Linear(a.condition, a.condition),
        )
        self.feature_dimensions = 3 * a.keypoints * len(a.cameras) + a.condition + PROPRIOCEPTION
        self.trunk = nn.Sequential(
            nn.Linear(self.feature_dimensions, a.hidden),
            nn.LayerNorm(a.hidden),
            nn.ReLU(),
            nn.Linear(a.hidden, a.hidden),
            nn.LayerNorm(a.hidden),
            nn.ReLU(),
        )
        self.motion = nn.Linear(a.hidden, a.horizon * a.motion_dimensions)
        self.gripper = nn.Linear(a.hidden, a.horizon)
        for name, size in (("proprioception", PROPRIOCEPTION), ("motion", a.motion_dimensions)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def features(
        self, images: torch.Tensor, sentence: torch.Tensor, proprioception: torch.Tensor
    ) -> torch.Tensor:
        """What the perceptron reads.

        Args:
            images: (B, cameras, H, W, 3), 0 to 255.
            sentence: (B, 384) unit vectors.
            proprioception: (B, 10) in SI units.

        Returns:
            (B, ``feature_dimensions``).
        """
        state = (proprioception - self.proprioception_mean) / self.proprioception_scale
        # Unit vectors of 384 numbers have entries near 0.05; the perceptron likes them near 1.
        condition = self.condition(torch.cat([sentence * DIMENSIONS**0.5, state], dim=1))
        pixels = images.permute(1, 0, 4, 2, 3).float() / 127.5 - 1.0
        keypoints = [
            tower(image.contiguous(memory_format=torch.channels_last), condition)
            for tower, image in zip(self.towers, pixels, strict=True)
        ]
        return torch.cat([*keypoints, condition, state], dim=1)

    def act(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to (B, H, M) normalised motion and (B, H) logits of an open gripper."""
        hidden = self.trunk(features)
        a = self.architecture
        motion = self.motion(hidden).unflatten(1, (a.horizon, a.motion_dimensions))
        return motion, self.gripper(hidden)

    def forward(
        self, images: torch.Tensor, sentence: torch.Tensor, proprioception: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`features`, then :meth:`act`."""
        return self.act(self.features(images, sentence, proprioception))


def proprioception(
    ee_position: NDArray[np.floating],
    ee_quaternion: NDArray[np.floating],
    gripper: NDArray[np.floating] | float,
) -> NDArray[np.float32]:
    """What the network feels.

    Args:
        ee_position: (..., 3) m.
        ee_quaternion: (..., 4) x y z w.
        gripper: (...) opening as a fraction.

    Returns:
        (..., 10) float32, see :data:`PROPRIOCEPTION`.
    """
    x, y, z, w = np.moveaxis(np.asarray(ee_quaternion, dtype=np.float64), -1, 0)
    columns = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
        *(2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
    ]
    parts = [np.asarray(ee_position), np.stack(columns, axis=-1), np.asarray(gripper)[..., None]]
    return np.concatenate(parts, axis=-1).astype(np.float32)


class SmallVla:
    """The policy: deterministic, one chunk per query.

    Args:
        weights: path of the weights without suffix; empty takes the shipped ones.
        encoder: turns instructions into vectors; None shares the process's own.

    Raises:
        ConfigurationError: weights or card are missing, corrupt or of another model, or the
            sentence encoder is not installed.
    """

    def __init__(self, weights: str | Path = "", encoder: SentenceEncoder | None = None) -> None:
        stem = Path(weights) if str(weights) else models_directory() / NAME
        tensors, card = load_model(stem, KIND)
        self.card = card
        architecture = Architecture.from_card(card, str(stem))
        for field in ("action_spec", "control_frame", "instructions"):
            if field not in card:
                raise ConfigurationError(f"card of {stem}: missing {field}")
        action = ActionSpec.from_mapping(card["action_spec"])
        if len(action.motion_indices) != architecture.motion_dimensions or action.gripper is None:
            raise ConfigurationError(
                f"card of {stem}: the network moves {architecture.motion_dimensions} dimensions "
                f"and a gripper, the action spec has {action.names}"
            )
        self._network = SmallVlaNetwork(architecture).eval()
        load_into(self._network, tensors, str(stem))
        self._network.to(memory_format=torch.channels_last)
        self._spec = PolicySpec(
            name=NAME,
            cameras=dict.fromkeys(architecture.cameras, architecture.image_size),
            action=action,
            horizon=architecture.horizon,
            control_frame=card["control_frame"],
            example_instruction=card["instructions"]["known"][0],
        )
        self._encoder = sentence_encoder() if encoder is None else encoder
        self._threshold = float(card["instructions"]["threshold"])
        self._known_texts: list[str] = list(card["instructions"]["known"])
        self._known = self._encoder.encode_all(self._known_texts)
        self._accepted: dict[str, torch.Tensor] = {}

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        return self._spec

    def reset(self) -> None:
        """Nothing is remembered between observations."""

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """One chunk whatever ``n`` is; see :class:`~vla_reasoner_ros.policies.base.Policy`."""
        images = self._images(observation)
        sentence = self._sentence(observation.instruction)
        if observation.ee_frame != self._spec.action.frame:
            raise ObservationError(
                f"policy {NAME}: expected the end-effector pose in frame "
                f"{self._spec.action.frame!r}, got {observation.ee_frame!r}"
            )
        state = proprioception(
            observation.ee_position, observation.ee_quaternion, observation.gripper
        )
        with torch.inference_mode():
            motion, logits = self._network(
                torch.from_numpy(images)[None], sentence[None], torch.from_numpy(state)[None]
            )
            motion = motion[0] * self._network.motion_scale + self._network.motion_mean
        actions = self._actions(motion.double().numpy(), logits[0].numpy())
        return [ActionChunk(self._spec.action, actions, observation.stamp_ns)]

    def _images(self, observation: Observation) -> NDArray[np.uint8]:
        for camera, size in self._spec.cameras.items():
            if camera not in observation.images:
                raise ObservationError(
                    f"policy {NAME}: camera {camera!r} is missing; the observation has "
                    f"{', '.join(sorted(observation.images)) or 'none'}"
                )
            found = observation.images[camera].shape[:2]
            if found != size:
                raise ObservationError(
                    f"policy {NAME}: camera {camera!r} needs {size[0]}x{size[1]} pixels "
                    f"(height x width), got {found[0]}x{found[1]}"
                )
        return np.stack([observation.images[camera] for camera in self._spec.cameras])

    def _sentence(self, instruction: str) -> torch.Tensor:
        if instruction not in self._accepted:
            vector = self._encoder.encode(instruction)
            similarity = self._known @ vector
            nearest = int(similarity.argmax())
            if similarity[nearest] < self._threshold:
                raise InstructionError(
                    f"instruction {instruction!r} is not one that policy {NAME} knows; the nearest "
                    f"is {self._known_texts[nearest]!r} (cosine {similarity[nearest]:.2f}, needed "
                    f"{self._threshold:.2f})"
                )
            self._accepted[instruction] = torch.from_numpy(np.array(vector))
        return self._accepted[instruction]

    def _actions(
        self, motion: NDArray[np.float64], logits: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        if not (np.isfinite(motion).all() and np.isfinite(logits).all()):
            raise ModelError(f"policy {NAME}: the network answered with non-finite numbers")
        spec = self._spec.action
        gripper = spec.gripper
        assert gripper is not None  # checked when the policy was made
        actions = np.empty((self._spec.horizon, spec.dimensions))
        actions[:, spec.motion_indices] = motion
        actions[:, gripper.index] = np.where(logits > 0.0, gripper.open, gripper.closed)
        return actions
