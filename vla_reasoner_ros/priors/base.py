"""What the search asks of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.types import ActionChunk, ActionSpec

Actions = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Candidate macro-actions of a batch of nodes.

    Attributes:
        actions: (B, K, M, D), SI units of the prior's spec.
        log_density: (B, K) log of the prior's density at each, up to one constant per node.
        origins: (K,) the name of the prior that drew each column.
    """

    actions: Actions
    log_density: NDArray[np.float64]
    origins: tuple[str, ...]


class Prior(Protocol):
    """A density over actions that the search draws candidates from."""

    name: str
    spec: ActionSpec
    proposals: int
    """Chunks that it wants from the policy at each decision; 1 is the policy's own."""

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """Take what the policy proposed; called once per decision, before :meth:`sample`."""

    def sample(self, reference: Actions, count: int, rng: np.random.Generator) -> Candidates:
        """Draw candidates around, or regardless of, each node's reference macro-action.

        Args:
            reference: (B, M, D) the policy's own segment at each node, SI units.
            count: K, candidates per node.
            rng: the only source of randomness.
        """

    def log_density(self, actions: Actions, reference: Actions) -> NDArray[np.float64]:
        """(B, K) log density of (B, K, M, D) actions given the (B, M, D) references.

        It is over the numbers that the prior draws, which may be fewer than M * D where actions are
        alike, and compares candidates of one prior; those of two priors may differ in dimension.
        """

    def sample_with_reference(
        self, reference: Actions, count: int, rng: np.random.Generator
    ) -> Candidates:
        """As :meth:`sample`, with the references themselves as column 0; may be made faster.

        Raises:
            ModelError: :meth:`sample` answered in the wrong shape.
        """
        drawn = self.sample(reference, count, rng)
        if drawn.actions.shape[:1] + drawn.actions.shape[2:] != reference.shape:
            raise ModelError(
                f"prior: expected ({len(reference)}, {count}, *{reference.shape[1:]}) actions, got "
                f"{drawn.actions.shape}"
            )
        own = reference[:, None]
        density = self.log_density(own, reference)
        return Candidates(
            np.concatenate([own, drawn.actions], axis=1),
            np.concatenate([density, drawn.log_density], axis=1),
            ("policy", *drawn.origins),
        )
