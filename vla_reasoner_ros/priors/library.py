"""An action library: the medoids of demonstrated actions, each held for a macro-action."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.base import Actions
from vla_reasoner_ros.priors.centres import CentresPrior
from vla_reasoner_ros.priors.demonstrations import Demonstrations

Floats = NDArray[np.float64]


class LibraryPrior(CentresPrior):
    """Medoids of the demonstrated actions, whatever the reference.

    Args:
        model: path stem of the demonstrated actions (the KDE prior's weights); empty is the shipped
            one.
        count: medoids.
        spread: standard deviation around a medoid, as a share of the Gaussian prior's.
        seed: of the clustering.

    Raises:
        ConfigurationError: no usable data, or fewer actions than medoids.
    """

    def __init__(
        self, model: str | Path = "", count: int = 32, spread: float = 0.25, seed: int = 0
    ) -> None:
        demonstrations = Demonstrations.load(model)
        super().__init__(demonstrations.spec, spread, "library")
        actions = demonstrations.actions
        if not 1 <= count <= len(actions):
            raise ConfigurationError(
                f"library prior: count must be 1 to {len(actions)}, the demonstrated actions; got "
                f"{count}"
            )
        points = demonstrations.whitened(actions)
        gripper = demonstrations.spec.gripper
        if gripper is not None:
            openings = np.array([[gripper.opening(v)] for v in actions[:, gripper.index]])
            points = np.concatenate([points, openings], axis=1)
        self._medoids = actions[medoids(points, count, np.random.default_rng(seed))]

    def centres(self, reference: Actions) -> Actions:
        """See :class:`CentresPrior`."""
        nodes, steps, dimensions = reference.shape
        shape = (nodes, len(self._medoids), steps, dimensions)
        return np.broadcast_to(self._medoids[None, :, None], shape).copy()


def medoids(
    points: Floats, count: int, rng: np.random.Generator, rounds: int = 20
) -> NDArray[np.int64]:
    """Indices of ``count`` of the (N, P) points that represent all of them.

    k-means++ seeds (Arthur and Vassilvitskii, 2007), then alternately: assign every point to its
    nearest medoid, move every medoid to its cluster's point nearest to the mean.
    """
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared(points, points[chosen[0]])
    while len(chosen) < count:
        weights = nearest if nearest.sum() > 0.0 else np.ones(len(points))
        weights = np.where(np.isin(np.arange(len(points)), chosen), 0.0, weights)
        chosen.append(int(rng.choice(len(points), p=weights / weights.sum())))
        nearest = np.minimum(nearest, _squared(points, points[chosen[-1]]))
    centres = np.array(chosen)
    for _ in range(rounds):
        distances = np.stack([_squared(points, points[i]) for i in centres])
        owner = distances.argmin(0)
        owner[centres] = np.arange(count)
        moved = centres.copy()
        for cluster in range(count):
            members = np.flatnonzero(owner == cluster)
            middle = points[members].mean(0)
            moved[cluster] = members[_squared(points[members], middle).argmin()]
        if (moved == centres).all():
            break
        centres = moved
    return centres


def _squared(points: Floats, centre: Floats) -> Floats:
    return ((points - centre) ** 2).sum(1)
