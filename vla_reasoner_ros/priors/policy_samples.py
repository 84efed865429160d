"""What the policy itself would also have done: its further samples for the same observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.priors.base import Actions
from vla_reasoner_ros.priors.centres import CentresPrior
from vla_reasoner_ros.priors.space import action_spec
from vla_reasoner_ros.types import ActionChunk, ActionSpec


class PolicySamplesPrior(CentresPrior):
    """At the root the samples' own first macro-actions; deeper, their difference to the best one.

    Args:
        spec: the action convention; None is the shipped policy's.
        proposals: chunks asked of the policy per decision, the best one included.
        spread: standard deviation around a sample, as a share of the Gaussian prior's.

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(
        self,
        spec: ActionSpec | Mapping[str, Any] | None = None,
        proposals: int = 8,
        spread: float = 0.1,
    ) -> None:
        super().__init__(action_spec(spec), spread, "policy_samples")
        if proposals < 2:
            raise ConfigurationError(
                f"policy samples prior: proposals must be at least 2, got {proposals}"
            )
        self.proposals = proposals
        self._samples = np.zeros((0, 0, self.spec.dimensions))

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """See :class:`Prior`.

        Raises:
            ModelError: the policy gave a single chunk: it cannot sample.
        """
        if len(proposals) < 2:
            raise ModelError(
                "policy samples prior: the policy gave a single chunk, it does not sample"
            )
        self._samples = np.stack([chunk.actions for chunk in proposals])

    def centres(self, reference: Actions) -> Actions:
        """See :class:`CentresPrior`."""
        steps = reference.shape[1]
        best, others = self._samples[:1, :steps], self._samples[None, 1:, :steps]
        moves = self.space.displacements(others, best)
        flips = self.space.flips(others, best)
        shape = (len(reference), *moves.shape[1:])
        return self.space.displace(
            reference, np.broadcast_to(moves, shape), np.broadcast_to(flips, shape[:2])
        )
