"""What recorded bags may change of the search: rules that keep a value unless the data are clear.

Logs hold one action a moment, near what the policy or a person does. They say how well the models
foretell what follows from it, not which of two actions would have been better: that only the closed
loop shows. So each rule compares intervals, and leaves what is set wherever they do not part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vla_reasoner_ros.evaluation.calibration_data import DEPTHS, BudgetPoint, Futures
from vla_reasoner_ros.evaluation.statistics import wilson
from vla_reasoner_ros.search.parameters import SearchParameters

LEAST = 30
"""Comparisons below which a figure is not recommended."""
LEAST_STRETCHES = 10
"""Stretches of driving below which an interval over them means nothing."""
ENOUGH = 0.95
"""Share of the imagined gain that a smaller budget, or the gate, must leave."""
WORTHWHILE = 0.1
"""Share of decisions that the gate must save to be switched on."""
MOST_SKIPPED = 0.9
"""Share of decisions above which a gate would be the plain policy."""
RESAMPLES = 1000
LEVEL = 0.95
"""Of all intervals; shared out where several are looked at together (Bonferroni)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        name: of the parameter, or ``bandwidth``.
        value: recommended; None keeps what is set.
        why: in one sentence, with the numbers.
        n: comparisons behind it.
    """

    name: str
    value: Any
    why: str
    n: int


@dataclass
class Calibration:
    """All recommendations, and the curves behind them.

    Attributes:
        advice: in the order that they were found.
        curves: name to columns.
        bandwidth: factor on the KDE's bandwidth; None keeps it.
    """

    advice: list[Advice] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bandwidth: float | None = None

    def parameters(self) -> dict[str, Any]:
        """What is recommended, by full name of the planner's parameter."""
        return {a.name: a.value for a in self.advice if a.value is not None and "." in a.name}

    def keep(self, names: Sequence[str], why: str, n: int) -> None:
        """Advise to leave some parameters as they are."""
        self.advice += [Advice(name, None, why, n) for name in names]


@dataclass(frozen=True)
class Skill:
    """How well values imagined at each depth foretell those seen, beyond the value seen before.

    A noisy value of the moment itself would make imagined and seen changes look alike, for both are
    counted from it; so it is held fixed (partial correlation and regression).

    Attributes:
        n: moments.
        stretches: that they come from.
        correlation: (D,) of the value imagined at each depth with the last one seen.
        drawn: (R, D) the same, resampled by stretches.
        slope: (D,) seen change per imagined change, each at its own depth.
        drawn_slope: (R, D) resampled.
    """

    n: int
    stretches: int
    correlation: Floats
    drawn: Floats
    slope: Floats
    drawn_slope: Floats

    def interval(self, drawn: Floats) -> tuple[Floats, Floats]:
        """(D,) lower and (D,) upper ends that hold at all depths together."""
        tail = 50.0 * (1.0 - LEVEL) / drawn.shape[1]
        low, high = np.percentile(drawn, [tail, 100.0 - tail], axis=0)
        return low, high

    def told(self, depth: int) -> str:
        """The correlation at a depth, in words."""
        low, high = self.interval(self.drawn)
        at = DEPTHS.index(depth)
        return f"{self.correlation[at]:+.2f} ({low[at]:+.2f} to {high[at]:+.2f})"


def _weights(stretch: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """(1 + R, N) how often each moment counts: once, then as whole stretches are drawn."""
    names, member = np.unique(stretch, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), RESAMPLES)
    return np.vstack([np.ones(len(stretch)), drawn[:, member]])


def _partial(weights: Floats, x: Floats, y: Floats, given: Floats) -> tuple[Floats, Floats]:
    """(W,) correlation and (W,) slope of y on x, with a third quantity held fixed."""
    columns = np.stack([x, y, given, x * x, y * y, given * given, x * y, x * given, y * given])
    sums = (weights @ columns.T) / weights.sum(axis=1, keepdims=True)
    mx, my, mz, xx, yy, zz, xy, xz, yz = sums.T
    zz = np.maximum(zz - mz * mz, 1e-12)
    xz, yz = xz - mx * mz, yz - my * mz
    xx = np.maximum(xx - mx * mx - xz * xz / zz, 1e-12)
    yy = np.maximum(yy - my * my - yz * yz / zz, 1e-12)
    xy = xy - mx * my - xz * yz / zz
    return np.clip(xy / np.sqrt(xx * yy), -1.0, 1.0), xy / xx


def skill_of(futures: Futures, rng: np.random.Generator) -> Skill:
    """Compare what was imagined with what was seen; intervals by resampling whole stretches."""
    weights = _weights(futures.stretch, rng)
    last = futures.seen[:, -1]
    correlations, slopes = [], []
    for at in range(len(DEPTHS)):
        imagined = futures.imagined[:, at]
        correlations.append(_partial(weights, imagined, last, futures.before)[0])
        slopes.append(_partial(weights, imagined, futures.seen[:, at], futures.before)[1])
    correlation, slope = np.array(correlations).T, np.array(slopes).T
    return Skill(
        len(last),
        len(np.unique(futures.stretch)),
        correlation[0],
        correlation[1:],
        slope[0],
        slope[1:],
    )


def depth_alpha_margin(
    found: Calibration,
    futures: Futures,
    noise: Floats,
    search: SearchParameters,
    deepest: int,
    confidence: float,
    rng: np.random.Generator,
) -> bool:
    """Advise on depth, and on alpha and margin at that very depth.

    Args:
        found: takes advice and curves.
        futures: imagined and seen.
        noise: (K,) differences of a value from the mean of its neighbours, scaled to one look.
        search: parameters in force.
        deepest: that the policy's chunk allows.
        confidence: chance that a deviation by the margin is no noise.
        rng: of the resampling.

    Returns:
        Whether anything imagined demonstrably foretells what is seen.
    """
    names = ("search.depth", "search.alpha", "search.margin")
    stretches = len(np.unique(futures.stretch))
    n = len(futures.before)
    if n < LEAST or stretches < LEAST_STRETCHES:
        found.keep(
            names,
            f"not enough data: {n} moments from {stretches} stretches, {LEAST} from "
            f"{LEAST_STRETCHES} are needed",
            n,
        )
        return False
    skill = skill_of(futures, rng)
    low, high = skill.interval(skill.drawn)
    found.curves["skill"] = {
        "depth": [float(depth) for depth in DEPTHS],
        "correlation": skill.correlation.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }
    allowed = [depth for depth in DEPTHS if depth <= deepest]
    if search.depth not in allowed:
        why = f"depth {search.depth} is not among those compared: {allowed[0]} to {allowed[-1]}"
        found.keep(names, why, n)
        return False
    useful = [depth for depth in allowed if low[DEPTHS.index(depth)] > 0.0]
    if not useful:
        told = ", ".join(skill.told(depth) for depth in allowed)
        why = f"not enough data to tell what is imagined from chance: correlation {told}"
        found.keep(names, why, n)
        return False
    depth = _depth(found, skill, search.depth, allowed)
    if depth not in useful:
        why = f"not enough data at depth {depth}: correlation there {skill.told(depth)}"
        found.keep(names[1:], why, n)
        return True
    _alpha(found, skill, search.alpha, depth)
    _margin(found, futures, noise, search.margin, depth, confidence)
    return True


def _depth(found: Calibration, skill: Skill, present: int, allowed: Sequence[int]) -> int:
    """The depth in force, unless another one's correlation is clearly higher."""
    best = max(allowed, key=lambda depth: float(skill.correlation[DEPTHS.index(depth)]))
    at = DEPTHS.index(best)
    here = DEPTHS.index(present)
    tail = 50.0 * (1.0 - LEVEL) / max(1, len(allowed) - 1)
    if best == present or np.percentile(skill.drawn[:, at] - skill.drawn[:, here], tail) <= 0.0:
        why = f"no other depth foretells clearly better: correlation {skill.told(present)}" + (
            "" if best == present else f", at depth {best} {skill.told(best)}"
        )
        found.keep(["search.depth"], why, skill.n)
        return present
    error = float(skill.drawn[:, at].std())
    near = [
        d for d in allowed if skill.correlation[DEPTHS.index(d)] >= skill.correlation[at] - error
    ]
    depth = min(near)
    found.advice.append(
        Advice(
            "search.depth",
            depth,
            f"correlation {skill.told(depth)} against {skill.told(present)} at depth {present}; "
            f"the shallowest within one standard error ({error:.2f}) of the best",
            skill.n,
        )
    )
    return depth


def _alpha(found: Calibration, skill: Skill, present: float, depth: int) -> None:
    """The nearest alpha that the share of imagined gains that come true allows."""
    at = DEPTHS.index(depth)
    tail = 50.0 * (1.0 - LEVEL)
    ends = np.percentile(skill.drawn_slope[:, at], [tail, 100.0 - tail])
    least, most = np.clip(1.0 - ends[::-1], 0.0, 1.0)
    share = f"{skill.slope[at]:.0%} ({ends[0]:.0%} to {ends[1]:.0%})"
    if least <= present <= most:
        why = f"of an imagined gain {share} come true at depth {depth}, which {present:g} fits"
        found.keep(["search.alpha"], why, skill.n)
        return
    # The estimate is towards the middle; what the data clearly ask for is the end.
    alpha = round(float(least if present < least else most), 2)
    why = f"of an imagined gain {share} come true at depth {depth}; the reference keeps the rest"
    found.advice.append(Advice("search.alpha", alpha, why, skill.n))


def _margin(
    found: Calibration,
    futures: Futures,
    noise: Floats,
    present: float,
    depth: int,
    confidence: float,
) -> None:
    """The noise of a difference of two values, where smaller ones clearly mean less."""
    name, n = ["search.margin"], len(futures.before)
    if len(noise) < LEAST:
        found.keep(name, f"not enough data: {len(noise)} repeated values, {LEAST} are needed", n)
        return
    at = DEPTHS.index(depth)
    imagined = _beyond(futures.imagined[:, at], futures.before)
    seen = _beyond(futures.seen[:, at], futures.before)
    # A robust spread: a value may truly jump when something is grasped or dropped.
    deviation = float(stats.median_abs_deviation(noise, scale="normal"))
    size = np.abs(imagined)
    margin = float(stats.norm.ppf(confidence)) * np.sqrt(2.0) * deviation
    margin = round(min(margin, float(np.median(size))), 4)
    same, small = np.sign(imagined) == np.sign(seen), size < margin
    if min(small.sum(), (~small).sum()) < LEAST:
        why = (
            f"not enough data below {margin:g}, the noise of values (deviation {deviation:.4f}): "
            f"{small.sum()} of {n} changes, {LEAST} are needed"
        )
        found.keep(name, why, n)
        return
    below = wilson(int(same[small].sum()), int(small.sum()))
    above = wilson(int(same[~small].sum()), int((~small).sum()))
    told = (
        f"imagined changes below {margin:g}, the noise of values, go the way seen ones do in "
        f"{below.rate:.0%} ({below.low:.0%} to {below.high:.0%}), larger ones in {above.rate:.0%} "
        f"({above.low:.0%} to {above.high:.0%})"
    )
    if below.high >= above.low or present >= margin:
        found.keep(name, told + (": no clear difference" if present < margin else ""), n)
        return
    found.advice.append(Advice("search.margin", margin, told, n))


def _beyond(values: Floats, given: Floats) -> Floats:
    """What a straight line through a second quantity leaves of a first."""
    fit = stats.linregress(given, values) if np.ptp(given) > 0.0 else None
    line = values.mean() if fit is None else fit.intercept + fit.slope * given
    return np.asarray(values - line)


def budget(
    found: Calibration,
    points: Sequence[BudgetPoint],
    present: int,
    period_ms: float,
    rng: np.random.Generator,
) -> None:
    """Advise on the number of simulations: fewer where that loses nothing, or takes too long.

    More are never advised: what is imagined grows with the number of candidates, true or not.

    Args:
        found: takes advice and curves.
        points: tried, ascending, on the same moments.
        present: simulations in force; the most tried where it was not.
        period_ms: between two decisions.
        rng: of the resampling.
    """
    found.curves["budget"] = {
        "simulations": [float(p.simulations) for p in points],
        "gain": [float(p.gains.mean()) for p in points],
        "error": [float(p.gains.std() / np.sqrt(len(p.gains))) for p in points],
        "agrees": [p.agrees for p in points],
        "p95_ms": [float(np.percentile(p.times_ms, 95)) for p in points],
    }
    name, n = "search.simulations", len(points[-1].gains)
    in_time = [p for p in points if np.percentile(p.times_ms, 95) <= period_ms]
    now = next((p for p in points if p.simulations == present), points[-1])
    if not in_time:
        why = f"no budget decides within {period_ms:.0f} ms on this machine"
        found.keep([name], why, n)
        return
    if now.gains.mean() <= 0.0:
        found.keep([name], f"{now.simulations} imagine no gain at any moment", n)
        return
    drawn = rng.integers(n, size=(RESAMPLES, n))
    gained = np.maximum(now.gains[drawn].mean(axis=1), 1e-12)
    for point in in_time:
        if point.simulations >= now.simulations:
            break
        least = float(np.percentile(point.gains[drawn].mean(axis=1) / gained, 2.5))
        if least >= ENOUGH:
            why = f"imagines at least {least:.0%} of what {now.simulations} do"
            found.advice.append(Advice(name, point.simulations, why, n))
            return
    slow = float(np.percentile(now.times_ms, 95))
    if now not in in_time:
        why = f"the most in time: {now.simulations} take {slow:.0f} of {period_ms:.0f} ms (95th %)"
        fewer = [p for p in in_time if p.simulations < now.simulations]
        found.advice.append(Advice(name, fewer[-1].simulations if fewer else None, why, n))
        return
    why = (
        f"fewer than {now.simulations} are not known to keep {ENOUGH:.0%} of the imagined gain; "
        f"{slow:.0f} ms (95th percentile, this machine)"
    )
    found.keep([name], why, n)


def gate(
    found: Calibration,
    slopes: Floats,
    gains: Floats,
    margin: float,
    trusted: bool,
    disagreement: Floats,
    rng: np.random.Generator,
) -> None:
    """Advise the gate where skipping demonstrably loses nothing that searching would gain.

    Args:
        found: takes advice and curves.
        slopes: (N,) imagined gain of the policy's own macro-action.
        gains: (N,) imagined gain of searching over it.
        margin: that a gain must reach to be taken.
        trusted: whether what is imagined demonstrably foretells what is seen.
        disagreement: (K,) of the ensemble, one macro-action ahead.
        rng: of the resampling.
    """
    found.curves["gate"] = {"slope": slopes.tolist(), "gain": gains.tolist()}
    name, n = ["search.gate.enabled"], len(slopes)
    if min(n, len(disagreement)) < LEAST:
        why = f"not enough data: {min(n, len(disagreement))} moments, {LEAST} are needed"
        found.keep(name, why, n)
        return
    if not trusted:
        why = "not enough data: a slope that is not known to come true is no reason to skip"
        found.keep(name, why, n)
        return
    taken = np.where(gains > margin, gains, 0.0)
    drawn = rng.integers(n, size=(RESAMPLES, n))
    whole = taken[drawn].sum(axis=1)
    tried = np.unique(np.quantile(slopes, np.linspace(1.0 - MOST_SKIPPED, 1.0 - WORTHWHILE, 17)))
    tail = 100.0 * (1.0 - (1.0 - LEVEL) / len(tried))
    for threshold in tried:
        skipped = slopes >= threshold
        saved = float(skipped.mean())
        if skipped.sum() < LEAST or not WORTHWHILE <= saved <= MOST_SKIPPED:
            continue
        shares = (taken * skipped)[drawn].sum(axis=1)[whole > 0.0] / whole[whole > 0.0]
        lost = float(np.percentile(shares, tail)) if len(shares) else 1.0
        if lost <= 1.0 - ENOUGH:
            why = (
                f"where the policy's own macro-action gains {threshold:.3f}, which is in "
                f"{saved:.0%} of the decisions, at most {lost:.1%} of what searching gains is lost"
            )
            agreement = round(float(np.percentile(disagreement, 90)), 4)
            near = "the disagreement on nine in ten imagined states is below"
            cut = round(float(threshold), 4)
            found.advice += [
                Advice("search.gate.enabled", True, why, n),
                Advice("search.gate.skip_slope", cut, why, n),
                Advice("search.gate.shorten_slope", cut, "no zone between", n),
                Advice("search.gate.agreement", agreement, near, len(disagreement)),
            ]
            return
    why = (
        f"no threshold on the policy's own progress saves {WORTHWHILE:.0%} of the decisions and "
        f"demonstrably loses less than {1.0 - ENOUGH:.0%} of what searching gains"
    )
    found.keep(name, why, n)
