"""Wide Gaussian around the policy's own segment: needs no data, and corrects a policy the most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.kernels import kernel
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

    def sample_with_reference(
        self, reference: Actions, count: int, rng: np.random.Generator
    ) -> Candidates:
        """See :class:`Prior`: the same draws in one kernel, where actions are displacements."""
        space, noise, flips = self._space, self._noise, self._flips
        if not self.spec.is_delta:
            return super().sample_with_reference(reference, count, rng)
        nodes, steps, _ = reference.shape
        moves = noise.sample((nodes, count), steps, rng)
        chances = flips.chances((nodes, count), rng)
        actions, log_density = _drawn(
            reference,
            moves,
            chances,
            noise.precision,
            noise.correlation,
            noise.log_peak(steps),
            space.moved,
            space.gripper,
            space.gripper_ends,
            flips.probability,
        )
        return Candidates(actions, log_density, ("policy", *(self.name,) * count))

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
        return self.chances(shape, rng) < self.probability

    def chances(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw an array of numbers; those below the probability are flips."""
        return np.ones(shape) if self.probability == 0.0 else rng.random(shape)

    def log_probability(self, flips: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of each; -inf for a flip that is impossible."""
        return np.where(flips, self._flipped, self._kept)


@kernel
def _drawn(
    reference: Actions,
    moves: Actions,
    chances: NDArray[np.float64],
    precision: NDArray[np.float64],
    correlation: float,
    log_peak: float,
    moved: NDArray[np.int64],
    gripper: int,
    gripper_ends: float,
    probability: float,
) -> tuple[Actions, NDArray[np.float64]]:
    """References and displaced references (B, 1 + K, M, D), and their log densities."""
    nodes, count, steps, size = moves.shape
    share = correlation / (1.0 + (steps - 1) * correlation)
    actions = np.empty((nodes, 1 + count, steps, reference.shape[2]))
    log_density = np.empty((nodes, 1 + count))
    kept = math.log1p(-probability)
    flipped = math.log(probability) if probability > 0.0 else -np.inf
    for b in range(nodes):
        actions[b, 0] = reference[b]
        log_density[b, 0] = log_peak + kept
        for k in range(count):
            is_flip = chances[b, k] < probability
            for m in range(steps):
                actions[b, 1 + k, m] = reference[b, m]
                if gripper >= 0 and is_flip:
                    actions[b, 1 + k, m, gripper] = gripper_ends - reference[b, m, gripper]
            length = 0.0
            for t in range(size):
                total, squares = 0.0, 0.0
                for m in range(steps):
                    actions[b, 1 + k, m, moved[t]] += moves[b, k, m, t]
                    value = moves[b, k, m, t] * precision[t]
                    total += value
                    squares += value * value
                length += (squares - share * total * total) / (1.0 - correlation)
            log_density[b, 1 + k] = log_peak - 0.5 * length + (flipped if is_flip else kept)
    return actions, log_density
