"""A double integrator with a known optimum: the search's measure of regret.

``x'' = u`` in each of P axes, one action (an acceleration, m/s^2) per macro-step of :data:`DT`
seconds. A plan of ``horizon`` actions costs ``|x|^2 + |v|^2`` at its end plus ``EFFORT |u|^2`` per
action; its value is ``exp(-cost)``. The cost to go is quadratic, so that the optimum and the regret
of any first action are known exactly (finite-horizon linear-quadratic regulator).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.priors.base import Candidates
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.decide import candidates_of, choose_root, line_from
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.types import ActionSpec, Representation

Floats = NDArray[np.float64]

DT = 0.5
EFFORT = 0.05
SPREAD = 1.0
"""Standard deviation of the candidates around the policy's action, m/s^2."""
TRANSITION = np.array([[1.0, DT], [0.0, 1.0]])
INPUT = np.array([DT**2 / 2.0, DT])


def costs_to_go(depth: int) -> list[Floats]:
    """The (2, 2) quadratic costs to go with 0, 1, ... ``depth`` actions left."""
    costs = [np.eye(2)]
    for _ in range(depth):
        cost = costs[-1]
        gain = (INPUT @ cost @ TRANSITION) / (EFFORT + INPUT @ cost @ INPUT)
        costs.append(TRANSITION.T @ cost @ (TRANSITION - np.outer(INPUT, gain)))
    return costs


@dataclass
class DoubleIntegrator:
    """One decision: a start, and a policy that does nothing.

    Args:
        parameters: of the search; alpha is taken as 0, for what is searched is what is done.
        axes: P.
        seed: of the start, and of the search.
        horizon: actions that count; 0 is as many as the search imagines, ``depth``.
    """

    parameters: SearchParameters
    axes: int = 1
    seed: int = 0
    horizon: int = 0
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = replace(self.parameters, alpha=0.0)
        self.horizon = self.horizon or self.parameters.depth
        names = tuple(f"u{i}" for i in range(self.axes))
        spec = ActionSpec(Representation.JOINT_DELTA, names, "", DT)
        self.engine = Engine(self.parameters, 1, spec)
        start = np.random.default_rng(self.seed).uniform(-1.0, 1.0, (self.axes, 2))
        self.start = start
        self._states = np.zeros((self.engine.capacity, self.axes, 2))
        self._efforts = np.zeros(self.engine.capacity)
        self._states[0] = start

    @property
    def models(self) -> Models:
        """The callables of the search."""
        return Models(self._step, self._evaluate, self._candidates)

    def decide(self) -> Floats:
        """Search once; the (P,) first action that it chooses."""
        rng = np.random.default_rng(self.seed)
        segments = np.zeros((self.parameters.depth, self.axes))
        budget = Budget(self.parameters.simulations)
        self.engine.search(self.models, segments, budget, rng, Stages())
        root = candidates_of(self.engine.tree, 0, self.parameters.discount)
        return line_from(self.engine, choose_root(self.engine, root).winner, 1)[0]

    def value_of(self, action: Floats) -> float:
        """``exp(-cost)`` of a first action (P,) that is followed by the best there is."""
        cost = costs_to_go(self.horizon - 1)[-1]
        after = self.start @ TRANSITION.T + action[:, None] * INPUT
        return float(np.exp(-EFFORT * action @ action - np.einsum("pi,ij,pj", after, cost, after)))

    def optimum(self) -> float:
        """The largest value there is."""
        cost = costs_to_go(self.horizon)[-1]
        return float(np.exp(-np.einsum("pi,ij,pj", self.start, cost, self.start)))

    def _step(
        self, parents: NDArray[np.int64], actions: NDArray[np.float32], children: NDArray[np.int64]
    ) -> None:
        inputs = actions[:, 0].astype(np.float64)
        self._states[children] = self._states[parents] @ TRANSITION.T + inputs[..., None] * INPUT
        self._efforts[children] = self._efforts[parents] + EFFORT * (inputs**2).sum(1)

    def _evaluate(self, slots: NDArray[np.int64]) -> Floats:
        cost = (self._states[slots] ** 2).sum((1, 2)) + self._efforts[slots]
        return np.exp(-cost)[None]

    def _candidates(self, reference: Floats, count: int, rng: np.random.Generator) -> Candidates:
        moves = SPREAD * rng.standard_normal((len(reference), count, 1, self.axes))
        actions = np.concatenate([reference[:, None], reference[:, None] + moves], axis=1)
        away = (actions - reference[:, None]) / SPREAD
        density = -0.5 * (away**2).sum((2, 3))
        return Candidates(actions, density, ("policy",) + ("gaussian",) * count)
