"""Priors that know some good macro-actions: a mixture of narrow Gaussians around each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from vla_reasoner_ros.priors.base import Actions, Candidates, Prior
from vla_reasoner_ros.priors.gaussian import Flips
from vla_reasoner_ros.priors.noise import MacroNoise
from vla_reasoner_ros.priors.space import MotionSpace
from vla_reasoner_ros.types import ActionChunk, ActionSpec

CORRELATION = 0.9
GRIPPER_DOUBT = 0.01
"""Chance of the other gripper command, which keeps densities positive."""


class CentresPrior(Prior):
    """Every centre is as likely as any other; a subclass says where they are.

    Args:
        spec: the action convention.
        spread: standard deviation around a centre, as a share of the Gaussian prior's default.
        name: of the prior.
    """

    proposals = 1

    def __init__(self, spec: ActionSpec, spread: float, name: str) -> None:
        self.name = name
        self.spec = spec
        self.space = MotionSpace(spec)
        scale = self.space.deviations(None, name)
        std = self.space.deviations((spread * scale).tolist(), name)
        self._noise = MacroNoise(std, CORRELATION)
        self._doubt = Flips(GRIPPER_DOUBT if spec.gripper else 0.0, name)

    def centres(self, reference: Actions) -> Actions:
        """(B, C, M, D) the good macro-actions of nodes with references (B, M, D)."""
        raise NotImplementedError

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """Needs nothing of the policy but the references."""

    def sample(self, reference: Actions, count: int, rng: np.random.Generator) -> Candidates:
        """See :class:`Prior`; no centre is drawn twice before every one was drawn once."""
        nodes, steps, _ = reference.shape
        centres = self.centres(reference)
        known = centres.shape[1]
        order = rng.permuted(np.tile(np.arange(known), (nodes, 1)), axis=1)
        drawn = np.tile(order, (1, -(-count // known)))[:, :count]
        chosen = np.take_along_axis(centres, drawn[:, :, None, None], axis=1)
        moves = self.space.displacements(chosen, reference)
        moves += self._noise.sample((nodes, count), steps, rng)
        flips = self.space.flips(chosen, reference)
        actions = self.space.displace(reference, moves, flips)
        return Candidates(actions, self.log_density(actions, reference), (self.name,) * count)

    def log_density(self, actions: Actions, reference: Actions) -> NDArray[np.float64]:
        """See :class:`Prior`."""
        centres = self.centres(reference)
        away = self.space.displacements(actions, reference)[:, :, None]
        away = away - self.space.displacements(centres, reference)[:, None]
        other = self.space.flips(actions, reference)[:, :, None]
        other = other != self.space.flips(centres, reference)[:, None]
        log_density = self._noise.log_density(away) + self._doubt.log_probability(other)
        return logsumexp(log_density, axis=2) - np.log(centres.shape[1])
