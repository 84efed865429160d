"""What recorded bags say about the models: imagined against seen, along what was really done."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.contract import Contract
from vla_reasoner_ros.data.messages import SIMULATOR_STATE
from vla_reasoner_ros.data.motion import action_between, follows
from vla_reasoner_ros.errors import ModelError, VlaReasonerError
from vla_reasoner_ros.evaluation.done import ValueSeries
from vla_reasoner_ros.priors.base import Prior
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.types import FloatArray, Observation

DEPTHS = (1, 2, 3, 4)
"""Macro-actions ahead that are compared."""
SAMPLED = 60
"""Moments of all bags that are thought about at every budget."""
MOST_KEPT = 8 * SAMPLED
"""Moments that are remembered; past it every other one is forgotten."""
NEAR = 1.0
"""s between moments whose errors count as one: neighbours say the same."""


@dataclass(frozen=True)
class Prediction:
    """What was imagined at a moment for what was then really done.

    Attributes:
        episode: the moment's.
        time: seconds since the episode's start.
        depth: macro-actions ahead.
        before: value seen at the moment.
        imagined: value imagined for afterwards.
        seen: value seen afterwards.
        disagreement: standard deviation of the ensemble on what was imagined.
    """

    episode: int
    time: float
    depth: int
    before: float
    imagined: float
    seen: float
    disagreement: float


@dataclass
class Logs:
    """Everything that the bags gave.

    Attributes:
        predictions: of all depths.
        series: the value along each episode.
        moments: sampled for thinking about.
        actions: pairs of the policy's own and the demonstrated macro-action, each (M, D).
        own_gains: imagined gain of the policy's own macro-action at each of the moments; NaN
            where the policy failed.
        problems: of the bags.
    """

    predictions: list[Prediction] = field(default_factory=list)
    series: list[ValueSeries] = field(default_factory=list)
    moments: list[Observation] = field(default_factory=list)
    actions: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    own_gains: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def at_depth(self, depth: int) -> list[Prediction]:
        """Predictions of one depth, thinned out so that they count as independent."""
        kept: list[Prediction] = []
        for prediction in self.predictions:
            if prediction.depth != depth:
                continue
            last = kept[-1] if kept else None
            if last is None or (
                prediction.episode != last.episode or prediction.time - last.time >= NEAR
            ):
                kept.append(prediction)
        return kept


@dataclass
class _Open:
    """A moment whose future is still to come."""

    time: float
    before: float
    imagined: list[tuple[float, float]]
    at: int


class Collector:
    """Reads bags into :class:`Logs`.

    Args:
        components: with a world model, a value and a prior.
        executed: actions between two moments that are looked at.

    Raises:
        ModelError: there is no world model to calibrate, or it needs a simulator's state.
    """

    def __init__(self, components: Components, executed: int) -> None:
        if components.world_model is None or components.value is None or components.prior is None:
            raise ModelError("calibrate: there is no world model; name one: planner.world_model")
        if components.world_model.needs_simulator_state:
            raise ModelError("calibrate: a simulator as world model has no errors to calibrate")
        self.components = components
        self.logs = Logs()
        self._world_model = components.world_model
        self._value = components.value
        self._executed = executed
        self._spec = components.policy.spec.action
        self._macro = self._world_model.macro_steps
        self._world_model.allocate(max(DEPTHS) + 2)
        self._episode = -1

    def read(self, bag: BagReader, contract: Contract, **options: Any) -> None:
        """Add a bag."""
        ingest = BagIngest(bag, contract, **options)
        states: list[tuple[int, bool]] = []
        listeners = {}
        topic = ingest.find("simulator_state")
        if topic is not None and bag.topics[topic].type == SIMULATOR_STATE:

            def state_came(message: BagMessage) -> None:
                fields = bag.deserialize(message)
                states.append((int(fields.episode), bool(fields.success)))

            listeners[topic] = state_came
        rows: list[Observation] = []
        outcome: list[tuple[int, bool] | None] = []
        for moment in ingest.moments(listeners):
            observation = moment.observation
            state = states[-1] if states else None
            new = bool(rows) and (
                not follows(rows[-1], observation, self._spec.dt)
                or (state and outcome[-1] and state[0] != outcome[-1][0])
            )
            if new:
                self._conclude(rows, outcome)
                rows, outcome = [], []
            rows.append(observation)
            outcome.append(state)
        self._conclude(rows, outcome)
        self.logs.problems += [*bag.problems, *ingest.problems]

    def _conclude(
        self, rows: Sequence[Observation], outcome: Sequence[tuple[int, bool] | None]
    ) -> None:
        """An episode is over: look at its moments one after another."""
        if len(rows) < 2:
            return
        self._episode += 1
        logs, dt = self.logs, self._spec.dt
        actions = [
            action_between(before, after, self._spec) for before, after in itertools.pairwise(rows)
        ]
        self.components.policy.reset()
        times, values = [], []
        waiting: deque[_Open] = deque()
        for at, observation in enumerate(rows):
            if at % self._executed and at % self._macro:
                continue
            before = self._look(observation)
            times.append(at * dt)
            values.append(before)
            for opened in waiting:
                ahead, rest = divmod(at - opened.at, self._macro)
                if rest == 0 and 1 <= ahead <= len(opened.imagined):
                    imagined, disagreement = opened.imagined[ahead - 1]
                    logs.predictions.append(
                        Prediction(
                            self._episode,
                            opened.time,
                            ahead,
                            opened.before,
                            imagined,
                            before,
                            disagreement,
                        )
                    )
            while waiting and at - waiting[0].at >= self._macro * max(DEPTHS):
                waiting.popleft()
            if at % self._executed == 0:
                future = actions[at : at + self._macro * max(DEPTHS)]
                waiting.append(_Open(at * dt, before, self._imagine(future), at))
                logs.moments.append(observation)
                logs.own_gains.append(self._own(observation, future[: self._macro], before))
        known = [state for state in outcome if state is not None]
        if known:
            done = next((at * dt for at, s in enumerate(outcome) if s is not None and s[1]), None)
            logs.series.append(ValueSeries(np.array(times), np.array(values), done))
        while len(logs.moments) > MOST_KEPT:
            del logs.moments[1::2], logs.own_gains[1::2]

    def _look(self, observation: Observation) -> float:
        """The value of what is seen, which is put into slot 0."""
        self._world_model.encode(observation)
        self._value.begin(observation)
        return self._valued(0)[0]

    def _valued(self, slot: int) -> tuple[float, float]:
        members = np.asarray(self._value.evaluate(np.array([slot], np.int64)))[:, 0]
        return float(members.mean()), float(members.std())

    def _imagine(self, actions: Sequence[FloatArray]) -> list[tuple[float, float]]:
        """Value and disagreement after one, two, ... macro-actions from slot 0."""
        imagined = []
        for number in range(len(actions) // self._macro):
            part = np.array(actions[number * self._macro : (number + 1) * self._macro])
            self._step(number, part, number + 1)
            imagined.append(self._valued(number + 1))
        return imagined

    def _step(self, source: int, actions: FloatArray, target: int) -> None:
        macro = actions[None].astype(np.float32)
        self._world_model.step(np.array([source]), macro, np.array([target]))

    def _own(self, observation: Observation, done: Sequence[FloatArray], before: float) -> float:
        """Imagined gain of the policy's own macro-action."""
        try:
            chunk = self.components.policy.propose(observation)[0]
        except VlaReasonerError as error:
            self.logs.problems.append(f"policy: {error}")
            return math.nan
        own = chunk.actions[: self._macro]
        if len(own) < self._macro:
            return math.nan
        slot = max(DEPTHS) + 1
        self._step(0, own, slot)
        if len(done) == self._macro:
            self.logs.actions.append((np.array(own), np.array(done)))
        return self._valued(slot)[0] - before


@dataclass(frozen=True)
class BudgetPoint:
    """What a budget brings.

    Attributes:
        simulations: the budget.
        gains: imagined value gained over the policy's own at each sampled moment.
        agrees: share of moments in which the winner is that of the largest budget.
        times_ms: decision times.
    """

    simulations: int
    gains: NDArray[np.float64]
    agrees: float
    times_ms: NDArray[np.float64]


def think(
    components: Components,
    parameters: Sequence[SearchParameters],
    moments: Sequence[Observation],
    seed: int,
) -> list[BudgetPoint]:
    """Decide on some moments with one set of parameters after another.

    Args:
        components: of the search.
        parameters: the last one is what the others are compared with.
        moments: spread evenly; at most :data:`SAMPLED` are taken.
        seed: of the Reasoner.
    """
    step = max(1, math.ceil(len(moments) / SAMPLED))
    chosen = moments[::step]
    points, winners = [], []
    for given in parameters:
        reasoner = Reasoner(
            components.policy,
            components.world_model,
            components.value,
            components.prior,
            given,
            seed,
        )
        gains, times, picked = [], [], []
        reasoner.warm_up(chosen[0])
        for observation in chosen:
            reasoner.reset()
            decision = reasoner.decide(observation, deadline_s=math.inf)
            said = decision.statistics
            gains.append(max(0.0, said.margin))
            times.append(said.time_ms)
            tree = decision.tree
            best = None
            if tree is not None and said.chosen_id:
                children = np.flatnonzero(tree.depths == 1)
                best = tree.actions[children[int(tree.values[children].argmax())]]
            picked.append(best)
        winners.append(picked)
        points.append((given.simulations, np.array(gains), np.array(times)))
    return [
        BudgetPoint(
            simulations,
            gains,
            float(np.mean([_alike(a, b) for a, b in zip(picked, winners[-1], strict=True)])),
            times,
        )
        for (simulations, gains, times), picked in zip(points, winners, strict=True)
    ]


def _alike(first: FloatArray | None, second: FloatArray | None) -> bool:
    if first is None or second is None:
        return first is second
    return bool(np.allclose(first, second, atol=1e-9))


def log_likelihoods(
    priors: Sequence[Prior], actions: Sequence[tuple[FloatArray, FloatArray]]
) -> NDArray[np.float64]:
    """(P, N) log density of each demonstrated macro-action under each prior.

    Args:
        priors: to compare.
        actions: pairs of the policy's own, which is the reference, and the demonstrated one.
    """
    references = np.array([own for own, _ in actions])
    done = np.array([demonstrated for _, demonstrated in actions])[:, None]
    return np.array([prior.log_density(done, references)[:, 0] for prior in priors])
