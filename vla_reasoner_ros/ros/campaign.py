"""The campaign of the demonstration: every task in each way of deciding, on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from vla_reasoner_ros.components import LEARNED, world_model_verdict
from vla_reasoner_ros.evaluation.records import EpisodeRecord
from vla_reasoner_ros.ros.episodes import CONTROLLER, PLANNER, SIMULATOR, EpisodeRunner
from vla_reasoner_ros.ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, GraphClient
from vla_reasoner_ros.training.progress import duration

CAMERA = "camera_node"
SIMULATIONS = {"policy": 0, "search_simulator": 32, "search_learned": 64}
"""Imagined macro-actions per decision; the true simulator is the slowest of the world models."""
RESERVE_S = 15.0
"""Kept for the report."""

Phases = tuple[tuple[str, tuple[str, ...]], ...]


def phases() -> Phases:
    """World models and the arms that each is configured for, in their order.

    Changing the world model takes the planner through clean-up and configure. While the learned one
    may not drive, the search is shown with the true simulator first.
    """
    if world_model_verdict().passed:
        return ((LEARNED, ("policy", "search_learned")),)
    return (("simulator", ("policy", "search_simulator")), (LEARNED, ("search_learned",)))


class Campaign:
    """Runs episodes on a started graph until all are done or the time is over.

    Args:
        client: of the graph, whose nodes are not configured yet.
        tasks: names.
        seed_start: first seed.
        seeds: seeds per task; 0 runs as many as fit.
        minutes: time for all of it.
        overrides: parameters of the planner by full name.

    Attributes:
        arms: the ways of deciding that are compared.
        records: the episodes so far.
    """

    def __init__(
        self,
        client: GraphClient,
        tasks: Sequence[str],
        seed_start: int,
        seeds: int,
        minutes: float,
        overrides: Mapping[str, Any],
    ) -> None:
        self._started = time.monotonic()
        self._deadline = self._started + 60.0 * minutes
        self._client = client
        self._tasks = tasks
        self._seed_start = seed_start
        self._wanted = seeds
        self._overrides = dict(overrides)
        self._runner = EpisodeRunner(client)
        self._phase = ""
        self._phases = phases()
        self.arms = [arm for _, arms in self._phases for arm in arms]
        self.records: list[EpisodeRecord] = []
        self._spent: dict[str, list[float]] = {arm: [] for arm in self.arms}

    def run(self) -> None:
        """Bring the graph up, then one seed of everything, then as many more as there is time."""
        for name in (SIMULATOR, CAMERA, CONTROLLER):
            self._say(f"configuring {name}")
            self._client.change(name, CONFIGURE)
        self._client.change(CAMERA, ACTIVATE)
        first = self._seed_start
        for phase, _ in self._phases:
            self._run_phase(phase, [first], show=True)
        more = range(first + 1, first + self._seeds())
        for phase, _ in reversed(self._phases):
            self._run_phase(phase, list(more), show=False)

    def _seeds(self) -> int:
        """Seeds in all: those asked for, or those that fit, from the time that one took."""
        if self._wanted:
            return self._wanted
        one = sum(sum(times) for times in self._spent.values())
        left = self._deadline - time.monotonic() - RESERVE_S
        return 1 + max(0, int(left / max(one, 1e-3)))

    def _run_phase(self, phase: str, seeds: list[int], show: bool) -> None:
        if not seeds:
            return
        self._use_world_model(phase)
        arms = dict(self._phases)[phase]
        for seed in seeds:
            for task in self._tasks:
                for arm in arms:
                    if not show and not self._wanted and self._late(arm):
                        return
                    self._run_episode(task, seed, arm, show)

    def _late(self, arm: str) -> bool:
        return time.monotonic() + max(self._spent[arm], default=0.0) > self._deadline - RESERVE_S

    def _use_world_model(self, name: str) -> None:
        if self._phase == name:
            return
        if self._phase:
            self._client.change(PLANNER, DEACTIVATE)
            self._client.change(PLANNER, CLEANUP)
        self._say(f"configuring {PLANNER} with world model {name}")
        self._client.set_parameters(PLANNER, {"planner.world_model": name})
        self._client.change(PLANNER, CONFIGURE, timeout=180.0)
        self._phase = name

    def _run_episode(self, task: str, seed: int, arm: str, show: bool) -> None:
        values = {"search.simulations": SIMULATIONS[arm]} | self._overrides
        if arm == "policy":
            values["search.simulations"] = 0
        self._client.set_parameters(PLANNER, values)
        began = time.monotonic()
        record = self._runner.run(task, seed, arm, show=show)
        self._spent[arm].append(time.monotonic() - began)
        self.records.append(record)
        verdict = "success" if record.success else f"failed ({record.ending})"
        self._say(f"{task}, seed {seed}, {arm}: {verdict} after {record.duration_s:.1f} s")

    def _say(self, text: str) -> None:
        now = time.monotonic()
        left = duration(max(0.0, self._deadline - now))
        print(f"[{now - self._started:5.0f} s, at most {left} left] {text}", flush=True)
