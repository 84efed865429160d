"""Train the decoder: pictures from latents, for people who want to see what was imagined.

It learns from the true latents of branched decisions and the pictures recorded with them. No
decision is made by it, and nothing but the report loads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.training.branches import Branches, branch_files, branches_hash
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.distributed import first_alone
from vla_reasoner_ros.training.latents import Float32, true_latents
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.training.trainer import Batch, train
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.decoder import MODEL_NAME, DecoderConfig, DecoderNetwork
from vla_reasoner_ros.world_models.encoder import Encoder

STATE = (
    "ee_position",
    "ee_quaternion",
    "gripper",
    "joint_velocity",
    "positions",
    "rotations",
    "held",
)
UNUSUAL_WEIGHT = 10.0
"""How much more a pixel counts that is unlike the mean picture: blocks and fingers are small."""
UNUSUAL = 0.2
"""Difference from the mean picture, of black to white, at which a pixel has this weight."""


@dataclass(frozen=True)
class PictureSamples:
    """N latents with their pictures.

    Attributes:
        latents: (N, Z).
        pictures: by camera, (N, S, S, 3) uint8.
        mean: by camera, (S, S, 3) mean picture, 0 to 1, that tells what is unusual.
    """

    latents: Float32
    pictures: dict[str, NDArray[np.uint8]]
    mean: dict[str, Float32]

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Latents, pictures and weights of some samples."""
        batch = {"latents": torch.from_numpy(self.latents[indices])}
        for camera, pictures in self.pictures.items():
            picture = pictures[indices].astype(np.float32) / 255.0
            unlike = np.abs(picture - self.mean[camera]).mean(axis=-1) / UNUSUAL
            weight = 1.0 + UNUSUAL_WEIGHT * np.minimum(unlike, 1.0)
            batch[camera] = torch.from_numpy(picture.transpose(0, 3, 1, 2))
            batch[f"{camera} weight"] = torch.from_numpy(weight[:, None])
        return batch


def read_samples(
    folders: Sequence[Path], config: DecoderConfig, each: int, seed: int
) -> PictureSamples:
    """The decisions of some folders and some of their outcomes, pictures made small.

    Args:
        folders: of branched decisions.
        config: cameras, size and layout.
        each: outcomes of every decision.
        seed: picks them.

    Raises:
        ConfigurationError: there are none, or a file is none of branched decisions.
    """
    paths = [path for folder in folders for path in branch_files(folder)]
    progress = Progress("pictures", len(paths), "scenes")
    latents: list[Float32] = []
    pictures: dict[str, list[NDArray]] = {camera: [] for camera in config.cameras}
    for number, path in enumerate(paths):
        recorded = Branches.load(path)
        rng = np.random.default_rng([seed, number])
        decisions = np.repeat(np.arange(len(recorded)), each)
        chosen = rng.integers(0, recorded.actions.shape[1], len(decisions))
        outcomes = [getattr(recorded, f"outcome_{name}")[decisions, chosen, 0] for name in STATE]
        latents.append(true_latents(config.layout, *[getattr(recorded, name) for name in STATE]))
        latents.append(true_latents(config.layout, *outcomes))
        for camera, kept in pictures.items():
            kept.append(_small(getattr(recorded, camera), config.image_size))
            after = getattr(recorded, f"outcome_{camera}")[decisions, chosen]
            kept.append(_small(after, config.image_size))
        progress.update(number + 1)
    joined = {camera: np.concatenate(kept) for camera, kept in pictures.items()}
    mean = {
        camera: images.mean(axis=0, dtype=np.float64).astype(np.float32) / 255.0
        for camera, images in joined.items()
    }
    return PictureSamples(np.concatenate(latents), joined, mean)


def _small(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) images as (N, size, size, 3), each pixel the mean of those it covers."""
    shape = size, size
    return np.stack([cv2.resize(image, shape, interpolation=cv2.INTER_AREA) for image in images])


def picture_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Weighted distance of the pixels; by camera the unweighted one, of black to white."""
    drawn = module(batch["latents"])
    total = torch.zeros((), device=batch["latents"].device)
    parts = {}
    for camera, picture in drawn.items():
        error = (picture.float() - batch[camera]).abs()
        total = total + (error * batch[f"{camera} weight"]).mean()
        parts[camera] = error.mean()
    return {"loss": total, **parts}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--branches",
        type=Path,
        nargs="+",
        default=[Path("data/branches")],
        help="folders of branched decisions",
    )
    parser.add_argument("--each", type=COUNT, default=2, help="outcomes of every decision")
    parser.add_argument("--models", type=Path, help="folder of encoder and result; the shipped")
    add_trainer_arguments(parser, "decoder", steps=6000, batch_size=32, learning_rate=2e-3)


def run(arguments: argparse.Namespace) -> int:
    """Read pictures, train, save."""
    folder = arguments.models or models_directory()
    encoder = Encoder.load(folder)
    config = DecoderConfig(layout=encoder.layout, cameras=tuple(encoder.config.cameras))
    with first_alone():
        training, held_out = (
            read_samples(
                [f / side for f in arguments.branches], config, arguments.each, arguments.seed
            )
            for side in ("train", "held_out")
        )
    network = initialised(arguments.seed, lambda: DecoderNetwork(config))
    network.normalise(torch.from_numpy(training.latents))
    data = {
        "pictures": len(training),
        "seed": arguments.seed,
        "each": arguments.each,
        "branches_sha256": branches_hash(arguments.branches),
    }
    result = train(
        network.to(memory_format=torch.channels_last),
        picture_loss,
        training,
        held_out,
        trainer_parameters(arguments),
        arguments.work,
        title="decoder",
        identity=data | {"encoder": encoder.fingerprint, "architecture": config.to_card()},
    )
    save_model(
        folder / MODEL_NAME,
        network.state_dict(),
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=data,
            metrics={"held_out": result.metrics, "best_step": result.best_step},
            encoder=encoder.fingerprint,
        ),
        half=True,
    )
    return 0
