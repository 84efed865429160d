"""Many episodes in many processes, each kept on disk as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.closed_loop import EPISODE_ACTIONS, run_episode
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.paths import models_directory


class EvaluationError(VlaReasonerError, RuntimeError):
    """The evaluation could not go on; what is finished is kept."""


@dataclass(frozen=True)
class Case:
    """One episode of one arm."""

    task: str
    seed: int
    arm: str


@dataclass(frozen=True)
class Settings:
    """What all episodes of one results file share.

    Attributes:
        overrides: search parameters by full name.
        scene_hook: FILE.py:FUNCTION, or empty.
        limit: actions per episode.
        held_out: instructions kept out of training.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    scene_hook: str = ""
    limit: int = EPISODE_ACTIONS
    held_out: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """The settings, and hashes of the files that they depend on."""
        hook = Path(self.scene_hook.rpartition(":")[0])
        return {
            "overrides": dict(self.overrides),
            "scene_hook": _digest([hook]) if self.scene_hook else "",
            "limit": self.limit,
            "held_out": self.held_out,
            "models": _digest(sorted(models_directory().glob("*.json"))),
        }


class EpisodeStore:
    """Finished episodes, one JSON line each, after a first line with the settings.

    Args:
        path: the file.
        settings: of this run.
        fresh: forget what the file holds.

    Raises:
        ConfigurationError: the file was made with other settings or other models.
    """

    def __init__(self, path: Path, settings: Settings, fresh: bool = False) -> None:
        self._path = path
        self._episodes: dict[Case, dict[str, Any]] = {}
        header = settings.fingerprint()
        lines = [] if fresh or not path.is_file() else list(_json_lines(path))
        if lines:
            differing = [name for name, value in header.items() if lines[0].get(name) != value]
            if differing:
                raise ConfigurationError(
                    f"{path} was made with other {', '.join(differing)}; give another --json or "
                    "--fresh"
                )
            for episode in lines[1:]:
                self._episodes[Case(episode["task"], episode["seed"], episode["arm"])] = episode
        # Written anew, without the half line that a killed run may have left.
        kept = [header, *self._episodes.values()]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def __contains__(self, case: Case) -> bool:
        return case in self._episodes

    def add(self, case: Case, episode: dict[str, Any]) -> None:
        """Keep an episode, on disk at once."""
        self._episodes[case] = episode
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(episode) + "\n")

    def finished(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Those of these cases that are done, in their order."""
        return [self._episodes[case] for case in cases if case in self._episodes]


def run_cases(
    cases: Sequence[Case], settings: Settings, jobs: int
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Run episodes in processes and yield each when it is done; one job runs in this process.

    Raises:
        EvaluationError: a worker process died.
    """
    if jobs == 1 or len(cases) == 1:
        worker = Worker(settings)
        for case in cases:
            yield case, worker.run(case)
        return
    pool = ProcessPoolExecutor(
        max_workers=min(jobs, max(len(cases), 1)),
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(settings,),
    )
    try:
        running: dict[Future[dict[str, Any]], Case] = {}
        waiting = iter(cases)
        while True:
            while len(running) < 2 * jobs and (case := next(waiting, None)):
                running[pool.submit(_run_in_worker, case)] = case
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise EvaluationError(
            "a worker process died; finished episodes are kept, the same command goes on with "
            "those that are missing"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class Worker:
    """A world and the reasoners made so far: loading is paid once per process."""

    def __init__(self, settings: Settings) -> None:
        # Imported here: the simulator must choose its OpenGL in the process that renders.
        from vla_reasoner_ros.sim.world import World

        self._settings = settings
        self._world = World(settings.scene_hook or None)
        self._reasoners: dict[str, Any] = {}

    def run(self, case: Case) -> dict[str, Any]:
        """Run one episode; its summary."""
        settings = self._settings
        parameters = arm_table.search_parameters(case.arm, settings.overrides)
        if case.arm not in self._reasoners:
            reasoner = arm_table.make_reasoner(case.arm, settings.overrides, settings.scene_hook)
            self._world.reset(case.task, case.seed, settings.held_out)
            reasoner.warm_up(self._world.observation())
            self._reasoners[case.arm] = reasoner
        return run_episode(
            self._world,
            self._reasoners[case.arm],
            task=case.task,
            seed=case.seed,
            arm=case.arm,
            executed=parameters.executed,
            limit=settings.limit,
            held_out=settings.held_out,
        ).summary()


_worker: Worker | None = None


def _start_worker(settings: Settings) -> None:
    """Once in each process: one thread, and Ctrl-C is the parent's business."""
    global _worker
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _worker = Worker(settings)


def _run_in_worker(case: Case) -> dict[str, Any]:
    assert _worker is not None
    return _worker.run(case)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the half line of a killed run; nothing follows it


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"file {path}: {error.strerror}") from error
    return digest.hexdigest()[:16]
