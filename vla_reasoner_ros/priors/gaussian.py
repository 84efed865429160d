"""Wide Gaussian around the policy's own segment: needs no data, and corrects a policy the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.base import Actions, Candidates, Prior
from vla_reasoner_ros.priors.noise import MacroNoise
from vla_reasoner_ros.priors.space import MotionSpace, action_spec
from vla_reasoner_ros.types import ActionChunk, ActionSpec


class GaussianPrior(Prior):
    """Correlated Gaussian displacements of the reference, and now and then the other gripper.

    Args:
        spec: the action convention; None is the shipped policy's.
        std: one standard deviation per motion dimension and action, m or rad; None takes 0.012 m
            and 0.02 rad.
        correlation: between the displacements of any two actions of a macro-action, in [0, 1).
        flip_probability: chance that a candidate commands the gripper's opposite.

    Raises:
        ConfigurationError: an option is out of range.
    """

    name = "gaussian"
    proposals = 1

    def __init__(
        self,
        spec: ActionSpec | Mapping[str, Any] | None = None,
        std: Sequence[float] | None = None,
        correlation: float = 0.9,
        flip_probability: float = 0.15,
    ) -> None:
        self.spec = action_spec(spec)
        self._space = MotionSpace(self.spec)
        self._noise = MacroNoise(self._space.deviations(std, "gaussian prior"), correlation)
        self._flips = Flips(flip_probability if self.spec.gripper else 0.0, "gaussian prior")

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """Needs nothing of the policy but the references."""

    def sample(self, reference: Actions, count: int, rng: np.random.Generator) -> Candidates:
        """See :class:`Prior`."""
        nodes, steps, _ = reference.shape
        moves = self._noise.sample((nodes, count), steps, rng)
        flips = self._flips.sample((nodes, count), rng)
        return Candidates(
            self._space.displace(reference, moves, flips),
            self._noise.log_density(moves) + self._flips.log_probability(flips),
            (self.name,) * count,
        )

    def log_density(self, actions: Actions, reference: Actions) -> NDArray[np.float64]:
        """See :class:`Prior`."""
        moves = self._space.displacements(actions, reference)
        flips = self._space.flips(actions, reference)
        return self._noise.log_density(moves) + self._flips.log_probability(flips)


class Flips:
    """Whether a candidate commands the gripper's opposite.

    Args:
        probability: in [0, 0.5].
        name: what messages call the prior.

    Raises:
        ConfigurationError: the probability is out of range.
    """

    def __init__(self, probability: float, name: str) -> None:
        if not 0.0 <= probability <= 0.5:
            raise ConfigurationError(
                f"{name}: the probability of a flip must be in [0, 0.5], got {probability}"
            )
        self.probability = probability
        self._kept = float(np.log1p(-probability))
        self._flipped = float(np.log(probability)) if probability > 0.0 else -np.inf

    def sample(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw an array of booleans."""
        if self.probability == 0.0:
            return np.zeros(shape, np.bool_)
        return rng.random(shape) < self.probability

    def log_probability(self, flips: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of each; -inf for a flip that is impossible."""
        return np.where(flips, self._flipped, self._kept)
