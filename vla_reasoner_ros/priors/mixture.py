"""Several priors by weight: wide ones to correct the policy, near ones to refine it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.base import Actions, Candidates, Prior
from vla_reasoner_ros.types import ActionChunk

DEFAULT_WEIGHTS = {"gaussian": 0.75, "kde": 0.25}
DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {"kde": {"neighbours": 256}}


def in_force(
    weights: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Mapping[str, float], Mapping[str, Mapping[str, Any]]]:
    """The weights and the options of each prior that a mixture made with these has."""
    weights = DEFAULT_WEIGHTS if weights is None else weights
    usual = {name: known for name, known in DEFAULT_OPTIONS.items() if name in weights}
    return weights, usual if options is None else options


class MixturePrior(Prior):
    """Every prior draws its share of the candidates; the density is the weighted sum.

    The summands are densities over different numbers: of the Gaussian and of centres over all that
    move the arm in a macro-action, of the KDE over those of one action. So one outweighs the other
    whatever the weights: with the shipped parts the Gaussian by about 60 nats and more, also where
    the KDE drew. The weights say how many candidates each draws, but hardly how dense one is among
    its siblings: that is how near it lies to the reference, as the Gaussian has it.

    Shares are rounded by the largest remainder, so that a node always has the same number of
    candidates of each kind.

    Args:
        weights: prior's registered name to positive weight; they are scaled to sum to one.
        options: prior's name to its own options; None conditions a KDE on its 256 neighbours.

    Raises:
        ConfigurationError: no or bad weights, an unusable prior, or different action conventions.
    """

    name = "mixture"

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        weights, given = in_force(weights, options)
        values = np.array([float(value) for value in weights.values()])
        if not len(values) or not (np.isfinite(values) & (values > 0.0)).all():
            raise ConfigurationError(
                f"mixture prior: expected priors with positive weights, got {dict(weights)}"
            )
        if unused := set(given) - set(weights):
            raise ConfigurationError(
                f"mixture prior: options for {', '.join(sorted(unused))}, which have no weight"
            )
        self._parts: list[Prior] = [
            plugins.create("prior", name, given.get(name)) for name in weights
        ]
        self._weights = values / values.sum()
        self.spec = self._parts[0].spec
        self.proposals = max(part.proposals for part in self._parts)
        for part in self._parts[1:]:
            self.spec.require_same(
                part.spec, f"prior {self._parts[0].name!r}", f"prior {part.name!r}"
            )

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """See :class:`Prior`."""
        for part in self._parts:
            part.begin(proposals)

    def sample(self, reference: Actions, count: int, rng: np.random.Generator) -> Candidates:
        """See :class:`Prior`."""
        shares = self.shares(count)
        drawn = [
            part.sample(reference, int(share), rng)
            for part, share in zip(self._parts, shares, strict=True)
            if share
        ]
        actions = np.concatenate([candidates.actions for candidates in drawn], axis=1)
        origins = tuple(name for candidates in drawn for name in candidates.origins)
        return Candidates(actions, self.log_density(actions, reference), origins)

    def log_density(self, actions: Actions, reference: Actions) -> NDArray[np.float64]:
        """See :class:`Prior`."""
        parts = np.stack([part.log_density(actions, reference) for part in self._parts])
        top = parts.max(axis=0)
        top = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(np.tensordot(self._weights, np.exp(parts - top), axes=1)) + top

    def shares(self, count: int) -> NDArray[np.int64]:
        """Candidates that each prior draws of ``count``."""
        exact = self._weights * count
        shares = np.floor(exact).astype(np.int64)
        for index in np.argsort(shares - exact, kind="stable")[: count - shares.sum()]:
            shares[index] += 1
        return shares
