"""From a prior's draws to a node's candidates: the reference, and the draws nearest to it."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.rotations import with_unit_quaternions
from vla_reasoner_ros.search.base import Models, proposed
from vla_reasoner_ros.search.blend import Blender
from vla_reasoner_ros.types import ActionSpec

Floats = NDArray[np.float64]
POLICY = "policy"
"""The origin of every reference: the policy's own segment, or what continues it."""


class CandidateSource:
    """Draws candidates for batches of nodes.

    Args:
        samples: draws per node.
        branching: draws kept per node.
        macro_steps: actions on an edge, M.
        spec: what the D numbers of an action mean. Nearness is measured in the motion alone: a
            gripper's flip is not a distance.
        blender: blends what was drawn into what it was drawn around; None leaves it as drawn.

    Attributes:
        origins: names of who drew candidates; the tree holds places in this list.
        motion: (M * D,) whether a number of a macro-action moves the arm.
    """

    def __init__(
        self,
        samples: int,
        branching: int,
        macro_steps: int,
        spec: ActionSpec,
        blender: Blender | None = None,
    ) -> None:
        self.origins = [POLICY]
        self._blender = blender
        self._samples, self._branching = samples, branching
        self._spec = spec
        self._shape = (macro_steps, spec.dimensions)
        mask = np.zeros(self._shape, np.bool_)
        mask[:, list(spec.motion_indices)] = True
        self.motion = mask.reshape(-1)
        self._identifiers: dict[tuple[str, ...], NDArray[np.int16]] = {}

    def identify(self, origins: tuple[str, ...]) -> NDArray[np.int16]:
        """Numbers for names of origins, into :attr:`origins`."""
        if origins not in self._identifiers:
            for name in origins:
                if name not in self.origins:
                    self.origins.append(name)
            self._identifiers[origins] = np.array(
                [self.origins.index(name) for name in origins], np.int16
            )
        return self._identifiers[origins]

    def valid(self, actions: Floats) -> Floats:
        """Macro-actions (..., M * D) whose orientations are unit quaternions again."""
        split = actions.reshape(*actions.shape[:-1], *self._shape)
        return with_unit_quaternions(self._spec, split).reshape(actions.shape)

    def blended(self, reference: Floats, actions: Floats) -> Floats:
        """What would be executed, where blending comes before imagining; else ``actions``.

        Args:
            reference: (B, L) the policy's own actions, L a multiple of D.
            actions: (B, C, L).
        """
        if self._blender is None:
            return actions
        size = self._shape[1]
        plan = np.ascontiguousarray(actions).reshape(*actions.shape[:2], -1, size)
        own = np.ascontiguousarray(reference).reshape(len(reference), -1, size)
        return self._blender(own, plan).reshape(actions.shape)

    def ask(
        self, models: Models, reference: Floats, count: int, rng: np.random.Generator
    ) -> tuple[Floats, Floats, tuple[str, ...]]:
        """Draw ``count`` candidates around each of B references (B, M * D).

        Returns:
            Actions (B, 1 + count, M * D) and log densities (B, 1 + count), the reference first, and
            who drew each column.

        Raises:
            ModelError: the prior's answer has the wrong form or is not finite.
        """
        answer = proposed(models, reference.reshape(-1, *self._shape), count, rng)
        actions = np.ascontiguousarray(answer.actions, np.float64)
        log_density = np.ascontiguousarray(answer.log_density, np.float64)
        return actions.reshape(len(reference), 1 + count, -1), log_density, answer.origins

    def draw(
        self, models: Models, reference: Floats, scale: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, NDArray[np.int16]]:
        """Candidates of B nodes, the reference first.

        Args:
            models: whose ``candidates`` is asked once.
            reference: (B, M * D).
            scale: (B,) draws are moved to this share of their distance from the reference.
            rng: the only source of randomness.

        Returns:
            Actions (B, 1 + branching, M * D) as they would be executed, log densities as they were
            drawn, and origins (B, 1 + branching).

        Raises:
            ModelError: as :meth:`ask`.
        """
        actions, log_density, names = self.ask(models, reference, self._samples, rng)
        origins = np.broadcast_to(self.identify(names), log_density.shape)
        if (scale != 1.0).any():
            motion = actions[:, 1:, self.motion]
            centre = reference[:, None, self.motion]
            actions[:, 1:, self.motion] = centre + scale[:, None, None] * (motion - centre)
            actions = self.valid(actions)
        if self._branching < self._samples:
            kept = nearest(actions, np.flatnonzero(self.motion), self._branching)
            actions = np.take_along_axis(actions, kept[:, :, None], 1)
            log_density = np.take_along_axis(log_density, kept, 1)
            origins = np.take_along_axis(origins, kept, 1)
        return self.blended(reference, actions), log_density, origins


@numba.njit(cache=True)
def nearest(actions: Floats, motion: NDArray[np.int64], keep: int) -> NDArray[np.int64]:
    """The draws nearest to the reference, which is column 0 and comes first.

    Every number of the macro-action is weighed by the spread of the node's own draws around the
    reference, so that metres and radians count alike.

    Args:
        actions: (B, 1 + K, A).
        motion: the places among A that are measured.
        keep: draws kept, at most K.

    Returns:
        (B, 1 + keep) columns, nearest first.
    """
    nodes, columns, _ = actions.shape
    kept = np.zeros((nodes, 1 + keep), np.int64)
    for row in range(nodes):
        distance = np.zeros(columns - 1)
        for place in motion:
            deviation = (actions[row, 1:, place] - actions[row, 0, place]) ** 2
            spread = deviation.mean()
            if spread > 0.0:
                distance += deviation / spread
        kept[row, 1:] = 1 + np.argsort(distance, kind="mergesort")[:keep]
    return kept
