"""Train the image encoder: find the objects in labelled frames.

The frames are rendered by :mod:`vla_reasoner_ros.training.frames`; frames of branched decisions and
of recorded episodes are mixed in where folders of them are given, because that is what it will see.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros import executor
from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.parameter_text import parse_overrides
from vla_reasoner_ros.parameters import build, flatten
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.appearance import Looks
from vla_reasoner_ros.training.branches import Branches, branch_files, branches_hash
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.distributed import first_alone
from vla_reasoner_ros.training.frames import (
    SHARD,
    Frames,
    FrameSource,
    make_frames,
    project,
    upright,
)
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.trainer import Batch, train
from vla_reasoner_ros.weights import load_into, load_model, save_model
from vla_reasoner_ros.world_models.encoder import (
    MODEL_NAME,
    Detection,
    Encoder,
    EncoderConfig,
    EncoderNetwork,
    LatentLayout,
    Sighting,
    arm_latents,
    fold_batch_norms,
    normalise_images,
)
from vla_reasoner_ros.world_models.vision import FrozenVision

TRAINING_SEED = 100_000
TUNING_SEED = 50_000
COLOUR_JITTER = 0.06
"""Standard deviation of the gain of each colour channel in training."""
FALLEN = 0.01
"""How far below the table's top an object is when it is off the table, m."""


@dataclass(frozen=True)
class FrameSamples:
    """Frames as the training loop draws them."""

    frames: Frames
    layout: LatentLayout

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Images, arm and labels of some frames; colours jittered when ``rng`` is given."""
        frames, layout = self.frames, self.layout
        blocks = layout.blocks
        yaw, up = upright(frames.rotations[indices])
        arm = arm_latents(
            torch.from_numpy(frames.ee_position[indices]),
            torch.from_numpy(frames.ee_quaternion[indices]),
            torch.from_numpy(frames.gripper[indices]),
            torch.zeros(len(indices), layout.joints),
        )
        gain = np.ones((2, len(indices), 3))
        if rng is not None:
            gain = rng.normal(1.0, COLOUR_JITTER, gain.shape)
        return {
            "agent": torch.from_numpy(frames.agent[indices]),
            "wrist": torch.from_numpy(frames.wrist[indices]),
            "gain": torch.from_numpy(gain.astype(np.float32)),
            "arm": arm,
            "positions": torch.from_numpy(frames.positions[indices]),
            "yaw": torch.from_numpy(yaw[:, :blocks]),
            "up": torch.from_numpy(np.where(np.arange(up.shape[1]) < blocks, up, 1.0)).float(),
            "held": torch.from_numpy(frames.held[indices].astype(np.float32)),
            "agent_points": torch.from_numpy(frames.agent_points[indices]),
            "wrist_points": torch.from_numpy(frames.wrist_points[indices]),
        }


def sighting_loss(sighting: Sighting, points: Tensor) -> Tensor:
    """Cross-entropy of the heat maps plus the distance of their means from the true points.

    Args:
        sighting: what a tower saw.
        points: (B, K, 2) true image positions -1..1, NaN when not in view.
    """
    cells = round((sighting.logits.shape[-1] - 1) ** 0.5)
    log_heat = sighting.logits.log_softmax(dim=-1)
    seen = torch.isfinite(points).all(dim=-1)
    # The target is spread over the four cells around the point so that its mean is the point.
    place = ((torch.nan_to_num(points) + 1.0) * cells / 2.0 - 0.5).clamp(0.0, cells - 1.001)
    corner = place.floor()
    share = place - corner
    found = torch.zeros_like(log_heat[..., 0])
    for right in (0, 1):
        for down in (0, 1):
            index = (corner[..., 1] + down) * cells + corner[..., 0] + right
            weight = (share[..., 0] if right else 1.0 - share[..., 0]) * (
                share[..., 1] if down else 1.0 - share[..., 1]
            )
            found = found + weight * log_heat.gather(-1, index.long()[..., None])[..., 0]
    entropy = -torch.where(seen, found, log_heat[..., -1]).mean()
    distance = (sighting.points - torch.nan_to_num(points)).abs().sum(-1)
    return entropy + 10.0 * (distance * seen).mean()


def encoder_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The objective; errors are in metres."""
    images = [
        normalise_images(batch[camera]) * batch["gain"][index][:, :, None, None]
        for index, camera in enumerate(("agent", "wrist"))
    ]
    detection: Detection = module(*images, batch["arm"])
    errors = (detection.positions - batch["positions"]).norm(dim=-1)
    # Near zero a smooth parabola, afar the distance itself: centimetres count, outliers do not.
    position = ((errors / 0.01).square() + 0.04).sqrt().mean()
    confidence = (detection.log_errors - (errors.detach() + 3e-4).log()).abs().mean()
    flat = (batch["up"][:, : detection.yaw.shape[1]] > 0.95).float()[..., None]
    yaw = ((detection.yaw - batch["yaw"]).square() * flat).mean()
    up = (detection.up - batch["up"]).abs().mean()
    held = functional.binary_cross_entropy_with_logits(detection.held_logits, batch["held"])
    agent = sighting_loss(detection.agent, batch["agent_points"])
    wrist = sighting_loss(detection.wrist, batch["wrist_points"])
    loss = agent + 0.5 * wrist + position + 0.2 * confidence + yaw + 2.0 * up + held
    blocks = errors[:, : detection.yaw.shape[1]]
    wrong = ((detection.held_logits > 0.0) != (batch["held"] > 0.5)).float().mean()
    return {
        "loss": loss,
        "median_m": errors.median(),
        "mean_m": errors.mean(),
        "blocks_m": blocks.mean(),
        "agent": agent,
        "yaw": yaw,
        "held_wrong": wrong,
    }


def judge(encoder: Encoder, frames: Frames) -> dict[str, float]:
    """Errors of an encoder on frames: per object kind, while held, and of its flags."""
    samples = FrameSamples(frames, encoder.layout)
    blocks = encoder.layout.blocks
    errors, held, wrong = [], [], []
    for start in range(0, len(frames), 64):
        batch = samples.batch(np.arange(start, min(start + 64, len(frames))), None)
        latents = encoder.encode_arrays(batch["agent"], batch["wrist"], batch["arm"])
        found = encoder.layout.get(latents, "object_position")
        errors.append((found - batch["positions"]).norm(dim=-1))
        held.append(batch["held"] > 0.5)
        wrong.append((encoder.layout.get(latents, "block_held") > 0.5) != held[-1])
    error, is_held = torch.cat(errors), torch.cat(held)
    block_error = error[:, :blocks]
    measures = {
        "object_error_median_m": error.median(),
        "object_error_90_percent_m": error.quantile(0.9),
        "block_error_median_m": block_error.median(),
        "target_error_median_m": error[:, blocks:].median(),
        "held_flag_wrong": torch.cat(wrong).float().mean(),
    }
    if is_held.any():
        measures["held_block_error_median_m"] = block_error[is_held].median()
    return {name: round(float(value), 5) for name, value in measures.items()}


def episode_frames(episodes: EpisodeSet, layout: LatentLayout, every: int) -> Frames:
    """Every so manieth step of every episode, labelled from the recorded poses."""
    source = FrameSource(layout)
    try:
        return Frames.join(
            [
                source.label_episode(episode, np.arange(i % every, len(episode), every))
                for i, episode in enumerate(episodes)
                if len(episode) > i % every
            ]
        )
    finally:
        source.close()


def outcome_frames(branches: Branches, world: World, each: int, rng: np.random.Generator) -> Frames:
    """Labelled frames of some outcomes of every decision: what the encoder will be asked about.

    Outcomes in which something has fallen off the table are left out.

    Args:
        branches: recorded decisions.
        world: of the same scene; its state is overwritten.
        each: outcomes per decision.
        rng: picks them.
    """
    decisions = np.repeat(np.arange(len(branches)), each)
    chosen = rng.integers(0, branches.actions.shape[1], len(decisions))
    on_table = (branches.outcome_positions[decisions, chosen, 0, :, 2] > -FALLEN).all(axis=-1)
    decisions, chosen = decisions[on_table], chosen[on_table]
    points: dict[str, list[NDArray]] = {"agent": [], "wrist": []}
    for decision, candidate in zip(decisions, chosen, strict=True):
        world.set_state(branches.outcome_state[decision, candidate, 0])
        for camera, rows in points.items():
            places = branches.outcome_positions[decision, candidate, 0]
            rows.append(project(world.model, world.data, camera, places))
    labels = {
        name: getattr(branches, f"outcome_{name}")[decisions, chosen, 0]
        for name in ("ee_position", "ee_quaternion", "gripper", "positions", "rotations", "held")
    }
    shape = len(decisions), branches.positions.shape[1], 2
    return Frames(
        agent=branches.outcome_agent[decisions, chosen],
        wrist=branches.outcome_wrist[decisions, chosen],
        agent_points=np.array(points["agent"], dtype=np.float32).reshape(shape),
        wrist_points=np.array(points["wrist"], dtype=np.float32).reshape(shape),
        **labels,
    )


def decision_frames(folders: Sequence[Path], each: int) -> Frames:
    """Some outcomes of every branched decision in some folders."""
    world = World()
    try:
        return Frames.join(
            [
                outcome_frames(Branches.load(path), world, each, np.random.default_rng(i))
                for i, path in enumerate(p for folder in folders for p in branch_files(folder))
            ]
        )
    finally:
        world.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--frames", type=Path, default=Path("data/frames"), help="frames' folder")
    parser.add_argument("--count", type=COUNT, default=24_000, help="frames rendered for training")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the looks of rendered frames: {', '.join(flatten(Looks()))}; may be repeated",
    )
    parser.add_argument(
        "--branches", type=Path, nargs="+", default=[], help="branched decisions to mix in, folders"
    )
    parser.add_argument("--each", type=COUNT, default=4, help="outcomes per decision")
    parser.add_argument("--episodes", type=Path, nargs="*", default=[], help="recorded episodes")
    parser.add_argument("--every", type=COUNT, default=5, help="steps between frames of an episode")
    parser.add_argument("--initial", type=Path, help="folder of an encoder to start from")
    parser.add_argument(
        "--vision",
        default="",
        help="look at the patches of a frozen DINOv2 or V-JEPA 2: a folder, or a name on the hub",
    )
    parser.add_argument(
        "--vision-size", type=COUNT, default=224, help="side that its pictures are enlarged to"
    )
    add_trainer_arguments(parser, "encoder", steps=6000, batch_size=64, learning_rate=2e-3)
    parser.add_argument("--output", type=Path, help="folder of the weights; default the shipped")
    executor.add_arguments(parser)
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Render what is missing, train, judge on held-out frames, save."""
    vision = FrozenVision(arguments.vision, arguments.vision_size) if arguments.vision else None
    config = EncoderConfig(vision=None if vision is None else vision.settings)
    with first_alone():
        training, held_out, data = _frames(arguments, config)
    network = initialised(arguments.seed, lambda: EncoderNetwork(config, vision))
    if arguments.initial is not None:
        tensors, card = load_model(arguments.initial / MODEL_NAME, MODEL_NAME)
        load_into(network, tensors, MODEL_NAME)
        data["initial"] = card["tensors_sha256"]
    network.to(memory_format=torch.channels_last)
    parameters = trainer_parameters(arguments)
    result = train(
        network,
        encoder_loss,
        FrameSamples(Frames.join(training), config.layout),
        FrameSamples(Frames.join(list(held_out.values())), config.layout),
        parameters,
        arguments.work,
        title="encoder",
        identity=data | {"architecture": config.to_card()},
    )
    # Folding changes the network in place, so what is saved is copied first.
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    encoder = Encoder(fold_batch_norms(network), "")
    metrics = {name: judge(encoder, frames) for name, frames in held_out.items()}
    save_model(
        (arguments.output or models_directory()) / MODEL_NAME,
        tensors,
        training_card(
            MODEL_NAME,
            config.to_card(),
            arguments,
            data=data,
            metrics={"held_out": metrics, "steps": result.steps, "best_step": result.best_step},
        ),
        half=True,
    )
    for name, measures in metrics.items():
        print(f"encoder on {name}: {measures}")
    return 0


def _frames(
    arguments: argparse.Namespace, config: EncoderConfig
) -> tuple[list[Frames], dict[str, Frames], dict[str, Any]]:
    """Training frames, held-out frames by kind, and what the card says of them."""
    parts = {part: [f / part for f in arguments.branches] for part in ("train", "held_out")}
    for folder in parts["train"] + parts["held_out"]:
        branch_files(folder)  # said before minutes of rendering
    recorded = recordings_of(arguments, arguments.episodes) if arguments.episodes else None
    held_out_count = max(min(SHARD, arguments.count), arguments.count // 12)
    engine = executor.settings_of(arguments)
    looks = build(Looks, parse_overrides(arguments.set))
    make_frames(arguments.frames / "train", arguments.count, TRAINING_SEED, looks, engine)
    training = [Frames.load(arguments.frames / "train")]
    held_out = {}
    for name, share in (("random", 0.0), ("other looks", 1.0)):
        folder = arguments.frames / f"held_out_{name.replace(' ', '_')}"
        of_all = replace(looks, share=share)
        make_frames(folder, held_out_count, TUNING_SEED, of_all, engine)
        held_out[name] = Frames.load(folder)
    data: dict[str, Any] = {
        "random_frames": len(training[0]),
        "seed_of_first_shard": TRAINING_SEED,
        "looks": asdict(looks),
    }
    if arguments.branches:
        training.append(decision_frames(parts["train"], arguments.each))
        held_out["outcomes"] = decision_frames(parts["held_out"], 2)
        data["outcome_frames"] = len(training[-1])
        data["branches_sha256"] = branches_hash(arguments.branches)
    if recorded is not None:
        seen, unseen = recorded.split(0.1)
        training.append(episode_frames(seen, config.layout, arguments.every))
        held_out["episodes"] = episode_frames(unseen, config.layout, arguments.every)
        data |= {"episode_frames": len(training[-1]), "episodes_sha256": seen.content_hash}
    return training, held_out, data
