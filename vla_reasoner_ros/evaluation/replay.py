"""Replay a recorded bag through the same ingest and the same Reasoner as live, without ROS.

Writes a table with one row a decision, and a bag with the decisions, their statistics, their trees
and what was seen. Interrupted, the same command goes on: finished episodes are kept, the episode at
hand is thought through again from its beginning, so that the result is the same.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_reasoner_ros import __version__
from vla_reasoner_ros.arguments import WHOLE
from vla_reasoner_ros.components import Components, load_components
from vla_reasoner_ros.data import messages
from vla_reasoner_ros.data.bag_ingest import BagIngest, Moment
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.data.motion import actions_of
from vla_reasoner_ros.errors import BagError, ConfigurationError, VlaReasonerError
from vla_reasoner_ros.evaluation import shadow
from vla_reasoner_ros.evaluation.evaluate import parse_overrides
from vla_reasoner_ros.evaluation.replay_live import CONTROLLER_STATUS, Live, recorded_decisions
from vla_reasoner_ros.evaluation.replay_record import Replay, ReplayWriter, Row, read_replay
from vla_reasoner_ros.evaluation.replay_settings import (
    EVERY,
    MOMENTS,
    PLANNER,
    RECORDED,
    ReplaySettings,
    read_settings,
)
from vla_reasoner_ros.planner import StateMatcher, warm_up
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.schedule import is_due
from vla_reasoner_ros.search.stages import STAGES
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.types import Decision, Observation

__all__ = ["Replay", "read_replay"]

PART = 100
"""Decisions after which what there is is made whole on disk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bag", type=Path, help="folder of the bag, or one of its files")
    parser.add_argument("--out", type=Path, default=Path("out/replay"), help="folder to write")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--namespace", default="", help="of the topics, where the bag has several")
    parser.add_argument("--instruction", default="", help="where the bag has none")
    parser.add_argument(
        "--params", type=Path, help="ROS parameter file (default: what the bag was recorded with)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter, as search.depth=2 or planner.world_model=latent; may be repeated",
    )
    parser.add_argument("--seed", type=WHOLE, default=0, help="of all random numbers (default 0)")
    parser.add_argument(
        "--moments",
        choices=MOMENTS,
        default=MOMENTS[0],
        help="decide on what the planner decided on when it was recorded, on what it would decide "
        "on, or on every observation (default: recorded where it was, else planner)",
    )
    parser.add_argument(
        "--deadline", action="store_true", help="keep to search.deadline_ms; not repeatable then"
    )
    parser.add_argument("--fresh", action="store_true", help="forget a replay that is there")


def run(arguments: argparse.Namespace) -> int:
    """Replay, and say what came of it."""
    with BagReader(arguments.bag) as bag:
        settings = read_settings(
            bag,
            contract=arguments.contract,
            namespace=arguments.namespace,
            instruction=arguments.instruction,
            params=arguments.params,
            overrides=parse_overrides(arguments.set),
            seed=arguments.seed,
            moments=arguments.moments,
            keep_deadline=arguments.deadline,
        )
        replay = replay_bag(bag, settings, arguments.out, fresh=arguments.fresh)
    for problem in replay.info["problems"]:
        print(f"note: {problem}", file=sys.stderr)
    for line in summary(replay):
        print(line)
    return 0


def summary(replay: Replay) -> list[str]:
    """A replay in a few lines."""
    info, rows = replay.info, replay.rows()
    lines = [
        f"{len(rows)} decisions of {info['observations']} observations in "
        f"{info['episodes']} episodes",
    ]
    if rows:
        times = replay.column("decision_ms")
        median, high = np.percentile(times, [50, 95])
        lines.append(
            f"decision time {median:.1f} ms, 95th percentile {high:.1f} ms; fell back in "
            f"{sum(row['status'] in ('policy', 'hold') for row in rows)}, deviated in "
            f"{sum(row['deviated'] for row in rows)}"
        )
        compared = [row["live_equal"] for row in rows if row["live_equal"] is not None]
        if compared:
            lines.append(
                f"{sum(compared)} of {len(compared)} decisions are those that were made live"
            )
        lines += shadow.agreement(rows).lines()
    return [*lines, f"table: {replay.path / 'decisions.parquet'}"]


def replay_bag(
    bag: BagReader, settings: ReplaySettings, folder: Path, *, fresh: bool = False
) -> Replay:
    """Replay a bag into a folder, or go on with that.

    Raises:
        BagError: the bag does not fit the contract.
        ConfigurationError: the components or parameters do not fit, or another replay is there.
    """
    ingest = BagIngest(
        bag, load_contract(settings.contract), settings.instruction, settings.namespace
    )
    live = recorded_decisions(bag, ingest)
    moments = settings.moments
    if moments == MOMENTS[0]:
        moments = RECORDED if live else PLANNER
    elif moments == RECORDED and not live:
        raise ConfigurationError(f"bag {bag.path}: no decision was recorded in it")
    components = load_components(settings.components)
    spec = components.policy.spec.action
    info = {
        "bag": str(bag.path),
        "version": __version__,
        "settings": settings.fingerprint() | {"moments": moments},
        "parameters": settings.parameters(),
        "parameters_from": settings.source,
        "components": dict(components.names),
        "note": components.reason,
        "spec": spec.to_mapping(),
        "stages": list(STAGES),
        "clock": ingest.clock,
    }
    writer = ReplayWriter(folder, info, fresh)
    if writer.finished:
        return read_replay(folder)
    reasoner = Reasoner(
        components.policy,
        components.world_model,
        components.value,
        components.prior,
        settings.search if settings.keep_deadline else settings.without_deadline(),
        settings.seed,
    )
    warm_up(reasoner, components.policy, components.world_model)
    run_ = _Run(bag, ingest, components, reasoner, settings, moments, live, writer)
    try:
        run_.all()
    except BaseException:
        writer.abandon()
        raise
    writer.finish(
        observations=ingest.ingest.moments["observed"],
        episodes=run_.episode + 1,
        errors=run_.errors,
        problems=[*bag.problems, *ingest.problems],
        wall_s=round(run_.wall_s, 3),
        models_s=round(run_.models_s, 3),
        cpu_s=round(run_.cpu_s, 3),
        models_cpu_s=round(run_.models_cpu_s, 3),
        ingest={
            name: {"received": s.received, "used": s.used, "dropped": dict(s.dropped)}
            for name, s in ingest.ingest.statistics.items()
        },
        refused=dict(ingest.ingest.moments),
    )
    return read_replay(folder)


@dataclass
class _Waiting:
    """A decision that waits for what was really done after it."""

    row: Row
    observation: Observation
    decision: Decision | None  # None where it failed
    steps: int
    seen: list[Observation] = field(default_factory=list)


class _Run:
    """One pass over the bag."""

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
        self._writer = writer
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
        """Every moment of the bag."""
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
        started = time.process_time()
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
        self.models_cpu_s += time.process_time() - started
        row = self._row(observation, recorded_ns, decision, live)
        steps = self._steps if decision.tree is None else decision.tree.actions.shape[1]
        self._waiting.append(_Waiting(row, observation, decision, steps))

    def _row(
        self, observation: Observation, recorded_ns: int, decision: Decision, live: Live | None
    ) -> Row:
        said, chunk, own = decision.statistics, decision.chunk, decision.policy_chunk
        searched = decision.tree is not None
        deadline_ms = self._settings.search.deadline_ms
        missed = bool(deadline_ms) and said.time_ms > deadline_ms
        faults, self._faults = self._faults, []
        if missed:
            faults.append(f"deadline missed: {said.time_ms:.1f} of {deadline_ms:g} ms")
        if said.fallback_reason and said.status.name in ("DEADLINE", "POLICY", "HOLD"):
            faults.append(f"fell back: {said.fallback_reason}")
        progress, success = self._truth or (None, None)

        def known(number: float) -> float | None:
            return float(number) if searched and math.isfinite(number) else None

        return {
            "episode": self.episode,
            "stamp_ns": observation.stamp_ns,
            "time_s": (observation.stamp_ns - (self._first_ns or 0)) * 1e-9,
            "recorded_ns": recorded_ns,
            "sequence": said.sequence,
            "instruction": observation.instruction,
            "source": chunk.source.value,
            "status": said.status.name.lower(),
            "fallback_reason": said.fallback_reason,
            "value_seen": known(said.root_value),
            "value_policy": known(said.policy_value),
            "value_chosen": known(said.chosen_value),
            "margin": known(said.margin),
            "margin_required": said.margin_required,
            "deviated": said.deviated,
            "would_deviate": searched and shadow.would_deviate(said),
            "alpha": said.alpha,
            "gate": said.gate,
            "drift": known(said.drift),
            "drift_tripped": said.drift_tripped,
            "tree_reused": said.tree_reused,
            "decision_ms": said.time_ms,
            "deadline_ms": deadline_ms,
            "deadline_missed": missed,
            "stage_ms": list(said.stage_ms),
            "simulations": said.simulations,
            "simulations_budget": said.simulations_budget,
            "world_model_calls": said.world_model_calls,
            "nodes": said.nodes,
            "pruned": said.pruned,
            "depth": said.max_depth,
            "mean_depth": said.mean_depth,
            "root_entropy": said.root_entropy,
            "confidence": chunk.confidence,
            "consumed": chunk.consumed,
            "seed": said.seed,
            "chosen_id": said.chosen_id,
            **{
                name: list(getattr(said, name))
                for name in (
                    "candidate_ids",
                    "candidate_visits",
                    "candidate_values",
                    "candidate_priors",
                    "candidate_origins",
                )
            },
            "actions": chunk.actions.ravel().tolist(),
            "policy_actions": None if own is None else own.actions.ravel().tolist(),
            "ee_position": observation.ee_position.tolist(),
            "gripper": observation.gripper,
            "live_source": live.source or None if live else None,
            "live_ms": live.statistics.time_ms if live else None,
            "live_equal": None
            if live is None or live.actions is None
            else bool(np.array_equal(live.actions, chunk.actions)),
            "progress": progress,
            "success": success,
            "faults": faults,
        }

    def _conclude(self, waiting: _Waiting) -> None:
        """Compare with what was really done, and write."""
        self._added += 1
        if self._added <= self._whole:
            return
        decision, row = waiting.decision, waiting.row
        if decision is None:
            self.errors += 1
            return
        seen = [waiting.observation, *waiting.seen[: waiting.steps]]
        done = actions_of(seen, self._spec) if len(seen) > waiting.steps else None
        if done is not None:
            row["demonstrated"] = done.ravel().tolist()
        if done is not None and decision.tree is not None:
            found = shadow.compare(done, decision.tree, self._spec)
            if found is not None:
                row |= {
                    "demonstrated_rank": found.rank,
                    "candidates": found.candidates,
                    "demonstrated_value": found.value,
                    "demonstrated_distance": found.distance,
                    "policy_distance": found.policy_distance,
                    "winner_distance": found.winner_distance,
                }
        self._writer.add(row, waiting.observation, decision)

    def _commit(self) -> None:
        if self._added > self._whole:
            self._whole = self._added
            begun = max(number for number in self._beginnings if number <= self._added)
            self._writer.commit(
                {"decisions": self._added, "episode_at": begun, "errors": self.errors}
            )
