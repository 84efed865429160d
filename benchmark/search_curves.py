"""Draw the measured curves and the tree of docs/search.md: regret on the double integrator.

``python benchmark/search_curves.py`` writes docs/images/search_*.png and prints every point.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from double_integrator import DoubleIntegrator
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.render import to_picture
from vla_reasoner_ros.search.statistics import snapshot

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BUDGETS = (16, 32, 64, 128, 256, 512)
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


def main() -> None:
    """Measure and draw."""
    methods: dict[str, dict[str, Any]] = {
        "tree": {},
        "tree, paper's choices": PAPER,
        "best of N": {"method": "best_of_n"},
        "random shooting": {"method": "shooting"},
        "CEM": {"method": "cem"},
        "MPPI": {"method": "mppi"},
    }
    waves: dict[str, dict[str, Any]] = {
        f"W = {wave}": {"wave": wave, "widening.batch": max(8, wave // 2)} for wave in (1, 8, 32)
    }
    depths: dict[str, dict[str, Any]] = {f"depth {d}": {"depth": d} for d in (1, 2, 3)}
    noises: dict[str, dict[str, Any]] = {
        f"{name}, noise {noise}": {"noise": noise, "backup": name}
        for noise in (0.02, 0.1)
        for name in ("max", "mean")
    }
    panels = {
        "Method": methods,
        "Width of a wave": waves,
        "Depth, of a horizon of 3": depths,
        "Backup under a noisy value": noises,
    }
    figure = Figure(figsize=(10.0, 7.0), layout="constrained")
    for axes, (title, curves) in zip(
        figure.subplots(2, 2, sharey=True).flat, panels.items(), strict=True
    ):
        for name, values in curves.items():
            points = [regret(**values, simulations=budget) for budget in BUDGETS]
            print(
                json.dumps({"panel": title, "curve": name, "regret": np.round(points, 4).tolist()})
            )
            axes.loglog(BUDGETS, points, marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel("simulations")
        axes.set_ylabel("regret, share of the optimum")
        axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "search_tuning.png", dpi=110)
    problem = DoubleIntegrator(build(SearchParameters, {"depth": 3, "simulations": 90}), AXES, 3)
    problem.decide()
    to_picture(snapshot(problem.engine), IMAGES / "search_tree.png")


if __name__ == "__main__":
    main()
