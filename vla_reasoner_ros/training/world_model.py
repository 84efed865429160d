"""Train the latent dynamics on branched decisions and recorded episodes.

Each sample starts from an encoded latent and follows several macro-actions; the targets are what
truly moved, added to where the encoder saw it, so that the network learns motion and not the
encoder's errors. Imagining on from what was imagined keeps later steps consistent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim.world import ACTION_SPEC
from vla_reasoner_ros.training.branches import MACRO_STEPS, branches_hash
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.distributed import first_alone
from vla_reasoner_ros.training.latents import (
    BranchLatents,
    EpisodeLatents,
    Float32,
    load_branches,
    load_episodes,
)
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.trainer import Batch, train, training_device
from vla_reasoner_ros.weights import save_model
from vla_reasoner_ros.world_models.encoder import Encoder, LatentLayout
from vla_reasoner_ros.world_models.latent import (
    MODEL_NAME,
    DynamicsConfig,
    DynamicsNetwork,
)

HELD_OUT = 0.1
"""Share of the episodes that is not learned from."""
MOVED = 0.002
"""A displacement in one macro-action from which an object counts as moved, m."""
NEAR_MISS = 0.035
"""Distance of a block from the fingers at which it is held or nearly so, m."""
TOUCHED_WEIGHT = 6.0
"""How much more the position of a moved object counts than that of one that stays."""


@dataclass(frozen=True)
class Sequences:
    """S sequences of H macro-actions.

    Attributes:
        start: (S, Z) encoded latent at the start.
        actions: (S, H, M, 7), SI units.
        true: (S, H + 1, Z) latents of the true states, the start's first.
    """

    start: Float32
    actions: Float32
    true: Float32

    def __len__(self) -> int:
        return len(self.start)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Some sequences."""
        return {
            name: torch.from_numpy(getattr(self, name)[indices])
            for name in ("start", "actions", "true")
        }

    @classmethod
    def join(cls, parts: list[Sequences]) -> Sequences:
        """Put several sets of one length together."""
        return cls(
            *[np.concatenate([getattr(p, n) for p in parts]) for n in ("start", "actions", "true")]
        )


def from_branches(branches: BranchLatents) -> Sequences:
    """One sequence per candidate."""
    candidates = branches.actions.shape[1]

    def repeated(rows: Float32) -> Float32:
        return np.repeat(rows, candidates, axis=0)

    return Sequences(
        start=repeated(branches.root),
        actions=branches.actions.reshape(-1, *branches.actions.shape[2:]),
        true=np.concatenate(
            [
                repeated(branches.true_root)[:, None],
                branches.true_outcomes.reshape(-1, *branches.true_outcomes.shape[2:]),
            ],
            axis=1,
        ),
    )


def from_episodes(episodes: list[EpisodeLatents], horizons: int, every: int = 2) -> Sequences:
    """Windows of recorded episodes that begin every so many steps.

    Raises:
        ConfigurationError: no episode is long enough for one.
    """
    span = horizons * MACRO_STEPS
    starts, actions, true = [], [], []
    for episode in episodes:
        for step in range(0, len(episode) - span, every):
            starts.append(episode.encoded[step])
            actions.append(episode.actions[step : step + span].reshape(horizons, MACRO_STEPS, -1))
            true.append(episode.true[step : step + span + 1 : MACRO_STEPS])
    if not starts:
        raise ConfigurationError(
            f"episodes: expected one of at least {span + 1} steps, as long as the branched "
            f"decisions look ahead; the longest of {len(episodes)} has {max(map(len, episodes))}"
        )
    return Sequences(np.stack(starts), np.stack(actions), np.stack(true))


def dynamics_loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Arm, objects and contacts after each macro-action; positions in metres."""
    layout: LatentLayout = module.config.layout  # type: ignore[union-attr,assignment]
    latents, true = batch["start"], batch["true"]
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=latents.device)
    # Where the encoder saw each object against where it was: kept along the sequence.
    seen = layout.get(latents, "object_position") - layout.get(true[:, 0], "object_position")
    for step in range(batch["actions"].shape[1]):
        before, after = true[:, step], true[:, step + 1]
        with torch.autocast(latents.device.type, enabled=False):
            imagined = module(latents, batch["actions"][:, step])
        latents = imagined.latents
        terms = _step_terms(layout, imagined.latents, imagined.contact_logits, before, after, seen)
        total = total + terms["loss"] * (1.0 if step == 0 else 0.5)
        for name, value in terms.items():
            if name != "loss":
                parts[f"{name}_{step + 1}"] = value
    return {"loss": total, **parts}


def _step_terms(
    layout: LatentLayout,
    imagined: Tensor,
    contact_logits: Tensor,
    before: Tensor,
    after: Tensor,
    seen: Tensor,
) -> dict[str, Tensor]:
    blocks = layout.blocks

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return layout.get(imagined, name), layout.get(after, name)

    arm_error = (pair("ee_position")[0] - pair("ee_position")[1]).norm(dim=-1)
    turn = (pair("ee_rotation")[0] - pair("ee_rotation")[1]).norm(dim=-1)
    gripper = (pair("gripper")[0] - pair("gripper")[1]).abs().mean()
    velocity = (pair("joint_velocity")[0] - pair("joint_velocity")[1]).abs().mean()
    found, truth = pair("object_position")
    motion = (truth - layout.get(before, "object_position")).norm(dim=-1)
    moved = (motion > MOVED).float()
    error = (found - truth - seen).norm(dim=-1)
    weight = 1.0 + TOUCHED_WEIGHT * moved
    objects = (((error / 0.01).square() + 0.01).sqrt() * weight).mean()
    contact = functional.binary_cross_entropy_with_logits(
        contact_logits, moved.expand_as(contact_logits), pos_weight=contact_logits.new_tensor(2.0)
    )
    held, is_held = pair("block_held")
    # Grasps and releases are rare and decide tasks; so do near misses.
    was_held = layout.get(before, "block_held")
    close = (truth - layout.get(after, "ee_position")[..., None, :]).norm(dim=-1)[..., :blocks]
    rare = 1.0 + 4.0 * (is_held != was_held) + 3.0 * (close < NEAR_MISS)
    grasp = functional.binary_cross_entropy(
        held.clamp(1e-4, 1.0 - 1e-4), is_held.expand_as(held), weight=rare.expand_as(held)
    )
    touched = moved[..., :blocks]
    yaw, true_yaw = pair("block_yaw")
    up, true_up = pair("object_up")
    attitude = ((yaw - true_yaw).square().sum(-1) * touched).mean()
    attitude = attitude + 2.0 * ((up - true_up).abs() * moved).mean()
    doubt = (layout.get(imagined, "object_error") - (found.detach() - truth).norm(dim=-1)).abs()
    arm = ((arm_error / 0.01).square() + 0.01).sqrt().mean()
    return {
        "loss": arm
        + 3.0 * turn.mean()
        + 4.0 * gripper
        + 0.5 * velocity
        + objects
        + contact
        + grasp
        + attitude
        + 5.0 * doubt.mean(),
        "arm_m": arm_error.mean(),
        "moved_m": (error * moved).sum() / (moved.sum() * error.shape[0]).clamp_min(1.0),
        "copy_m": (motion * moved).sum() / moved.sum().clamp_min(1.0),
        "still_m": (error * (1.0 - moved)).sum()
        / ((1.0 - moved).sum() * error.shape[0]).clamp_min(1.0),
        "grasp": grasp,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--branches",
        type=Path,
        nargs="+",
        default=[Path("data/branches")],
        help="folders of branched decisions",
    )
    parser.add_argument("--episodes", type=Path, nargs="*", default=[], help="recorded episodes")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("data/latents"),
        help="folder of what the encoder made of pictures",
    )
    parser.add_argument("--models", type=Path, help="folder of encoder and result; the shipped")
    add_trainer_arguments(parser, "world_model", steps=8000, batch_size=256, samples="sequences")
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Encode what is not yet, train, save."""
    folder = arguments.models or models_directory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder = Encoder.load(folder)
    encoder.network.to(training_device())
    with first_alone():
        training, held_out, data = _sequences(arguments, encoder)
    config = DynamicsConfig(layout=encoder.layout, macro_steps=MACRO_STEPS)
    network = initialised(arguments.seed, lambda: DynamicsNetwork(config))
    parameters = trainer_parameters(arguments, bf16=False)
    result = train(
        network,
        dynamics_loss,
        training,
        held_out,
        parameters,
        arguments.work,
        title="world model",
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
            action_spec=ACTION_SPEC.to_mapping(),
        ),
        half=True,
    )
    return 0


def _sequences(
    arguments: argparse.Namespace, encoder: Encoder
) -> tuple[Sequences, Sequences, dict[str, Any]]:
    """Training sequences, held-out sequences, and what the card says of them.

    Raises:
        ConfigurationError: the episodes' actions are of another convention than the simulator's,
            in which decisions are branched and which the card names.
    """
    episodes = None
    if arguments.episodes:
        episodes, _ = recordings_of(arguments, arguments.episodes).split(HELD_OUT)
        episodes.action_spec.require_same(ACTION_SPEC, "the recording", "the simulator")
    seen, unseen = (
        load_branches([f / side for f in arguments.branches], encoder, arguments.cache)
        for side in ("train", "held_out")
    )
    training = [from_branches(seen)]
    horizons = training[0].actions.shape[1]
    data = {
        "decisions": len(seen),
        "scenes": len(np.unique(seen.scene)),
        "branches_sha256": branches_hash(arguments.branches),
    }
    if episodes is not None:
        training.append(from_episodes(load_episodes(episodes, encoder, arguments.cache), horizons))
        data |= {"episode_windows": len(training[1]), "episodes_sha256": episodes.content_hash}
    return Sequences.join(training), from_branches(unseen), data
