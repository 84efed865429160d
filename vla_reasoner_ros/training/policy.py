"""Train the small policy by behaviour cloning on recorded episodes.

The recorded answers are imitated by chunks: smooth L1 on normalised motion, cross-entropy on the
gripper. Where object poses were recorded, a linear head reads them from the same features while
training; it pulls the keypoints onto the objects and is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from vla_reasoner_ros.arguments import AMOUNT, COUNT, WHOLE
from vla_reasoner_ros.data import recordings
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Kind
from vla_reasoner_ros.data.recordings import recordings_of
from vla_reasoner_ros.data.seeds import RANGES, require_seed
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.language import SentenceEncoder, sentence_encoder
from vla_reasoner_ros.parameter_text import parse_overrides
from vla_reasoner_ros.parameters import build, flatten, parameter
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.policies.base import Policy
from vla_reasoner_ros.policies.small_vla import (
    KIND,
    NAME,
    Architecture,
    SmallVla,
    SmallVlaNetwork,
    proprioception,
)
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.cards import initialised, training_card
from vla_reasoner_ros.training.demo_data import ACTION_LIMIT, PolicyActor
from vla_reasoner_ros.training.distributed import first_alone
from vla_reasoner_ros.training.options import add_trainer_arguments, trainer_parameters
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.training.trainer import Batch, train
from vla_reasoner_ros.weights import save_model


@dataclasses.dataclass(frozen=True)
class CloningParameters:
    """What counts how much while the policy imitates."""

    gripper: float = parameter(0.3, "Weight of the gripper's cross-entropy.", minimum=0.0)
    objects: float = parameter(0.5, "Weight of the objects' positions.", minimum=0.0)
    smooth: float = parameter(
        0.1,
        "Error, in standard deviations, below which the L1 loss turns into a parabola.",
        minimum=1e-3,
    )
    least_translation: float = parameter(
        0.002, "Least scale of translations: noise is not blown up.", unit="m", minimum=1e-6
    )
    least_rotation: float = parameter(0.01, "Least scale of rotations.", unit="rad", minimum=1e-6)
    held_out: float = parameter(
        0.1,
        "Share of the episodes that decides which weights are kept.",
        minimum=0.01,
        maximum=0.9,
    )


UNRELATED = (
    "open the drawer",
    "pour water into the cup",
    "turn off the light",
    "what time is it",
    "fold the towel",
    "close the door",
    "wipe the table",
    "hand me the screwdriver",
    "put the spoon in the bowl",
    "put the apple on the plate",
    "stack the cups",
    "bring me a coffee",
    "go home",
    "push the button",
    "lift the box",
    "play some music",
    "unscrew the bottle cap",
    "place the book on the shelf",
)
"""Sentences that the policy must refuse."""
NEAR_MISSES = (
    "put the yellow block on the plate",
    "put the red block in the drawer",
    "push the red block",
)
"""Sentences of no task that lie among the known ones; what happens to them is reported."""


class ChunkSamples:
    """Every step of some episodes with the H recorded answers from there on.

    Args:
        episodes: what to learn from; kept memory-mapped.
        architecture: of the network that learns.
        encoder: turns instructions into vectors.
        shift: largest random shift of an image, pixels.
        jitter: standard deviation of random gain and offset of colours, share of the full range.
    """

    def __init__(
        self,
        episodes: EpisodeSet,
        architecture: Architecture,
        encoder: SentenceEncoder,
        shift: int = 1,
        jitter: float = 0.05,
    ) -> None:
        self._images = [[episode.images[c] for c in architecture.cameras] for episode in episodes]
        self._shift = shift
        self._jitter = jitter
        lengths = [len(episode) for episode in episodes]
        self._episode = np.repeat(np.arange(len(lengths)), lengths)
        self._step = np.concatenate([np.arange(length) for length in lengths])
        horizon, spec = architecture.horizon, episodes.action_spec
        gripper = spec.gripper
        assert gripper is not None  # checked with the architecture
        motion, opened, valid, state, objects = [], [], [], [], []
        for episode in episodes:
            ahead = np.arange(len(episode))[:, None] + np.arange(horizon)
            actions = episode.actions[np.minimum(ahead, len(episode) - 1)]
            motion.append(actions[..., spec.motion_indices])
            opened.append(actions[..., gripper.index] == gripper.open)
            valid.append(ahead < len(episode))
            state.append(
                proprioception(episode["ee_position"], episode["ee_quaternion"], episode["gripper"])
            )
            objects.append(episode["object_poses"][..., :3])
        self.motion = np.concatenate(motion)
        self.opened = np.concatenate(opened).astype(np.float32)
        self.valid = np.concatenate(valid)
        self.proprioception = np.concatenate(state)
        self.objects = np.concatenate(objects).astype(np.float32)
        self._sentence = np.stack([encoder.encode(e.meta.instruction) for e in episodes])
        self._paraphrases = [encoder.encode_all(paraphrases(e.meta)) for e in episodes]

    def __len__(self) -> int:
        return len(self._step)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See :class:`~vla_reasoner_ros.training.trainer.Samples`."""
        images = torch.from_numpy(np.stack([self._seen(i, rng) for i in indices]))
        if rng is not None:
            each = (*images.shape[:2], 1, 1, 3)
            gain = torch.from_numpy(rng.normal(1.0, self._jitter, each)).float()
            offset = torch.from_numpy(rng.normal(0.0, 255.0 * self._jitter, each)).float()
            images = (images * gain + offset).clamp_(0.0, 255.0)
        sentences = np.stack([self._said(self._episode[i], rng) for i in indices])
        arrays = {
            "sentence": sentences,
            "proprioception": self.proprioception[indices],
            "motion": self.motion[indices],
            "opened": self.opened[indices],
            "valid": self.valid[indices],
            "objects": self.objects[indices],
        }
        return {"images": images} | {name: torch.from_numpy(a) for name, a in arrays.items()}

    def _seen(self, index: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """(cameras, H, W, 3) images of a sample, each shifted when ``rng`` is given."""
        cameras = [images[self._step[index]] for images in self._images[self._episode[index]]]
        if rng is not None and self._shift:
            cameras = [self._moved(image, rng) for image in cameras]
        return np.stack(cameras)

    def _moved(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        down, right = rng.integers(-self._shift, self._shift + 1, 2)
        rows = np.clip(np.arange(image.shape[0]) + down, 0, image.shape[0] - 1)
        columns = np.clip(np.arange(image.shape[1]) + right, 0, image.shape[1] - 1)
        return image.take(rows, axis=0).take(columns, axis=1)

    def _said(self, episode: int, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """The instruction's vector, or a random mixture of the task's paraphrases.

        Mixtures cover the space between the few paraphrases, where unseen ones lie.
        """
        if rng is None:
            return self._sentence[episode]
        known = self._paraphrases[episode]
        mixed = rng.dirichlet(np.full(len(known), 0.3)) @ known
        mixed = mixed + rng.normal(0.0, 0.01, mixed.shape)
        return (mixed / np.linalg.norm(mixed)).astype(np.float32)


class Cloning(nn.Module):
    """The policy's network and, while it trains, the head that reads object positions."""

    objects_mean: torch.Tensor
    objects_scale: torch.Tensor

    def __init__(
        self, architecture: Architecture, objects: int, parameters: CloningParameters
    ) -> None:
        super().__init__()
        self.weights = parameters
        self.network = SmallVlaNetwork(architecture)
        self.objects = nn.Linear(self.network.feature_dimensions, 3 * objects) if objects else None
        self.register_buffer("objects_mean", torch.zeros(objects, 3))
        self.register_buffer("objects_scale", torch.ones(objects, 3))

    @torch.no_grad()
    def normalise(self, samples: ChunkSamples) -> None:
        """Set means and scales from the training data."""
        network = self.network
        motion = samples.motion[samples.valid]
        least = np.repeat([self.weights.least_translation, self.weights.least_rotation], 3)
        state = samples.proprioception
        for buffer, value in (
            (network.motion_mean, motion.mean(axis=0)),
            (network.motion_scale, np.maximum(motion.std(axis=0), least)),
            (network.proprioception_mean, state.mean(axis=0)),
            (network.proprioception_scale, np.maximum(state.std(axis=0), 0.01)),
            (self.objects_mean, samples.objects.mean(axis=0)),
            (self.objects_scale, np.maximum(samples.objects.std(axis=0), 0.02)),
        ):
            buffer.copy_(torch.from_numpy(np.asarray(value)))


def cloning_loss(module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The objective of :func:`~vla_reasoner_ros.training.trainer.train`."""
    assert isinstance(module, Cloning)
    network, weights = module.network, module.weights
    features = network.features(batch["images"], batch["sentence"], batch["proprioception"])
    motion, logits = network.act(features)
    wanted = (batch["motion"] - network.motion_mean) / network.motion_scale
    valid = batch["valid"].float()
    count = valid.sum()
    errors = F.smooth_l1_loss(motion.float(), wanted, reduction="none", beta=weights.smooth)
    gripper = F.binary_cross_entropy_with_logits(logits.float(), batch["opened"], reduction="none")
    parts = {
        "motion": (errors.mean(dim=-1) * valid).sum() / count,
        "gripper": (gripper * valid).sum() / count,
    }
    loss = parts["motion"] + weights.gripper * parts["gripper"]
    if module.objects is not None:
        places = module.objects(features).float().view_as(batch["objects"])
        goal = (batch["objects"] - module.objects_mean) / module.objects_scale
        parts["objects"] = F.smooth_l1_loss(places, goal, beta=weights.smooth)
        distance = ((places - goal) * module.objects_scale).norm(dim=-1)
        parts["objects_cm"] = 100.0 * distance.mean()
        loss = loss + weights.objects * parts["objects"]
    wrong = ((logits > 0.0) != (batch["opened"] > 0.5)).float()
    return {"loss": loss, **parts, "gripper_wrong": (wrong * valid).sum() / count}


def paraphrases(meta: Any) -> Sequence[str]:
    """The instructions that mean the same as an episode's."""
    task = TASKS.get(meta.task)
    return task.instructions if task is not None else (meta.instruction,)


def instruction_card(episodes: EpisodeSet, encoder: SentenceEncoder) -> dict[str, Any]:
    """Which instructions the policy knows, and from which cosine on another one is taken for known.

    The threshold lies halfway between the least of the held-out paraphrases and the most of the
    unrelated sentences.

    Returns:
        The card's ``instructions``: ``known``, ``threshold`` and the margins it was chosen by.

    Raises:
        ConfigurationError: no threshold separates the two.
    """
    known = sorted({text for e in episodes for text in (*paraphrases(e.meta), e.meta.instruction)})
    vectors = encoder.encode_all(known)

    def nearest(text: str) -> float:
        return float((vectors @ encoder.encode(text)).max())

    tasks = sorted({e.meta.task for e in episodes} & TASKS.keys())
    held_out = {text: nearest(text) for name in tasks for text in TASKS[name].held_out}
    unrelated = {text: nearest(text) for text in UNRELATED}
    least = min(held_out.values(), default=1.0)
    most = max(unrelated.values())
    if most >= least:
        raise ConfigurationError(
            f"instructions: an unrelated sentence is nearer (cosine {most:.3f}) than a held-out "
            f"paraphrase ({least:.3f}); no threshold separates them"
        )
    return {
        "known": known,
        "threshold": round((least + most) / 2.0, 4),
        "least_held_out_paraphrase": round(least, 4),
        "most_unrelated": round(most, 4),
        "near_misses": {text: round(nearest(text), 4) for text in NEAR_MISSES},
    }


def closed_loop(
    policy: Policy, episodes: int, first_seed: int, execute: int, held_out: bool = False
) -> dict[str, str]:
    """Let the policy act in the simulator.

    Args:
        policy: the policy.
        episodes: how many; the tasks take turns.
        first_seed: of the first episode; the others follow.
        execute: actions executed of each chunk.
        held_out: use instructions that were kept out of training.

    Returns:
        Task, and ``all``, to "successes of episodes".
    """
    counts = {name: [0, 0] for name in TASKS}
    progress = Progress("closed loop" + held_out * ", held out", episodes, "episodes")
    world = World()
    for index in range(episodes):
        task = list(TASKS)[index % len(TASKS)]
        world.reset(task, require_seed(first_seed + index, "tuning"), held_out)
        actor = PolicyActor(policy, execute)
        steps = 0
        while steps < ACTION_LIMIT and not world.success():
            _, action = actor.act(world.observation())
            world.apply(action)
            steps += 1
        counts[task][0] += world.success()
        counts[task][1] += 1
        solved = sum(row[0] for row in counts.values())
        progress.update(index + 1, f"{solved} solved")
    world.close()
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {name: f"{solved} of {count}" for name, (solved, count) in counts.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[Path("data/demos")], help="folders of episodes"
    )
    parser.add_argument(
        "--episodes", type=WHOLE, default=0, help="learn from this many of them only; 0 is all"
    )
    parser.add_argument("--output", type=Path, help="path without suffix; default the shipped")
    parser.add_argument(
        "--control-frame", default="fr3_hand_tcp", help="the link that the actions move"
    )
    add_trainer_arguments(
        parser, "policy", steps=2500, batch_size=64, evaluate_every=250, threads=2
    )
    parser.add_argument(
        "--patience", type=COUNT, default=5, help="evaluations without progress after which it ends"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of what counts how much: {', '.join(flatten(CloningParameters()))}; may be repeated",
    )
    parser.add_argument("--shift", type=WHOLE, default=1, choices=range(5), help="pixels")
    parser.add_argument("--jitter", type=AMOUNT, default=0.05, help="of colours")
    parser.add_argument(
        "--closed-loop", type=WHOLE, default=60, help="episodes that the trained policy tries"
    )
    parser.add_argument("--execute", type=COUNT, default=4, help="actions executed of each chunk")
    recordings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train on the successes of the expert and the disturbed expert, save the best weights."""
    cloning = build(CloningParameters, parse_overrides(arguments.set))
    with first_alone():
        episodes = recordings_of(arguments, arguments.data)
    episodes = episodes.where(kind=(Kind.EXPERT, Kind.NOISY_EXPERT), success=True)
    available = len(episodes)
    if arguments.episodes:
        # Every so manieth keeps tasks and kinds in proportion.
        keep = np.linspace(0, len(episodes) - 1, min(arguments.episodes, len(episodes)))
        episodes = EpisodeSet([episodes[int(i)] for i in keep], episodes.name)
    encoder = sentence_encoder()
    instructions = instruction_card(episodes, encoder)
    training, held_out = episodes.split(cloning.held_out)
    architecture = _architecture(episodes)
    augmentation = {"shift": arguments.shift, "jitter": arguments.jitter}
    samples = ChunkSamples(training, architecture, encoder, **augmentation)
    settings = augmentation | dataclasses.asdict(cloning)
    module = initialised(
        arguments.seed, lambda: Cloning(architecture, samples.objects.shape[1], cloning)
    )
    module.normalise(samples)
    module.to(memory_format=torch.channels_last)
    parameters = trainer_parameters(arguments, patience=arguments.patience)
    data = {
        "sha256": episodes.content_hash,
        "episodes": episodes.counts(lambda e: f"{e.meta.kind.value} {e.meta.task}"),
        "training_steps": training.steps,
        "held_out_steps": held_out.steps,
    }
    identity = {"data": data, "architecture": dataclasses.asdict(architecture), **settings}
    result = train(
        module,
        cloning_loss,
        samples,
        ChunkSamples(held_out, architecture, encoder),
        parameters,
        arguments.work,
        title="policy",
        identity=identity,
    )
    card = _card(arguments, episodes, architecture, data, instructions, result.metrics)
    card["data"] = data | {"episodes_used": len(episodes), "episodes_available": available}
    card["metrics"]["best_step"] = result.best_step
    stem = arguments.output or models_directory() / NAME
    save_model(stem, module.network.state_dict(), card, half=True)
    if arguments.closed_loop:
        # The weights as they are shipped, rounded to 16 bits.
        card["metrics"]["closed_loop"] = _try_out(SmallVla(stem), arguments)
        save_model(stem, module.network.state_dict(), card, half=True)
    print(f"policy: {stem}.safetensors, held out {result.metrics}")
    return 0


def _try_out(policy: Policy, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the card says of the closed loop, with known and with held-out instructions."""
    first, count = RANGES["tuning"].start, arguments.closed_loop
    known = closed_loop(policy, count, first, arguments.execute)
    held_out = closed_loop(policy, count, first, arguments.execute, held_out=True)
    for task, text in known.items():
        print(f"{task:<20} {text} solved, {held_out[task]} with held-out instructions")
    return {
        "success": known,
        "success_held_out_instructions": held_out,
        "seeds": [first, first + count - 1],
        "executed_of_chunk": arguments.execute,
        "action_limit": ACTION_LIMIT,
    }


def _architecture(episodes: EpisodeSet) -> Architecture:
    spec = episodes.action_spec
    if spec.gripper is None or not spec.gripper.binary:
        raise ConfigurationError(
            f"train policy: expected a binary gripper, the episodes have {spec.gripper}"
        )
    sizes = set(episodes.cameras.values())
    if len(sizes) != 1:
        raise ConfigurationError(
            f"train policy: expected cameras of one size, got {episodes.cameras}"
        )
    return Architecture(
        cameras=tuple(episodes.cameras),
        image_size=sizes.pop(),
        motion_dimensions=len(spec.motion_indices),
    )


def _card(
    arguments: argparse.Namespace,
    episodes: EpisodeSet,
    architecture: Architecture,
    data: Mapping[str, Any],
    instructions: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    return training_card(
        KIND,
        dataclasses.asdict(architecture),
        arguments,
        data=data,
        metrics={name: round(value, 5) for name, value in metrics.items()},
        action_spec=episodes.action_spec.to_mapping(),
        control_frame=arguments.control_frame,
        instructions=instructions,
    )
