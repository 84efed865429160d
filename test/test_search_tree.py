"""The compiled tree search equals a textbook implementation, node for node."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook_search import Textbook

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.priors.base import Candidates
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.decide import candidates_of, choose_root
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.statistics import snapshot
from vla_reasoner_ros.search.tree import CUT, EDGES, NODES, NONE, PRUNED, edges_of
from vla_reasoner_ros.types import ActionSpec, Representation

DIMENSIONS = 2
SPEC = ActionSpec(Representation.JOINT_DELTA, ("a", "b"), "", 0.1)
SEGMENTS = np.array([[0.3, -0.2], [0.1, 0.1]])
PLAIN = {"widening.enabled": False, "rollout": False, "samples": 6, "branching": 6, "wave": 1}


class Landscape:
    """Points in the plane, and an ensemble that finds some places better than others."""

    def __init__(self, capacity=4096, members=3):
        self.points = np.zeros((capacity, DIMENSIONS))
        self.phases = np.linspace(0.0, 0.3, members)[:, None]
        self.calls = []

    @property
    def models(self):
        return Models(self.step, self.evaluate, self.candidates)

    def step(self, parents, actions, children):
        self.calls.append(len(parents))
        self.points[children] = self.points[parents] + actions.sum(1)

    def evaluate(self, slots):
        x, y = self.points[slots].T
        return 0.5 + 0.25 * np.sin(3 * x + self.phases) + 0.25 * np.cos(2 * y - x)

    def candidates(self, reference, count, rng):
        moves = 0.5 * rng.standard_normal((len(reference), count, *reference.shape[1:]))
        actions = np.concatenate([reference[:, None], reference[:, None] + moves], axis=1)
        density = -2.0 * ((actions - reference[:, None]) ** 2).sum((2, 3))
        return Candidates(actions, density, ("policy",) + ("near",) * count)


def searched(landscape=None, seed=0, **values):
    """An engine after one search, and what the search did."""
    values = {name.replace("__", "."): value for name, value in values.items()}
    parameters = build(SearchParameters, PLAIN | values)
    engine = Engine(parameters, 1, SPEC)
    outcome = engine.search(
        (landscape or Landscape()).models,
        SEGMENTS,
        Budget(parameters.simulations),
        np.random.default_rng(seed),
        Stages(),
    )
    return engine, outcome


VARIANTS = {
    "puct": {},
    "ucb": {"selection": "ucb"},
    "gumbel": {"selection": "gumbel", "gumbel.considered": 4},
    "greedy gumbel": {"selection": "gumbel", "gumbel.noise": 0.0},
    "max": {"backup": "max"},
    "ucb max": {"selection": "ucb", "backup": "max", "exploration": 0.5},
    "gumbel max": {"selection": "gumbel", "backup": "max"},
    "discount": {"discount": 0.9},
    "discount max": {"discount": 0.9, "backup": "max"},
    "raw values": {"normalise": False, "exploration": 0.1},
    "parent first": {"first_play": "parent", "first_play_value": 0.1},
    "constant first": {"first_play": "constant", "first_play_value": 0.4},
    "nearest": {"samples": 20},
    "temperature": {"prior_temperature": 7.0},
    "rollout": {"rollout": True},
    "rollout max": {"rollout": True, "backup": "max"},
    "rollout ucb": {"rollout": True, "selection": "ucb"},
    "rollout gumbel": {"rollout": True, "selection": "gumbel", "gumbel.noise": 0.0, "depth": 4},
    "widening": {"widening.enabled": True, "widening.batch": 2, "branching": 30},
    "widening rollout": {"widening.enabled": True, "branching": 30, "rollout": True},
    "one by one": {"widening.enabled": True, "widening.batch": 1, "branching": 30},
    "shallow": {"depth": 1},
    "no pessimism": {"pessimism": 0.0},
    "as drawn": {"blend_at": "decision"},
    "blended more": {"alpha": 0.9, "widening.enabled": True, "branching": 30, "rollout": True},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_leaf_at_a_time_is_the_textbook_algorithm(name, seed):
    values = PLAIN | {"depth": 3, "simulations": 80} | VARIANTS[name]
    parameters = build(SearchParameters, values)
    engine, _ = searched(seed=seed, **values)
    textbook = Textbook(parameters, Landscape().models, SEGMENTS, np.random.default_rng(seed))
    nodes, tree = textbook.run(), engine.tree
    assert tree.counters[NODES] == len(nodes)
    for i, node in enumerate(nodes):
        assert tree.nodes["parent"][i] == (NONE if node.parent is None else node.parent.slot)
        assert tree.nodes["visits"][i] == node.visits
        assert tree.nodes["depth"][i] == node.depth
        assert tree.nodes["value"][i] == pytest.approx(textbook.worth(node), abs=1e-6)
        assert tree.nodes["leaf_value"][i] == pytest.approx(node.leaf_value, abs=1e-6)
        if node.parent is not None:
            edge = tree.nodes["edge"][i]
            np.testing.assert_allclose(tree.action[edge], node.action, atol=1e-5)
            assert tree.edges["prior"][edge] == pytest.approx(node.prior, rel=1e-4)
        edges = edges_of(tree, i)
        assert [tree.edges["child"][edge] for edge in edges] == [
            NONE if child.slot is None else child.slot for child in node.children
        ]


rules = st.fixed_dictionaries(
    {
        "selection": st.sampled_from(["puct", "ucb", "gumbel"]),
        "backup": st.sampled_from(["mean", "max"]),
        "decision": st.sampled_from(["visits", "value", "lower_bound"]),
        "first_play": st.sampled_from(["try_all", "parent", "constant"]),
        "discount": st.sampled_from([1.0, 0.9]),
        "virtual_loss": st.sampled_from([0.0, 0.5, 2.0]),
        "support_floor": st.sampled_from([0.0, 1.0]),
        "rollout": st.booleans(),
        "widening": st.booleans(),
        "simulations": st.integers(4, 150),
        "depth": st.integers(1, 4),
        "wave": st.integers(1, 40),
        "branching": st.integers(1, 12),
        "seed": st.integers(0, 5),
    }
)


def parameters_of(drawn):
    values = dict(drawn)
    seed = values.pop("seed")
    values["widening.enabled"] = values.pop("widening") and values["selection"] != "gumbel"
    values["samples"] = values["branching"] + 3
    return values, seed


@settings(max_examples=60)
@given(rules)
def test_visits_add_up_and_values_stay_within_what_was_found(drawn):
    values, seed = parameters_of(drawn)
    engine, outcome = searched(seed=seed, **values)
    tree = engine.tree
    count = int(tree.counters[NODES])
    unused = values["simulations"] - outcome.simulations
    assert 0 <= unused < engine.parameters.longest
    assert count <= engine.capacity
    assert tree.counters[EDGES] <= len(tree.edges)
    found = tree.nodes["leaf_value"][:count][tree.nodes["visits"][:count] > 0]
    low = found.min() * values["discount"] ** values["depth"]
    for node in range(count):
        children = [
            tree.edges["child"][edge]
            for edge in edges_of(tree, node)
            if tree.edges["child"][edge] >= 0
        ]
        below = sum(int(tree.nodes["visits"][child]) for child in children)
        assert below <= tree.nodes["visits"][node]
        assert tree.nodes["in_flight"][node] == 0
        assert tree.nodes["waiting"][node] == 0
        assert low - 1e-9 <= tree.nodes["value"][node] <= found.max() + 1e-9
        for child in children:
            assert tree.nodes["parent"][child] == node
            assert child > node
    own = tree.nodes["visits"][0] - sum(
        int(tree.nodes["visits"][tree.edges["child"][edge]])
        for edge in edges_of(tree, 0)
        if tree.edges["child"][edge] >= 0
    )
    assert own == 1
    assert tree.nodes["visits"][:count][1:].sum() >= 1
    root = candidates_of(tree, 0, values["discount"])
    choice = choose_root(engine, root)
    assert np.isfinite([choice.value, choice.policy_value, choice.margin]).all()
    assert root.visits[0] >= 1
    assert choice.value == root.values[choice.winner]


@pytest.mark.parametrize(("depth", "simulations"), [(1, 64), (2, 64), (2, 256), (3, 96)])
@pytest.mark.parametrize("rollout", [True, False])
@pytest.mark.parametrize("wave", [1, 16])
def test_halving_reaches_its_last_round_whatever_a_visit_costs(depth, simulations, rollout, wave):
    values = {"selection": "gumbel", "gumbel.considered": 16, "samples": 32, "branching": 32}
    values |= {"depth": depth, "simulations": simulations, "rollout": rollout, "wave": wave}
    engine, _ = searched(**values)
    first, second, *others = sorted(candidates_of(engine.tree, 0, 1.0).visits, reverse=True)
    assert first - second <= 1
    assert second > others[0]


@settings(max_examples=30)
@given(rules, st.integers(0, 1000))
def test_permuting_the_candidates_permutes_the_answer(drawn, permutation_seed):
    values, seed = parameters_of(drawn)
    # Gumbel noise and rounds of drawing belong to places, not to actions.
    values |= {"widening.enabled": False, "support_floor": 0.0}
    if values["selection"] == "gumbel":
        values["gumbel.noise"] = 0.0
    values["samples"] = values["branching"]
    order = np.random.default_rng(permutation_seed).permutation(values["branching"])

    class Permuted(Landscape):
        def candidates(self, reference, count, rng):
            answer = super().candidates(reference, count, rng)
            places = np.concatenate([[0], 1 + order])
            return Candidates(
                answer.actions[:, places],
                answer.log_density[:, places],
                tuple(answer.origins[i] for i in places),
            )

    # Deeper nodes draw for other states, in another order; one level is enough to compare.
    values |= {"depth": 1, "wave": 1}
    one, _ = searched(seed=seed, **values)
    other, _ = searched(Permuted(), seed=seed, **values)
    first = candidates_of(one.tree, 0, values["discount"])
    second = candidates_of(other.tree, 0, values["discount"])
    places = np.concatenate([[0], 1 + order])
    np.testing.assert_array_equal(first.visits[places], second.visits)
    np.testing.assert_array_equal(
        one.tree.action[first.edges[choose_root(one, first).winner]],
        other.tree.action[second.edges[choose_root(other, second).winner]],
    )


def test_the_order_within_a_batch_changes_nothing():
    class Reversed(Landscape):
        def step(self, parents, actions, children):
            super().step(parents[::-1], actions[::-1], children[::-1])

        def evaluate(self, slots):
            return super().evaluate(slots[::-1])[:, ::-1]

    values = {"simulations": 200, "wave": 16, "depth": 3, "rollout": True}
    one, other = searched(**values)[0], searched(Reversed(), **values)[0]
    for mine, theirs in zip(one.tree, other.tree, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_wave_asks_each_model_once():
    landscape = Landscape()
    _, outcome = searched(landscape, simulations=200, wave=32, depth=3)
    assert outcome.calls == len(landscape.calls)
    assert max(landscape.calls) == 32
    assert len(landscape.calls) < 20


def test_rollouts_reach_the_full_depth_before_anything_is_valued():
    asked = []

    class Watched(Landscape):
        def evaluate(self, slots):
            asked.extend(slots)
            return super().evaluate(slots)

    engine, _ = searched(Watched(), simulations=60, depth=3, rollout=True)
    assert {int(engine.tree.nodes["depth"][slot]) for slot in asked[1:]} == {3}


def test_widening_refines_around_the_best_candidate():
    values = {"widening.enabled": True, "branching": 60, "depth": 1, "simulations": 60}
    engine, _ = searched(**values, **{"widening.factor": 10.0, "widening.shrink": 0.5})
    root = candidates_of(engine.tree, 0, 1.0)
    actions = engine.tree.action[root.edges]
    best = actions[np.nanargmax(root.values)]
    distance = np.linalg.norm(actions - best, axis=1)
    assert distance[-8:].mean() < 0.3 * distance[1:9].mean()


@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("method", ["tree", "best_of_n"])
def test_the_lower_bound_prefers_what_the_ensemble_agrees_on(backup, method):
    class Doubtful(Landscape):
        """Going left is a little better, but for two of three members only."""

        def candidates(self, reference, count, rng):
            actions = np.zeros((len(reference), 1 + count, 1, 2))
            if (reference[0, 0] == SEGMENTS[0]).all():
                actions[:, 1::2, 0, 0], actions[:, 2::2, 0, 0] = -1.0, 1.0
            return Candidates(actions, np.zeros(actions.shape[:2]), ("policy",) + ("fan",) * count)

        def evaluate(self, slots):
            x = self.points[slots, 0]
            mean = np.where(x < -0.5, 0.7, np.where(x > 0.5, 0.6, 0.5))
            spread = 0.3 * (x < -0.5)
            return np.stack([mean + spread, mean, mean - spread])

    def direction(**values):
        values = {"depth": 2, "rollout": True, "pessimism": 0.0, "alpha": 0.0} | values
        values |= {"backup": backup, "method": method, "simulations": 60, "branching": 4}
        engine, _ = searched(Doubtful(), samples=4, **values)
        root = candidates_of(engine.tree, 0, 1.0)
        return np.sign(engine.tree.action[root.edges[choose_root(engine, root).winner], 0])

    assert direction(decision="value") == -1
    assert direction(decision="lower_bound") == 1
    assert direction(decision="lower_bound", bound_width=0.0) == -1
    assert direction(decision="value", pessimism=1.0) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_cut_off_and_counted(bad):
    class Broken(Landscape):
        def evaluate(self, slots):
            values = super().evaluate(slots)
            values[:, self.points[slots, 0] > 0.6] = bad
            return values

    engine, outcome = searched(Broken(), simulations=100, depth=2, wave=8)
    taken = snapshot(engine)
    assert outcome.simulations == 100
    assert engine.tree.counters[PRUNED] > 0
    assert np.isfinite(taken.values).all()
    assert np.isfinite(taken.leaf_values).all()
    assert (taken.parents[1:] < np.arange(1, taken.nodes)).all()
    cut = sum(
        int((engine.tree.edges["child"][edges_of(engine.tree, i)] == CUT).sum())
        for i in taken.slots
    )
    assert cut == engine.tree.counters[PRUNED]


def test_a_state_that_the_ensemble_doubts_is_cut_off():
    landscape = Landscape()
    models = landscape.models._replace(uncertainty=lambda slots: np.abs(landscape.points[slots, 1]))
    parameters = build(SearchParameters, PLAIN | {"uncertainty_limit": 0.5, "simulations": 60})
    engine = Engine(parameters, 1, SPEC)
    engine.search(models, SEGMENTS, Budget(60), np.random.default_rng(0), Stages())
    kept = snapshot(engine).slots
    assert engine.tree.counters[PRUNED] > 0
    assert (np.abs(landscape.points[kept, 1]) <= 0.5).all()


def test_a_candidate_outside_the_prior_support_is_cut_off_but_never_the_reference():
    engine, _ = searched(support_floor=0.5, simulations=50)
    tree = engine.tree
    cut = [edges_of(tree, i) for i in range(int(tree.counters[NODES]))]
    assert all(tree.edges["child"][edges[0]] != CUT for edges in cut if len(edges))
    assert tree.counters[PRUNED] > 0


def test_a_kept_subtree_is_the_same_tree_with_one_more_candidate():
    values = {"simulations": 150, "depth": 3, "reuse": True}
    landscape = Landscape()
    engine, _ = searched(landscape, **values)
    tree = engine.tree
    root = candidates_of(tree, 0, 1.0)
    top = int(root.children[np.argmax(root.visits)])
    before = candidates_of(tree, top, 1.0)
    best = tree.action[before.edges[np.nanargmax(before.values)]].copy()
    nodes = {tuple(tree.action[tree.nodes["edge"][i]]) for i in range(1, int(tree.counters[NODES]))}
    source, target = engine.reuse(top, np.array([0.5, 0.5]))
    landscape.points[target] = landscape.points[source].copy()
    after = candidates_of(tree, 0, 1.0)
    np.testing.assert_array_equal(tree.action[after.edges[0]], [0.5, 0.5])
    assert after.priors.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(tree.action[after.edges[np.nanargmax(after.values)]], best)
    count = int(tree.counters[NODES])
    assert count == 1 + len(source)
    assert {tuple(tree.action[tree.nodes["edge"][i]]) for i in range(1, count)} <= nodes
    assert all(tree.edges["child"][tree.nodes["edge"][i]] == i for i in range(1, count))
    outcome = engine.search(
        landscape.models,
        SEGMENTS,
        Budget(150),
        np.random.default_rng(1),
        Stages(),
        keep_tree=True,
    )
    assert outcome.simulations > 0
    assert tree.nodes["visits"][0] > before.visits.sum()
    assert candidates_of(tree, 0, 1.0).visits[0] >= 1


def test_nothing_is_allocated_beyond_the_stated_capacity():
    engine, _ = searched(simulations=300, depth=4, wave=32)
    arrays = [array.ctypes.data for array in engine.tree]
    for seed in range(3):
        engine.search(
            Landscape().models, SEGMENTS, Budget(300), np.random.default_rng(seed), Stages()
        )
    assert [array.ctypes.data for array in engine.tree] == arrays


def test_the_policy_segments_may_lie_in_memory_and_be_typed_as_they_like():
    """The kernels are called without a look at the types of their arguments."""
    values = {"simulations": 60, "wave": 8, "depth": 3, "rollout": True}
    expected = searched(**values)[0].tree
    strided = np.zeros((2, 4))[:, ::2]
    strided[:] = SEGMENTS
    whole = (10 * SEGMENTS).round().astype(np.int64)
    for segments, scale in ((strided, 1.0), (np.asfortranarray(SEGMENTS), 1.0), (whole, 0.1)):
        engine = Engine(build(SearchParameters, PLAIN | values), 1, SPEC)
        rng = np.random.default_rng(0)
        engine.search(Landscape().models, segments, Budget(60), rng, Stages())
        root = edges_of(engine.tree, 0)
        np.testing.assert_allclose(engine.tree.action[root[0]] * scale, SEGMENTS[0], atol=1e-6)
        if scale == 1.0:
            for mine, theirs in zip(engine.tree, expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_the_same_seed_gives_the_same_tree_in_another_process():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from test_search_tree import *;"
        "e, _ = searched(seed=7, simulations=120, wave=8, depth=3, selection='gumbel');"
        "import hashlib; print(hashlib.sha256(b''.join(a.tobytes() for a in e.tree)).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(answers) == 1
    assert len(answers.pop().strip()) == 64


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"simulations": -1}, "simulations"),
        ({"depth": 0}, "depth"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"selection": "best"}, "selection"),
        ({"widening.enabled": False, "samples": 4, "branching": 8}, "branching"),
        ({"selection": "gumbel"}, "gumbel"),
        ({"reuse": True, "method": "cem"}, "reuse"),
        ({"gate.shorten_slope": 1.0}, "shorten_slope"),
        ({"method": "cem", "simulations": 1, "depth": 3}, "simulations"),
        ({"simulatons": 3}, "simulations"),
    ],
)
def test_bad_parameters_are_named(values, named):
    with pytest.raises(ConfigurationError, match=named):
        build(SearchParameters, values)


@pytest.mark.parametrize(
    ("values", "named"),
    [({"depth": 5}, "depth"), ({"executed": 9}, "executed"), ({}, "macro-action")],
)
def test_parameters_that_the_chunk_cannot_serve_are_named(values, named):
    parameters = build(SearchParameters, {"executed": 2} | values)
    with pytest.raises(ConfigurationError, match=named):
        parameters.require_chunk(8 if values else 2, 4)


@pytest.mark.parametrize("values", [{"reuse": True}, {"drift.threshold": 0.1}])
def test_what_compares_imagined_with_seen_states_executes_what_it_imagines(values):
    build(SearchParameters, {"executed": 4} | values).require_chunk(8, 4)
    with pytest.raises(ConfigurationError, match="expected executed = 4"):
        build(SearchParameters, {"executed": 2} | values).require_chunk(8, 4)
