"""Gaussian noise on macro-actions that leans the same way for all of their actions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.kernels import kernel

Floats = NDArray[np.float64]


class MacroNoise:
    """Zero-mean Gaussian over (M, T), equally correlated between any two actions.

    Covariance of one dimension over the M actions: ``std**2 ((1 - c) I + c 1 1^T)``.

    Args:
        std: (T,) standard deviation of each action's displacement.
        correlation: c, in [0, 1).

    Raises:
        ConfigurationError: a correlation that makes the covariance singular.
    """

    def __init__(self, std: Floats, correlation: float) -> None:
        if not 0.0 <= correlation < 1.0:
            raise ConfigurationError(
                f"noise: correlation must be in [0, 1), got {correlation}; at 1 the covariance is "
                "singular"
            )
        self.std = std
        self.correlation = correlation
        self.precision = 1.0 / std
        self._log_std = float(np.log(std).sum())

    def sample(self, shape: tuple[int, ...], steps: int, rng: np.random.Generator) -> Floats:
        """Draw (..., M, T), where ``shape`` leads."""
        size = len(self.std)
        if steps == 1:
            alone = rng.standard_normal((*shape, 1, size))
            alone *= self.std
            return alone
        shared = rng.standard_normal((*shape, 1, size))
        own = rng.standard_normal((*shape, steps, size))
        own *= math.sqrt(1.0 - self.correlation) * self.std
        own += shared * (math.sqrt(self.correlation) * self.std)
        return own

    def log_density(self, values: Floats) -> Floats:
        """(...,) of values (..., M, T), normalised."""
        steps, size = values.shape[-2:]
        flat = np.ascontiguousarray(values).reshape(-1, steps, size)
        density = _log_density(flat, self.precision, self.correlation, self.log_peak(steps))
        return density.reshape(values.shape[:-2])

    def log_peak(self, steps: int) -> float:
        """Log density of no displacement at all in M = ``steps`` actions."""
        size, c = len(self.std), self.correlation
        log_determinant = size * (
            (steps - 1) * math.log(1.0 - c) + math.log(1.0 + (steps - 1) * c)
        ) + (2.0 * steps * self._log_std)
        return -0.5 * (log_determinant + steps * size * math.log(2.0 * math.pi))


@kernel
def _log_density(values: Floats, precision: Floats, c: float, constant: float) -> Floats:
    """Constant less half of the squared Mahalanobis lengths (N,) of (N, M, T).

    The covariance is inverted by the Sherman-Morrison formula.
    """
    count, steps, size = values.shape
    share = c / (1.0 + (steps - 1) * c)
    densities = np.empty(count)
    for i in range(count):
        length = 0.0
        for t in range(size):
            total, squares = 0.0, 0.0
            for m in range(steps):
                value = values[i, m, t] * precision[t]
                total += value
                squares += value * value
            length += (squares - share * total * total) / (1.0 - c)
        densities[i] = constant - 0.5 * length
    return densities
