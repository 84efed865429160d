"""Groups of states that the progress value learns from, and their labels.

A group shares an instruction: the outcomes of one decision's candidates, as the encoder saw them
and as the world model imagines them, or steps of one episode. A label is the true progress of the
task's phases (dense), or where in its episode a step lies (linear, arXiv 2509.22643, eq. 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.training.latents import BranchLatents, EpisodeLatents, Float32
from vla_reasoner_ros.training.trainer import Batch
from vla_reasoner_ros.world_models.encoder import LatentLayout
from vla_reasoner_ros.world_models.latent import DynamicsNetwork

GROUP = 16
"""States in a group."""
FAILURE_CAP = 0.4
"""The most that linear labels grant a failed episode."""
UNKNOWN = -1
"""A role that nobody says."""


@dataclass(frozen=True)
class Groups:
    """N groups of G states.

    Attributes:
        latents: (N, G, Z).
        sentence: (N, S).
        progress: (N, G) label of each state.
        kind: (N,) 0 seen, 1 imagined, 2 steps of an episode.
        roles: (N, 2) which objects the sentence is about, by their places in the latent: the one
            to move and where it shall go; :data:`UNKNOWN` where nobody says.
    """

    latents: Float32
    sentence: Float32
    progress: Float32
    kind: NDArray[np.int64]
    roles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.progress)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """Some groups; ``group`` numbers them in training, so that members can differ by it."""
        return {
            "latents": torch.from_numpy(self.latents[indices]),
            "sentence": torch.from_numpy(self.sentence[indices]),
            "progress": torch.from_numpy(self.progress[indices]),
            "kind": torch.from_numpy(self.kind[indices]),
            "roles": torch.from_numpy(self.roles[indices]),
            "group": torch.from_numpy(indices if rng is not None else indices * 0 - 1),
        }

    @classmethod
    def join(cls, parts: list[Groups]) -> Groups:
        """Put several sets together."""
        names = ("latents", "sentence", "progress", "kind", "roles")
        return cls(*[np.concatenate([getattr(p, n) for p in parts]) for n in names])


def roles_of(tasks: Sequence[str], layout: LatentLayout) -> NDArray[np.int64]:
    """(N, 2) the objects that tasks are about, see :class:`Groups`."""

    def place(name: str | None) -> int:
        return layout.objects.index(name) if name in layout.objects else UNKNOWN

    about = [
        (TASKS[name].block, TASKS[name].target) if name in TASKS else (None, None) for name in tasks
    ]
    return np.array([[place(block), place(target)] for block, target in about], dtype=np.int64)


def seen_groups(branches: BranchLatents, layout: LatentLayout) -> Groups:
    """The outcomes of each decision's candidates, as the encoder saw them rendered."""
    return Groups(
        branches.outcomes,
        branches.sentence,
        branches.outcome_progress[:, :, 0],
        np.zeros(len(branches), dtype=np.int64),
        roles_of(branches.task, layout),
    )


@torch.inference_mode()
def imagined_groups(branches: BranchLatents, dynamics: DynamicsNetwork) -> Groups:
    """The same outcomes as the world model imagines them, after one and more macro-actions."""
    count, candidates, horizons = branches.actions.shape[:3]
    now = torch.from_numpy(np.repeat(branches.root, candidates, axis=0))
    parts = []
    for horizon in range(horizons):
        actions = torch.from_numpy(
            branches.actions[:, :, horizon].reshape(-1, *branches.actions.shape[3:])
        )
        now = torch.cat(
            [
                dynamics(a, b).latents.mean(dim=0)
                for a, b in zip(now.split(1024), actions.split(1024), strict=True)
            ]
        )
        parts.append(
            Groups(
                now.numpy().reshape(count, candidates, -1),
                branches.sentence,
                branches.outcome_progress[:, :, horizon],
                np.ones(count, dtype=np.int64),
                roles_of(branches.task, dynamics.config.layout),
            )
        )
    return Groups.join(parts)


def episode_groups(
    episodes: list[EpisodeLatents], labels: str, layout: LatentLayout, rng: np.random.Generator
) -> Groups:
    """Random steps of each episode.

    Args:
        episodes: as latents.
        labels: ``dense`` takes the recorded progress, ``linear`` i / (T - 1), capped on failures.
        layout: of the latents.
        rng: picks the steps.

    Raises:
        ConfigurationError: dense labels of an episode that records no progress.
    """
    rows: list[tuple[Float32, Float32, Float32]] = []
    tasks: list[str] = []
    for episode in episodes:
        length = len(episode)
        progress = episode.progress
        if labels == "linear":
            cap = 1.0 if episode.success else FAILURE_CAP
            progress = np.linspace(0.0, 1.0, length, dtype=np.float32).clip(0.0, cap)
        elif np.isnan(progress).any():
            raise ConfigurationError("dense labels: an episode records no progress")
        for _ in range(max(1, length // GROUP)):
            steps = np.sort(rng.integers(0, length, GROUP))
            rows.append((episode.encoded[steps], episode.sentence, progress[steps]))
            tasks.append(episode.task)
    return Groups(
        *[np.stack([row[i] for row in rows]).astype(np.float32) for i in range(3)],
        np.full(len(rows), 2, dtype=np.int64),
        roles_of(tasks, layout),
    )


def without_setbacks(groups: Groups, before: Float32) -> Groups:
    """Groups of outcomes as demonstrations alone would show them: nothing that set a task back.

    A group keeps its size: what is left stands for what is left out, in turn.

    Args:
        groups: outcomes of decisions.
        before: (N,) progress at each decision.

    Raises:
        ConfigurationError: no decision has two outcomes that are no setback.
    """
    kept = groups.progress >= before[:, None]
    usable = np.flatnonzero(kept.sum(axis=1) >= 2)
    if not len(usable):
        raise ConfigurationError(
            "value without failures: no decision has two outcomes that set nothing back"
        )
    size = groups.progress.shape[1]
    places = np.stack([np.resize(np.flatnonzero(kept[row]), size) for row in usable])
    rows = usable[:, None]
    return Groups(
        groups.latents[rows, places],
        groups.sentence[usable],
        groups.progress[rows, places],
        groups.kind[usable],
        groups.roles[usable],
    )
