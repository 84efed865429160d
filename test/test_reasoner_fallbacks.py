"""Whatever fails, and however little time there is: a chunk, the reason, and a clean start."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reasoner import HORIZON, Drifter, Nearness, Point, drive, observation, reasoner

from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.types import ActionSpec, ChunkSource


class Failing:
    """Makes one method of a model fail while ``armed``."""

    def __init__(self, model, method, failure):
        self._model, self._method, self._failure = model, method, failure
        self.armed = False

    def __getattr__(self, name):
        found = getattr(self._model, name)
        if name != self._method:
            return found

        def answer(*arguments):
            return self._failure(found, *arguments) if self.armed else found(*arguments)

        return answer


def crash(found, *arguments):
    raise RuntimeError("out of order")


def spoil(change):
    return lambda found, *arguments: change(found(*arguments))


FAILURES = {
    "step raises": ("world_model", Point, "step", crash, "RuntimeError: out of order"),
    "encode raises": ("world_model", Point, "encode", crash, "out of order"),
    "value raises": ("value", Nearness, "evaluate", crash, "out of order"),
    "begin raises": ("value", Nearness, "begin", crash, "out of order"),
    "prior raises": ("prior", GaussianPrior, "sample_with_reference", crash, "out of order"),
    "value has no rows": ("value", Nearness, "evaluate", spoil(lambda v: v[0]), "floats"),
    "value is a list": ("value", Nearness, "evaluate", spoil(lambda v: v.tolist()), "list"),
    "value is of integers": (
        "value",
        Nearness,
        "evaluate",
        spoil(lambda v: v.astype(int)),
        "int64",
    ),
    "value is short": ("value", Nearness, "evaluate", spoil(lambda v: v[:, :-1]), "expected"),
    "value is NaN": ("value", Nearness, "evaluate", spoil(lambda v: v * np.nan), "nan"),
    "prior is NaN": (
        "prior",
        GaussianPrior,
        "sample_with_reference",
        spoil(lambda c: dataclasses.replace(c, actions=c.actions * np.nan)),
        "not finite",
    ),
    "prior is short": (
        "prior",
        GaussianPrior,
        "sample_with_reference",
        spoil(lambda c: dataclasses.replace(c, actions=c.actions[:, :-1])),
        "expected",
    ),
    "density is NaN": (
        "prior",
        GaussianPrior,
        "sample_with_reference",
        spoil(lambda c: dataclasses.replace(c, log_density=c.log_density * np.nan)),
        "density",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("method", ["tree", "cem"])
def test_a_failing_model_leaves_the_policys_chunk_and_the_next_decision_is_clean(name, method):
    part, model, attribute, failure, told = FAILURES[name]
    failing = Failing(model(), attribute, failure)
    agent = reasoner(**{part: failing}, method=method)
    sound = reasoner(method=method)
    agent.decide(observation(0.0))
    failing.armed = True
    decision = agent.decide(observation(0.4))
    assert decision.chunk.actions.tobytes() == decision.policy_chunk.actions.tobytes()
    assert decision.chunk.source is ChunkSource.POLICY
    assert decision.statistics.status is Status.POLICY
    assert told in decision.statistics.fallback_reason
    assert not decision.statistics.deviated
    failing.armed = False
    sound.decide(observation(0.0))
    sound.decide(observation(0.4))
    after, clean = agent.decide(observation(0.8)), sound.decide(observation(0.8))
    assert after.statistics.status is Status.OK
    np.testing.assert_array_equal(after.chunk.actions, clean.chunk.actions)


def test_a_policy_candidate_that_cannot_be_imagined_leaves_the_policys_chunk():
    class Blind(Nearness):
        def evaluate(self, slots):
            values = super().evaluate(slots)
            on_the_way = (self.world_model.positions[slots, 1:] == 0.0).all(1) & (slots > 0)
            values[:, on_the_way] = np.nan
            return values

    decision = reasoner(value=Blind()).decide(observation())
    assert decision.statistics.status is Status.POLICY
    assert "cannot be used" in decision.statistics.fallback_reason
    assert decision.statistics.pruned > 0
    numbers = dataclasses.asdict(decision.statistics)
    numbers.pop("drift")
    assert all(np.isfinite(v) for v in numbers.values() if isinstance(v, float))


@pytest.mark.parametrize("failure", [crash, spoil(lambda chunks: [])])
def test_a_failing_policy_holds_the_arm(failure):
    policy = Failing(Drifter(), "propose", failure)
    agent = reasoner(policy)
    policy.armed = True
    decision = agent.decide(observation())
    assert decision.statistics.status is Status.HOLD
    assert "policy" in decision.statistics.fallback_reason
    assert decision.chunk.source is ChunkSource.HOLD
    assert decision.policy_chunk is None
    np.testing.assert_array_equal(decision.chunk.actions[:, :6], 0.0)
    np.testing.assert_array_equal(decision.chunk.actions[:, 6], 1.0)
    policy.armed = False
    assert agent.decide(observation(0.4)).statistics.status is Status.OK


@pytest.mark.parametrize(
    ("spec", "action"),
    [
        (ActionSpec("joint_position", ("a",), "", 0.1), [0.5]),
        (ActionSpec("joint_delta", ("a",), "", 0.1), [0.0]),
        (
            ActionSpec("end_effector_pose", tuple("xyzabcd"), "base", 0.1),
            [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0],
        ),
    ],
)
def test_holding_keeps_what_is_seen(spec, action):
    class Silent(Drifter):
        def propose(self, observation, n=1):
            raise ModelError("no answer")

    Silent.spec = PolicySpec("silent", {}, spec, HORIZON)
    agent = Reasoner(Silent(), None, None, None)
    chunk = agent.decide(observation(position=(1.0, 2.0, 3.0))).chunk
    np.testing.assert_array_equal(chunk.actions, np.tile(action, (HORIZON, 1)))


def test_holding_needs_the_joints_it_holds():
    class Silent(Drifter):
        spec = PolicySpec("s", {}, ActionSpec("joint_position", ("b",), "", 0.1), HORIZON)

        def propose(self, observation, n=1):
            raise ModelError("no answer")

    with pytest.raises(ObservationError, match="'b'"):
        Reasoner(Silent(), None, None, None).decide(observation())


def test_no_time_means_the_policys_chunk():
    agent = reasoner()
    for deadline in (0.0, -1.0, 1e-9):
        decision = agent.decide(observation(), deadline)
        assert decision.statistics.status is Status.POLICY
        assert "time" in decision.statistics.fallback_reason
        assert decision.statistics.deadline_missed
        assert decision.chunk.source is ChunkSource.POLICY


def test_one_long_stall_does_not_stop_the_search_for_ever():
    agent = reasoner()
    agent.warm_up(observation())
    agent._finish_pace.seconds = 100.0
    simulations = [agent.decide(observation(), 20.0).statistics.simulations for _ in range(4)]
    assert simulations[0] == 0
    assert simulations[-1] > 0


def test_warming_up_needs_working_models():
    broken = Failing(Nearness(), "evaluate", crash)
    broken.armed = True
    with pytest.raises(ModelError, match="out of order"):
        reasoner(value=broken).warm_up(observation())


CALLS = [
    ("world_model", Point, "encode"),
    ("world_model", Point, "step"),
    ("world_model", Point, "uncertainty"),
    ("world_model", Point, "distance"),
    ("world_model", Point, "copy"),
    ("world_model", Point, "ee_positions"),
    ("value", Nearness, "begin"),
    ("value", Nearness, "evaluate"),
    ("prior", GaussianPrior, "begin"),
    ("prior", GaussianPrior, "sample_with_reference"),
    ("policy", Drifter, "propose"),
]


@settings(max_examples=60)
@given(st.sampled_from(CALLS), st.integers(0, 40), st.sampled_from(["tree", "cem"]))
def test_a_failure_at_any_call_is_told_and_forgotten(call, number, method):
    part, model, attribute = call
    made = []

    def fail_once(found, *arguments):
        made.append(attribute)
        return crash(found) if len(made) == number + 1 else found(*arguments)

    failing = Failing(model(), attribute, fail_once)
    failing.armed = True
    values = {"reuse": True, "reuse_distance": 0.2} if method == "tree" else {}
    values |= {"uncertainty_limit": 1.0, "drift__threshold": 10.0, "executed": 4, "wave": 4}
    agent = reasoner(**{part: failing}, method=method, **values)
    failed = []
    for decision, _ in drive(agent, 4):
        statistics = decision.statistics
        assert np.isfinite(decision.chunk.actions).all()
        if statistics.fallback_reason:
            assert "out of order" in statistics.fallback_reason
            failed.append(statistics.status)
            if statistics.status is not Status.OK:
                source = ChunkSource.HOLD if part == "policy" else ChunkSource.POLICY
                assert decision.chunk.source is source
        else:
            assert statistics.status is Status.OK
    assert len(failed) == (len(made) > number)


def test_images_that_crash_the_views_network_do_not_stop_the_policy():
    class Crashing:
        def restore(self, observation):
            raise RuntimeError("out of memory")

    world_model = Point()
    world_model.views = Crashing()
    decision = reasoner(world_model=world_model).decide(observation())
    assert decision.policy_chunk is not None
    assert decision.chunk.source is not ChunkSource.HOLD


def test_a_lost_comparison_is_told_beside_a_sound_decision():
    failing = Failing(Point(), "step", crash)

    class Armed(Point):
        def ee_positions(self, slots):
            failing.armed = True
            return super().ee_positions(slots)

    failing._model = Armed()
    agent = reasoner(world_model=failing, drift__threshold=1.0, alpha=0.5, blend_at="decision")
    decision = agent.decide(observation(), None, lambda: 0)
    assert decision.statistics.deviated
    assert decision.statistics.status is Status.OK
    assert decision.statistics.fallback_reason == "drift monitor: RuntimeError: out of order"


def test_a_kept_tree_without_time_to_search_leaves_nothing_to_compare_with():
    values = {"reuse": True, "reuse_distance": 0.2, "drift__threshold": 10.0, "alpha": 0.0}
    agent = reasoner(depth=3, simulations=200, rollout=False, **values)
    first = agent.decide(observation(0.0))
    position = first.chunk.actions[:4, :3].sum(0)
    agent._wave_pace.seconds = 100.0
    second = agent.decide(observation(0.4, position), 20.0)
    assert second.statistics.tree_reused
    assert second.statistics.simulations == 0
    assert second.chunk.source is ChunkSource.POLICY
    position = position + second.chunk.actions[:4, :3].sum(0)
    third = agent.decide(observation(0.8, position)).statistics
    assert third.drift == pytest.approx(0.0, abs=1e-6)
    assert not third.tree_reused


def test_what_cannot_be_prepared_in_time_is_not_begun():
    class Slow(Point):
        def encode(self, observation):
            super().encode(observation)
            time.sleep(0.2)

    world_model = Slow()
    agent = reasoner(world_model=world_model)
    agent.decide(observation(0.0))
    decision = agent.decide(observation(0.4), 0.05)
    assert world_model.encoded == 1
    assert decision.statistics.status is Status.POLICY
    assert "no time" in decision.statistics.fallback_reason


def test_what_can_never_be_prepared_in_time_is_rarely_tried():
    class Slow(Point):
        def encode(self, observation):
            super().encode(observation)
            time.sleep(0.06)

    world_model = Slow()
    agent = reasoner(world_model=world_model)
    agent.warm_up(observation())
    known = world_model.encoded
    for step in range(60):
        agent.decide(observation(0.4 * step), 0.05)
    assert 1 <= world_model.encoded - known <= 5


def test_random_numbers_begin_at_a_seed_that_is_not_negative():
    agent = reasoner(seed=2)
    with pytest.raises(ConfigurationError, match="-1"):
        agent.reset(-1)
    with pytest.raises(ConfigurationError, match="-1"):
        reasoner(seed=-1)
