"""What the planner tells of its decisions: diagnostics and the search tree."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.components import Components, device
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros.diagnostics import Finding, Level, Report, because, summary, too_high
from vla_reasoner_ros.ros.reports import tree_to_message
from vla_reasoner_ros.search.statistics import SearchStatistics, Status
from vla_reasoner_ros.srv import GetSearchTree
from vla_reasoner_ros.types import Decision
from vla_reasoner_ros.world_models.base import RestoresViews

STAGES = {"policy": ("policy",), "world_model": ("encode", "world_model"), "value": ("value",)}
"""Kind of component to the stages of a decision that are its own."""


@dataclass(frozen=True)
class DecisionThresholds:
    """When the planner's decisions are not well; 0 is off."""

    window: int = parameter(
        50, "Newest decisions that rates and latencies are taken over.", minimum=1, maximum=100_000
    )
    stale: float = parameter(
        5.0,
        "Wall-clock time without a decision, while active and not paused, after which is STALE.",
        unit="s",
        minimum=0.0,
    )
    time_warn: float = parameter(
        0.0, "95th percentile of a decision's time above which is WARN.", unit="ms", minimum=0.0
    )
    time_error: float = parameter(
        0.0, "95th percentile of a decision's time above which is ERROR.", unit="ms", minimum=0.0
    )
    missed_warn: float = parameter(
        1e-6, "Share of missed deadlines above which is WARN.", minimum=0.0, maximum=1.0
    )
    missed_error: float = parameter(
        0.5, "Share of missed deadlines above which is ERROR.", minimum=0.0, maximum=1.0
    )
    fallback_warn: float = parameter(
        1e-6, "Share of fallbacks above which is WARN.", minimum=0.0, maximum=1.0
    )
    fallback_error: float = parameter(
        0.5, "Share of fallbacks above which is ERROR.", minimum=0.0, maximum=1.0
    )
    drift_warn: float = parameter(
        0.0, "Drift, in the world model's unit, above which is WARN.", minimum=0.0
    )
    drift_error: float = parameter(
        0.0, "Drift, in the world model's unit, above which is ERROR.", minimum=0.0
    )


class DecisionRecord:
    """Remembers the newest decisions and reports on them; thread-safe.

    Args:
        components: what decides.
        thresholds: gives the newest thresholds.
        clock: wall-clock time, s.

    """

    def __init__(
        self,
        components: Components,
        thresholds: Callable[[], DecisionThresholds],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._components = components
        self._devices = {kind: device(getattr(components, kind)) for kind in components.names}
        self._thresholds = thresholds
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: Decision | None = None
        self._said: deque[SearchStatistics] = deque(maxlen=thresholds().window)
        self._decided = clock()
        self._errors = 0
        self._last_error = ""

    @property
    def newest(self) -> Decision | None:
        """The newest decision; None before the first."""
        with self._lock:
            return self._newest

    def decided(self, decision: Decision) -> None:
        """Remember a decision."""
        with self._lock:
            window = self._thresholds().window
            if window != self._said.maxlen:
                self._said = deque(self._said, maxlen=window)
            self._newest = decision
            self._said.append(decision.statistics)
            self._decided = self._clock()

    def failed(self, error: Exception) -> str:
        """Remember that there was no decision; what to log of it."""
        with self._lock:
            self._errors += 1
            self._last_error = str(error)
        trace = "" if isinstance(error, VlaReasonerError) else "\n" + traceback.format_exc()
        return f"no decision: {error}{trace}"

    def awaken(self) -> None:
        """Decisions are due from now on."""
        self._decided = self._clock()

    def decisions(self, unmatched: int, paused: bool) -> Report:
        """Budget, deadlines, fallbacks, deviations and drift of the newest decisions.

        Args:
            unmatched: observations without a simulator state of the same stamp.
            paused: whether the planner was told to pause.
        """
        limits = self._thresholds()
        with self._lock:
            said = list(self._said)
            silent = self._clock() - self._decided
        values: dict[str, object] = {
            **self._components.names,
            "errors": self._errors,
            "last error": self._last_error,
            "unmatched observations": unmatched,
            "decisions": len(said),
        }
        found = []
        if said:
            found += _judge(said, limits, values)
            if limits.stale and silent > limits.stale and not paused:
                return Report(Level.STALE, f"no decision for {silent:.1f} s", values)
        else:
            found.append((Level.WARN, "no decision yet"))
        if self._components.reason:
            found.append((Level.WARN, f"the plain policy drives: {self._components.reason}"))
        if paused:
            return Report(Level.OK, "paused", values)
        return summary(found, "deciding", values)

    def models(self) -> Report:
        """Where each model computes, and how long it takes in a decision."""
        with self._lock:
            said = list(self._said)
        values: dict[str, object] = {}
        for kind, name in self._components.names.items():
            values[kind] = f"{name} on {self._devices[kind]}"
            stages = STAGES.get(kind)
            if stages and said:
                times = [
                    sum(dict(zip(s.stage_names, s.stage_ms, strict=True))[x] for x in stages)
                    for s in said
                ]
                values[f"{kind} p50 [ms]"] = _percentile(times, 50)
                values[f"{kind} p95 [ms]"] = _percentile(times, 95)
        found: list[Finding] = []
        model = self._components.world_model
        views = model.views if isinstance(model, RestoresViews) else None
        for camera, view in sorted(views.changes().items()) if views else []:
            values[f"camera {camera} moved [px]"] = round(view.shift, 2)
            values[f"camera {camera} light [factor]"] = round(view.gain, 3)
            if view.shift:
                what = f"camera '{camera}' looks moved by {view.shift:.1f} px of the model's image"
                found.append((Level.WARN, f"{what}; it is moved back for the search"))
        return summary(found, f"{len(self._components.names)} loaded", values)


def _judge(
    said: Sequence[SearchStatistics], limits: DecisionThresholds, values: dict[str, object]
) -> list[Finding]:
    """Write what the decisions say into ``values``, and judge it."""
    last = said[-1]
    times = [s.time_ms for s in said]
    p95 = _percentile(times, 95)
    missed = float(np.mean([s.deadline_missed for s in said]))
    fallback = float(np.mean([s.status in (Status.POLICY, Status.HOLD) for s in said]))
    reason = next((s.fallback_reason for s in reversed(said) if s.fallback_reason), "")
    values |= {
        "sequence": last.sequence,
        "status": last.status.name,
        "fallback": last.fallback_reason,
        "time p50 [ms]": _percentile(times, 50),
        "time p95 [ms]": p95,
        "simulations": last.simulations,
        "simulations/s": 1e3 * sum(s.simulations for s in said) / max(sum(times), 1e-6),
        "deadline missed [share]": missed,
        "fallback [share]": fallback,
        "deviated [share]": float(np.mean([s.deviated for s in said])),
        "drift": last.drift,
    }
    return [
        because(
            too_high("fallback", fallback, limits.fallback_warn, limits.fallback_error), reason
        ),
        too_high("time p95", p95, limits.time_warn, limits.time_error, " ms"),
        too_high("deadlines missed", missed, limits.missed_warn, limits.missed_error),
        too_high("drift", last.drift, limits.drift_warn, limits.drift_error),
    ]


def _percentile(numbers: list[float], percent: float) -> float:
    return float(np.percentile(numbers, percent))


def tree_response(
    newest: Decision | None, response: GetSearchTree.Response, now_ns: int
) -> GetSearchTree.Response:
    """The tree of the newest decision, or why there is none."""
    if newest is None or newest.tree is None:
        response.message = (
            "no decision yet" if newest is None else "the newest decision made no search"
        )
        return response
    chunk = newest.chunk
    response.success = True
    response.tree = tree_to_message(newest.tree, chunk.observation_stamp_ns, chunk.sequence, now_ns)
    return response
