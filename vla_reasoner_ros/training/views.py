"""Train the networks that say how a camera's view differs from that of training.

Recorded images are changed in known ways, and the networks learn to say how: no labels, no
calibration. Rendered scenes whose things look other may join them, so that a dark table is not
taken for dim light. What they say of held-out images that nobody changed decides from where on a
view counts as changed at all.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_reasoner_ros import executor
from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameter_text import parse_overrides
from vla_reasoner_ros.parameters import build, flatten, parameter
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.training.appearance import Looks
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.frames import Frames, make_frames
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.trainer import Batch, train
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import normalise_images
from vla_reasoner_ros.world_models.views import (
    GAIN_SCALE,
    MODEL_NAME,
    SHIFT_SCALE,
    Significance,
    View,
    ViewCorrector,
    ViewsConfig,
    anchors,
    pose_of,
    pose_tensor,
    view_networks,
)

TRAINING_SEED, TUNING_SEED = 140_000, 60_000
OTHER_THINGS = Looks(share=1.0, other_light=0.0)
UNCHANGED_SHARE = 0.999
"""Of unchanged images so many are left as they are."""


@dataclass(frozen=True)
class Changes:
    """How images are changed in training: uniform between plus and minus, except where said."""

    shift: float = parameter(14.0, "Displacement right and down.", unit="px", minimum=0.0)
    turn: float = parameter(0.12, "Rotation about the image's centre.", unit="rad", minimum=0.0)
    zoom: float = parameter(0.12, "Logarithm of the magnification.", minimum=0.0)
    bend: float = parameter(
        1.2,
        "Standard deviation of each of the four points' own displacement.",
        unit="px",
        minimum=0.0,
    )
    darker: float = parameter(-0.9, "Least logarithm of the brightness's factor.", maximum=0.0)
    brighter: float = parameter(0.5, "Greatest logarithm of it.", minimum=0.0)
    tint: float = parameter(0.15, "Logarithm of each channel's own factor.", minimum=0.0)
    noise: float = parameter(
        3.0, "Standard deviation of the pixels' noise, grey levels.", minimum=0.0
    )
    small_share: float = parameter(
        0.3, "Share of images changed a tenth as much.", minimum=0.0, maximum=1.0
    )
    unchanged_share: float = parameter(
        0.1, "Share of images not changed at all.", minimum=0.0, maximum=1.0
    )

    def draw(self, rng: np.random.Generator, size: int) -> View:
        """A change of images of ``size`` pixels."""
        chance = rng.random()
        moves = float(chance > self.unchanged_share)
        if chance < self.unchanged_share + self.small_share:
            moves *= 0.1
        points = anchors(size)
        centre = points.mean(axis=0)
        turn = moves * rng.uniform(-self.turn, self.turn)
        zoom = np.exp(moves * rng.uniform(-self.zoom, self.zoom))
        cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
        moved = (points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre - points
        moved += moves * rng.uniform(-self.shift, self.shift, 2)
        moved += moves * self.bend * rng.standard_normal((4, 2))
        # Light changes on its own account: an unmoved camera sees it, too.
        lights = rng.choice([0.0, 0.1, 1.0], p=[0.1, 0.3, 0.6])
        gain = lights * (
            rng.uniform(self.darker, self.brighter) + rng.uniform(-self.tint, self.tint, 3)
        )
        return View(moved, gain, size)


@dataclass(frozen=True)
class ViewSamples:
    """Images of N observations as the training loop draws them.

    Attributes:
        images: camera to (N, S, S, 3) uint8.
        poses: (N, 10) what the networks know of the arm.
        changes: how they are changed.
    """

    images: dict[str, NDArray[np.uint8]]
    poses: Tensor
    changes: Changes

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Changed images and how they were changed; the same each time when ``rng`` is None."""
        batch = {"pose": self.poses[torch.from_numpy(indices)]}
        for number, (camera, images) in enumerate(self.images.items()):
            changed, targets = [], []
            for index in indices:
                source = rng or np.random.default_rng([number, int(index)])
                view = self.changes.draw(source, images.shape[1])
                image = view.applied(images[index]).astype(np.float32)
                image += self.changes.noise * source.standard_normal(image.shape, np.float32)
                changed.append(np.clip(image, 0.0, 255.0).astype(np.uint8))
                targets.append(
                    np.concatenate([view.moved.ravel() / SHIFT_SCALE, view.log_gain / GAIN_SCALE])
                )
            batch[camera] = torch.from_numpy(np.stack(changed))
            batch[f"{camera} view"] = torch.from_numpy(np.stack(targets).astype(np.float32))
        return batch

    @classmethod
    def read(
        cls, episodes: EpisodeSet, config: ViewsConfig, per_episode: int, changes: Changes
    ) -> ViewSamples:
        """Evenly spaced observations of every episode.

        Raises:
            ConfigurationError: an episode lacks a camera, or its images have another size.
        """
        size = (config.image_size, config.image_size)
        for camera in config.cameras:
            if episodes.cameras.get(camera) != size:
                raise ConfigurationError(
                    f"episodes of {episodes.name}: camera '{camera}' must have images of {size}, "
                    f"got {episodes.cameras.get(camera)}"
                )
        images: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in config.cameras}
        poses = []
        for episode in episodes:
            steps = np.unique(np.linspace(0, len(episode) - 1, per_episode).astype(int))
            for camera in config.cameras:
                images[camera].append(episode.images[camera][steps])
            poses += [pose_of(episode.observation(int(step))) for step in steps]
        joined = {camera: np.concatenate(parts) for camera, parts in images.items()}
        return cls(joined, torch.stack(poses), changes)

    @classmethod
    def rendered(cls, frames: Frames, changes: Changes) -> ViewSamples:
        """Frames of the simulator; whatever they show counts as the view of training."""
        poses = pose_tensor(
            torch.from_numpy(frames.ee_position),
            torch.from_numpy(frames.ee_quaternion),
            torch.from_numpy(frames.gripper),
        )
        return cls({"agent": frames.agent, "wrist": frames.wrist}, poses, changes)

    def joined(self, other: ViewSamples) -> ViewSamples:
        """These and then the other's, changed as these are."""
        images = {
            camera: np.concatenate([own, other.images[camera]])
            for camera, own in self.images.items()
        }
        return ViewSamples(images, torch.cat([self.poses, other.poses]), self.changes)


def view_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Laplace likelihood of the changes, so that each also says how sure it is."""
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=batch["pose"].device)
    for camera, network in module.items():  # type: ignore[operator]
        found, log_error = network(normalise_images(batch[camera]), batch["pose"])
        with torch.autocast(found.device.type, enabled=False):
            log_error = log_error.float()
            error = (found.float() - batch[f"{camera} view"]).abs()
            total = total + (error * torch.exp(-log_error) + log_error).mean()
        parts[f"{camera}_pixels"] = SHIFT_SCALE * error[:, :8].mean()
        parts[f"{camera}_gain"] = GAIN_SCALE * error[:, 8:].mean()
    return {"loss": total, **parts}


def least_changes(corrector: ViewCorrector, samples: ViewSamples) -> dict[str, Significance]:
    """By camera, what :data:`UNCHANGED_SHARE` of unchanged images stay below."""
    least = {}
    for camera, images in samples.images.items():
        views = [
            corrector.look(camera, image, pose)
            for image, pose in zip(images, samples.poses, strict=True)
        ]
        shifts = [view.shift for view in views]
        gains = [float(np.abs(view.log_gain).max()) for view in views]
        shift, gain = (float(np.quantile(x, UNCHANGED_SHARE)) for x in (shifts, gains))
        least[camera] = Significance(round(shift, 4), round(gain, 4))
    return least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--episodes",
        type=Path,
        nargs="+",
        default=[Path("data/demos"), Path("data/rollouts")],
        help="recorded episodes",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the changes: {', '.join(flatten(Changes()))}; may be repeated",
    )
    parser.add_argument(
        "--frames",
        type=Path,
        help="folder of rendered scenes whose things look other while their light stays, made "
        "where missing: a dark table is no dim light; default none",
    )
    parser.add_argument("--count", type=COUNT, default=4000, help="frames rendered for training")
    parser.add_argument("--per-episode", type=COUNT, default=16, help="observations of each")
    add_trainer_arguments(parser, "views", steps=5000, batch_size=64, learning_rate=2e-3)
    parser.add_argument("--output", type=Path, help="folder of the weights; default the shipped")
    executor.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read images, train, find from where on a view counts as changed, save."""
    config, changes = ViewsConfig(), build(Changes, parse_overrides(arguments.set))
    seen, unseen = EpisodeSet.open(*arguments.episodes).split(0.1)
    training, held_out = (
        ViewSamples.read(episodes, config, arguments.per_episode, changes)
        for episodes in (seen, unseen)
    )
    data: dict[str, Any] = {
        "observations": len(training),
        "episodes_sha256": seen.content_hash,
        "changes": asdict(changes),
    }
    judged = held_out
    if arguments.frames is not None:
        frames = _frames(arguments.frames, arguments.count, executor.settings_of(arguments))
        training, judged = (
            samples.joined(ViewSamples.rendered(rendered, changes))
            for samples, rendered in zip((training, held_out), frames, strict=True)
        )
        data |= {"rendered_frames": len(frames[0]), "looks": asdict(OTHER_THINGS)}
    networks = initialised(arguments.seed, lambda: view_networks(config))
    networks = networks.to(memory_format=torch.channels_last)
    parameters = trainer_parameters(arguments)
    result = train(
        networks,
        view_loss,
        training,
        judged,
        parameters,
        arguments.work,
        title="views",
        identity=data | {"architecture": config.to_card()},
    )
    networks = networks.to(memory_format=torch.contiguous_format)
    least = least_changes(ViewCorrector(networks, config, {}), held_out)
    save_model(
        (arguments.output or models_directory()) / MODEL_NAME,
        networks.state_dict(),
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=data,
            metrics={
                "held_out": {name: round(v, 5) for name, v in result.metrics.items()},
                "steps": result.steps,
                "best_step": result.best_step,
            },
            least={camera: asdict(value) for camera, value in least.items()},
        ),
        half=True,
    )
    for camera, value in least.items():
        print(
            f"views: camera '{camera}' counts as moved from {value.shift:.2f} pixels, its light "
            f"as changed from {100.0 * np.expm1(value.gain):.1f} %"
        )
    return 0


def _frames(
    folder: Path, count: int, engine: executor.EngineSettings | None
) -> tuple[Frames, Frames]:
    """Frames for training and held-out ones; those that are missing are rendered."""
    held_out_count = max(1, count // 12)
    make_frames(folder / "train", count, TRAINING_SEED, OTHER_THINGS, engine)
    make_frames(folder / "held_out", held_out_count, TUNING_SEED, OTHER_THINGS, engine)
    return Frames.load(folder / "train"), Frames.load(folder / "held_out")
