"""When a task counts as done: a stop rule over the value, and how often it errs.

The rule: the value has been at least ``threshold`` for ``hold`` seconds. Its errors are measured on
episodes whose outcome is known: stops before, or without, success, and successes that it misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.evaluation.statistics import Proportion, wilson

Floats = NDArray[np.float64]
HOLDS = (0.0, 0.5, 1.0, 2.0)
"""Seconds that are tried."""
LEAST_EPISODES = 10
"""Of each outcome, below which no rule is recommended."""
GOES_ON = 1.0
"""s after success within which a recording that ends leaves a rule no time to notice it."""
ROUNDING = 1e-9
"""s by which differences of times are off."""
FOLDS = 5
ALLOWED = 0.05
"""False stops that a recommended rule may have, as a share of all episodes."""


@dataclass(frozen=True)
class ValueSeries:
    """The value along an episode.

    Attributes:
        times: (T,) seconds.
        values: (T,) of the states seen.
        success_time: when the task was truly done, s; None where it never was.
    """

    times: Floats
    values: Floats
    success_time: float | None


@dataclass(frozen=True)
class StopRule:
    """A rule and its errors.

    Attributes:
        threshold: the value to reach.
        hold: seconds that it must stay there.
        false_stops: episodes that it ended before success, or without any.
        missed: successes that it never noticed.
        delay: mean seconds from success to the stop, of those it noticed.
    """

    threshold: float
    hold: float
    false_stops: Proportion
    missed: Proportion
    delay: float


def stop_time(series: ValueSeries, threshold: float, hold: float) -> float | None:
    """When the rule says done, s; None when never."""
    since: float | None = None
    for time, value in zip(series.times, series.values, strict=True):
        if not value >= threshold:  # NaN reaches nothing
            since = None
            continue
        since = float(time) if since is None else since
        if time - since >= hold - ROUNDING:
            return float(time)
    return None


def judge(episodes: Sequence[ValueSeries], threshold: float, hold: float) -> StopRule:
    """Measure a rule's errors."""
    false_stops = missed = successes = 0
    delays = []
    for series in episodes:
        stopped, done = stop_time(series, threshold, hold), series.success_time
        early = stopped is not None and (done is None or stopped < done)
        false_stops += early
        if done is None or early:
            continue
        successes += 1
        if stopped is None:
            missed += 1
        else:
            delays.append(stopped - done)
    return StopRule(
        threshold,
        hold,
        wilson(false_stops, len(episodes)),
        wilson(missed, successes),
        float(np.mean(delays)) if delays else float("nan"),
    )


def all_rules(episodes: Sequence[ValueSeries]) -> list[StopRule]:
    """Every threshold that separates values seen, with every hold."""
    values = np.concatenate([series.values for series in episodes] or [np.zeros(0)])
    if not len(values):
        return []
    thresholds = np.unique(np.round(np.quantile(values, np.linspace(0.05, 0.995, 40)), 4))
    return [judge(episodes, float(t), hold) for t in thresholds for hold in HOLDS]


def choose(episodes: Sequence[ValueSeries]) -> StopRule | None:
    """The rule that misses least among those that rarely stop wrongly; None where all do."""
    allowed = [
        rule
        for rule in all_rules(episodes)
        if rule.false_stops.rate <= ALLOWED and rule.missed.rate < 1.0
    ]
    return min(allowed, key=lambda r: (round(r.missed.rate, 2), r.delay, r.hold), default=None)


def recommend(episodes: Sequence[ValueSeries]) -> tuple[StopRule | None, str]:
    """A rule with the errors that such rules make on episodes they were not chosen on.

    Returns:
        The rule, its errors measured by leaving out a fifth of the episodes at a time; or None. And
        what is to be said of it.
    """
    successes = sum(series.success_time is not None for series in episodes)
    failures = len(episodes) - successes
    if min(successes, failures) < LEAST_EPISODES:
        return None, (
            f"not enough data: {successes} successes and {failures} failures are known, "
            f"{LEAST_EPISODES} of each are needed"
        )
    best = choose(episodes)
    if best is None:
        return None, f"no rule stops wrongly in at most {ALLOWED:.0%} and notices any success"
    held_out = []
    for fold in range(FOLDS):
        rest = [series for i, series in enumerate(episodes) if i % FOLDS != fold]
        rule = choose(rest)
        if rule is not None:
            held_out.append(judge(episodes[fold::FOLDS], rule.threshold, rule.hold))
    if len(held_out) < FOLDS:
        return None, "not enough data: without a fifth of the episodes there is no rule"
    delays = [rule.delay for rule in held_out if np.isfinite(rule.delay)]
    best = StopRule(
        best.threshold,
        best.hold,
        _sum([rule.false_stops for rule in held_out]),
        _sum([rule.missed for rule in held_out]),
        float(np.mean(delays)) if delays else float("nan"),
    )
    return best, (
        f"value at least {best.threshold:.3f} for {best.hold:g} s: on episodes it was not chosen "
        f"on it stops wrongly in {_told(best.false_stops)}, misses {_told(best.missed)} of the "
        f"successes, and notices them after {best.delay:.1f} s" + _cut_off(episodes, successes)
    )


def _cut_off(episodes: Sequence[ValueSeries], successes: int) -> str:
    """What is to be said of recordings that end with success."""
    ended = sum(
        series.success_time is not None and series.times[-1] < series.success_time + GOES_ON
        for series in episodes
    )
    if 2 * ended < successes:
        return ""
    return (
        f"; {ended} of {successes} successful recordings end within {GOES_ON:g} s of it, so that "
        "more is missed than on an arm that waits"
    )


def _sum(proportions: Sequence[Proportion]) -> Proportion:
    return wilson(sum(p.successes for p in proportions), sum(p.n for p in proportions))


def _told(proportion: Proportion) -> str:
    return f"{proportion.rate:.0%} ({proportion.low:.0%} to {proportion.high:.0%})"
