"""The search finds what is known to be best: small Markov decision processes and a point mass."""

import functools

import numpy as np
import pytest

from benchmark.double_integrator import DoubleIntegrator, costs_to_go
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.priors.base import Candidates
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.decide import candidates_of, choose_root
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import NODES
from vla_reasoner_ros.types import ActionSpec, Representation

SPEC = ActionSpec(Representation.JOINT_DELTA, ("move",), "", 0.1)


class FiniteProcess:
    """S states, A deterministic moves, a terminal value per state; solved by backward induction."""

    def __init__(self, seed, states=30, moves=4):
        rng = np.random.default_rng(seed)
        self.moves = moves
        self.next = rng.integers(states, size=(states, moves))
        self.value = rng.random(states) ** 4
        self.slots = np.zeros(100_000, np.int64)

    @property
    def models(self):
        return Models(self.step, lambda slots: self.value[self.slots[slots]][None], self.candidates)

    def step(self, parents, actions, children):
        self.slots[children] = self.next[self.slots[parents], actions[:, 0, 0].astype(int)]

    def candidates(self, reference, count, rng):
        moves = np.tile(np.arange(1, 1 + count), (len(reference), 1)) % self.moves
        actions = np.concatenate([0 * reference[:, None], moves[:, :, None, None]], axis=1)
        return Candidates(actions, np.zeros((len(reference), 1 + count)), ("all",) * (1 + count))

    def best(self, state, depth):
        """Value of the best path of ``depth`` moves, and of each first move."""
        values = self.value
        for _ in range(depth - 1):
            values = values[self.next].max(axis=1)
        return values[self.next[state]]


def solved(process, depth, **values):
    """The first move that the search chooses, and the value that it claims."""
    values = {
        "depth": depth,
        "simulations": 2000,
        "alpha": 0.0,
        "samples": 3,
        "branching": 3,
        "widening.enabled": False,
        "rollout": False,
    } | {name.replace("__", "."): value for name, value in values.items()}
    engine = Engine(build(SearchParameters, values), 1, SPEC)
    rng = np.random.default_rng(0)
    engine.search(process.models, np.zeros((depth, 1)), Budget(2000), rng, Stages())
    root = candidates_of(engine.tree, 0, 1.0)
    choice = choose_root(engine, root)
    return int(engine.tree.action[root.edges[choice.winner], 0]), choice.value


@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("seed", range(8))
def test_finite_processes_are_solved_exactly(backup, seed):
    process = FiniteProcess(seed)
    decision = "visits" if backup == "mean" else "value"
    move, value = solved(process, 3, backup=backup, decision=decision, exploration=1.0)
    exact = process.best(0, 3)
    assert exact[move] == pytest.approx(exact.max())
    assert value == pytest.approx(exact.max(), abs=1e-9 if backup == "max" else 0.1)


@pytest.mark.parametrize("selection", ["ucb", "gumbel"])
def test_rules_that_trust_the_density_at_least_halve_the_regret(selection):
    regrets, own = [], []
    for seed in range(16):
        process = FiniteProcess(seed)
        move, _ = solved(process, 3, selection=selection, gumbel__noise=0.0)
        exact = process.best(0, 3)
        regrets.append(exact.max() - exact[move])
        own.append(exact.max() - exact[0])
    assert np.mean(regrets) < 0.5 * np.mean(own)


@functools.cache
def mean_value(seeds=16, **values):
    """Value that the search's first actions reach, as a share of the optimum."""
    values = {"depth": 3, "wave": 1} | {k.replace("__", "."): v for k, v in values.items()}
    parameters = build(SearchParameters, values)
    shares = []
    for seed in range(seeds):
        problem = DoubleIntegrator(parameters, axes=2, seed=seed)
        shares.append(problem.value_of(problem.decide()) / problem.optimum())
    return float(np.mean(shares))


def test_the_optimum_of_the_double_integrator_is_one():
    problem = DoubleIntegrator(SearchParameters(depth=3), axes=1, seed=3)
    actions = np.linspace(-6, 6, 4001)
    best = max(problem.value_of(np.array([action])) for action in actions)
    assert best == pytest.approx(problem.optimum(), rel=1e-5)
    assert (np.linalg.eigvalsh(costs_to_go(3)[3]) > 0).all()


def test_regret_falls_as_the_budget_grows():
    regrets = [1.0 - mean_value(simulations=budget) for budget in (16, 64, 256, 1024)]
    assert regrets == sorted(regrets, reverse=True)
    assert regrets[-1] < 0.03
    assert regrets[-1] < 0.3 * regrets[0]


@pytest.mark.parametrize("budget", [256, 1024])
def test_wide_waves_lose_at_most_five_percent(budget):
    one = mean_value(simulations=budget, wave=1)
    wide = mean_value(simulations=budget, wave=32, widening__batch=16)
    assert wide >= 0.95 * one
    assert mean_value(simulations=budget, wave=32) >= 0.95 * one


@pytest.mark.parametrize("rival", ["best_of_n", "shooting", "cem", "mppi"])
def test_the_tree_beats_its_rivals_with_as_many_imagined_steps(rival):
    assert mean_value(simulations=256) > mean_value(simulations=256, method=rival)


@pytest.mark.parametrize("rival", ["best_of_n", "shooting", "cem", "mppi"])
@pytest.mark.parametrize("wave", [1, 7, 32])
def test_rivals_imagine_as_much_as_they_are_allowed_and_score_the_policy_first(rival, wave):
    parameters = build(SearchParameters, {"method": rival, "simulations": 100, "wave": wave})
    problem = DoubleIntegrator(parameters, axes=2, seed=1)
    problem.decide()
    tree = problem.engine.tree
    root = candidates_of(tree, 0, 1.0)
    assert tree.counters[NODES] == 101
    assert len(root.children) == 50
    np.testing.assert_array_equal(tree.action[root.edges[0]], 0.0)
    assert tree.edges["origin"][root.edges[0]] == 0
    assert root.visits.sum() == tree.nodes["visits"][0] - 1 == 50
    assert root.priors.sum() == pytest.approx(1.0)
