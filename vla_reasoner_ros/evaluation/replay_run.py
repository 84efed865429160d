"""One pass over a bag: which observations are decided on, and what becomes of the decisions."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.data import messages
from vla_reasoner_ros.data.bag_ingest import BagIngest, Moment
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.errors import BagError, VlaReasonerError
from vla_reasoner_ros.evaluation.in_order import InOrder
from vla_reasoner_ros.evaluation.replay_live import CONTROLLER_STATUS, Live
from vla_reasoner_ros.evaluation.replay_record import ReplayWriter, Row
from vla_reasoner_ros.evaluation.replay_rows import Circumstances, decision_row, demonstration
from vla_reasoner_ros.evaluation.replay_settings import EVERY, RECORDED, ReplaySettings
from vla_reasoner_ros.planner import StateMatcher
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.schedule import is_due
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.types import Decision, Observation

PART = 100
"""Decisions after which what there is is made whole on disk."""
QUEUED = 16
"""Decisions that may wait to be written."""


@dataclass
class _Waiting:
    """A decision that waits for what was really done after it."""

    row: Row
    observation: Observation
    decision: Decision | None  # None where it failed
    steps: int
    seen: list[Observation] = field(default_factory=list)


class ReplayRun:
    """One pass over the bag.

    What is decided is compared with what came after, written and made whole on disk in a thread of
    its own, in the order of the decisions.

    Args:
        bag: what is replayed.
        ingest: its observations.
        components: that decide.
        reasoner: of these components.
        settings: of the replay.
        moments: which observations are decided on: recorded, planner or every.
        live: the recorded decisions, by the stamp of the observation decided on.
        writer: takes the decisions, and knows how far an interrupted run had come.

    Attributes:
        episode: number of the episode at hand, from 0.
        errors: decisions that failed.
        wall_s: time that the pass took, s.
        models_s: of that, time of the decisions.
        cpu_s: processor time of all threads, s.
        models_cpu_s: of that, for the decisions.
    """

    def __init__(
        self,
        bag: BagReader,
        ingest: BagIngest,
        components: Components,
        reasoner: Reasoner,
        settings: ReplaySettings,
        moments: str,
        live: dict[int, Live],
        writer: ReplayWriter,
    ) -> None:
        self._bag, self._ingest, self._reasoner = bag, ingest, reasoner
        self._settings, self._moments, self._live = settings, moments, live
        self._writer, self._background = writer, InOrder("replay-writer", QUEUED)
        self._spec = components.policy.spec.action
        world_model = components.world_model
        self._steps = world_model.macro_steps if world_model else settings.search.executed
        self._needs_state = world_model is not None and world_model.needs_simulator_state
        self._joined: deque[Observation] = deque()
        self._matcher = StateMatcher(self._joined.append)
        self._waiting: deque[_Waiting] = deque()
        self._truth: tuple[float, bool] | None = None
        self._faults: list[str] = []
        self._rejected = 0
        self._decided_ns: int | None = None
        self._first_ns: int | None = None
        self._restarted = False
        # Where it stands, and where an interrupted run had come to.
        self._decisions = 0
        self._beginnings = [0]
        state = writer.state or {"decisions": 0, "episode_at": 0, "errors": 0}
        self._whole, self._resume_at = state["decisions"], state["episode_at"]
        self._added = 0
        self.episode = 0
        self.errors = int(state["errors"])
        self.models_s = self.wall_s = self.models_cpu_s = self.cpu_s = 0.0

    def all(self) -> None:
        """Decide on every moment of the bag.

        Raises:
            BagError: the bag has not what the world model needs, or the disk is full.
        """
        try:
            self._all()
        finally:
            self._background.close()

    def _all(self) -> None:
        started, started_cpu = time.perf_counter(), time.process_time()
        reference = self._ingest.contract.moments.reference
        pictures = self._bag.topics[self._ingest.topics[reference]].count
        progress = Progress("replay", max(1, pictures), "pictures")
        received = self._ingest.ingest.statistics[reference]
        for moment in self._ingest.moments(self._listeners(), self._jumped_back):
            self._observe(moment)
            progress.update(min(received.received, pictures - 1), f"{self._decisions} decisions")
        while self._waiting:
            self._conclude(self._waiting.popleft())
        self._commit()
        self._background.finish()
        self.wall_s = time.perf_counter() - started
        self.cpu_s = time.process_time() - started_cpu
        progress.update(max(1, pictures), f"{self._decisions} decisions", force=True)
        if self._matcher.unmatched:
            self._ingest.problems.append(
                f"{self._matcher.unmatched} observations had no simulator state of their stamp"
            )

    # What the bag has beside the contract's streams.

    def _listeners(self) -> dict[str, Callable[[BagMessage], None]]:
        listeners: dict[str, Callable[[BagMessage], None]] = {}
        for topic, kind, take in (
            ("simulator_state", messages.SIMULATOR_STATE, self._state_came),
            (
                "arm_controller_node/status",
                CONTROLLER_STATUS,
                self._controller_told,
            ),
        ):
            found = self._ingest.find(topic)
            if found is not None and self._bag.topics[found].type == kind:
                listeners[found] = take
            elif self._needs_state and take == self._state_came:
                raise BagError(
                    f"bag {self._bag.path}: the world model needs the simulator's state; topic "
                    f"{topic} is missing"
                )
        return listeners

    def _state_came(self, message: BagMessage) -> None:
        fields = self._bag.deserialize(message)
        self._truth = float(fields.progress), bool(fields.success)
        if self._needs_state:
            self._matcher.state(to_nanoseconds(fields.header.stamp), np.array(fields.state))

    def _controller_told(self, message: BagMessage) -> None:
        fields = self._bag.deserialize(message)
        if fields.chunks_rejected > self._rejected:
            self._faults.append(f"controller refused a chunk: {fields.last_rejection}")
        self._rejected = fields.chunks_rejected

    def _jumped_back(self) -> None:
        self._matcher.clear()
        self._restarted = True

    # Decisions.

    def _observe(self, moment: Moment) -> None:
        for reason, count in moment.refused.items():
            self._faults.append(f"{count} moments without an observation: {reason}")
        if not self._needs_state:
            self._joined.append(moment.observation)
        else:
            self._matcher.observation(moment.observation)
        while self._joined:
            self._take(self._joined.popleft(), moment.recorded_ns)

    def _take(self, observation: Observation, recorded_ns: int) -> None:
        if self._first_ns is None:
            self._first_ns = observation.stamp_ns
        for waiting in self._waiting:
            waiting.seen.append(observation)
        while self._waiting and len(self._waiting[0].seen) >= self._waiting[0].steps:
            self._conclude(self._waiting.popleft())
        if self._is_due(observation.stamp_ns):
            self._decide(observation, recorded_ns)
        if self._added - self._whole >= PART:
            self._commit()

    def _is_due(self, stamp_ns: int) -> bool:
        if self._moments == RECORDED:
            return stamp_ns in self._live
        decided_ns = None if self._restarted else self._decided_ns
        executed = self._settings.search.executed
        return self._moments == EVERY or is_due(stamp_ns, decided_ns, executed, self._spec.dt)

    def _decide(self, observation: Observation, recorded_ns: int) -> None:
        live = self._live.get(observation.stamp_ns)
        first = self._restarted or self._decided_ns is None
        first |= self._decided_ns is not None and observation.stamp_ns < self._decided_ns
        if self._moments == RECORDED and live is not None:
            first |= live.statistics.sequence == 1
        if first and self._decided_ns is not None:
            self.episode += 1
        if first:
            self._beginnings.append(self._decisions)
        self._decided_ns, self._restarted = observation.stamp_ns, False
        number, self._decisions = self._decisions, self._decisions + 1
        if number < self._resume_at:
            self._added += 1
            self._faults.clear()
            return
        if first:
            self._reasoner.reset()
        started = self._own_cpu_s()
        again = live if self._moments == RECORDED else None
        consumed = again.consumed if again is not None else 0
        frozen = again.frozen if again is not None and again.controlled else None
        try:
            decision = self._reasoner.decide(
                observation,
                deadline_s=None if self._settings.keep_deadline else math.inf,
                actions_consumed=lambda: consumed,
                frozen=(lambda: frozen) if again is not None and again.controlled else None,
            )
        except VlaReasonerError as error:
            self._faults.append(f"no decision: {error}")
            self._waiting.append(_Waiting({}, observation, None, 0))
            return
        self.models_s += 1e-3 * decision.statistics.time_ms
        self.models_cpu_s += self._own_cpu_s() - started
        around = Circumstances(
            episode=self.episode,
            first_ns=self._first_ns or 0,
            recorded_ns=recorded_ns,
            deadline_ms=self._settings.search.deadline_ms,
            faults=self._faults,
            truth=self._truth,
        )
        self._faults = []
        row = decision_row(observation, decision, live, around)
        steps = self._steps if decision.tree is None else decision.tree.actions.shape[1]
        self._waiting.append(_Waiting(row, observation, decision, steps))

    def _own_cpu_s(self) -> float:
        """Processor time of all threads but the one that writes."""
        return time.process_time() - self._background.cpu_s

    def _conclude(self, waiting: _Waiting) -> None:
        """Have it compared with what was really done, and written."""
        self._added += 1
        if self._added <= self._whole:
            return
        if waiting.decision is None:
            self.errors += 1
            return
        self._background.call(self._write, waiting, waiting.decision)

    def _write(self, waiting: _Waiting, decision: Decision) -> None:
        if len(waiting.seen) >= waiting.steps:
            seen = [waiting.observation, *waiting.seen[: waiting.steps]]
            waiting.row |= demonstration(seen, decision, self._spec)
        self._writer.add(waiting.row, waiting.observation, decision)

    def _commit(self) -> None:
        if self._added > self._whole:
            self._whole = self._added
            begun = max(number for number in self._beginnings if number <= self._added)
            state = {"decisions": self._added, "episode_at": begun, "errors": self.errors}
            self._background.call(self._writer.commit, state)
