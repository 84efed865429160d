"""Recommend the search's parameters from recorded bags alone, with the curves that led to them.

Nothing is executed: what was really done and seen is compared with what the models imagine for it.
What the bags are too few for is not recommended, and it is said how many there are.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import stats

from vla_reasoner_ros import plugins
from vla_reasoner_ros.components import Components, load_components
from vla_reasoner_ros.data.bag_episodes import bags_in
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.evaluation import done
from vla_reasoner_ros.evaluation.calibration_data import (
    DEPTHS,
    BudgetPoint,
    Collector,
    Logs,
    log_likelihoods,
    think,
)
from vla_reasoner_ros.evaluation.evaluate import parse_overrides
from vla_reasoner_ros.evaluation.replay_settings import read_settings
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.parameters import nested
from vla_reasoner_ros.priors.mixture import DEFAULT_OPTIONS, DEFAULT_WEIGHTS
from vla_reasoner_ros.search.parameters import SearchParameters

LEAST = 30
"""Independent comparisons below which a figure is not recommended."""
LEAST_ACTIONS = 100
BUDGETS = (8, 16, 32, 64, 128)
ENOUGH = 0.95
"""Share of the largest budget's gain that a smaller one must bring."""
BANDWIDTHS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)
RESAMPLES = 1000
WORTHWHILE = 0.1
"""Share of decisions that the gate must save to be switched on."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        name: of the parameter, or ``bandwidth``.
        value: recommended; None where the bags do not allow one.
        why: in one sentence, with the numbers.
        n: independent comparisons behind it.
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


@dataclass(frozen=True)
class Skill:
    """How well imagined changes of the value foretell seen ones, at one depth.

    Attributes:
        n: comparisons.
        correlation: between them, with ``low`` and ``high`` of its 95 % interval.
        slope: seen change per imagined change.
        residual: standard deviation of what the slope leaves unexplained.
    """

    n: int
    correlation: float
    low: float
    high: float
    slope: float
    residual: float


def skill_of(imagined: Floats, seen: Floats, rng: np.random.Generator) -> Skill:
    """Compare (N,) imagined with (N,) seen changes; the interval is bootstrapped."""
    n = len(imagined)
    if n < 3 or np.std(imagined) < 1e-9 or np.std(seen) < 1e-9:
        return Skill(n, 0.0, -1.0, 1.0, 0.0, float(np.std(seen)) if n else 0.0)
    drawn = rng.integers(n, size=(RESAMPLES, n))
    x, y = imagined[drawn], seen[drawn]
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    resampled = (x * y).sum(axis=1) / np.maximum(norm, 1e-12)
    low, high = np.percentile(resampled, [2.5, 97.5])
    fit = stats.linregress(imagined, seen)
    residual = float(np.std(seen - fit.intercept - fit.slope * imagined))
    return Skill(n, float(fit.rvalue), float(low), float(high), float(fit.slope), residual)


def calibrate(
    logs: Logs,
    components: Components,
    search: SearchParameters,
    *,
    confidence: float = 0.7,
    seed: int = 0,
    budgets: Sequence[int] = BUDGETS,
) -> Calibration:
    """Everything that the logs allow to recommend.

    Args:
        logs: what the bags gave.
        components: that made them.
        search: parameters that are kept where nothing is recommended.
        confidence: chance that a deviation truly gains, at the recommended margin.
        seed: of resampling and thinking.
        budgets: simulations that are tried, ascending.
    """
    found = Calibration()
    skill = _depth_alpha_margin(found, logs, components, search, confidence, seed)
    chosen = found.parameters()
    margin = float(chosen.get("search.margin", search.margin))
    depth = int(chosen.get("search.depth", search.depth))
    points = _budget(found, logs, components, replace(search, depth=depth), budgets, seed)
    if skill is not None:
        _gate(found, logs, points, margin)
    _bandwidth(found, logs, components)
    _stop_rule(found, logs)
    return found


def _depth_alpha_margin(
    found: Calibration,
    logs: Logs,
    components: Components,
    search: SearchParameters,
    confidence: float,
    seed: int,
) -> Skill | None:
    rng = np.random.default_rng(seed)
    world_model = components.world_model
    assert world_model is not None
    segments = components.policy.spec.horizon // world_model.macro_steps
    skills: dict[int, Skill] = {}
    for depth in DEPTHS:
        at = logs.at_depth(depth)
        imagined = np.array([p.imagined - p.before for p in at])
        seen = np.array([p.seen - p.before for p in at])
        skills[depth] = skill_of(imagined, seen, rng)
        found.curves[f"imagined_{depth}"] = {
            "imagined": imagined.tolist(),
            "seen": seen.tolist(),
        }
    found.curves["skill"] = {
        "depth": [float(d) for d in DEPTHS],
        "correlation": [s.correlation for s in skills.values()],
        "low": [s.low for s in skills.values()],
        "high": [s.high for s in skills.values()],
        "n": [float(s.n) for s in skills.values()],
    }
    names = ("search.depth", "search.alpha", "search.margin")
    most = max(s.n for s in skills.values())
    if most < LEAST:
        why = f"not enough data: {most} independent moments, {LEAST} are needed"
        found.advice += [Advice(name, None, why, most) for name in names]
        return None
    usable = [d for d, s in skills.items() if s.n >= LEAST and s.low > 0.0 and s.slope > 0.0]
    allowed = [d for d in usable if d <= segments + search.reach]
    if not allowed:
        why = (
            "what is imagined does not foretell what is seen at any depth: correlation "
            + ", ".join(
                f"{s.correlation:+.2f} ({s.low:+.2f} to {s.high:+.2f})" for s in skills.values()
            )
        )
        found.advice.append(Advice("search.depth", None, why, most))
        found.advice.append(Advice("search.alpha", 1.0, f"the plain policy: {why}", most))
        found.advice.append(Advice("search.margin", None, why, most))
        return None
    depth = max(allowed)
    skill = skills[depth]
    told = f"{skill.correlation:+.2f} ({skill.low:+.2f} to {skill.high:+.2f})"
    found.advice.append(
        Advice(
            "search.depth",
            depth,
            f"the deepest at which imagined changes of the value foretell seen ones: correlation "
            f"{told}",
            skill.n,
        )
    )
    share = float(np.clip(skill.slope, 0.0, 1.0))
    found.advice.append(
        Advice(
            "search.alpha",
            round(1.0 - share, 2),
            f"of an imagined gain {skill.slope:.0%} come true; the policy keeps the rest",
            skill.n,
        )
    )
    margin = float(stats.norm.ppf(confidence)) * skill.residual / skill.slope
    found.advice.append(
        Advice(
            "search.margin",
            round(max(0.0, margin), 4),
            f"from there on a gain is real with a chance of {confidence:.0%}: seen changes "
            f"scatter by {skill.residual:.4f}",
            skill.n,
        )
    )
    return skill


def _budget(
    found: Calibration,
    logs: Logs,
    components: Components,
    search: SearchParameters,
    budgets: Sequence[int],
    seed: int,
) -> list[BudgetPoint]:
    if len(logs.moments) < LEAST:
        why = f"not enough data: {len(logs.moments)} moments, {LEAST} are needed"
        found.advice.append(Advice("search.simulations", None, why, len(logs.moments)))
        return []
    tried = [
        replace(
            search,
            simulations=budget,
            alpha=min(search.alpha, 0.99),
            gate=replace(search.gate, enabled=False),
            margin=0.0,
            deadline_ms=0.0,
            reuse=False,
        )
        for budget in budgets
        if budget >= search.longest
    ]
    points = think(components, tried, logs.moments, seed)
    period_ms = 1e3 * search.executed * components.policy.spec.action.dt
    found.curves["budget"] = {
        "simulations": [float(p.simulations) for p in points],
        "gain": [float(p.gains.mean()) for p in points],
        "error": [float(p.gains.std() / np.sqrt(len(p.gains))) for p in points],
        "agrees": [p.agrees for p in points],
        "p95_ms": [float(np.percentile(p.times_ms, 95)) for p in points],
    }
    n = len(points[-1].gains)
    largest = float(points[-1].gains.mean())
    in_time = [p for p in points if np.percentile(p.times_ms, 95) <= period_ms]
    enough = [p for p in in_time if p.gains.mean() >= ENOUGH * largest]
    if not in_time or largest <= 0.0:
        why = (
            f"no budget decides within {period_ms:.0f} ms on this machine"
            if not in_time
            else "no budget imagines any gain"
        )
        found.advice.append(Advice("search.simulations", None, why, n))
        return points
    best = enough[0] if enough else in_time[-1]
    found.advice.append(
        Advice(
            "search.simulations",
            best.simulations,
            f"brings {best.gains.mean() / largest:.0%} of what {points[-1].simulations} bring, in "
            f"{np.percentile(best.times_ms, 95):.0f} ms (95th percentile, this machine)",
            n,
        )
    )
    return points


def _gate(found: Calibration, logs: Logs, points: Sequence[BudgetPoint], margin: float) -> None:
    if not points:
        return
    step = max(1, -(-len(logs.moments) // len(points[-1].gains)))
    slopes = np.array(logs.own_gains[::step][: len(points[-1].gains)])
    gains = points[-1].gains[: len(slopes)]
    known = np.isfinite(slopes)
    slopes, gains = slopes[known], gains[known]
    found.curves["gate"] = {"slope": slopes.tolist(), "gain": gains.tolist()}
    if len(slopes) < LEAST:
        why = f"not enough data: {len(slopes)} moments, {LEAST} are needed"
        found.advice.append(Advice("search.gate.enabled", None, why, len(slopes)))
        return
    order = np.argsort(slopes)
    above = [
        (float(slopes[i]), 1.0 - rank / len(order))
        for rank, i in enumerate(order)
        if np.mean(gains[order[rank:]] <= margin) >= ENOUGH
    ]
    threshold, saved = above[0] if above else (float("inf"), 0.0)
    if saved < WORTHWHILE:
        found.advice.append(
            Advice(
                "search.gate.enabled",
                False,
                f"it would save {saved:.0%} of the decisions: the gain of searching hardly depends "
                "on the policy's own progress",
                len(slopes),
            )
        )
        return
    why = (
        f"where the policy's own macro-action gains {threshold:.3f}, searching gains more than the "
        f"margin in fewer than {1 - ENOUGH:.0%}; that is {saved:.0%} of the decisions"
    )
    found.advice += [
        Advice("search.gate.enabled", True, why, len(slopes)),
        Advice("search.gate.skip_slope", round(threshold, 4), why, len(slopes)),
        Advice("search.gate.shorten_slope", round(threshold, 4), "no zone between", len(slopes)),
    ]
    near = [p.disagreement for p in logs.at_depth(1)]
    if len(near) >= LEAST:
        agreement = round(float(np.percentile(near, 90)), 4)
        why = "the disagreement on nine in ten imagined states is below"
        found.advice.append(Advice("search.gate.agreement", agreement, why, len(near)))


def _bandwidth(found: Calibration, logs: Logs, components: Components) -> None:
    kernel = components.names.get("prior") in ("kde", "mixture")
    n = len(logs.actions)
    if not kernel or n < LEAST_ACTIONS:
        why = (
            f"not enough data: {n} demonstrated macro-actions, {LEAST_ACTIONS} are needed"
            if kernel
            else "the prior has no kernels"
        )
        found.advice.append(Advice("bandwidth", None, why, n))
        return
    options = DEFAULT_OPTIONS.get("kde", {})
    priors = [plugins.create("prior", "kde", {**options, "bandwidth": b}) for b in BANDWIDTHS]
    densities = log_likelihoods(priors, logs.actions)
    means = densities.mean(axis=1)
    found.curves["bandwidth"] = {
        "factor": list(BANDWIDTHS),
        "log_density": means.tolist(),
        "error": (densities.std(axis=1) / np.sqrt(n)).tolist(),
    }
    best, usual = int(means.argmax()), BANDWIDTHS.index(1.0)
    gain = densities[best] - densities[usual]
    error = float(gain.std() / np.sqrt(n))
    if best == usual or gain.mean() < 2.0 * error:
        why = (
            f"no other bandwidth fits {n} demonstrated macro-actions better by two standard errors"
        )
        found.advice.append(Advice("bandwidth", None, why, n))
        return
    found.bandwidth = BANDWIDTHS[best]
    why = (
        f"{gain.mean():+.2f} nat of log density for each demonstrated macro-action against 1 "
        f"(standard error {error:.2f})"
    )
    found.advice.append(Advice("bandwidth", found.bandwidth, why, n))


def _stop_rule(found: Calibration, logs: Logs) -> None:
    rule, why = done.recommend(logs.series)
    rules = done.all_rules(logs.series)
    found.curves["stop_rule"] = {
        "false_stops": [r.false_stops.rate for r in rules],
        "missed": [r.missed.rate for r in rules],
    }
    n = len(logs.series)
    found.advice.append(
        Advice("task.success_value", None if rule is None else rule.threshold, why, n)
    )
    if rule is not None:
        found.advice.append(Advice("task.success_time", rule.hold, "the rule's", n))


# What is written.


def parameter_file(found: Calibration, folder: Path, prior: str) -> dict[Path, bytes]:
    """The parameter file, and that of the prior's options, by path."""
    files: dict[Path, bytes] = {}
    values = found.parameters()
    if found.bandwidth is not None:
        path = folder / "prior.yaml"
        kernel = {**DEFAULT_OPTIONS.get("kde", {}), "bandwidth": found.bandwidth}
        options: dict[str, Any] = kernel
        if prior == "mixture":
            options = {"weights": DEFAULT_WEIGHTS, "options": {"kde": kernel}}
        files[path] = yaml.safe_dump(options).encode()
        values["planner.prior_options"] = str(path.resolve())
    lines = [f"# Recommended by vla-reasoner calibrate, {datetime.date.today().isoformat()}."]
    lines += [f"# {advice.name}: {_said(advice)}" for advice in found.advice]
    content = {"/**": {"ros__parameters": nested(values)}}
    lines.append(yaml.safe_dump(content))
    files[folder / "calibrated.yaml"] = "\n".join(lines).encode()
    return files


def figure(found: Calibration) -> bytes:
    """The curves as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = found.curves
    drawn, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    (skill, scatter, budget), (bandwidth, gate, stop) = axes
    shown = curves["skill"]
    middle = np.array(shown["correlation"])
    errors = np.abs(np.array([shown["low"], shown["high"]]) - middle)
    skill.errorbar(shown["depth"], middle, yerr=errors, fmt="o-", color="#0072b2", capsize=4)
    skill.axhline(0.0, color="0.6", linewidth=0.8)
    skill.set(title="imagined against seen", xlabel="macro-actions ahead", ylabel="correlation")
    depth = found.parameters().get("search.depth", 1)
    pairs = curves[f"imagined_{depth}"]
    scatter.scatter(pairs["imagined"], pairs["seen"], s=12, color="#0072b2", alpha=0.6)
    scatter.axline((0.0, 0.0), slope=1.0, color="0.6", linewidth=0.8)
    scatter.set(title=f"change of value, depth {depth}", xlabel="imagined", ylabel="seen")
    if "budget" in curves:
        tried = curves["budget"]
        budget.errorbar(
            tried["simulations"], tried["gain"], yerr=tried["error"], fmt="o-", color="#0072b2"
        )
        budget.set(xscale="log", title="budget", xlabel="simulations", ylabel="imagined gain")
        times = budget.twinx()
        times.plot(tried["simulations"], tried["p95_ms"], "s--", color="#d55e00")
        times.set_ylabel("95th percentile of the time, ms", color="#d55e00")
    if "bandwidth" in curves:
        tried = curves["bandwidth"]
        bandwidth.errorbar(
            tried["factor"], tried["log_density"], yerr=tried["error"], fmt="o-", color="#0072b2"
        )
        bandwidth.set(xscale="log", title="bandwidth", xlabel="factor", ylabel="log density, nat")
        bandwidth.set_xticks(BANDWIDTHS, [f"{factor:g}" for factor in BANDWIDTHS])
        bandwidth.minorticks_off()
    if "gate" in curves:
        gate.scatter(curves["gate"]["slope"], curves["gate"]["gain"], s=12, color="#0072b2")
        gate.set(title="gate", xlabel="gain of the policy's own", ylabel="gain of searching")
    if curves["stop_rule"]["missed"]:
        rules = curves["stop_rule"]
        stop.scatter(rules["false_stops"], rules["missed"], s=12, color="#0072b2", alpha=0.6)
        stop.axvline(done.ALLOWED, color="#d55e00", linewidth=0.8)
    stop.set(title="stop rules", xlabel="stops wrongly", ylabel="successes missed")
    for name, panel in (("budget", budget), ("bandwidth", bandwidth), ("gate", gate)):
        if name not in curves:
            panel.set_title(name)
            panel.text(0.5, 0.5, "not enough data", ha="center", transform=panel.transAxes)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    plt.close(drawn)
    return buffer.getvalue()


def _said(advice: Advice) -> str:
    value = "keep the default" if advice.value is None else str(advice.value)
    return f"{value} (n = {advice.n}): {advice.why}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bags", nargs="+", type=Path, help="bags, or folders with bags")
    parser.add_argument("--out", type=Path, default=Path("out/calibration"), help="folder to write")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--namespace", default="", help="of the topics")
    parser.add_argument("--instruction", default="", help="where a bag has none")
    parser.add_argument("--params", type=Path, help="ROS parameter file to start from")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter, as planner.world_model=latent; may be repeated",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.7, help="chance that a deviation gains (default 0.7)"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Read the bags, recommend, write YAML, JSON and PNG."""
    if not 0.5 <= arguments.confidence < 1.0:
        raise ConfigurationError(f"--confidence: expected 0.5 to 1, got {arguments.confidence}")
    bags = bags_in(arguments.bags)
    contract = load_contract(arguments.contract)
    with BagReader(bags[0]) as bag:
        settings = read_settings(
            bag,
            namespace=arguments.namespace,
            params=arguments.params,
            overrides=parse_overrides(arguments.set),
        )
    components = load_components(settings.components)
    collector = Collector(components, settings.search.executed)
    options = {"instruction": arguments.instruction, "namespace": arguments.namespace}
    for number, path in enumerate(bags, 1):
        try:
            with BagReader(path) as bag:
                collector.read(bag, contract, **options)
        except BagError as error:
            collector.logs.problems.append(str(error))
        print(f"calibrate: {number}/{len(bags)} bags", file=sys.stderr)
    logs = collector.logs
    for problem in dict.fromkeys(logs.problems):
        print(f"note: {problem}", file=sys.stderr)
    found = calibrate(
        logs, components, settings.search, confidence=arguments.confidence, seed=arguments.seed
    )
    out: Path = arguments.out
    files = parameter_file(found, out, components.names.get("prior", ""))
    told = {"advice": [vars(a) for a in found.advice], "curves": found.curves}
    files[out / "calibration.json"] = json.dumps(told, indent=1).encode()
    files[out / "calibration.png"] = figure(found)
    for path, content in files.items():
        write_atomically(path, content)
    for advice in found.advice:
        print(f"{advice.name:<26}{_said(advice)}")
    print(f"parameters: {out / 'calibrated.yaml'}; curves: {out / 'calibration.png'}")
    return 0
