"""Recorded episodes as latents of a frozen vision encoder, encoded once and kept on disk.

Features are many, so they are kept in 16 bits and mapped from their files while training draws
from them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Episode
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.language import sentence_encoder
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.world_models.vision import FrozenVision
from vla_reasoner_ros.world_models.vision_latents import VisionEncoder, VisionLayout

Float32 = NDArray[np.float32]
_BATCH = 32
HELD_OUT = 0.1
"""Share of the episodes, by their seeds, that judges and never teaches."""


@dataclass(frozen=True)
class VisionEpisode:
    """One recorded episode of T steps.

    Attributes:
        states: (T, S) of the arm, SI units.
        tokens: (T, N * C) features, 16 bits, mapped from their file.
        actions: (T, D) what moved the arm, SI units.
        progress: (T,) true progress; NaN where unknown.
        success: whether the task was done.
        sentence: (384,) sentence vector of the instruction.
    """

    states: Float32
    tokens: NDArray[np.float16]
    actions: Float32
    progress: Float32
    success: bool
    sentence: Float32

    def __len__(self) -> int:
        return len(self.actions)

    def latents(self, steps: NDArray[np.int64]) -> Float32:
        """(F, Z) of some steps."""
        features = self.tokens[steps].astype(np.float32)
        return np.concatenate([self.states[steps], features], axis=1)


def layout_of(
    episodes: EpisodeSet, vision: FrozenVision, cameras: Sequence[str] = ()
) -> VisionLayout:
    """The latents that recordings give.

    Args:
        episodes: of one contract.
        vision: the frozen encoder.
        cameras: which of them; empty takes all.

    Raises:
        ConfigurationError: a camera that was not recorded.
    """
    sizes = episodes.cameras
    names = tuple(cameras) or tuple(sizes)
    for name in names:
        if name not in sizes:
            raise ConfigurationError(
                f"{episodes.name}: camera {name!r} was not recorded; there are {', '.join(sizes)}"
            )
    return VisionLayout(
        cameras=names,
        image_sizes=tuple(sizes[name] for name in names),
        grid=vision.settings.grid,
        channels=vision.channels,
        joints=len(episodes[0].meta.joint_names),
        frame=episodes.action_spec.frame,
    )


def load_vision_episodes(
    episodes: EpisodeSet, encoder: VisionEncoder, cache: Path
) -> list[VisionEpisode]:
    """Episodes as latents; what is not in the cache is encoded.

    Args:
        episodes: with the layout's cameras.
        encoder: makes the latents.
        cache: where they are kept between runs.

    Raises:
        ModelError: the vision encoder's answer is not finite.
    """
    progress = Progress(f"latents of {episodes.name}", len(episodes), "episodes")
    found = []
    for done, episode in enumerate(episodes, start=1):
        kept = cache / encoder.fingerprint[:16] / f"{episode.content_hash[:32]}.npy"
        if not kept.exists():
            stream = io.BytesIO()
            np.save(stream, _tokens(episode, encoder))
            write_atomically(kept, stream.getvalue())
        columns = [
            episode[n] for n in ("ee_position", "ee_quaternion", "gripper", "joint_positions")
        ]
        columns[2] = columns[2][:, None]
        found.append(
            VisionEpisode(
                states=encoder.states(*columns).numpy(),
                tokens=np.load(kept, mmap_mode="r", allow_pickle=False),
                actions=np.array(episode.executed_actions),
                progress=np.array(episode.progress),
                success=episode.meta.success,
                sentence=np.array(sentence_encoder().encode(episode.meta.instruction)),
            )
        )
        progress.update(done)
    return found


def _tokens(episode: Episode, encoder: VisionEncoder) -> NDArray[np.float16]:
    images = [episode.images[camera] for camera in encoder.layout.cameras]
    rows = [
        encoder.tokens([part[start : start + _BATCH] for part in images]).flatten(1).cpu().numpy()
        for start in range(0, len(episode), _BATCH)
    ]
    return np.concatenate(rows).astype(np.float16)


def spread(rows: Float32, floor: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of columns; one that hardly moves counts as of deviation 1."""
    deviation = rows.std(axis=0)
    deviation = np.where(deviation < floor, 1.0, deviation)
    return torch.from_numpy(rows.mean(axis=0)), torch.from_numpy(deviation.astype(np.float32))


@dataclass(frozen=True)
class Recordings:
    """What a training of this kind begins with.

    Attributes:
        encoder: the frozen one.
        spec: the convention of the actions.
        training, held_out: the two sides.
        data: what the card says of them.
    """

    encoder: VisionEncoder
    spec: ActionSpec
    training: list[VisionEpisode]
    held_out: list[VisionEpisode]
    data: dict[str, object]


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name encoder and recordings."""
    parser.add_argument(
        "--encoder",
        required=True,
        help="V-JEPA 2 or DINOv2 of transformers: a folder, or a name on the Hugging Face hub",
    )
    parser.add_argument("--revision", default="", help="of the encoder on the hub")
    parser.add_argument(
        "--image-size", type=WHOLE, default=0, help="pixels a side; the checkpoint's own when 0"
    )
    parser.add_argument(
        "--grid", type=WHOLE, default=8, help="cells a side that patches are averaged to; 0 is all"
    )
    parser.add_argument("--device", default="auto", help="of the frozen encoder")
    parser.add_argument("--cameras", nargs="*", default=[], help="by name; all when left out")
    parser.add_argument("--episodes", type=Path, nargs="+", required=True, help="recorded episodes")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("data/vision_latents"),
        help="folder of what the encoder made of pictures",
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of the result")
    parser.add_argument("--steps", type=COUNT, default=20_000, help="of training")
    parser.add_argument("--threads", type=COUNT, default=1, help="of the processor")
    parser.add_argument("--seed", type=WHOLE, default=0, help="of all random numbers")


def load_recordings(arguments: argparse.Namespace) -> Recordings:
    """Encode what is not yet.

    Raises:
        ConfigurationError: no such encoder or camera, or sizes that contradict one another.
        EpisodeError: no episodes, or too few to hold some out.
    """
    torch.set_num_threads(arguments.threads)
    vision = FrozenVision(
        arguments.encoder,
        arguments.image_size,
        arguments.grid,
        arguments.device,
        revision=arguments.revision,
    )
    episodes = EpisodeSet.open(*arguments.episodes)
    encoder = VisionEncoder(vision, layout_of(episodes, vision, arguments.cameras))
    seen, unseen = episodes.split(HELD_OUT)
    sides = [load_vision_episodes(side, encoder, arguments.cache) for side in (seen, unseen)]
    data = {"episodes": len(seen), "episodes_sha256": seen.content_hash}
    return Recordings(encoder, episodes.action_spec, sides[0], sides[1], data)
