import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vla_reasoner_ros.errors import ConfigurationError, InstructionError, ObservationError
from vla_reasoner_ros.planner import Planner, StateMatcher
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    Decision,
    GripperSpec,
    Observation,
    Representation,
)

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(6),
)
MILLISECOND = 1_000_000


def observation(milliseconds, instruction="lift"):
    return Observation(
        stamp_ns=milliseconds * MILLISECOND,
        images={},
        joint_names=(),
        joint_positions=np.zeros(0),
        joint_velocities=np.zeros(0),
        ee_position=np.zeros(3),
        ee_quaternion=np.array([0.0, 0.0, 0.0, 1.0]),
        gripper=1.0,
        instruction=instruction,
    )


class HeldDecider:
    """Decides when the test lets it, so that what comes meanwhile can be controlled."""

    def __init__(self):
        self.asked = queue.Queue()
        self.gate = threading.Semaphore(0)
        self.resets = self.withdrawals = 0
        self.interrupted = False
        self.parameters = []
        self.failures = []

    def decide(self, observation, deadline_s=None, actions_consumed=None, frozen=None):
        self.asked.put(observation)
        self.frozen = frozen() if frozen else "unknown"
        assert self.gate.acquire(timeout=10)
        if observation.instruction == "?":
            raise InstructionError("unknown instruction '?'")
        consumed = actions_consumed()
        chunk = ActionChunk(SPEC, np.zeros((8, 7)), observation.stamp_ns, consumed=consumed)
        return Decision(chunk, chunk, statistics=None)

    def reset(self):
        if self.failures:
            raise self.failures.pop()
        self.resets += 1

    def interrupt(self):
        self.interrupted = True

    def withdraw(self):
        self.withdrawals += 1

    def check(self, parameters):
        if parameters.executed > 8:
            raise ConfigurationError("parameter executed: too many")

    def set_parameters(self, parameters):
        self.check(parameters)
        self.parameters.append(parameters)


@pytest.fixture
def rig():
    class Rig:
        decider = HeldDecider()
        decisions = queue.Queue()
        errors = queue.Queue()
        now_ms = 0

        def stamp(self, answer):
            return answer.chunk.observation_stamp_ns // MILLISECOND

        def asked(self):
            return self.decider.asked.get(timeout=5).stamp_ns // MILLISECOND

        def let_go(self):
            self.decider.gate.release()
            return self.decisions.get(timeout=5)

        def idle(self):
            with pytest.raises(queue.Empty):
                self.decider.asked.get(timeout=0.05)

    rig = Rig()
    thread = ThreadPoolExecutor(max_workers=1)
    rig.planner = Planner(
        rig.decider,
        thread,
        SPEC,
        SearchParameters(executed=4),
        lambda: rig.now_ms * MILLISECOND,
        rig.decisions.put,
        rig.errors.put,
    )
    rig.planner.start()
    yield rig
    for _ in range(4):
        rig.decider.gate.release()
    rig.planner.stop().result(timeout=30)
    thread.shutdown()


def test_the_first_observation_is_decided_on_at_once(rig):
    rig.planner.offer(observation(1000))
    assert rig.asked() == 1000
    assert rig.stamp(rig.let_go()) == 1000


def test_a_decision_is_due_when_the_executed_actions_have_passed(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    rig.planner.offer(observation(1300))
    rig.idle()
    rig.planner.offer(observation(1400))
    assert rig.asked() == 1400


def test_cameras_off_the_grid_of_the_actions_do_not_lose_a_step(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    rig.planner.offer(observation(1390))
    assert rig.asked() == 1390


def test_while_it_thinks_only_the_newest_observation_is_kept(rig):
    rig.planner.offer(observation(1000))
    rig.asked()
    for milliseconds in (1400, 1500, 1600):
        rig.planner.offer(observation(milliseconds))
    rig.let_go()
    assert rig.asked() == 1600
    assert rig.stamp(rig.let_go()) == 1600
    rig.idle()


def test_actions_that_ran_out_while_thinking_are_measured_but_not_for_the_first_chunk(rig):
    rig.now_ms = 1250
    rig.planner.offer(observation(1000))
    assert rig.let_go().chunk.consumed == 0
    rig.planner.offer(observation(1400))
    rig.now_ms = 1650
    assert rig.let_go().chunk.consumed == 2


def test_parameters_change_between_two_decisions(rig):
    rig.planner.offer(observation(1000))
    rig.asked()
    changed = SearchParameters(executed=2)
    rig.planner.change(changed)
    assert rig.decider.parameters == []
    rig.let_go()
    rig.planner.offer(observation(1200))
    assert rig.asked() == 1200
    assert rig.decider.parameters == [changed]


def test_refused_parameters_leave_the_old_ones_in_force(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    refused = SearchParameters(executed=12)
    with pytest.raises(ConfigurationError, match="executed"):
        rig.planner.check(refused)
    rig.planner.change(refused)
    assert isinstance(rig.errors.get(timeout=5), ConfigurationError)
    rig.planner.offer(observation(1300))
    rig.idle()
    rig.planner.offer(observation(1400))
    assert rig.asked() == 1400


def test_checking_parameters_does_not_wait_for_the_decision(rig):
    rig.planner.offer(observation(1000))
    rig.asked()
    rig.planner.check(SearchParameters(executed=2))
    assert rig.decider.parameters == []


def test_an_error_is_told_and_the_next_observation_starts_clean(rig):
    rig.planner.offer(observation(1000, instruction="?"))
    rig.decider.gate.release()
    assert "unknown instruction" in str(rig.errors.get(timeout=5))
    rig.planner.offer(observation(1400))
    assert rig.stamp(rig.let_go()) == 1400


def test_after_a_reset_the_next_observation_is_a_first_one(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    rig.planner.reset()
    rig.planner.offer(observation(1100))
    assert rig.asked() == 1100
    assert rig.decider.resets == 2


def test_a_clock_that_jumped_back_is_a_new_episode(rig):
    rig.planner.offer(observation(9000))
    rig.let_go()
    rig.asked()
    rig.planner.offer(observation(1000))
    assert rig.asked() == 1000
    assert rig.decider.resets == 2


def test_paused_it_decides_nothing_and_forgets_what_came(rig):
    rig.planner.pause(True)
    rig.planner.offer(observation(1000))
    rig.idle()
    rig.planner.pause(False)
    rig.idle()
    rig.planner.offer(observation(2000))
    assert rig.asked() == 2000


@pytest.mark.parametrize("interrupt", [lambda p: p.pause(True), lambda p: p.reset()])
def test_a_decision_that_a_pause_or_a_reset_met_is_cut_short_and_forgotten(rig, interrupt):
    rig.planner.offer(observation(1000))
    rig.asked()
    assert not rig.decider.interrupted
    interrupt(rig.planner)
    assert rig.decider.interrupted
    rig.decider.gate.release()
    rig.planner.pause(False)
    rig.planner.reset()
    rig.planner.offer(observation(2000))
    assert rig.stamp(rig.let_go()) == 2000
    assert rig.decisions.empty()
    assert rig.decider.withdrawals == 1


def test_an_episode_that_could_not_begin_begins_with_the_next_observation(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    rig.planner.reset()
    rig.decider.failures.append(OSError("the policy was just away"))
    rig.planner.offer(observation(1100))
    assert "just away" in str(rig.errors.get(timeout=5))
    rig.planner.offer(observation(1200))
    assert rig.asked() == 1200
    assert rig.decider.resets == 2


def test_parameters_that_fail_do_not_cost_the_observation(rig):
    rig.planner.pause(True)
    rig.planner.change(SearchParameters(executed=12))
    assert isinstance(rig.errors.get(timeout=5), ConfigurationError)
    rig.planner.pause(False)
    rig.planner.offer(observation(1000))
    assert rig.stamp(rig.let_go()) == 1000


def test_when_a_pause_has_returned_nothing_more_is_published(rig):
    begun, gate, order = threading.Event(), threading.Event(), []

    def publish(decision):
        begun.set()
        gate.wait(30)
        order.append("published")

    rig.planner._publish = publish
    rig.planner.offer(observation(1000))
    rig.decider.gate.release()
    assert begun.wait(30)
    pausing = threading.Thread(target=lambda: (rig.planner.pause(True), order.append("paused")))
    pausing.start()
    pausing.join(0.1)  # it would be back by now if it did not wait
    gate.set()
    pausing.join(30)
    assert order == ["published", "paused"]


def test_it_can_be_started_again_as_a_new_episode(rig):
    rig.planner.offer(observation(1000))
    rig.let_go()
    rig.asked()
    rig.planner.offer(observation(1400))
    rig.asked()
    ended = rig.planner.stop()
    assert rig.decider.interrupted
    rig.decider.gate.release()
    ended.result(timeout=30)
    rig.planner.start()
    rig.planner.offer(observation(1100))
    assert rig.asked() == 1100
    assert rig.decider.resets == 2


@pytest.mark.parametrize("state_first", [True, False])
def test_observation_and_state_of_one_stamp_find_one_another(state_first):
    found = []
    matcher = StateMatcher(found.append)
    steps = [
        lambda: matcher.state(1000 * MILLISECOND, np.arange(3.0)),
        lambda: matcher.observation(observation(1000)),
    ]
    for step in steps if state_first else reversed(steps):
        assert not found
        step()
    assert found[0].simulator_state.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("state", [[], [1.0, np.nan], [np.inf]])
def test_a_state_that_no_simulator_can_have_is_refused(state):
    with pytest.raises(ObservationError, match="simulator_state: expected finite numbers"):
        StateMatcher(print).state(0, np.array(state))


def test_observations_whose_state_never_comes_are_counted_not_hoarded():
    found = []
    matcher = StateMatcher(found.append, kept=3)
    for milliseconds in range(1000, 1010):
        matcher.observation(observation(milliseconds))
    assert matcher.unmatched == 7
    assert found == []
