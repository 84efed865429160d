"""The library's front door: observation in, decision out, whatever happens, and it says why.

The chain of fallbacks: the searched chunk, the policy's own chunk, hold. Each step down stands in
the statistics, and the next decision starts clean.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.foresight import Foresight, distance_to
from vla_reasoner_ros.hold import hold
from vla_reasoner_ros.policies.base import Policy, PrefixConditioned
from vla_reasoner_ros.priors.base import Prior
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.blend import blend
from vla_reasoner_ros.search.budget import Budget, Pace, Stop, WavePace
from vla_reasoner_ros.search.decide import candidates_of, choose_root, line_from, state_after
from vla_reasoner_ros.search.drift import DriftMonitor, commanded
from vla_reasoner_ros.search.engine import Engine, Outcome
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.statistics import (
    SearchStatistics,
    Status,
    TreeSnapshot,
    record_tree,
    snapshot,
)
from vla_reasoner_ros.types import ActionChunk, ChunkSource, Decision, Observation
from vla_reasoner_ros.values.base import Value
from vla_reasoner_ros.world_models.base import Remembers, RestoresViews, WorldModel

Floats = NDArray[np.float64]


class _Imagination(NamedTuple):
    """What a search needs beside the policy."""

    world_model: WorldModel
    value: Value
    prior: Prior


class Reasoner:
    """Search on top of a frozen policy.

    Args:
        policy: proposes one chunk per decision.
        world_model: imagines; without it, a value or a prior the policy drives alone.
        value: scores what was imagined.
        prior: draws the candidates.
        parameters: the search's.
        seed: 0 or more; together with ``parameters.seed``, each decision's number and its
            observation's stamp it fixes all random numbers.

    Raises:
        ConfigurationError: components of different action conventions, a value that cannot read the
            world model's states, parameters that the chunk cannot serve, or a negative seed.
    """

    def __init__(
        self,
        policy: Policy,
        world_model: WorldModel | None,
        value: Value | None,
        prior: Prior | None,
        parameters: SearchParameters | None = None,
        seed: int = 0,
    ) -> None:
        self._policy = policy
        self._imagination: _Imagination | None = None
        if world_model is not None and value is not None and prior is not None:
            spec = policy.spec.action
            spec.require_same(world_model.spec, "policy", "world model")
            spec.require_same(prior.spec, "policy", "prior")
            value.bind(world_model)
            self._imagination = _Imagination(world_model, value, prior)
        self._lock = threading.RLock()
        self._interrupted = threading.Event()
        self._forget_paces()
        self._configure(parameters or SearchParameters())
        self.reset(seed)

    @property
    def parameters(self) -> SearchParameters:
        """The parameters in force."""
        return self._parameters

    def check(self, parameters: SearchParameters) -> None:
        """Find out whether parameters could be taken over, from any thread; changes nothing.

        Raises:
            ConfigurationError: the chunk or the world model cannot serve them.
        """
        model = self._imagination.world_model if self._imagination and parameters.enabled else None
        parameters.require_chunk(self._policy.spec.horizon, model.macro_steps if model else None)

    def set_parameters(self, parameters: SearchParameters) -> None:
        """Change the parameters between two decisions; waits for the one under way.

        Raises:
            ConfigurationError: the chunk or the world model cannot serve them; the old ones stay.
        """
        with self._lock:
            if parameters != self._parameters:
                self._configure(parameters)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: forget the last one, count decisions from 1, optionally reseed.

        Raises:
            ConfigurationError: a negative seed; nothing is forgotten.
        """
        if seed is not None and seed < 0:
            raise ConfigurationError(f"seed: expected 0 or more, got {seed}")
        with self._lock:
            if seed is not None:
                self._seed = seed
            self._sequence = 0
            self._foresight: Foresight | None = None
            self._last_chunk: ActionChunk | None = None
            self._drift.reset()
            if self._imagination and isinstance(self._imagination.world_model, Remembers):
                self._imagination.world_model.forget()
            self._policy.reset()

    def withdraw(self) -> None:
        """The last decision is not carried out: nothing is expected of it, nothing goes on from it.

        Its number stays taken.
        """
        with self._lock:
            self._foresight = self._last_chunk = None

    def interrupt(self) -> None:
        """End the search under way, from another thread: it answers with the best so far."""
        self._interrupted.set()

    def warm_up(self, observation: Observation | None = None) -> None:
        """Compile the kernels and, given an observation, decide on it twice; then forget it.

        The first decision is slow in its own way; from the second the budget learns how long a wave
        takes, so that the first deadline is kept as well.

        Args:
            observation: one like those to come.

        Raises:
            ModelError: the policy or, where there is one, the search cannot decide on it.
        """
        with self._lock:
            if self._engine is not None:
                self._engine.compile()
            for seen in [] if observation is None else [observation, observation]:
                self._forget_paces()
                statistics = self.decide(seen, deadline_s=math.inf).statistics
                if statistics.status in (Status.POLICY, Status.HOLD):
                    raise ModelError(f"warm-up: {statistics.fallback_reason}")
            self.reset()

    def decide(
        self,
        observation: Observation,
        deadline_s: float | None = None,
        actions_consumed: Callable[[], int] | None = None,
        frozen: Callable[[], ActionChunk | None] | None = None,
    ) -> Decision:
        """Decide what to do.

        Args:
            observation: what is seen now.
            deadline_s: seconds allowed from now; None takes ``deadline_ms`` of the parameters.
                Without time to search the answer is the policy's chunk.
            actions_consumed: asked at the end for the actions of the new chunk that fell due
                meanwhile.
            frozen: asked for the actions of the running chunk that the arm takes before the new one
                can take over, for policies that can continue them; None guesses from the last
                decision.

        Raises:
            ObservationError: the policy failed, and the observation lacks what holding needs.
        """
        with self._lock:
            started, stages = time.perf_counter(), Stages()
            if deadline_s is None and self._parameters.deadline_ms > 0.0:
                deadline_s = self._parameters.deadline_ms * 1e-3
            limited = deadline_s is not None and math.isfinite(deadline_s)
            deadline = started + deadline_s if deadline_s is not None and limited else None
            self._interrupted.clear()
            self._sequence += 1
            statistics = self._blank_statistics(observation)
            prefix = frozen() if frozen else self._still_to_come(observation)
            proposals = self._propose(observation, prefix, stages, statistics)
            chunk, tree = self._reason(observation, proposals, deadline, stages, statistics)
            chunk = replace(chunk, consumed=actions_consumed() if actions_consumed else 0)
            self._look_ahead(observation, chunk, tree is not None, statistics)
            self._last_chunk = chunk
            ended = time.perf_counter()
            if tree is not None:
                self._finish_pace.measured(ended - stages.last)
            statistics.stage_ms = stages.milliseconds
            statistics.time_ms = 1e3 * (ended - started)
            if deadline is not None:
                statistics.budget_ms = 1e3 * (deadline - started)
                statistics.deadline_missed = ended > deadline
            return Decision(chunk, proposals[0] if proposals else None, statistics, tree)

    def _forget_paces(self) -> None:
        """How long it takes to prepare a search, one wave of it, and to finish the decision."""
        self._prepare_pace, self._wave_pace, self._finish_pace = Pace(), WavePace(), Pace()

    def _configure(self, parameters: SearchParameters) -> None:
        self.check(parameters)
        engine = None
        if self._imagination is not None and parameters.enabled:
            world_model = self._imagination.world_model
            engine = Engine(parameters, world_model.macro_steps, self._policy.spec.action)
            # One state more than the tree has: where the commanded macro-action leads.
            world_model.allocate(engine.capacity + 1)
        self._parameters, self._engine = parameters, engine
        self._drift = DriftMonitor(parameters.drift)
        self._foresight = None

    def _blank_statistics(self, observation: Observation) -> SearchStatistics:
        entropy = [self._parameters.seed, self._seed, self._sequence, observation.stamp_ns % 2**64]
        parts = self._imagination
        return SearchStatistics(
            observation_stamp_ns=observation.stamp_ns,
            sequence=self._sequence,
            seed=int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]),
            simulations_budget=self._parameters.simulations,
            margin_required=self._parameters.margin,
            policy=self._policy.spec.name,
            world_model=parts.world_model.name if parts else "",
            value=parts.value.name if parts else "",
            prior=parts.prior.name if parts else "",
        )

    def _propose(
        self,
        observation: Observation,
        prefix: ActionChunk | None,
        stages: Stages,
        statistics: SearchStatistics,
    ) -> list[ActionChunk]:
        """The policy's chunks, the best first; none when it failed."""
        wanted = self._imagination.prior.proposals if self._engine and self._imagination else 1
        try:
            if isinstance(self._policy, PrefixConditioned):
                self._policy.condition_on_prefix(prefix)
            proposals = list(self._policy.propose(self._as_trained(observation), wanted))
            if not proposals:
                raise ModelError("it proposed nothing")
            for chunk in proposals:
                self._policy.spec.action.require_same(chunk.spec, "its spec", "its chunk")
        except Exception as error:  # A policy may fail in any way.
            statistics.fall_back(Status.HOLD, f"policy: {_told(error)}")
            proposals = []
        stages.lap("policy")
        return [
            replace(
                chunk,
                observation_stamp_ns=observation.stamp_ns,
                sequence=self._sequence,
                source=ChunkSource.POLICY,
                confidence=1.0,
            )
            for chunk in proposals
        ]

    def _as_trained(self, observation: Observation) -> Observation:
        """The observation as the policy is shown it."""
        model = self._imagination.world_model if self._imagination and self._engine else None
        if not (self._parameters.restore_views and isinstance(model, RestoresViews)):
            return observation
        if model.views is None:
            return observation
        try:
            return model.views.restore(observation)
        except Exception:  # The search will meet it, too, and say so; the policy may drive.
            return observation

    def _still_to_come(self, observation: Observation) -> ActionChunk | None:
        """Actions of the running chunk that the arm takes while this decision is made.

        As many as during the last decision are expected (real-time chunking; Black et al., arXiv
        2506.07339); None where nothing runs.
        """
        last = self._last_chunk
        if last is None or last.consumed == 0:
            return None
        passed = round((observation.stamp_ns - last.observation_stamp_ns) / (last.spec.dt * 1e9))
        actions = last.actions[max(passed, 0) : max(passed, 0) + last.consumed]
        return replace(last, actions=actions) if len(actions) else None

    def _reason(
        self,
        observation: Observation,
        proposals: list[ActionChunk],
        deadline: float | None,
        stages: Stages,
        statistics: SearchStatistics,
    ) -> tuple[ActionChunk, TreeSnapshot | None]:
        """The chunk to execute, and the tree when one was searched; goes down the fallbacks."""
        foresight, self._foresight = self._foresight, None
        if not proposals:
            chunk = hold(self._policy.spec.action, self._policy.spec.horizon, observation)
            return replace(chunk, sequence=self._sequence), None
        engine, parts = self._engine, self._imagination
        if engine is None or parts is None:
            reason = "the parameters leave the search out"
            if parts is None:
                reason = "there are no models to search with"
            statistics.fall_back(Status.SKIPPED, reason)
            return proposals[0], None
        needed = self._prepare_pace.seconds + self._finish_pace.seconds
        if deadline is not None and stages.last + needed >= deadline:
            statistics.fall_back(Status.POLICY, "the deadline left no time to search")
            if stages.last < deadline:
                self._prepare_pace.refused()
                self._finish_pace.refused()
            return proposals[0], None
        try:
            return self._search(
                engine, parts, observation, proposals, foresight, deadline, stages, statistics
            )
        except Exception as error:  # So may the other models; the policy's chunk is still good.
            statistics.deviated, statistics.alpha = False, 1.0
            statistics.fall_back(Status.POLICY, _told(error))
            return proposals[0], None

    def _search(
        self,
        engine: Engine,
        parts: _Imagination,
        observation: Observation,
        proposals: list[ActionChunk],
        foresight: Foresight | None,
        deadline: float | None,
        stages: Stages,
        statistics: SearchStatistics,
    ) -> tuple[ActionChunk, TreeSnapshot | None]:
        parameters, begun = self._parameters, stages.last
        world_model, value, prior = parts
        world_model.encode(observation)
        value.begin(observation)
        dt, steps = self._policy.spec.action.dt, engine.macro_steps
        if foresight is not None and not foresight.is_due(observation, steps * dt, dt / 2):
            foresight = None
        statistics.drift = distance_to(world_model, foresight.slot if foresight else None)
        statistics.drift_tripped = self._drift.update(statistics.drift)
        stages.lap("encode")
        if statistics.drift_tripped:
            reason = f"drift: {statistics.drift:.3g} between the imagined and the seen state"
            statistics.fall_back(Status.POLICY, reason)
            return proposals[0], None
        prior.begin(proposals)
        segments = _segments(proposals[0], steps)
        if parameters.reuse and foresight is not None:
            statistics.tree_reused = _reuse(
                engine, world_model, foresight, segments[0], parameters.reuse_distance
            )
        stages.lap("prior")
        outcome = engine.search(
            Models(
                world_model.step,
                value.evaluate,
                prior.sample_with_reference,
                world_model.uncertainty if parameters.uncertainty_limit > 0.0 else None,
            ),
            segments,
            Budget(
                parameters.simulations,
                deadline,
                self._wave_pace,
                self._finish_pace.seconds,
                self._interrupted.is_set,
            ),
            np.random.default_rng(statistics.seed),
            stages,
            keep_tree=statistics.tree_reused,
        )
        self._prepare_pace.measured(outcome.ready - begun)
        chunk = self._conclude(engine, outcome, proposals[0], statistics)
        tree = snapshot(engine)
        if parameters.positions:
            tree = replace(tree, ee_positions=world_model.ee_positions(tree.slots))
        return chunk, tree

    def _conclude(
        self,
        engine: Engine,
        outcome: Outcome,
        own: ActionChunk,
        statistics: SearchStatistics,
    ) -> ActionChunk:
        """From the searched tree to the chunk, by decision rule, margin and blend."""
        parameters = self._parameters
        root = candidates_of(engine.tree, 0, parameters.discount)
        record_tree(statistics, engine, root)
        statistics.simulations, statistics.simulations_budget = outcome.simulations, outcome.allowed
        statistics.world_model_calls = outcome.calls
        statistics.gate = outcome.verdict.value
        if outcome.simulations == 0:
            if outcome.stop is Stop.DEADLINE:
                self._finish_pace.refused()
            statistics.fall_back(Status.POLICY, f"{outcome.stop.value} before the first simulation")
            return own
        if outcome.stop is Stop.GATE:
            statistics.fall_back(Status.SKIPPED, "the gate expects no gain from searching")
        elif outcome.stop is not Stop.SIMULATIONS:
            done = f"after {outcome.simulations} of {outcome.allowed} simulations"
            statistics.fall_back(Status.DEADLINE, f"{outcome.stop.value} {done}")
        choice = choose_root(engine, root)
        statistics.chosen_id, statistics.chosen_value = choice.winner, choice.value
        statistics.policy_value, statistics.margin = choice.policy_value, choice.margin
        if not choice.deviates or parameters.shadow:
            return own
        plan = line_from(engine, choice.winner, parameters.executed)[: own.steps]
        alpha, rule = parameters.alpha, parameters.gripper_rule
        if parameters.blend_at == "candidates":  # What was imagined is blended already.
            alpha, rule = 0.0, "winner"
        chunk = replace(
            own,
            actions=blend(own.spec, own.actions, plan, alpha, rule),
            source=ChunkSource.SEARCH if parameters.alpha == 0.0 else ChunkSource.BLEND,
            confidence=choice.confidence,
        )
        statistics.deviated, statistics.alpha = True, parameters.alpha
        return chunk

    def _look_ahead(
        self,
        observation: Observation,
        chunk: ActionChunk,
        searched: bool,
        statistics: SearchStatistics,
    ) -> None:
        """Imagine what the next observation should show, for the drift monitor and reuse."""
        engine, parts = self._engine, self._imagination
        if engine is None or parts is None or not (searched or statistics.drift_tripped):
            return
        slot = None
        node = state_after(engine.tree, statistics.executed_id) if searched else None
        blended = chunk.source is ChunkSource.BLEND and self._parameters.blend_at == "decision"
        if node is not None and chunk.consumed == 0 and not blended:
            slot = node
        elif self._parameters.drift.threshold > 0.0:
            actions = commanded(self._last_chunk, chunk, engine.macro_steps)
            if actions is not None:
                slot = engine.capacity
                macro = actions[None].astype(np.float32)
                try:
                    parts.world_model.step(np.zeros(1, np.int64), macro, np.array([slot]))
                except Exception as error:  # The decision stands; only the comparison is lost.
                    slot = None
                    statistics.note(f"drift monitor: {_told(error)}")
        self._foresight = Foresight(observation, slot, node)


def _reuse(
    engine: Engine,
    world_model: WorldModel,
    foresight: Foresight,
    reference: Floats,
    limit: float,
) -> bool:
    """Make the chosen child's subtree the tree if its state was imagined right; whether it was."""
    node = foresight.node
    if node is None or not engine.can_keep(node):
        return False
    if distance_to(world_model, node) > limit:
        return False
    world_model.copy(*engine.reuse(node, reference))
    return True


def _segments(chunk: ActionChunk, steps: int) -> Floats:
    """(S, M * D) the chunk cut into whole macro-actions."""
    count = chunk.steps // steps
    if count == 0:
        raise ModelError(
            f"policy: a chunk of {chunk.steps} actions is shorter than a macro-action of {steps}"
        )
    return chunk.actions[: count * steps].reshape(count, -1)


def _told(error: Exception) -> str:
    """An error in one line: its own words, and its type where the package did not raise it."""
    text = " ".join(str(error).split())
    if isinstance(error, ModelError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
