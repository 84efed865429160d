"""Recorded data as latents: encoded once, cached by the encoder's fingerprint, then cheap to use.

Value and world model see images only through the encoder, so each image is encoded once; both then
train on arrays that fit into memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.language import sentence_encoder
from vla_reasoner_ros.training.branches import MACRO_STEPS, Branches, branch_files
from vla_reasoner_ros.training.frames import is_held, upright
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.world_models.encoder import Encoder, LatentLayout, arm_latents

Float32 = NDArray[np.float32]
OPEN_M = 0.08
"""Between the fingers of the open gripper, m; ``config/robots/fr3.yaml`` says so."""
LOWEST_Z = -0.05
"""What falls off the table is said to stop here, m: how deep it has fallen teaches nothing."""
_BATCH = 64


@dataclass(frozen=True)
class BranchLatents:
    """D branched decisions, C candidates, H macro-actions of M actions, as latents of width Z.

    Attributes:
        scene: (D,) seed of the scene.
        task: (D,) task name.
        sentence: (D, S) sentence vector of the instruction.
        actions: (D, C, H, M, 7), SI units.
        progress: (D,) true progress at the decision.
        outcome_progress: (D, C, H) and after each macro-action.
        root: (D, Z) encoded from the images at the decision.
        outcomes: (D, C, Z) encoded from the images after the first macro-action.
        true_root: (D, Z) the same latents of the true state.
        true_outcomes: (D, C, H, Z).
    """

    scene: NDArray[np.int64]
    task: NDArray[np.str_]
    sentence: Float32
    actions: Float32
    progress: Float32
    outcome_progress: Float32
    root: Float32
    outcomes: Float32
    true_root: Float32
    true_outcomes: Float32

    def __len__(self) -> int:
        return len(self.scene)

    @classmethod
    def join(cls, parts: Sequence[BranchLatents]) -> BranchLatents:
        """Put several sets together."""
        return cls(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        )


@dataclass(frozen=True)
class EpisodeLatents:
    """One recorded episode of T steps as latents.

    Attributes:
        task: task name.
        success: whether the task was done.
        sentence: (S,) sentence vector of the instruction.
        actions: (T, 7) what moved the arm, SI units.
        progress: (T,) true progress; NaN where unknown.
        encoded: (T, Z) from the images.
        true: (T, Z) from the recorded poses.
    """

    task: str
    success: bool
    sentence: Float32
    actions: Float32
    progress: Float32
    encoded: Float32
    true: Float32

    def __len__(self) -> int:
        return len(self.actions)


def true_latents(
    layout: LatentLayout,
    ee_position: NDArray,
    ee_quaternion: NDArray,
    gripper: NDArray,
    joint_velocity: NDArray,
    positions: NDArray,
    rotations: NDArray,
    held: NDArray,
) -> Float32:
    """(..., Z) latents of true states; arguments as in :class:`Branches`, any leading shape."""
    lead = gripper.shape
    flat = [
        torch.from_numpy(np.array(part.reshape(-1, *part.shape[len(lead) :]))).float()
        for part in (ee_position, ee_quaternion, gripper, joint_velocity)
    ]
    arm = arm_latents(*flat).numpy().reshape(*lead, -1)
    yaw, up = upright(rotations)
    blocks = layout.blocks
    up = np.where(np.arange(len(layout.objects)) < blocks, up, 1.0)
    above = positions.copy()
    above[..., 2] = above[..., 2].clip(min=LOWEST_Z)
    parts = [
        arm,
        above.reshape(*lead, -1),
        np.zeros((*lead, len(layout.objects))),
        yaw[..., :blocks, :].reshape(*lead, -1),
        up,
        held,
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def encode_images(encoder: Encoder, agent: NDArray, wrist: NDArray, arm: Float32) -> Float32:
    """(F, Z) latents of (F, 96, 96, 3) images and the (F, A) arm part."""
    device = next(encoder.network.parameters()).device
    rows = [
        encoder.encode_arrays(
            torch.from_numpy(np.array(agent[start : start + _BATCH])).to(device),
            torch.from_numpy(np.array(wrist[start : start + _BATCH])).to(device),
            torch.from_numpy(arm[start : start + _BATCH]).to(device),
        )
        .cpu()
        .numpy()
        for start in range(0, len(arm), _BATCH)
    ]
    return np.concatenate(rows)


def load_branches(folders: Sequence[Path], encoder: Encoder, cache: Path) -> BranchLatents:
    """All branched decisions of some folders as latents.

    Args:
        folders: of the scenes' files.
        encoder: makes the latents.
        cache: where they are kept between runs.

    Raises:
        ConfigurationError: there are none, or a file is none of branched decisions.
    """
    paths = [path for folder in folders for path in branch_files(folder)]
    progress = Progress(f"latents of {', '.join(map(str, folders))}", len(paths), "scenes")
    parts = []
    for done, path in enumerate(paths, start=1):
        stamp = f"{path.stat().st_size:x}_{path.stat().st_mtime_ns:x}"
        kept = cache / encoder.fingerprint[:16] / path.parent.name / f"{path.stem}_{stamp}.npz"
        if kept.exists():
            arrays = _read(kept)
        else:
            arrays = _encode_branches(Branches.load(path), encoder)
            _write(kept, arrays)
        parts.append(BranchLatents(**arrays))
        progress.update(done)
    return BranchLatents.join(parts)


def _encode_branches(branches: Branches, encoder: Encoder) -> dict[str, NDArray]:
    names = (
        "ee_position", "ee_quaternion", "gripper", "joint_velocity", "positions", "rotations",
        "held",
    )  # fmt: skip
    layout = encoder.layout
    true_root = true_latents(layout, *[getattr(branches, name) for name in names])
    true_outcomes = true_latents(layout, *[getattr(branches, f"outcome_{name}") for name in names])
    arm = layout.arm
    count, candidates = branches.outcome_agent.shape[:2]

    def flat(images: NDArray) -> NDArray:
        return images.reshape(-1, *images.shape[-3:])

    outcomes = encode_images(
        encoder,
        flat(branches.outcome_agent),
        flat(branches.outcome_wrist),
        np.ascontiguousarray(true_outcomes[:, :, 0, arm]).reshape(count * candidates, -1),
    )
    steps = branches.actions.shape[2]
    return {
        "scene": branches.scene,
        "task": branches.task,
        "sentence": sentence_encoder().encode_all([str(text) for text in branches.instruction]),
        "actions": branches.actions.reshape(
            count, candidates, steps // MACRO_STEPS, MACRO_STEPS, -1
        ),
        "progress": branches.progress,
        "outcome_progress": branches.outcome_progress,
        "root": encode_images(
            encoder, branches.agent, branches.wrist, np.ascontiguousarray(true_root[:, arm])
        ),
        "outcomes": outcomes.reshape(count, candidates, -1),
        "true_root": true_root,
        "true_outcomes": true_outcomes,
    }


def load_episodes(episodes: EpisodeSet, encoder: Encoder, cache: Path) -> list[EpisodeLatents]:
    """Episodes as latents; true ones from their recorded poses.

    Args:
        episodes: with object poses and both cameras.
        encoder: makes the latents.
        cache: where they are kept between runs.

    Raises:
        ConfigurationError: an episode does not record the objects that the latent is made of.
    """
    progress = Progress(f"latents of {episodes.name}", len(episodes), "episodes")
    found = []
    for done, episode in enumerate(episodes, start=1):
        kept = cache / encoder.fingerprint[:16] / "episodes" / f"{episode.content_hash[:32]}.npz"
        if kept.exists():
            arrays = _read(kept)
        else:
            true = _true_latents_of_episode(episode, encoder.layout)
            agent, wrist = (episode.images[camera] for camera in encoder.config.cameras)
            arm = np.ascontiguousarray(true[:, encoder.layout.arm])
            arrays = {"encoded": encode_images(encoder, agent, wrist, arm), "true": true}
            _write(kept, arrays)
        found.append(
            EpisodeLatents(
                task=episode.meta.task,
                success=episode.meta.success,
                sentence=sentence_encoder().encode(episode.meta.instruction),
                actions=np.array(episode.executed_actions),
                progress=np.array(episode.progress),
                **arrays,
            )
        )
        progress.update(done)
    return found


def _true_latents_of_episode(episode: Any, layout: LatentLayout) -> Float32:
    recorded = episode.meta.object_names
    missing = [name for name in layout.objects if name not in recorded]
    if missing:
        raise ConfigurationError(
            f"episode {episode.path}: the latent needs the objects {missing}, it has {recorded}"
        )
    poses = episode["object_poses"][:, [recorded.index(name) for name in layout.objects]]
    count, objects = poses.shape[:2]
    rotations = Rotation.from_quat(poses[..., 3:].reshape(-1, 4)).as_matrix()
    quaternions = episode["ee_quaternion"]
    held = is_held(
        episode["ee_position"],
        Rotation.from_quat(quaternions).as_matrix(),
        episode["gripper"] * OPEN_M,
        poses[:, : layout.blocks, :3],
    )
    return true_latents(
        layout,
        episode["ee_position"],
        quaternions,
        episode["gripper"],
        episode["joint_velocities"],
        poses[..., :3],
        rotations.reshape(count, objects, 3, 3),
        held,
    )


def _read(path: Path) -> dict[str, NDArray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _write(path: Path, arrays: dict[str, NDArray]) -> None:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_atomically(path, stream.getvalue())
