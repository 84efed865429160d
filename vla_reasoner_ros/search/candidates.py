"""From a prior's draws to a node's candidates: the reference, and the draws nearest to it."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.search.base import Models, proposed

Floats = NDArray[np.float64]
POLICY = "policy"
"""The origin of every reference: the policy's own segment, or what continues it."""


class CandidateSource:
    """Draws candidates for batches of nodes.

    Args:
        samples: draws per node.
        branching: draws kept per node.
        macro_steps: actions on an edge, M.
        dimensions: width of an action, D.
        motion: the dimensions in which nearness is measured; a gripper's flip is not a distance.
    """

    def __init__(
        self,
        samples: int,
        branching: int,
        macro_steps: int,
        dimensions: int,
        motion: tuple[int, ...],
    ) -> None:
        self.origins = [POLICY]
        self._samples, self._branching = samples, branching
        self._shape = (macro_steps, dimensions)
        mask = np.zeros(self._shape, np.bool_)
        mask[:, list(motion)] = True
        self._motion = np.flatnonzero(mask)
        self._identifiers: dict[tuple[str, ...], NDArray[np.int16]] = {}

    @property
    def fan(self) -> int:
        """Candidates of a node, the reference included, F."""
        return self._branching + 1

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
        self, models: Models, reference: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, NDArray[np.int16]]:
        """Candidates of B nodes with references (B, M * D), the reference first.

        Returns:
            Actions (B, F, M * D), log densities (B, F) and origins (B, F).

        Raises:
            ModelError: as :meth:`ask`.
        """
        actions, log_density, names = self.ask(models, reference, self._samples, rng)
        origins = np.broadcast_to(self.identify(names), log_density.shape)
        if self._branching < self._samples:
            kept = nearest(actions, self._motion, self._branching)
            actions = np.take_along_axis(actions, kept[:, :, None], 1)
            log_density = np.take_along_axis(log_density, kept, 1)
            origins = np.take_along_axis(origins, kept, 1)
        return actions, log_density, origins


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
