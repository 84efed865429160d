"""The Reasoner answers whatever happens, says why, and starts clean the next time."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.base import Prior
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.types import ActionChunk, ChunkSource, Observation

SPEC = DEFAULT_SPEC
GOAL = np.array([0.10, 0.05, -0.03])
HORIZON, MACRO = 8, 4


class Drifter:
    """A policy that pushes along x, whatever it sees."""

    spec = PolicySpec("drifter", {}, SPEC, HORIZON, "tcp")

    def reset(self):
        self.queries = []

    def propose(self, observation, n=1):
        self.queries.append(n)
        action = np.array([0.01, 0, 0, 0, 0, 0.02, 1.0])
        return [ActionChunk(SPEC, np.tile(action, (HORIZON, 1)), observation.stamp_ns)]


class Point:
    """A world in which the end effector goes where it is told."""

    name, spec, macro_steps, needs_simulator_state, latent_source = "point", SPEC, MACRO, False, ""

    def allocate(self, capacity):
        self.positions = np.zeros((capacity, 3))
        self.encoded = 0

    def encode(self, observation):
        self.encoded += 1
        self.positions[0] = observation.ee_position

    def step(self, parents, actions, children):
        assert actions.dtype == np.float32
        assert actions.shape == (len(parents), MACRO, SPEC.dimensions)
        self.positions[children] = self.positions[parents] + actions[:, :, :3].sum(1)

    def copy(self, source, target):
        self.positions[target] = self.positions[source].copy()

    def uncertainty(self, slots):
        return np.zeros(len(slots))

    def distance(self, slots):
        return np.linalg.norm(self.positions[slots] - self.positions[0], axis=1)

    def ee_positions(self, slots):
        return self.positions[slots]


class Nearness:
    """How near the goal is."""

    name, privileged = "nearness", False

    def bind(self, world_model):
        self.world_model = world_model

    def begin(self, observation):
        self.instruction = observation.instruction

    def evaluate(self, slots):
        distance = np.linalg.norm(self.world_model.positions[slots] - GOAL, axis=1)
        return np.exp(-5.0 * distance)[None]


def observation(time_s=0.0, position=(0.0, 0.0, 0.0), **changes):
    values = {
        "stamp_ns": int(time_s * 1e9),
        "images": {},
        "joint_names": ("a",),
        "joint_positions": [0.5],
        "joint_velocities": [0.0],
        "ee_position": np.array(position),
        "ee_quaternion": np.array([0.0, 0, 0, 1]),
        "gripper": 0.9,
        "instruction": "go there",
    }
    return Observation(**(values | changes))


def reasoner(policy=None, world_model=None, value=None, prior=None, seed=0, **values):
    values = {name.replace("__", "."): value for name, value in values.items()}
    return Reasoner(
        policy or Drifter(),
        world_model or Point(),
        value or Nearness(),
        prior or GaussianPrior(),
        build(SearchParameters, values),
        seed,
    )


def drive(agent, decisions=6):
    """Positions after each decision of a closed loop."""
    position, path = np.zeros(3), []
    for step in range(decisions):
        decision = agent.decide(observation(0.4 * step, position))
        position = position + decision.chunk.actions[:MACRO, :3].sum(0)
        path.append((decision, position))
    return path


def test_searching_comes_nearer_to_the_goal_than_the_policy():
    decision, position = drive(reasoner(simulations=128, alpha=0.6), 6)[-1]
    alone = drive(reasoner(simulations=0), 6)[-1][1]
    assert np.linalg.norm(position - GOAL) < 0.05
    assert np.linalg.norm(position - GOAL) < 0.5 * np.linalg.norm(alone - GOAL)
    statistics = decision.statistics
    assert statistics.status is Status.OK
    assert statistics.fallback_reason == ""
    assert 128 - 1 <= statistics.simulations <= statistics.simulations_budget == 128
    assert (statistics.policy, statistics.world_model) == ("drifter", "point")
    assert (statistics.value, statistics.prior) == ("nearness", "gaussian")
    assert sum(statistics.stage_ms) <= statistics.time_ms
    assert decision.tree.nodes == statistics.nodes
    assert decision.tree.ee_positions.shape == (statistics.nodes, 3)


@pytest.mark.parametrize("executed", [1, 2, 4, 6])
def test_as_many_actions_are_executed_as_wanted_however_many_are_imagined_per_edge(executed):
    agent = reasoner(executed=executed, simulations=200, alpha=0.0)
    position = np.zeros(3)
    for step in range(24 // executed):
        decision = agent.decide(observation(0.1 * executed * step, position))
        position = position + decision.chunk.actions[:executed, :3].sum(0)
        assert decision.tree.actions.shape[1] == MACRO
        if decision.statistics.deviated:
            line = decision.chunk.actions.astype(np.float32)
            tree = decision.tree
            node = 0
            for first in range(0, executed, MACRO):
                below = np.flatnonzero(tree.parents == node)
                wanted = line[first : first + MACRO]
                node = next(n for n in below if (tree.actions[n] == wanted).all())
    alone = 24 * np.array([0.01, 0.0, 0.0])
    assert np.linalg.norm(position - GOAL) < 0.5 * np.linalg.norm(alone - GOAL)


def test_models_are_asked_once_per_decision():
    policy, world_model = Drifter(), Point()
    agent = reasoner(policy, world_model)
    drive(agent, 3)
    assert policy.queries == [1, 1, 1]
    assert world_model.encoded == 3


def test_what_deviates_exceeds_the_margin():
    for margin in (0.0, 0.02, 10.0):
        for decision, _ in drive(reasoner(margin=margin)):
            statistics = decision.statistics
            assert statistics.deviated == (statistics.chosen_id != 0 and statistics.margin > margin)
            if not statistics.deviated:
                np.testing.assert_array_equal(decision.chunk.actions, decision.policy_chunk.actions)
                assert decision.chunk.source is ChunkSource.POLICY
                assert statistics.alpha == 1.0


@pytest.mark.parametrize("values", [{"alpha": 1.0}, {"margin": 1e9}, {"simulations": 0}])
def test_the_plain_policy_bit_for_bit(values):
    for decision, _ in drive(reasoner(**values)):
        assert decision.chunk.actions.tobytes() == decision.policy_chunk.actions.tobytes()


def test_the_source_of_the_chunk_is_stated():
    sources = {
        alpha: {decision.chunk.source for decision, _ in drive(reasoner(alpha=alpha), 3)}
        for alpha in (0.0, 0.5)
    }
    assert ChunkSource.SEARCH in sources[0.0]
    assert ChunkSource.BLEND in sources[0.5]


def test_in_the_shadow_the_search_thinks_and_the_policy_drives():
    for decision, _ in drive(reasoner(shadow=True), 3):
        assert decision.chunk.actions.tobytes() == decision.policy_chunk.actions.tobytes()
        assert decision.statistics.status is Status.OK
        assert decision.statistics.chosen_id != 0
        assert decision.statistics.margin > 0.0
        assert not decision.statistics.deviated


def test_in_the_shadow_of_a_plain_policy_only_a_blend_at_the_decision_leaves_anything_to_find():
    found = {
        place: drive(reasoner(shadow=True, alpha=1.0, blend_at=place), 1)[0][0].statistics
        for place in ("candidates", "decision")
    }
    assert found["candidates"].status is Status.SKIPPED
    assert found["decision"].chosen_id != 0


@pytest.mark.parametrize("method", ["tree", "best_of_n", "shooting", "cem", "mppi"])
@pytest.mark.parametrize("rule", ["winner", "policy", "nearest"])
def test_what_is_scored_is_what_is_executed(method, rule):
    world_model, value = Point(), Nearness()
    values = {"method": method, "gripper_rule": rule, "depth": 2, "executed": HORIZON}
    agent = reasoner(world_model=world_model, value=value, alpha=0.6, simulations=200, **values)
    deviated = 0
    for decision, _ in drive(agent, 4):
        line = decision.chunk.actions.astype(np.float32)
        if not decision.statistics.deviated:
            continue
        deviated += 1
        tree = decision.tree
        candidates = np.flatnonzero(tree.parents == 0)
        first = [n for n in candidates if (tree.actions[n] == line[:MACRO]).all()]
        assert len(first) == 1
        assert tree.values[first[0]] == pytest.approx(decision.statistics.chosen_value)
        below = np.flatnonzero(tree.parents == first[0])
        assert any((tree.actions[n] == line[MACRO:]).all() for n in below)
        if rule == "policy":
            np.testing.assert_array_equal(line[:, 6], decision.policy_chunk.actions[:, 6])
    assert deviated > 0


def test_without_models_the_policy_drives_and_the_statistics_say_so():
    agent = Reasoner(Drifter(), None, None, None)
    decision = agent.decide(observation())
    assert decision.statistics.status is Status.SKIPPED
    assert "no models" in decision.statistics.fallback_reason
    assert decision.tree is None


def test_an_interruption_returns_the_best_so_far():
    agent = reasoner(simulations=100_000)
    agent.warm_up(None)

    class Late(Nearness):
        def evaluate(self, slots):
            if len(calls) == 10:
                agent.interrupt()
            calls.append(len(slots))
            return super().evaluate(slots)

    calls = []
    agent = reasoner(value=Late(), simulations=10_000)
    decision = agent.decide(observation())
    assert decision.statistics.status is Status.DEADLINE
    assert "interrupted" in decision.statistics.fallback_reason
    assert 0 < decision.statistics.simulations < 10_000
    assert decision.statistics.deviated
    assert agent.decide(observation(), 0.05).statistics.simulations > 0


def test_parameters_change_between_decisions_only():
    agent = reasoner(simulations=200)
    changed = build(SearchParameters, {"simulations": 20, "wave": 4})
    inside = []

    class Meddling(Nearness):
        def evaluate(self, slots):
            if not inside:
                thread = threading.Thread(target=agent.set_parameters, args=(changed,))
                thread.start()
                inside.append(thread)
            return super().evaluate(slots)

    agent = reasoner(value=Meddling(), simulations=200)
    assert agent.decide(observation()).statistics.simulations > 190
    inside[0].join()
    assert agent.parameters == changed
    assert agent.decide(observation()).statistics.simulations == 20
    with pytest.raises(ConfigurationError, match="depth"):
        agent.set_parameters(build(SearchParameters, {"depth": 50}))
    assert agent.parameters == changed


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ({"widening__enabled": False}, 1.0),
        ({"method": "best_of_n"}, 1.0),
        ({"widening__shrink": 0.9}, 1.0 + 0.9 + 0.9**2 + 0.9**3),
    ],
)
def test_alpha_shortens_every_step_from_the_policy_and_widening_takes_several(values, most):
    class Ahead(GaussianPrior):
        """Draws one centimetre further along x."""

        sample_with_reference = Prior.sample_with_reference

        def sample(self, reference, count, rng):
            drawn = super().sample(reference, count, rng)
            actions = np.repeat(reference[:, None], count, axis=1)
            actions[..., 0] += 0.01
            return dataclasses.replace(drawn, actions=actions)

    class Along(Nearness):
        def evaluate(self, slots):
            return self.world_model.positions[slots, 0][None]

    agent = reasoner(prior=Ahead(), value=Along(), alpha=0.6, depth=1, **values)
    decision = agent.decide(observation())
    moved = decision.chunk.actions[0, 0] - decision.policy_chunk.actions[0, 0]
    assert moved == pytest.approx(0.4 * 0.01 * most, rel=1e-4)


@pytest.mark.parametrize("values", [{}, {"alpha": 1.0}, {"simulations": 0}])
def test_no_more_is_executed_than_the_chunk_holds_also_without_a_search(values):
    longer = build(SearchParameters, {"executed": HORIZON + 1} | values)
    with pytest.raises(ConfigurationError, match=f"executed.* {HORIZON} actions"):
        Reasoner(Drifter(), None, None, None, longer)
    for agent in (reasoner(), Reasoner(Drifter(), None, None, None)):
        before = agent.parameters
        for refuse in (agent.check, agent.set_parameters):
            with pytest.raises(ConfigurationError, match="executed"):
                refuse(longer)
            assert agent.parameters is before
        whole = build(SearchParameters, {"executed": HORIZON} | values)
        agent.check(whole)
        assert agent.parameters is before
        agent.set_parameters(whole)
        assert agent.parameters is whole


def test_parameters_are_checked_while_a_decision_is_made():
    checked = []

    class Meddling(Nearness):
        def evaluate(self, slots):
            if not checked:
                wanted = build(SearchParameters, {"simulations": 20})
                thread = threading.Thread(target=agent.check, args=(wanted,))
                thread.start()
                thread.join(timeout=10)
                checked.append(not thread.is_alive())
            return super().evaluate(slots)

    agent = reasoner(value=Meddling())
    agent.decide(observation())
    assert checked == [True]


def test_components_must_speak_of_the_same_actions():
    other = dataclasses.replace(SPEC, dt=0.2)
    with pytest.raises(ConfigurationError, match=r"prior has 0\.2"):
        reasoner(prior=GaussianPrior(other))
    with pytest.raises(ConfigurationError, match="depth"):
        reasoner(depth=9)


def test_the_same_seed_and_stamps_give_the_same_decisions():
    first = [decision.chunk.actions for decision, _ in drive(reasoner(seed=3))]
    again = [decision.chunk.actions for decision, _ in drive(reasoner(seed=3))]
    other = [decision.chunk.actions for decision, _ in drive(reasoner(seed=4))]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    agent = reasoner(seed=3)
    drive(agent, 3)
    agent.reset()
    np.testing.assert_array_equal(first, [decision.chunk.actions for decision, _ in drive(agent)])
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from test_reasoner import *;"
        "print(np.stack([d.chunk.actions for d, _ in drive(reasoner(seed=3))]).tobytes().hex())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert elsewhere == np.stack(first).tobytes().hex()


def test_drift_hands_over_to_the_policy_and_back():
    agent = reasoner(drift__threshold=0.01, alpha=0.5)
    position = np.zeros(3)
    seen = []
    for step in range(8):
        if step == 3:
            position = position + np.array([0.0, 0.1, 0.0])
        decision = agent.decide(observation(0.4 * step, position))
        position = position + decision.chunk.actions[:MACRO, :3].sum(0)
        seen.append(decision.statistics)
    assert np.isnan(seen[0].drift)
    assert [s.drift_tripped for s in seen] == [step == 3 for step in range(8)]
    assert seen[3].status is Status.POLICY
    assert seen[3].drift == pytest.approx(0.1, abs=1e-5)
    assert "drift" in seen[3].fallback_reason
    assert all(s.drift < 1e-6 for s in seen[4:])


def test_drift_accounts_for_actions_consumed_while_thinking():
    agent = reasoner(drift__threshold=1.0, alpha=0.0)
    position, running = np.zeros(3), None
    for step in range(5):
        late = 0 if running is None else 2
        decision = agent.decide(observation(0.4 * step, position), None, lambda late=late: late)
        assert decision.chunk.consumed == late
        done = [] if running is None else running[MACRO : MACRO + late]
        position = position + np.concatenate(
            [*[done] * bool(late), decision.chunk.actions[late:MACRO]]
        )[:, :3].sum(0)
        running = decision.chunk.actions
        if step:
            assert decision.statistics.drift == pytest.approx(0.0, abs=1e-6)


def test_nothing_is_compared_with_another_moment_or_task():
    agent = reasoner(drift__threshold=0.01)
    agent.decide(observation(0.0))
    assert np.isnan(agent.decide(observation(0.7)).statistics.drift)
    changed = observation(1.1, instruction="go elsewhere")
    assert np.isnan(agent.decide(changed).statistics.drift)


def test_the_tree_is_kept_when_the_state_was_imagined_right():
    agent = reasoner(reuse=True, reuse_distance=0.2, alpha=0.0, simulations=100)
    path = drive(agent, 6)
    kept = [decision.statistics for decision, _ in path[1:] if decision.statistics.tree_reused]
    assert len(kept) >= 3
    assert all(s.root_visits > s.simulations // 2 + 1 for s in kept)
    for decision, _ in path:
        tree = decision.tree
        assert (tree.parents[1:] < np.arange(1, tree.nodes)).all()
        assert tree.origins[0] == "root"
        own = decision.policy_chunk.actions[:MACRO].astype(np.float32)
        assert (tree.actions[tree.parents == 0] == own).all((1, 2)).any()
    never = reasoner(reuse=True, reuse_distance=0.0, alpha=0.5)
    assert not any(decision.statistics.tree_reused for decision, _ in drive(never, 4))


def test_warming_up_leaves_no_trace():
    policy = Drifter()
    agent = reasoner(policy, seed=3)
    agent.warm_up(observation(9.0))
    first = [decision.chunk.actions for decision, _ in drive(agent)]
    np.testing.assert_array_equal(
        first, [decision.chunk.actions for decision, _ in drive(reasoner(seed=3))]
    )


class Rememberer(Point):
    """Sees the end effector half-way to where it was before."""

    def __init__(self):
        self.forget()

    def forget(self):
        self.before = None

    def encode(self, observation):
        super().encode(observation)
        if self.before is not None:
            self.positions[0] = (self.positions[0] + self.before) / 2.0
        self.before = observation.ee_position


def test_an_episode_begins_without_memory_of_the_one_before():
    agent = reasoner(world_model=Rememberer())
    agent.warm_up(observation(9.0))
    agent.reset(seed=3)
    first = agent.decide(observation(0.0)).statistics
    agent.decide(observation(0.4, (0.2, 0.1, 0.0)))
    agent.reset(seed=3)
    assert agent.decide(observation(0.0)).statistics.root_value == first.root_value


def test_nothing_goes_on_from_a_decision_that_is_not_carried_out():
    class Continued(Drifter):
        def condition_on_prefix(self, chunk):
            prefixes.append(chunk)

    prefixes = []
    agent = reasoner(Continued(), reuse=True)
    agent.decide(observation(0.0), actions_consumed=lambda: 2)
    agent.decide(observation(0.2), actions_consumed=lambda: 2)
    agent.withdraw()
    decision = agent.decide(observation(0.4))
    assert prefixes[1] is not None
    assert prefixes[2] is None
    assert np.isnan(decision.statistics.drift)
    assert decision.statistics.sequence == 3


@pytest.mark.parametrize("method", ["tree", "best_of_n", "shooting", "cem", "mppi"])
def test_every_method_answers_through_the_same_door(method):
    path = drive(reasoner(method=method, simulations=64, alpha=0.3), 4)
    for decision, _ in path:
        statistics = decision.statistics
        assert statistics.status is Status.OK
        assert statistics.simulations <= 64
        assert statistics.chosen_value >= statistics.policy_value
        assert np.isfinite(decision.chunk.actions).all()
    alone = drive(reasoner(simulations=0), 4)[-1][1]
    assert np.linalg.norm(path[-1][1] - GOAL) < 0.7 * np.linalg.norm(alone - GOAL)
