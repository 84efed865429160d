"""What the search holds to whatever its models answer, and however little it may do."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_tree import DIMENSIONS, PLAIN, SEGMENTS, SPEC, Landscape, searched

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.decide import candidates_of, choose_root, line_from, state_after
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import METHODS, SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import EDGES, NODES, edges_of
from vla_reasoner_ros.types import ActionSpec

WILD_VALUES = (np.nan, np.inf, -np.inf, 1.7e308, -1.7e308)


class Wild(Landscape):
    """Answers a share of the states with wild values, and of the draws with density zero."""

    def __init__(self, share, impossible=0.0, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.share, self.impossible = share, impossible

    def evaluate(self, slots):
        values = super().evaluate(slots)
        for column in np.flatnonzero(self.rng.random(len(slots)) < self.share):
            if slots[column] != 0:
                values[:, column] = self.rng.choice(WILD_VALUES)
        return values

    def candidates(self, reference, count, rng):
        answer = super().candidates(reference, count, rng)
        nothing = self.rng.random(answer.log_density.shape) < self.impossible
        return dataclasses.replace(
            answer, log_density=np.where(nothing, -np.inf, answer.log_density)
        )


kinds = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["tree", "tree", "tree", *METHODS]),
        "selection": st.sampled_from(["puct", "ucb", "gumbel"]),
        "backup": st.sampled_from(["mean", "max"]),
        "decision": st.sampled_from(["visits", "value", "lower_bound"]),
        "first_play": st.sampled_from(["try_all", "parent", "constant"]),
        "pessimism": st.sampled_from([0.0, 1.0]),
        "prior_temperature": st.sampled_from([1e-3, 1.0, 10.0]),
        "support_floor": st.sampled_from([0.0, 1.0]),
        "rollout": st.booleans(),
        "widening.enabled": st.booleans(),
        "depth": st.integers(1, 4),
        "wave": st.integers(1, 20),
        "branching": st.integers(1, 8),
        "simulations": st.integers(4, 120),
    }
).map(
    lambda values: (
        values
        | {"samples": values["branching"]}
        | ({"widening.enabled": False} if values["selection"] == "gumbel" else {})
    )
)


@settings(max_examples=60)
@given(kinds, st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9))
def test_wild_values_and_impossible_draws_never_reach_the_answer(values, share, impossible, seed):
    landscape = Wild(share, impossible, seed)
    engine, outcome = searched(landscape, seed=seed, **values)
    tree, discount = engine.tree, engine.parameters.discount
    count = int(tree.counters[NODES])
    used = tree.nodes["visits"][:count] > 0
    assert np.isfinite(tree.nodes["value"][:count][used]).all()
    assert np.isfinite(tree.edges["prior"][: tree.counters[EDGES]]).all()
    assert (tree.edges["prior"][: tree.counters[EDGES]] >= 0.0).all()
    assert (tree.nodes["in_flight"] == 0).all()
    assert outcome.simulations > 0
    root = candidates_of(tree, 0, discount)
    if root.visits[0] == 0:
        with pytest.raises(ModelError, match="policy's own macro-action"):
            choose_root(engine, root)
        return
    choice = choose_root(engine, root)
    assert np.isfinite([choice.value, choice.policy_value, choice.margin]).all()
    assert state_after(tree, choice.winner) is not None
    assert np.isfinite(line_from(engine, choice.winner, 8)).all()


@pytest.mark.parametrize("rollout", [False, True])
def test_where_every_density_is_zero_all_candidates_are_alike(rollout):
    engine, _ = searched(Wild(0.0, impossible=1.0), rollout=rollout, depth=3, simulations=60)
    for node in range(int(engine.tree.counters[NODES])):
        priors = engine.tree.edges["prior"][edges_of(engine.tree, node)]
        np.testing.assert_allclose(priors, 1.0 / max(1, len(priors)), rtol=1e-6)


@settings(max_examples=40)
@given(
    st.integers(2, 4), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.6, 0.95]), st.data()
)
def test_a_tree_that_is_kept_again_and_again_stays_within_its_arrays(
    depth, rollout, widening, share, data
):
    values = {"depth": depth, "rollout": rollout, "widening.enabled": widening, "reuse": True}
    values |= {"simulations": data.draw(st.integers(depth, 60)), "wave": 4, "pessimism": 0.0}
    values["first_play"] = data.draw(st.sampled_from(["try_all", "constant"]))
    engine = Engine(build(SearchParameters, PLAIN | values), 1, SPEC)
    landscape, tree = Wild(share, seed=data.draw(st.integers(0, 99))), engine.tree
    rng, kept = np.random.default_rng(0), False
    for _ in range(5):
        landscape.points[0] = 0.0
        budget = Budget(engine.parameters.simulations)
        engine.search(landscape.models, SEGMENTS, budget, rng, Stages(), keep_tree=kept)
        nodes = int(tree.counters[NODES])
        assert nodes <= len(tree.nodes)
        assert tree.counters[EDGES] <= len(tree.edges)
        children = tree.edges["child"][edges_of(tree, 0)]
        visits = tree.nodes["visits"][children[children >= 0]]
        tops = [int(c) for c in children[children >= 0][np.argsort(-visits)] if engine.can_keep(c)]
        kept = bool(tops)
        if kept:
            source, target = engine.reuse(tops[0], np.zeros(DIMENSIONS))
            landscape.points[target] = landscape.points[source].copy()


def test_nodes_that_lost_all_their_children_are_counted_in_the_room_for_edges():
    """A kept subtree leaves behind the states that were cut off, but not its candidates."""

    class Doomed(Landscape):
        def evaluate(self, slots):
            values = super().evaluate(slots)
            depths = engine.tree.nodes["depth"][slots]
            values[:, depths == 3] = np.nan
            return values

    values = {"depth": 3, "reuse": True, "simulations": 120, "samples": 3, "branching": 3}
    values |= {"first_play": "parent", "exploration": 100.0}
    engine = Engine(build(SearchParameters, PLAIN | values), 1, SPEC)
    landscape, rng, kept = Doomed(), np.random.default_rng(0), False
    for _ in range(6):
        budget = Budget(120)
        engine.search(landscape.models, SEGMENTS, budget, rng, Stages(), keep_tree=kept)
        assert engine.tree.counters[EDGES] <= len(engine.tree.edges)
        root = candidates_of(engine.tree, 0, 1.0)
        top = int(root.children[np.argmax(root.visits)])
        kept = engine.can_keep(top)
        if kept:
            source, target = engine.reuse(top, np.zeros(DIMENSIONS))
            landscape.points[target] = landscape.points[source].copy()


@settings(max_examples=30)
@given(st.integers(1, 10), st.sampled_from(["puct", "ucb", "gumbel"]), st.booleans())
def test_an_interrupted_search_has_grown_the_beginning_of_the_same_tree(waves, selection, rollout):
    values = PLAIN | {"wave": 4, "simulations": 80, "depth": 3, "rollout": rollout}
    parameters = build(SearchParameters, values | {"selection": selection})
    polls = iter(range(1000))
    trees = []
    for interrupted in (lambda: next(polls) >= waves, lambda: False):
        engine = Engine(parameters, 1, SPEC)
        budget = Budget(80, interrupted=interrupted)
        engine.search(Landscape().models, SEGMENTS, budget, np.random.default_rng(0), Stages())
        trees.append(engine.tree)
    begun, whole = trees
    nodes, edges = int(begun.counters[NODES]), int(begun.counters[EDGES])
    for name in ("parent", "depth", "edge"):
        np.testing.assert_array_equal(begun.nodes[name][:nodes], whole.nodes[name][:nodes])
    np.testing.assert_array_equal(begun.nodes["in_flight"], 0)
    np.testing.assert_array_equal(begun.action[:edges], whole.action[:edges])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_smallest_budget_imagines_the_policys_own_future_alone(method, depth):
    values = {"method": method, "depth": depth, "rollout": True, "simulations": depth}
    engine, outcome = searched(samples=1, branching=1, **values)
    root = candidates_of(engine.tree, 0, 1.0)
    choice = choose_root(engine, root)
    assert outcome.simulations == depth
    assert choice.winner == 0
    assert not choice.deviates
    np.testing.assert_array_equal(engine.tree.action[root.edges[0]], SEGMENTS[0].astype(np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("decision", ["visits", "value", "lower_bound"])
def test_where_all_is_worth_the_same_the_policy_is_not_left(method, backup, decision):
    class Flat(Landscape):
        def evaluate(self, slots):
            return np.full((3, len(slots)), 0.3) + np.array([[0.0], [0.1], [0.2]])

    values = {"method": method, "backup": backup, "decision": decision, "depth": 2}
    engine, _ = searched(Flat(), simulations=60, wave=8, **values)
    choice = choose_root(engine, candidates_of(engine.tree, 0, 1.0))
    assert choice.margin == 0.0
    assert not choice.deviates


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_whose_own_future_is_unusable_cannot_be_compared_with(method):
    class Blocked(Landscape):
        def evaluate(self, slots):
            values = super().evaluate(slots)
            values[:, slots != 0] = np.nan
            return values

    engine, outcome = searched(Blocked(), method=method, depth=2, simulations=40)
    assert outcome.simulations > 0
    with pytest.raises(ModelError, match="cannot be used"):
        choose_root(engine, candidates_of(engine.tree, 0, 1.0))


def test_cem_refits_to_sequences_that_can_be_used():
    class HalfBlocked(Landscape):
        """What leans to the left cannot be valued."""

        def evaluate(self, slots):
            values = super().evaluate(slots)
            values[:, (self.points[slots, 0] < 0.25) & (slots != 0)] = np.nan
            return values

    values = {"method": "cem", "depth": 1, "simulations": 80, "cem.elite_fraction": 1.0}
    engine, _ = searched(HalfBlocked(), samples=20, branching=20, alpha=0.0, **values)
    root = candidates_of(engine.tree, 0, 1.0)
    refitted = np.flatnonzero(root.origins > 1)
    usable = root.visits[refitted] > 0
    assert usable.mean() > 0.75


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_draws_come_nearer_on_the_short_way_whichever_quaternion_states_them(sign):
    pose = ActionSpec("end_effector_pose", tuple("xyzabcd"), "base", 0.1)
    values = PLAIN | {"widening.enabled": True, "widening.batch": 1, "widening.factor": 100.0}
    values |= {"alpha": 0.0, "widening.shrink": 0.5, "branching": 8, "depth": 1}
    engine = Engine(build(SearchParameters, values | {"simulations": 6}), 1, pose)
    own = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    turned = np.array([0.0, 0.0, 0.0, np.sin(0.2), 0.0, 0.0, np.cos(0.2)])

    class Turning(Landscape):
        def __init__(self):
            super().__init__()
            self.points = np.zeros((100, 7))

        def candidates(self, reference, count, rng):
            answer = super().candidates(reference, count, rng)
            answer.actions[:, 1:] = sign * turned
            return answer

        def evaluate(self, slots):
            return np.where(slots <= 1, 1.0, 0.0)[None]

    engine.search(Turning().models, own[None], Budget(6), np.random.default_rng(0), Stages())
    root = candidates_of(engine.tree, 0, 1.0)
    cosines = np.abs(engine.tree.action[root.edges] @ own)
    assert len(cosines) > 3
    assert (cosines > np.cos(0.2) - 1e-6).all()
    assert (np.diff(cosines[1:]) > 0.0).all()
