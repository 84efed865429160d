"""Observations as latents of a frozen vision encoder: the arm's state, then a grid per camera.

Nothing is known about objects, so any robot's recordings can be learned from; what moves is seen
in the features alone. V-JEPA 2-AC (arXiv 2506.09985, section 3) has the same two parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.encoder import rotation_columns
from vla_reasoner_ros.world_models.vision import FrozenVision, VisionSettings

POSE = 10
"""Position (3), first two columns of the rotation matrix (6), opening of the gripper (1)."""


@dataclass(frozen=True)
class VisionLayout:
    """What the Z numbers of a latent are: S of the arm's state, then V x G x G x C features.

    Attributes:
        cameras: the V cameras, in order.
        image_sizes: height and width of each one's pictures, pixels.
        grid: cells a side, G.
        channels: numbers a cell, C.
        joints: joints whose positions are in the state, J.
        frame: the frame of the end-effector pose; empty where the actions have none.
    """

    cameras: tuple[str, ...]
    image_sizes: tuple[tuple[int, int], ...]
    grid: int
    channels: int
    joints: int
    frame: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        sizes = tuple((int(height), int(width)) for height, width in self.image_sizes)
        object.__setattr__(self, "image_sizes", sizes)

    @property
    def state(self) -> int:
        """The width S: position (m), rotation columns, opening (fraction), joints (rad)."""
        return POSE + self.joints

    @property
    def tokens(self) -> int:
        """Cells of all cameras together, N."""
        return len(self.cameras) * self.grid**2

    @property
    def width(self) -> int:
        """The width Z."""
        return self.state + self.tokens * self.channels

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Z) latents to the state (..., S) and the tokens (..., N, C)."""
        tokens = latents[..., self.state :].unflatten(-1, (self.tokens, self.channels))
        return latents[..., : self.state], tokens

    def join(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        return torch.cat([state, tokens.flatten(-2)], dim=-1)


class VisionEncoder:
    """Observations in, latents out.

    Args:
        vision: the frozen encoder.
        layout: of the latents.
    """

    def __init__(self, vision: FrozenVision, layout: VisionLayout) -> None:
        self.vision, self.layout = vision, layout
        told = json.dumps([vision.settings.fingerprint, asdict(layout)])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    @classmethod
    def from_card(
        cls, card: dict[str, Any], checkpoint: str, device: str, dtype: str, owner: str
    ) -> VisionEncoder:
        """The encoder that a trained model's card names.

        Args:
            card: with the fields that :meth:`to_card` gives.
            checkpoint: where the vision encoder lies now; empty takes the card's.
            device: see :class:`~vla_reasoner_ros.world_models.vision.FrozenVision`.
            dtype: likewise.
            owner: what messages call the model.

        Raises:
            ConfigurationError: another encoder lies there.
        """
        settings = VisionSettings(**card["vision"])
        vision = FrozenVision.like(settings, checkpoint, device, dtype, owner)
        return cls(vision, VisionLayout(**card["layout"]))

    def to_card(self) -> dict[str, Any]:
        """Encoder and layout as plain numbers and strings."""
        return {
            "encoder": self.fingerprint,
            "vision": asdict(self.vision.settings),
            "layout": asdict(self.layout),
        }

    def encode(self, observations: Sequence[Observation]) -> Tensor:
        """(B, Z) float32 latents, on the encoder's device.

        Raises:
            ObservationError: a camera is missing, a picture has another size than was trained on,
                or the joints or the frame of the pose are others.
            ModelError: the vision encoder's answer is not finite.
        """
        for observation in observations:
            self._require(observation)
        images = [
            np.stack([o.images[camera] for o in observations]) for camera in self.layout.cameras
        ]
        state = self.states(
            *(
                np.stack([np.atleast_1d(getattr(o, name)) for o in observations])
                for name in ("ee_position", "ee_quaternion", "gripper", "joint_positions")
            )
        )
        return self.layout.join(state.to(self.vision.device), self.tokens(images))

    def tokens(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(B, N, C) tokens of one (B, H, W, 3) array per camera."""
        maps = [self.vision.features(torch.from_numpy(np.array(i))) for i in images]
        return torch.cat([part.flatten(2).transpose(1, 2) for part in maps], dim=1)

    def states(
        self, positions: NDArray, quaternions: NDArray, grippers: NDArray, joints: NDArray
    ) -> Tensor:
        """(B, S) states of (B, 3) m, (B, 4) x y z w, (B, 1) and (B, J) rad."""
        p, q, g, j = (
            torch.from_numpy(np.array(part, dtype=np.float32))
            for part in (positions, quaternions, grippers, joints)
        )
        return torch.cat([p, rotation_columns(q), g, j], dim=-1)

    def _require(self, observation: Observation) -> None:
        layout = self.layout
        for camera, size in zip(layout.cameras, layout.image_sizes, strict=True):
            if camera not in observation.images:
                raise ObservationError(
                    f"vision encoder: camera {camera!r} is missing; the observation has "
                    f"{sorted(observation.images)}"
                )
            shape = observation.images[camera].shape
            if shape != (*size, 3):
                raise ObservationError(
                    f"vision encoder: camera {camera!r} needs {(*size, 3)}, got {shape}"
                )
        if len(observation.joint_positions) != layout.joints:
            raise ObservationError(
                f"vision encoder: expected {layout.joints} joints, got "
                f"{len(observation.joint_positions)}"
            )
        if layout.frame and observation.ee_frame != layout.frame:
            raise ObservationError(
                f"vision encoder: the pose must be in frame {layout.frame!r}, got "
                f"{observation.ee_frame!r}"
            )
