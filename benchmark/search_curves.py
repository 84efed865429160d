"""Draw the measured curves and the tree of docs/search.md.

``python benchmark/search_curves.py [FILE ...]`` measures the regret on the double integrator and
writes docs/images/search_*.png. From ``*.episodes.jsonl``, which ``vla-reasoner evaluate`` and
``vla-reasoner ablate`` leave behind, come the curves of success in closed loop: of all runs in
which nothing but the budget or the depth was changed. Every point is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from double_integrator import DoubleIntegrator
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vla_reasoner_ros.evaluation.statistics import wilson
from vla_reasoner_ros.parameters import build, flatten
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.render import to_picture
from vla_reasoner_ros.search.statistics import snapshot

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BUDGETS = (16, 32, 64, 128, 256, 512)
REGRETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
STARTS, AXES, HORIZON = 32, 2, 3
PAPER = {
    "selection": "ucb",
    "backup": "mean",
    "rollout": False,
    "widening.enabled": False,
    "samples": 64,
    "branching": 16,
    "prior_temperature": 1.0,
    "exploration": 1.0,
}


class NoisyIntegrator(DoubleIntegrator):
    """The value is disturbed, once for each imagined state."""

    noise = 0.0

    def _evaluate(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = np.random.default_rng([self.seed, *slots.tolist()])
        return super()._evaluate(slots) + self.noise * rng.standard_normal((1, len(slots)))


def regret(noise: float = 0.0, **values: Any) -> float:
    """Mean loss of value of the chosen first action, as a share of the optimum's value."""
    parameters = build(SearchParameters, {"depth": HORIZON, "wave": 1} | values)
    losses = []
    for seed in range(STARTS):
        problem = NoisyIntegrator(parameters, AXES, seed, HORIZON)
        problem.noise = noise
        losses.append(1.0 - problem.value_of(problem.decide()) / problem.optimum())
    return float(np.mean(losses))


class Rate(NamedTuple):
    """Successes among episodes at one value of a parameter."""

    value: float
    successes: int
    episodes: int


def success_by(parameter: str, files: Iterable[Path]) -> list[Rate]:
    """Closed-loop success of the search by the value of one parameter, all others at defaults.

    Each scene of a task counts once a value; of the default, which every other list of variants
    runs as well, only the scenes that some other value has been run on.

    Raises:
        ValueError: the runs are of different models.
    """
    defaults = flatten(SearchParameters(), "search.")
    default = defaults[f"search.{parameter}"]
    found: dict[float, dict[tuple[str, int], bool]] = {}
    models = set()
    for path in files:
        header, *episodes = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        plain = not any(header[name] for name in ("options", "scene_hook", "held_out"))
        if not plain or header["latency_true"] or header["drives"] != "latent":
            continue
        # What is set to the default is not changed.
        changed = {n for n, value in header["overrides"].items() if value != defaults.get(n)}
        if changed - {f"search.{parameter}"}:
            continue
        scenes = found.setdefault(header["overrides"].get(f"search.{parameter}", default), {})
        ours = [episode for episode in episodes if episode["arm"] == "search"]
        models |= {header["models"]} if ours else set()
        for episode in ours:
            scenes.setdefault((episode["task"], episode["seed"]), episode["success"])
    if len(models) > 1:
        raise ValueError(f"{parameter}: the runs are of different models, {sorted(models)}")
    others = set().union(*(s for value, s in found.items() if value != default))
    reference = found.get(default, {})
    found[default] = {scene: reference[scene] for scene in reference.keys() & others}
    rates = [Rate(value, sum(s.values()), len(s)) for value, s in sorted(found.items()) if s]
    for rate in rates:
        print(json.dumps({"panel": f"success by {parameter}"} | rate._asdict()))
    return rates


def draw_success(axes: Axes, parameter: str, rates: list[Rate]) -> None:
    """Success with its 95 % interval over one parameter."""
    shares = np.array([rate.successes / rate.episodes for rate in rates])
    intervals = [wilson(rate.successes, rate.episodes) for rate in rates]
    reach = [
        shares - [interval.low for interval in intervals],
        [interval.high for interval in intervals] - shares,
    ]
    axes.errorbar([rate.value for rate in rates], shares, reach, marker="o", capsize=3)
    fewest, most = (f(rate.episodes for rate in rates) for f in (min, max))
    scenes = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    axes.set_title(f"Robot in closed loop, {scenes} scenes a point")
    axes.set_xlabel(parameter)
    axes.set_ylabel("success")
    axes.set_ylim(0.0, 1.0)
    axes.grid(alpha=0.3)
    if parameter == "simulations":
        axes.set_xscale("log")
    axes.set_xticks([rate.value for rate in rates], [str(rate.value) for rate in rates])
    axes.minorticks_off()


def panels() -> dict[str, dict[str, dict[str, Any]]]:
    """What is measured on the double integrator: changed parameters by panel and curve."""
    return {
        "Method": {
            "tree": {},
            "tree, paper's choices": PAPER,
            "best of N": {"method": "best_of_n"},
            "random shooting": {"method": "shooting"},
            "CEM": {"method": "cem"},
            "MPPI": {"method": "mppi"},
        },
        "Width of a wave": {
            f"W = {wave}": {"wave": wave, "widening.batch": max(8, wave // 2)}
            for wave in (1, 8, 32, 128)
        },
        "Depth, of a horizon of 3": {f"depth {d}": {"depth": d} for d in (1, 2, 3)},
        "Backup under a noisy value": {
            f"{name}, noise {noise}": {"noise": noise, "backup": name}
            for noise in (0.02, 0.1)
            for name in ("max", "mean")
        },
    }


def draw_regret(axes: Axes, title: str, curves: dict[str, dict[str, Any]]) -> None:
    """Measure and draw the regret of each curve's parameters over the budget."""
    for name, values in curves.items():
        points = [regret(**values, simulations=budget) for budget in BUDGETS]
        print(json.dumps({"panel": title, "curve": name, "regret": np.round(points, 4).tolist()}))
        axes.loglog(BUDGETS, points, marker="o", label=name)
    axes.set_title(title)
    axes.set_xlabel("simulations")
    axes.set_ylabel("regret, share of the optimum")
    axes.set_ylim(REGRETS[0] * 0.9, REGRETS[-1] * 1.1)
    axes.set_yticks(REGRETS, [str(loss) for loss in REGRETS])
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main(files: list[Path]) -> None:
    """Measure and draw."""
    measured = {
        parameter: rates
        for parameter in ("simulations", "depth")
        if (rates := success_by(parameter, files))
    }
    columns = 2 + bool(measured)
    figure = Figure(figsize=(5.0 * columns, 7.0), layout="constrained")
    grid = figure.subplots(2, columns)
    for axes, (title, curves) in zip(grid[:, :2].flat, panels().items(), strict=True):
        draw_regret(axes, title, curves)
    for axes, (parameter, rates) in zip(grid[:, 2:].flat, measured.items(), strict=True):
        draw_success(axes, parameter, rates)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "search_tuning.png", dpi=110)
    problem = DoubleIntegrator(build(SearchParameters, {"depth": 3, "simulations": 90}), AXES, 3)
    problem.decide()
    to_picture(snapshot(problem.engine), IMAGES / "search_tree.png")


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
