"""From camera images and proprioception to a structured latent: where the arm and objects are.

Every number of the latent has a name and a unit (:class:`LatentLayout`), so a value can reason
about distances and a world model can move things; nothing privileged is read. Objects are found by
heat maps in both views (spatial soft-argmax, Levine et al. 2016, arXiv 1504.00702; the heat maps
are supervised as in DSNT, Nibali et al. 2018, arXiv 1801.07372), then lifted to three dimensions
by a small network that also knows the arm's pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vla_reasoner_ros.errors import ModelError, ObservationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.towers import FrozenTower, Sighting, Tower
from vla_reasoner_ros.world_models.vision import FrozenVision, VisionSettings

MODEL_NAME = "encoder"
SYMMETRY = 4
"""A block looks the same after a quarter turn, so its yaw is known modulo 90 degrees."""


@dataclass(frozen=True)
class LatentLayout:
    """What the Z numbers of a latent are; all positions in the base frame, m.

    Attributes:
        objects: names of the K objects, the blocks first.
        blocks: how many of them are blocks, N: things that a gripper can hold.
        joints: number of arm joints, J.

    Slices, in order:
        ee_position: (3,) end-effector position, m.
        ee_rotation: (6,) first two columns of its rotation matrix (Zhou et al. 2019,
            arXiv 1812.07035).
        gripper: (1,) opening as a fraction.
        joint_velocity: (J,) rad/s.
        object_position: (K, 3) centres, m.
        object_error: (K,) the encoder's own estimate of its position error, m.
        block_yaw: (N, 2) cosine and sine of four times the yaw.
        object_up: (K,) vertical component of the most upright of its axes: 1 when it lies flat.
        block_held: (N,) probability that both fingers touch it.
    """

    objects: tuple[str, ...] = ("red_block", "green_block", "blue_block", "plate", "tray")
    blocks: int = 3
    joints: int = 7

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Part name to its place in the latent."""
        count = len(self.objects)
        widths = {
            "ee_position": 3,
            "ee_rotation": 6,
            "gripper": 1,
            "joint_velocity": self.joints,
            "object_position": 3 * count,
            "object_error": count,
            "block_yaw": 2 * self.blocks,
            "object_up": count,
            "block_held": self.blocks,
        }
        slices, start = {}, 0
        for name, width in widths.items():
            slices[name] = slice(start, start + width)
            start += width
        return slices

    @cached_property
    def width(self) -> int:
        """The width Z."""
        return max(part.stop for part in self.slices.values())

    @cached_property
    def arm(self) -> slice:
        """The part that proprioception knows exactly."""
        return slice(0, self.slices["joint_velocity"].stop)

    def get(self, latents: Tensor, name: str) -> Tensor:
        """A view of one part of (..., Z) latents, shaped as the class says."""
        part = latents[..., self.slices[name]]
        if name == "object_position":
            return part.unflatten(-1, (len(self.objects), 3))
        if name == "block_yaw":
            return part.unflatten(-1, (self.blocks, 2))
        return part

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """Put parts, shaped as the class says, together to (..., Z) latents."""
        flat = [
            parts[name].flatten(-2) if name in ("object_position", "block_yaw") else parts[name]
            for name in self.slices
        ]
        return torch.cat(flat, dim=-1)


@dataclass(frozen=True)
class EncoderConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        layout: what the latent is made of.
        cameras: the agent's view and the wrist's view.
        image_size: side of the square images, pixels.
        channels: feature maps at strides 2, 4 and 8.
        hidden: width of the network that lifts heat maps to three dimensions.
        vision: the frozen vision encoder whose patches are looked at; None looks at the pixels.
    """

    layout: LatentLayout = field(default_factory=LatentLayout)
    cameras: tuple[str, str] = ("agent", "wrist")
    image_size: int = 96
    channels: tuple[int, int, int] = (16, 32, 64)
    hidden: int = 192
    vision: VisionSettings | None = None


def rotation_columns(quaternions: Tensor) -> Tensor:
    """(..., 4) unit quaternions x y z w to the first two columns of R, (..., 6)."""
    x, y, z, w = quaternions.unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y + z * w),
            2 * (x * z - y * w),
            2 * (x * y - z * w),
            1 - 2 * (x * x + z * z),
            2 * (y * z + x * w),
        ],
        dim=-1,
    )


def rotation_matrix(columns: Tensor) -> Tensor:
    """(..., 6) columns to the nearest-by-Gram-Schmidt rotation matrix (..., 3, 3)."""
    first = functional.normalize(columns[..., :3], dim=-1)
    second = columns[..., 3:] - (first * columns[..., 3:]).sum(-1, keepdim=True) * first
    second = functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


@dataclass(frozen=True)
class Detection:
    """What the network says of B observations; K objects of which the first N are blocks.

    Attributes:
        agent, wrist: where each camera sees the objects.
        positions: (B, K, 3), m, base frame.
        log_errors: (B, K) logarithm of the expected position error, m.
        yaw: (B, N, 2) cosine and sine of four times the yaw.
        up: (B, K) vertical component of the object's most upright axis.
        held_logits: (B, N).
    """

    agent: Sighting
    wrist: Sighting
    positions: Tensor
    log_errors: Tensor
    yaw: Tensor
    up: Tensor
    held_logits: Tensor


class EncoderNetwork(nn.Module):
    """Two towers and a network per object that fuses them with the arm's pose.

    Args:
        config: the architecture.
        vision: the frozen encoder that ``config.vision`` is of; None where it is None.
    """

    def __init__(self, config: EncoderConfig, vision: FrozenVision | None = None) -> None:
        super().__init__()
        self.config = config
        layout = config.layout
        objects = len(layout.objects)
        pose = 10
        self.agent, self.wrist = (
            Tower(config, pose, deep) if vision is None else FrozenTower(config, pose, deep, vision)
            for deep in (2, 1)
        )
        inputs = 2 * (4 + config.channels[1]) + pose + objects
        self.fuse = nn.Sequential(
            nn.Linear(inputs, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 12),
        )
        self.register_buffer("position_mean", torch.tensor([0.5, 0.0, 0.05]))
        self.register_buffer("position_scale", torch.tensor([0.15, 0.2, 0.1]))

    def pose_features(self, arm: Tensor) -> Tensor:
        """(B, A) arm part of the latent to the (B, 10) normalised pose and gripper opening."""
        position = (arm[:, :3] - self.position_mean) / self.position_scale
        return torch.cat([position, arm[:, 3:10]], dim=-1)

    def forward(self, agent: Tensor, wrist: Tensor, arm: Tensor) -> Detection:
        """Locate the objects.

        Args:
            agent: (B, 3, 96, 96) images scaled by :func:`normalise_images`.
            wrist: the same of the other camera.
            arm: (B, A) arm part of the latent.
        """
        layout = self.config.layout
        count, objects = arm.shape[0], len(layout.objects)
        pose = self.pose_features(arm)
        seen_agent, seen_wrist = self.agent(agent, pose), self.wrist(wrist, pose)
        identity = torch.eye(objects, device=arm.device).expand(count, -1, -1)
        inputs = [
            seen_agent.summary,
            seen_agent.features,
            seen_wrist.summary,
            seen_wrist.features,
            pose[:, None].expand(-1, objects, -1),
            identity,
        ]
        with torch.autocast(arm.device.type, enabled=False):
            return self._lift(torch.cat(inputs, dim=-1), arm, seen_agent, seen_wrist)

    def _lift(self, inputs: Tensor, arm: Tensor, agent: Sighting, wrist: Sighting) -> Detection:
        output = self.fuse(inputs)
        in_world = self.position_mean + self.position_scale * output[..., 0:3]
        # A held block is where the fingers are: its place is then known better in their frame.
        rotation = rotation_matrix(arm[:, 3:9])
        in_hand = arm[:, None, :3] + 0.05 * torch.einsum("bij,bkj->bki", rotation, output[..., 3:6])
        share = torch.sigmoid(output[..., 6:7])
        blocks = self.config.layout.blocks
        return Detection(
            agent=agent,
            wrist=wrist,
            positions=(1.0 - share) * in_world + share * in_hand,
            log_errors=output[..., 7].clamp(-7.0, -1.0),
            yaw=output[:, :blocks, 8:10],
            up=1.0 - functional.softplus(output[..., 10]),
            held_logits=output[:, :blocks, 11],
        )

    def latents(self, detection: Detection, arm: Tensor) -> Tensor:
        """(B, Z) latents of a detection and the arm part that it was made with."""
        layout = self.config.layout
        parts = {
            name: arm[:, layout.slices[name]]
            for name in ("ee_position", "ee_rotation", "gripper", "joint_velocity")
        }
        return layout.join(
            parts
            | {
                "object_position": detection.positions,
                "object_error": detection.log_errors.exp(),
                "block_yaw": detection.yaw,
                "object_up": detection.up,
                "block_held": torch.sigmoid(detection.held_logits),
            }
        )


def normalise_images(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def arm_latents(
    positions: Tensor, quaternions: Tensor, grippers: Tensor, joint_velocities: Tensor
) -> Tensor:
    """The arm part of the latent from (B, 3) m, (B, 4) x y z w, (B,) and (B, J) rad/s."""
    parts = [positions, rotation_columns(quaternions), grippers[:, None], joint_velocities]
    return torch.cat(parts, dim=-1)


def fold_batch_norms(network: EncoderNetwork) -> EncoderNetwork:
    """Put each batch normalisation into the convolution before it, for inference only."""
    network.eval()
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for index in range(len(sequence) - 1):
            convolution, norm = sequence[index], sequence[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[index] = fuse_conv_bn_eval(convolution, norm)
                sequence[index + 1] = nn.Identity()
    return network.to(memory_format=torch.channels_last)


class Encoder:
    """The trained network with its card: observations in, latents out.

    Args:
        network: the network, moved to evaluation mode.
        fingerprint: identifies the weights; models trained on the latents keep it in their cards.
    """

    def __init__(self, network: EncoderNetwork, fingerprint: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.layout = network.config.layout
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, models_dir: str | Path | None = None, vision: str = "") -> Encoder:
        """Load ``encoder.safetensors`` and its card.

        Args:
            models_dir: their folder; None takes the shipped one.
            vision: folder or hub name of the frozen vision encoder below it, where there is one;
                empty takes the card's.

        Raises:
            ConfigurationError: a file is missing, corrupt or of another architecture, or the
                vision encoder is another one.
        """
        stem = Path(models_dir or models_directory()) / MODEL_NAME
        tensors, card = load_model(stem, MODEL_NAME)
        config, below = EncoderConfig.from_card(card["architecture"]), None
        if config.vision is not None:
            below = FrozenVision.like(config.vision, vision, "auto", "auto", f"encoder in {stem}")
        network = EncoderNetwork(config, below)
        load_into(network, tensors, MODEL_NAME)
        return cls(fold_batch_norms(network), card["tensors_sha256"])

    def encode(self, observations: Sequence[Observation]) -> Tensor:
        """(B, Z) float32 latents of B observations.

        Raises:
            ObservationError: a camera or joint is missing, or an image has the wrong size.
            ModelError: the network answered with a non-finite number.
        """
        if not observations:
            return torch.zeros((0, self.layout.width))
        agent, wrist = (
            torch.from_numpy(np.stack([self._image(o, camera) for o in observations]))
            for camera in self.config.cameras
        )
        return self.encode_arrays(agent, wrist, self._arm(observations))

    @torch.inference_mode()
    def encode_arrays(self, agent: Tensor, wrist: Tensor, arm: Tensor) -> Tensor:
        """(B, Z) latents of (B, H, W, 3) uint8 images and the (B, A) arm part."""
        detection = self.network(normalise_images(agent), normalise_images(wrist), arm)
        latents = self.network.latents(detection, arm)
        if not torch.isfinite(latents).all():
            raise ModelError("encoder: the latent is not finite, expected finite numbers")
        return latents

    def _image(self, observation: Observation, camera: str) -> np.ndarray:
        if camera not in observation.images:
            raise ObservationError(
                f"encoder: camera '{camera}' is missing; the observation has "
                f"{sorted(observation.images)}"
            )
        image = observation.images[camera]
        size = self.config.image_size
        if image.shape != (size, size, 3):
            raise ObservationError(
                f"encoder: camera '{camera}' needs ({size}, {size}, 3), got {image.shape}"
            )
        return image

    def _arm(self, observations: Sequence[Observation]) -> Tensor:
        for observation in observations:
            if len(observation.joint_velocities) != self.layout.joints:
                raise ObservationError(
                    f"encoder: expected {self.layout.joints} joints, got "
                    f"{len(observation.joint_velocities)}"
                )
        columns = [
            torch.from_numpy(np.stack([getattr(o, name) for o in observations])).float()
            for name in ("ee_position", "ee_quaternion", "joint_velocities")
        ]
        grippers = torch.tensor([float(o.gripper) for o in observations])
        return arm_latents(columns[0], columns[1], grippers, columns[2])
