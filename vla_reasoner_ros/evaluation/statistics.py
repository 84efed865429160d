"""Statistics of paired binary outcomes: intervals, differences and tests of success rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from vla_reasoner_ros.errors import ConfigurationError


@dataclass(frozen=True)
class Proportion:
    """A success rate: ``successes`` of ``n`` with its interval ``low`` to ``high``, in [0, 1]."""

    successes: int
    n: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Successes over n; NaN when n is 0."""
        return self.successes / self.n if self.n else math.nan


@dataclass(frozen=True)
class PairedDifference:
    """Rate of ``b`` minus rate of ``a`` over the same n cases.

    Attributes:
        n: cases.
        gained: cases where only b succeeded.
        lost: cases where only a succeeded.
        difference: in [-1, 1].
        low, high: its interval.
        mcnemar_p: two-sided p of "b and a succeed equally often".
    """

    n: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    mcnemar_p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval of a binomial proportion (JASA 22:209, 1927).

    Without any case the interval is all of [0, 1].

    Raises:
        ConfigurationError: successes outside 0 to n, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise ConfigurationError(f"successes: expected 0 to n = {n}, got {successes}")
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"confidence: expected between 0 and 1, got {confidence}")
    if n == 0:
        return Proportion(0, 0, 0.0, 1.0)
    z = float(stats.norm.ppf(0.5 + confidence / 2.0))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the ends the bound is exact; rounding must not push it outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Proportion(successes, n, low, high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: the sign test on the discordant pairs."""
    if gained < 0 or lost < 0:
        raise ConfigurationError(f"discordant pairs: expected counts, got {gained} and {lost}")
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Compare two arms on the same cases.

    The interval is Newcombe's square-and-add of two Wilson intervals with their correlation (method
    10 of Statistics in Medicine 17:2635, 1998), which keeps its coverage for small n and rates near
    the ends.

    Args:
        a: (n,) outcomes of the first arm, bool.
        b: (n,) outcomes of the second arm on the same cases in the same order.
        confidence: of the interval.

    Raises:
        ConfigurationError: the outcomes are not paired or there is none.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ConfigurationError(
            f"paired outcomes: expected two lists of the same n >= 1 cases, got shapes "
            f"{first.shape} and {second.shape}"
        )
    n = first.size
    both = int(np.sum(first & second))
    gained = int(np.sum(~first & second))
    lost = int(np.sum(first & ~second))
    neither = n - both - gained - lost
    wilson_a = wilson(both + lost, n, confidence)
    wilson_b = wilson(both + gained, n, confidence)
    difference = wilson_b.rate - wilson_a.rate
    phi = _correlation(both, gained, lost, neither)
    a_low, a_high = wilson_a.rate - wilson_a.low, wilson_a.high - wilson_a.rate
    b_low, b_high = wilson_b.rate - wilson_b.low, wilson_b.high - wilson_b.rate
    below = math.sqrt(max(0.0, b_low**2 - 2 * phi * b_low * a_high + a_high**2))
    above = math.sqrt(max(0.0, b_high**2 - 2 * phi * b_high * a_low + a_low**2))
    return PairedDifference(
        n, gained, lost, difference, difference - below, difference + above, mcnemar(gained, lost)
    )


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Newcombe's phi: the correlation of the pairs, with a continuity correction when positive."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    determinant = both * neither - gained * lost
    if determinant > 0:
        determinant = max(determinant - (both + gained + lost + neither) / 2.0, 0.0)
    return determinant / math.sqrt(margins)
