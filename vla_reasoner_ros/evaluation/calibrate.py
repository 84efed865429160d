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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vla_reasoner_ros import plugins
from vla_reasoner_ros.arguments import SHARE, WHOLE
from vla_reasoner_ros.components import Components, load_components
from vla_reasoner_ros.data.bag_episodes import bags_in
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.evaluation import done
from vla_reasoner_ros.evaluation.calibration_data import (
    DEPTHS,
    Collector,
    Logs,
    log_likelihoods,
    think,
    thinned,
)
from vla_reasoner_ros.evaluation.calibration_rules import (
    LEAST,
    Advice,
    Calibration,
    budget,
    depth_alpha_margin,
    gate,
)
from vla_reasoner_ros.evaluation.evaluate import parse_overrides
from vla_reasoner_ros.evaluation.replay_settings import read_settings
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.parameters import nested
from vla_reasoner_ros.priors import mixture
from vla_reasoner_ros.search.parameters import SearchParameters

LEAST_ACTIONS = 100
BUDGETS = (8, 16, 32, 64, 128)
BANDWIDTHS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)


def calibrate(
    logs: Logs,
    components: Components,
    search: SearchParameters,
    *,
    prior_options: Mapping[str, Any] | None = None,
    confidence: float = 0.7,
    seed: int = 0,
    budgets: Sequence[int] = BUDGETS,
) -> Calibration:
    """Everything that the logs allow to recommend.

    Args:
        logs: what the bags gave.
        components: that made them.
        search: parameters that are kept where nothing is recommended.
        prior_options: that the prior was made with.
        confidence: chance that an imagined gain of the recommended margin is no noise.
        seed: of resampling and thinking.
        budgets: simulations that are tried, ascending.
    """
    found = Calibration()
    rng = np.random.default_rng(seed)
    world_model = components.world_model
    assert world_model is not None
    deepest = components.policy.spec.horizon // world_model.macro_steps + search.reach
    futures = logs.futures()
    for at, depth in enumerate(DEPTHS):
        found.curves[f"imagined_{depth}"] = {
            "imagined": (futures.imagined[:, at] - futures.before).tolist(),
            "seen": (futures.seen[:, at] - futures.before).tolist(),
        }
    trusted = depth_alpha_margin(found, futures, logs.noise(), search, deepest, confidence, rng)
    chosen = found.parameters()
    depth = int(chosen.get("search.depth", search.depth))
    margin = float(chosen.get("search.margin", search.margin))
    _thinking(found, logs, components, replace(search, depth=depth), budgets, margin, trusted, seed)
    kernel = kernel_options(components.names.get("prior", ""), prior_options or {})
    _bandwidth(found, logs, kernel)
    _stop_rule(found, logs)
    return found


def _thinking(
    found: Calibration,
    logs: Logs,
    components: Components,
    search: SearchParameters,
    budgets: Sequence[int],
    margin: float,
    trusted: bool,
    seed: int,
) -> None:
    """Budget and gate, from thinking about some moments again."""
    n = len(logs.moments)
    if n < LEAST:
        why = f"not enough data: {n} moments, {LEAST} are needed"
        found.keep(["search.simulations", "search.gate.enabled"], why, n)
        return
    tried = [
        replace(
            search,
            simulations=count,
            alpha=min(search.alpha, 0.99),
            gate=replace(search.gate, enabled=False),
            margin=0.0,
            deadline_ms=0.0,
            reuse=False,
        )
        for count in sorted({*budgets, search.simulations})
        if count >= max(1, search.longest)
    ]
    points = think(components, tried, logs.moments, seed)
    rng = np.random.default_rng(seed)
    period_ms = 1e3 * search.executed * components.policy.spec.action.dt
    budget(found, points, search.simulations, period_ms, rng)
    now = next((p for p in points if p.simulations == search.simulations), points[-1])
    slopes = np.array(thinned(logs.own_gains))
    known = np.isfinite(slopes)
    disagreement = np.array([p.disagreement for p in logs.predictions if p.depth == 1])
    gate(found, slopes[known], now.gains[known], margin, trusted, disagreement, rng)


def kernel_options(prior: str, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The options of a prior's kernel density estimate; None where it has none.

    Args:
        prior: its registered name.
        options: that it was made with.
    """
    if prior == "kde":
        return options
    if prior != "mixture":
        return None
    weights, parts = mixture.in_force(**options)
    return (parts.get("kde") or {}) if "kde" in weights else None


def with_bandwidth(prior: str, options: Mapping[str, Any], bandwidth: float) -> dict[str, Any]:
    """The same prior's options, with another bandwidth of its kernel density estimate."""
    if prior == "kde":
        return {**options, "bandwidth": bandwidth}
    _, parts = mixture.in_force(**options)
    kernel = {**(parts.get("kde") or {}), "bandwidth": bandwidth}
    return {**options, "options": {**parts, "kde": kernel}}


def _bandwidth(found: Calibration, logs: Logs, kernel: Mapping[str, Any] | None) -> None:
    n = len(logs.actions)
    if kernel is None or n < LEAST_ACTIONS:
        why = (
            "the prior has no kernels"
            if kernel is None
            else f"not enough data: {n} demonstrated macro-actions, {LEAST_ACTIONS} are needed"
        )
        found.keep(["bandwidth"], why, n)
        return
    present = float(kernel.get("bandwidth", 1.0))
    tried = sorted({*BANDWIDTHS, present})
    priors = [plugins.create("prior", "kde", {**kernel, "bandwidth": b}) for b in tried]
    densities = log_likelihoods(priors, logs.actions)
    means = densities.mean(axis=1)
    found.curves["bandwidth"] = {
        "factor": tried,
        "log_density": means.tolist(),
        "error": (densities.std(axis=1) / np.sqrt(n)).tolist(),
    }
    best, usual = int(means.argmax()), tried.index(present)
    gain = densities[best] - densities[usual]
    error = float(gain.std() / np.sqrt(n))
    if best == usual or gain.mean() < 2.0 * error:
        why = (
            f"no other bandwidth fits {n} demonstrated macro-actions better by two standard errors"
        )
        found.keep(["bandwidth"], why, n)
        return
    found.bandwidth = tried[best]
    why = (
        f"{gain.mean():+.2f} nat of log density for each demonstrated macro-action against "
        f"{present:g} (standard error {error:.2f})"
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


def parameter_file(
    found: Calibration, folder: Path, prior: str, prior_options: Mapping[str, Any]
) -> dict[Path, bytes]:
    """The parameter file, and that of the prior's options, by path.

    Args:
        found: what is recommended.
        folder: that they will lie in.
        prior: its registered name.
        prior_options: that it was made with; all but the bandwidth stay.
    """
    files: dict[Path, bytes] = {}
    values = found.parameters()
    if found.bandwidth is not None:
        path = folder / "prior.yaml"
        options = with_bandwidth(prior, prior_options, found.bandwidth)
        files[path] = yaml.safe_dump(options).encode()
        values["planner.prior_options"] = str(path.resolve())
    lines = [f"# Recommended by vla-reasoner calibrate, {datetime.date.today().isoformat()}."]
    lines += [f"# {advice.name}: {_said(advice)}" for advice in found.advice]
    content = {"/**": {"ros__parameters": nested(values)}}
    lines.append(yaml.safe_dump(content))
    files[folder / "calibrated.yaml"] = "\n".join(lines).encode()
    return files


def figure(found: Calibration, depth: int) -> bytes:
    """The curves as a PNG; changes of the value are shown at one depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = found.curves
    drawn, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    (skill, scatter, budget), (bandwidth, gate, stop) = axes
    if "skill" in curves:
        shown = curves["skill"]
        middle = np.array(shown["correlation"])
        errors = np.abs(np.array([shown["low"], shown["high"]]) - middle)
        skill.errorbar(shown["depth"], middle, yerr=errors, fmt="o-", color="#0072b2", capsize=4)
        skill.axhline(0.0, color="0.6", linewidth=0.8)
        skill.set(
            title=f"imagined against seen {DEPTHS[-1]} macro-actions on",
            xlabel="macro-actions imagined",
            ylabel="correlation, value before held fixed",
            xticks=DEPTHS,
        )
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
    for name, panel in (
        ("skill", skill),
        ("budget", budget),
        ("bandwidth", bandwidth),
        ("gate", gate),
    ):
        if name not in curves:
            panel.set_title(name)
            panel.text(0.5, 0.5, "not enough data", ha="center", transform=panel.transAxes)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    plt.close(drawn)
    return buffer.getvalue()


def _said(advice: Advice) -> str:
    value = "keep what is set" if advice.value is None else str(advice.value)
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
        "--confidence",
        type=SHARE,
        default=0.7,
        help="chance that an imagined gain of the margin is no noise (default 0.7)",
    )
    parser.add_argument("--seed", type=WHOLE, default=0)


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
    prior_options = plugins.read_options(settings.components.prior_options)
    found = calibrate(
        logs,
        components,
        settings.search,
        prior_options=prior_options,
        confidence=arguments.confidence,
        seed=arguments.seed,
    )
    out: Path = arguments.out
    files = parameter_file(found, out, components.names.get("prior", ""), prior_options)
    told = {"advice": [vars(a) for a in found.advice], "curves": found.curves}
    files[out / "calibration.json"] = json.dumps(told, indent=1).encode()
    depth = found.parameters().get("search.depth", settings.search.depth)
    files[out / "calibration.png"] = figure(found, min(depth, DEPTHS[-1]))
    for path, content in files.items():
        write_atomically(path, content)
    for advice in found.advice:
        print(f"{advice.name:<26}{_said(advice)}")
    print(f"parameters: {out / 'calibrated.yaml'}; curves: {out / 'calibration.png'}")
    return 0
