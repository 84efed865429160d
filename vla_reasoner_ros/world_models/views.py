"""What a camera sees, brought back to the view that the encoder was trained on.

A camera that was knocked a few centimetres aside, or a lamp that was changed, moves everything that
an encoder locates by centimetres, and a search that trusts it does worse than none. A small network
per camera says how an image differs from those of training, given where the arm is: the robot is
its own calibration target. It learns that from recorded images changed in known ways (homographies
and gains), so it needs neither labels nor a calibrated camera. Predicting a homography by the
displacements of four points follows DeTone et al. 2016 (arXiv 1606.03798).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.encoder import normalise_images, rotation_columns

MODEL_NAME = "views"
SPREAD = 0.6
"""The four points lie this far from the image's centre, in half sides."""
GAIN_SCALE = 0.3
"""Unit of the network's logarithmic gains."""
SHIFT_SCALE = 5.0
"""Unit of the network's displacements, pixels."""


@dataclass(frozen=True)
class Significance:
    """From where on a view counts as changed: what unchanged images hardly ever look like.

    Attributes:
        shift: displacement of a point, pixels.
        gain: logarithm of the factor on a colour channel.
    """

    shift: float
    gain: float


@dataclass(frozen=True)
class ViewsConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        cameras: the cameras, a network for each.
        image_size: side S of the square images, pixels.
        channels: feature maps at strides 2, 4, 8 and 16.
        hidden: width of the layers that also know the arm's pose.
    """

    cameras: tuple[str, ...] = ("agent", "wrist")
    image_size: int = 96
    channels: tuple[int, ...] = (16, 32, 48, 64)
    hidden: int = 96


@dataclass(frozen=True)
class View:
    """How an image differs from one of the view of training.

    Attributes:
        moved: (4, 2) displacements, right and down, of the four :func:`anchors`, pixels.
        log_gain: (3,) logarithm of the factor on each colour channel.
        size: side of the image, pixels.
    """

    moved: NDArray[np.float64]
    log_gain: NDArray[np.float64]
    size: int

    @property
    def shift(self) -> float:
        """The farthest that one of the four points moved, pixels."""
        return float(np.linalg.norm(self.moved, axis=1).max())

    @property
    def gain(self) -> float:
        """The factor on the channel that changed the most."""
        return float(np.exp(self.log_gain[np.abs(self.log_gain).argmax()]))

    @property
    def homography(self) -> NDArray[np.float64]:
        """(3, 3) from pixels of the view of training to pixels of this one."""
        points = anchors(self.size)
        matrix = cv2.getPerspectiveTransform(
            points.astype(np.float32), (points + self.moved).astype(np.float32)
        )
        return np.asarray(matrix, np.float64)

    def significant(self, least: Significance) -> View:
        """The same with those changes left out that are too small to count."""
        view = self
        if self.shift < least.shift:
            view = replace(view, moved=np.zeros_like(self.moved))
        if np.abs(self.log_gain).max() < least.gain:
            view = replace(view, log_gain=np.zeros_like(self.log_gain))
        return view

    def applied(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An (S, S, 3) image of the view of training as it would look in this view."""
        return self._changed(image, cv2.INTER_LINEAR, self.log_gain)

    def undone(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An (S, S, 3) image of this view as it would look in the view of training."""
        return self._changed(image, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, -self.log_gain)

    def _changed(
        self, image: NDArray[np.uint8], flags: int, log_gain: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        if self.moved.any():
            image = cv2.warpPerspective(
                image,
                self.homography,
                (self.size, self.size),
                flags=flags,
                borderMode=cv2.BORDER_REPLICATE,
            ).astype(np.uint8)
        if log_gain.any():
            bright = image.astype(np.float32) * np.exp(log_gain).astype(np.float32)
            image = np.clip(np.rint(bright), 0.0, 255.0).astype(np.uint8)
        return image


def anchors(size: int) -> NDArray[np.float64]:
    """(4, 2) the points, x right and y down, whose displacements say how a view moved, pixels."""
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    middle: NDArray[np.float64] = (size - 1) / 2.0 + SPREAD * size / 2.0 * corners
    return middle


class ViewNetwork(nn.Module):
    """One camera: an image and the arm's pose to how the view differs, with its uncertainty."""

    POSE = 10
    OUTPUTS = 11
    position_mean: Tensor
    position_scale: Tensor

    def __init__(self, config: ViewsConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for index, outputs in enumerate(config.channels):
            kernel = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        cells = config.image_size // 2 ** len(config.channels)
        self.head = nn.Sequential(
            nn.Linear(inputs * cells**2 + self.POSE, config.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden, 2 * self.OUTPUTS),
        )
        self.register_buffer("position_mean", torch.tensor([0.5, 0.0, 0.05]))
        self.register_buffer("position_scale", torch.tensor([0.15, 0.2, 0.1]))

    def forward(self, images: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """How views differ.

        Args:
            images: (B, 3, S, S) scaled by ``normalise_images``.
            pose: (B, 10) end-effector position (m, base frame), first two columns of its rotation
                matrix, gripper opening.

        Returns:
            (B, 11) eight displacements and three logarithmic gains in units of
            :data:`SHIFT_SCALE` and :data:`GAIN_SCALE`, and the logarithms of their expected
            absolute errors, (B, 11).
        """
        position = (pose[:, :3] - self.position_mean) / self.position_scale
        seen = self.features(images.to(memory_format=torch.channels_last)).flatten(1)
        # Tenths of a pixel need all the digits, also where training computes in bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            output = self.head(torch.cat([seen.float(), position, pose[:, 3:]], dim=-1))
        return output[:, : self.OUTPUTS], output[:, self.OUTPUTS :].clamp(-5.0, 3.0)


def view_networks(config: ViewsConfig) -> nn.ModuleDict:
    """A network for each camera."""
    return nn.ModuleDict({camera: ViewNetwork(config) for camera in config.cameras})


def pose_tensor(position: Tensor, quaternion: Tensor, gripper: Tensor) -> Tensor:
    """(..., 10) what :class:`ViewNetwork` knows of an arm.

    Args:
        position: (..., 3) of the end effector, m, base frame.
        quaternion: (..., 4), x y z w.
        gripper: (...,) opening fraction.
    """
    columns = rotation_columns(quaternion.float())
    return torch.cat([position.float(), columns, gripper.float()[..., None]], dim=-1)


def pose_of(observation: Observation) -> Tensor:
    """(10,) what :class:`ViewNetwork` knows of the arm."""
    return pose_tensor(
        torch.from_numpy(observation.ee_position),
        torch.from_numpy(observation.ee_quaternion),
        torch.tensor(float(observation.gripper)),
    )


class ViewCorrector:
    """Trained networks: says how views differ, and undoes it.

    Args:
        networks: by camera, moved to evaluation mode.
        config: their architecture.
        least: by camera, from where on a view counts as changed.
    """

    def __init__(
        self, networks: nn.ModuleDict, config: ViewsConfig, least: dict[str, Significance]
    ) -> None:
        self._networks = networks.eval().requires_grad_(False)
        self.config = config
        self.least = least
        self._undone: dict[str, View] = {}
        self._newest: tuple[Observation, Observation] | None = None

    @classmethod
    def load(cls, folder: Path) -> ViewCorrector | None:
        """From ``views.safetensors`` and its card; None where a folder has neither.

        Raises:
            ConfigurationError: the files are corrupt, of another architecture or half missing.
        """
        stem = folder / MODEL_NAME
        if not any(Path(f"{stem}.{suffix}").exists() for suffix in ("safetensors", "json")):
            return None
        tensors, card = load_model(stem, MODEL_NAME)
        try:
            config = ViewsConfig.from_card(card["architecture"])
            least = {name: Significance(**card["least"][name]) for name in config.cameras}
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"card of {MODEL_NAME} in {folder}: not one of views: {error!r}"
            ) from error
        networks = view_networks(config)
        load_into(networks, tensors, MODEL_NAME)
        return cls(networks, config, least)

    def restore(self, observation: Observation) -> Observation:
        """The observation with its images as the view of training would show them.

        Images of an unchanged view stay bit for bit. Asked again for the same observation it
        gives the same answer without work.

        Raises:
            ObservationError: a camera is missing or its image has another size.
            ModelError: a network answered with a non-finite number.
        """
        if self._newest is not None and self._newest[0] is observation:
            return self._newest[1]
        pose = pose_of(observation)
        images = dict(observation.images)
        for camera in self.config.cameras:
            image = self._image(observation, camera)
            view = self.look(camera, image, pose).significant(self.least[camera])
            images[camera] = view.undone(image)
            self._undone[camera] = view
        restored = replace(observation, images=images)
        self._newest = (observation, restored)
        return restored

    def changes(self) -> dict[str, View]:
        """By camera, what was undone in the newest observation; nothing before the first."""
        return dict(self._undone)

    @torch.inference_mode()
    def look(self, camera: str, image: NDArray[np.uint8], pose: Tensor) -> View:
        """How an (S, S, 3) image differs from those of training; the arm at ``pose``, (10,)."""
        batch = normalise_images(torch.from_numpy(image)[None])
        found = self._networks[camera](batch, pose[None])[0][0].double().numpy()
        if not np.isfinite(found).all():
            raise ModelError(f"views: camera '{camera}': the answer is not finite")
        return View(
            SHIFT_SCALE * found[:8].reshape(4, 2), GAIN_SCALE * found[8:], self.config.image_size
        )

    def _image(self, observation: Observation, camera: str) -> NDArray[np.uint8]:
        size = self.config.image_size
        image = observation.images.get(camera)
        if image is None or image.shape != (size, size, 3):
            raise ObservationError(
                f"views: camera '{camera}' needs ({size}, {size}, 3), got "
                f"{'none' if image is None else image.shape}"
            )
        return image
