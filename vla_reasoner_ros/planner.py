"""Deciding on the newest observation in a thread of its own: no one waits for the search."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from vla_reasoner_ros.control.commands import ExecutorStatus
from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.policies.base import Policy, PolicySpec
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.running_chunks import RunningChunks
from vla_reasoner_ros.schedule import is_due
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Decision, FloatArray, Observation
from vla_reasoner_ros.world_models.base import WorldModel


class Decider(Protocol):
    """What the planner asks of a Reasoner."""

    def decide(
        self,
        observation: Observation,
        deadline_s: float | None = None,
        actions_consumed: Callable[[], int] | None = None,
        frozen: Callable[[], ActionChunk | None] | None = None,
    ) -> Decision:
        """Decide on one observation."""

    def reset(self) -> None:
        """Forget the last episode."""

    def check(self, parameters: SearchParameters) -> None:
        """Refuse parameters that could not be taken over; from any thread."""

    def set_parameters(self, parameters: SearchParameters) -> None:
        """Take over changed parameters."""


class Planner:
    """Takes observations as they come and decides when the running chunk has been used up.

    A decision is due when ``executed`` actions have passed, on the clock of the observations, since
    the observation of the last one; it is always made on the newest observation. Whatever goes
    wrong in a decision is told and counted, and the next observation starts clean.

    Args:
        reasoner: used by the planner's thread alone, but for its check of parameters.
        thread: the one thread that all models live in: an OpenGL context or a CUDA graph stays
            with the thread that made it.
        spec: the convention of its actions.
        parameters: the reasoner's parameters.
        now_ns: the clock of the observations' stamps, nanoseconds.
        publish: takes each decision, in the planner's thread.
        fail: takes each error, in the planner's thread.
    """

    def __init__(
        self,
        reasoner: Decider,
        thread: ThreadPoolExecutor,
        spec: ActionSpec,
        parameters: SearchParameters,
        now_ns: Callable[[], int],
        publish: Callable[[Decision], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._reasoner = reasoner
        self._thread = thread
        self._spec = spec
        self._executed = parameters.executed
        self._now_ns = now_ns
        self._publish = publish
        self._fail = fail
        self._wake = threading.Condition()
        self._publishing = threading.RLock()
        self._newest: Observation | None = None
        self._changed: SearchParameters | None = None
        self._resetting = False
        self._paused = False
        self._abandoned = False
        self._ending = False
        self._decided_ns: int | None = None
        self._running: Future[None] | None = None
        self._chunks = RunningChunks()

    def start(self) -> None:
        """Begin to decide, as at the start of an episode."""
        self._ending, self._newest, self._resetting = False, None, True
        self._running = self._thread.submit(self._run)

    def stop(self) -> Future[None]:
        """Decide no more; done when the decision at hand, which is forgotten, has ended."""
        with self._wake:
            self._ending = True
            self._abandon()
            self._wake.notify()
        if self._running is None:
            self._running = Future()
            self._running.set_result(None)
        return self._running

    def offer(self, observation: Observation) -> None:
        """Give an observation; an older one that still waits is forgotten, all while paused."""
        with self._wake:
            self._newest = None if self._paused else observation
            self._wake.notify()

    def reported(self, status: ExecutorStatus, stamp_ns: int) -> None:
        """The arm controller said how far the arm is in the running chunk."""
        self._chunks.reported(status, stamp_ns)

    def check(self, parameters: SearchParameters) -> None:
        """Find out whether parameters could be taken over, from any thread; changes nothing.

        Raises:
            ConfigurationError: the reasoner cannot serve them.
        """
        self._reasoner.check(parameters)

    def change(self, parameters: SearchParameters) -> None:
        """Take over parameters between two decisions; what is refused is told, the old ones stay.

        See :meth:`check` for finding out before.
        """
        with self._wake:
            self._changed = parameters
            self._wake.notify()

    def reset(self) -> None:
        """Forget the episode and the decision at hand: the next observation is a first one."""
        with self._publishing, self._wake:
            self._resetting = True
            self._abandon()

    def pause(self, paused: bool) -> None:
        """Stop deciding, or go on with the next observation.

        The decision at hand is cut short and forgotten.
        """
        with self._publishing, self._wake:
            self._paused = paused
            self._abandon()
            self._wake.notify()

    def _abandon(self) -> None:
        """Forget what came, and the decision at hand, which need not be searched to its end."""
        self._newest, self._abandoned = None, True
        self._reasoner.interrupt()

    @property
    def paused(self) -> bool:
        """Whether it was told to pause."""
        return self._paused

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ending or self._changed or self._ready())
                if self._ending:
                    return
                changed, self._changed = self._changed, None
                observation = self._newest if self._ready() else None
                resetting = self._resetting and observation is not None
                if observation is not None:
                    self._newest, self._resetting, self._abandoned = None, False, False
            if changed is not None:
                self._attempt(self._take_over, changed)
            if observation is not None:
                self._attempt(self._decide, observation, resetting)

    def _attempt(self, work: Callable[..., None], *given: Any) -> None:
        try:
            work(*given)
        except Exception as error:
            self._fail(error)

    def _take_over(self, parameters: SearchParameters) -> None:
        self._reasoner.set_parameters(parameters)
        self._executed = parameters.executed

    def _ready(self) -> bool:
        return self._newest is not None and not self._paused and self._due(self._newest.stamp_ns)

    def _due(self, stamp_ns: int) -> bool:
        decided_ns = None if self._resetting else self._decided_ns
        return is_due(stamp_ns, decided_ns, self._executed, self._spec.dt)

    def _decide(self, observation: Observation, resetting: bool) -> None:
        first = resetting or self._decided_ns is None or observation.stamp_ns < self._decided_ns
        if first:
            self._decided_ns = None  # until that is done, the next one is a first one, too
            self._reasoner.reset()
            self._chunks.clear()
        self._decided_ns = observation.stamp_ns

        def consumed() -> int:
            # Nothing runs yet while the first decision of an episode is made.
            passed_ns = self._now_ns() - observation.stamp_ns
            return 0 if first else max(0, int(passed_ns / (self._spec.dt * 1e9)))

        def frozen() -> ActionChunk | None:
            return self._chunks.frozen(observation.stamp_ns)

        decision = self._reasoner.decide(
            observation,
            actions_consumed=consumed,
            frozen=frozen if self._chunks.known else None,
        )
        with self._publishing:  # nothing is said after a pause or a reset has returned
            if self._abandoned:
                self._reasoner.withdraw()
            else:
                self._chunks.published(decision.chunk)
                self._publish(decision)


def warm_up(reasoner: Reasoner, policy: Policy, world_model: WorldModel | None) -> None:
    """Run everything once, so that the first decision is no slower than the others.

    Args:
        reasoner: it.
        policy: its policy.
        world_model: its world model; one that needs a simulator's state gives an example.

    Raises:
        ModelError: the policy, or the search, cannot decide.
    """
    if world_model is not None and world_model.needs_simulator_state:
        observation = world_model.example()
    else:
        observation = blank(policy.spec, world_model.joints if world_model is not None else 0)
    reasoner.warm_up(observation)


def blank(spec: PolicySpec, joints: int) -> Observation:
    """An observation of nothing that fits a policy: grey images and a known instruction.

    Args:
        spec: the policy's; the joints that it reads are there by their names.
        joints: how many there are at least.
    """
    names = spec.joint_names
    names += tuple(f"joint{i + 1}" for i in range(joints))[len(names) :]
    return Observation(
        stamp_ns=0,
        images={
            name: np.full((*size, 3), 128, dtype=np.uint8) for name, size in spec.cameras.items()
        },
        joint_names=names,
        joint_positions=np.zeros(len(names)),
        joint_velocities=np.zeros(len(names)),
        ee_position=np.array([0.5, 0.0, 0.3]),
        ee_quaternion=np.array([1.0, 0.0, 0.0, 0.0]),
        gripper=1.0,
        instruction=spec.example_instruction,
        ee_frame=spec.action.frame,
    )


class StateMatcher:
    """Joins observations with the simulator's states of the same stamp, whichever comes first.

    Args:
        complete: takes each observation that has its state.
        kept: states, and observations without one, that are remembered.
    """

    def __init__(self, complete: Callable[[Observation], None], kept: int = 32) -> None:
        self._complete = complete
        self._kept = kept
        self._states: OrderedDict[int, FloatArray] = OrderedDict()
        self._waiting: OrderedDict[int, Observation] = OrderedDict()
        self.unmatched = 0
        """Observations given up because their state did not come."""

    def observation(self, observation: Observation) -> None:
        """An observation came."""
        state = self._states.get(observation.stamp_ns)
        if state is not None:
            self._complete(dataclasses.replace(observation, simulator_state=state))
            return
        self._waiting[observation.stamp_ns] = observation
        if len(self._waiting) > self._kept:
            self._waiting.popitem(last=False)
            self.unmatched += 1

    def state(self, stamp_ns: int, state: FloatArray) -> None:
        """A state came.

        Raises:
            ObservationError: it is empty or not finite.
        """
        if not state.size or not np.isfinite(state).all():
            raise ObservationError(
                f"simulator_state: expected finite numbers, got {state.size} of which "
                f"{int((~np.isfinite(state)).sum())} are not"
            )
        self._states[stamp_ns] = state
        if len(self._states) > self._kept:
            self._states.popitem(last=False)
        observation = self._waiting.pop(stamp_ns, None)
        if observation is not None:
            self._complete(dataclasses.replace(observation, simulator_state=state))

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._waiting.clear()
