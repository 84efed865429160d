"""What recorded bags say about the models: imagined against seen, along what was really done."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.contract import Contract
from vla_reasoner_ros.data.messages import SIMULATOR_STATE
from vla_reasoner_ros.data.motion import actions_along, follows
from vla_reasoner_ros.errors import ModelError, VlaReasonerError
from vla_reasoner_ros.evaluation.done import ValueSeries
from vla_reasoner_ros.priors.base import Prior
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.types import FloatArray, Observation

Anything = TypeVar("Anything")

DEPTHS = (1, 2, 3, 4)
"""Macro-actions ahead that are compared."""
SAMPLED = 60
"""Moments of all bags that are thought about at every budget."""
MOST_KEPT = 8 * SAMPLED
"""Moments that are remembered; past it every other one is forgotten."""
NEAR = 1.0
"""s between moments whose errors count as one: neighbours say the same."""
STRETCH = 10.0
"""s of an episode that are resampled together: what goes wrong goes wrong for a while."""


@dataclass(frozen=True)
class Prediction:
    """What was imagined at a moment, as the search does: one macro-action, then the policy's own.

    The first is the one that was then really done; so no depth knows more of it than another.

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


@dataclass(frozen=True)
class Futures:
    """Moments after which everything up to the deepest of :data:`DEPTHS` was seen.

    Attributes:
        stretch: (N,) number of the stretch of driving that each belongs to.
        before: (N,) value seen at the moment.
        imagined: (N, D) value imagined for each depth.
        seen: (N, D) value seen there.
    """

    stretch: NDArray[np.int64]
    before: NDArray[np.float64]
    imagined: NDArray[np.float64]
    seen: NDArray[np.float64]


@dataclass
class Logs:
    """Everything that the bags gave.

    Attributes:
        predictions: of all depths.
        series: the value along each episode whose outcome is known.
        looks: times, s, and values along every episode.
        moments: sampled for thinking about.
        actions: pairs of the policy's own and the demonstrated macro-action, each (M, D).
        own_gains: imagined gain of the policy's own macro-action at each of the moments; NaN
            where the policy failed.
        problems: of the bags.
    """

    predictions: list[Prediction] = field(default_factory=list)
    series: list[ValueSeries] = field(default_factory=list)
    looks: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    moments: list[Observation] = field(default_factory=list)
    actions: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    own_gains: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def futures(self) -> Futures:
        """Whole futures, thinned out so that neighbours count once."""
        by_moment: dict[tuple[int, float], dict[int, Prediction]] = {}
        for prediction in self.predictions:
            moment = by_moment.setdefault((prediction.episode, prediction.time), {})
            moment[prediction.depth] = prediction
        kept: list[list[Prediction]] = []
        for (episode, time), found in sorted(by_moment.items()):
            last = kept[-1][0] if kept else None
            if len(found) == len(DEPTHS) and (
                last is None or last.episode != episode or time - last.time >= NEAR
            ):
                kept.append([found[depth] for depth in DEPTHS])
        stretches: dict[tuple[int, int], int] = {}
        numbers = [
            stretches.setdefault((row[0].episode, int(row[0].time // STRETCH)), len(stretches))
            for row in kept
        ]
        shape = (len(kept), len(DEPTHS))
        return Futures(
            np.array(numbers, np.int64),
            np.array([row[0].before for row in kept]),
            np.array([[p.imagined for p in row] for row in kept]).reshape(shape),
            np.array([[p.seen for p in row] for row in kept]).reshape(shape),
        )

    def noise(self) -> NDArray[np.float64]:
        """(K,) how far values lie off the line between their neighbours, as errors of one look."""
        errors = [np.zeros(0)]
        for times, values in self.looks:
            if len(times) < 3:
                continue
            share = (times[1:-1] - times[:-2]) / (times[2:] - times[:-2])
            off = values[1:-1] - (1.0 - share) * values[:-2] - share * values[2:]
            errors.append(off / np.sqrt(1.0 + share**2 + (1.0 - share) ** 2))
        return np.concatenate(errors)


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
        actions = actions_along(rows, self._spec)
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
                own = self._own(observation)
                first = actions[at : at + self._macro]
                imagined = self._imagine(first, own)
                waiting.append(_Open(at * dt, before, imagined, at))
                logs.moments.append(observation)
                logs.own_gains.append(self._gain(own, before))
                if own is not None and len(first) == self._macro:
                    logs.actions.append((own[: self._macro], np.array(first)))
        logs.looks.append((np.array(times), np.array(values)))
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

    def _imagine(
        self, done: Sequence[FloatArray], own: FloatArray | None
    ) -> list[tuple[float, float]]:
        """Value and disagreement at each depth after what was done and the policy's own.

        Past the end of the policy's chunk its last macro-action is repeated, as in the search.
        """
        if own is None or len(done) < self._macro:
            return []
        imagined, part = [], np.array(done)
        for depth in DEPTHS:
            self._step(depth - 1, part, depth)
            imagined.append(self._valued(depth))
            following = own[depth * self._macro : (depth + 1) * self._macro]
            part = following if len(following) == self._macro else part
        return imagined

    def _step(self, source: int, actions: FloatArray, target: int) -> None:
        macro = actions[None].astype(np.float32)
        self._world_model.step(np.array([source]), macro, np.array([target]))

    def _own(self, observation: Observation) -> FloatArray | None:
        """The policy's own actions; None where it failed or has no whole macro-action."""
        try:
            actions = self.components.policy.propose(observation)[0].actions
        except VlaReasonerError as error:
            self.logs.problems.append(f"policy: {error}")
            return None
        return np.array(actions) if len(actions) >= self._macro else None

    def _gain(self, own: FloatArray | None, before: float) -> float:
        """Imagined gain of the policy's own first macro-action."""
        if own is None:
            return math.nan
        slot = max(DEPTHS) + 1
        self._step(0, own[: self._macro], slot)
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


def thinned(of_moments: Sequence[Anything]) -> Sequence[Anything]:
    """At most :data:`SAMPLED` of what is known of each moment, spread evenly."""
    return of_moments[:: max(1, math.ceil(len(of_moments) / SAMPLED))]


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
    chosen = thinned(moments)
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
