"""Many independent jobs on many workers: processes of this machine, or Ray across machines.

What a job gives depends on the job alone, so results are the same for any number of workers on any
engine; only the order in which they come differs. A worker that dies takes nothing with it: its job
is run again on a new worker. No worker outlives the process that asked for it, however that ended.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from vla_reasoner_ros.arguments import WHOLE
from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError

Job = TypeVar("Job")
Result = TypeVar("Result")

ENGINES = ("processes", "ray")
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",
}
"""A worker computes in one thread: many workers share the cores already. The last one is Mesa's
software renderer, which is fastest without threads of its own when every core has a worker."""


class WorkerLost(VlaReasonerError, RuntimeError):
    """A job ended its worker again and again."""


@dataclass(frozen=True)
class EngineSettings:
    """Where jobs run.

    Attributes:
        engine: one of :data:`ENGINES`.
        workers: how many; 0 takes one for each core that this process, or the cluster, has.
        address: of the Ray cluster; empty starts one on this machine.
        attempts: workers that one job may lose before it is given up.

    Raises:
        ConfigurationError: an unknown engine, a bad number, or an address without Ray.
    """

    engine: str = "processes"
    workers: int = 0
    address: str = ""
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigurationError(
                f"--engine: expected one of {', '.join(ENGINES)}, got {self.engine!r}"
            )
        if self.workers < 0 or self.attempts < 1:
            raise ConfigurationError(
                f"--jobs and attempts: expected at least 0 and 1, got {self.workers} and "
                f"{self.attempts}"
            )
        if self.address and self.engine != "ray":
            raise ConfigurationError(f"--address: only for --engine ray, got {self.address!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a verb that say where its jobs run."""
    parser.add_argument(
        "--jobs", type=WHOLE, default=0, help="workers (default: one for each core)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="processes here, or a Ray cluster"
    )
    parser.add_argument("--address", default="", help="of the Ray cluster (default: a local one)")


def settings_of(arguments: argparse.Namespace) -> EngineSettings:
    """Where jobs run, from the options of :func:`add_arguments`.

    Raises:
        ConfigurationError: options that contradict one another.
    """
    return EngineSettings(arguments.engine, arguments.jobs, arguments.address)


def run_jobs(
    start: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Sequence[Job],
    settings: EngineSettings | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Do every job and yield it with its result as soon as it is done, in any order.

    Leaving the iterator early, by an error or an interrupt too, ends the workers.

    Args:
        start: called once in each worker: loads models, builds worlds, and gives the function that
            does one job. A function or class of a module, so that it can be pickled.
        arguments: its arguments.
        jobs: picklable.
        settings: where; None takes this machine's cores.

    Raises:
        WorkerLost: a job ended as many workers as it may.
        ConfigurationError: the engine cannot be used.
        Exception: what a job raised, as it raised it.
    """
    settings = settings or EngineSettings()
    if not jobs:
        return
    if settings.engine == "ray":
        engine: _Engine = _RayEngine(start, arguments, settings)
    else:
        engine = _ProcessEngine(start, arguments, settings)
    waiting = deque(range(len(jobs)))
    attempts = [0] * len(jobs)
    try:
        engine.begin(min(engine.size, len(jobs)))
        running: dict[Any, int] = {}
        while waiting or running:
            for worker in engine.idle(running):
                if waiting:
                    running[worker] = waiting.popleft()
                    engine.give(worker, jobs[running[worker]])
            for worker, outcome in engine.collect(running):
                index = running.pop(worker)
                if isinstance(outcome, _Lost):
                    attempts[index] += 1
                    if attempts[index] >= settings.attempts:
                        raise WorkerLost(
                            f"{jobs[index]}: ended its worker {attempts[index]} times "
                            f"({outcome.reason}); what is finished is kept"
                        )
                    waiting.appendleft(index)
                    engine.replace(worker)
                    continue
                if outcome.error is not None:
                    raise outcome.error
                yield jobs[index], outcome.value
    finally:
        engine.end()


@dataclass(frozen=True)
class _Outcome:
    """What a job gave, or the error that it raised."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Lost:
    """The worker is gone."""

    reason: str


class _Engine(Protocol):
    """Workers that take one job at a time."""

    size: int

    def begin(self, workers: int) -> None: ...

    def idle(self, busy: Container[Any]) -> list[Any]: ...

    def give(self, worker: Any, job: Any) -> None: ...

    def collect(self, busy: Iterable[Any]) -> list[tuple[Any, _Outcome | _Lost]]: ...

    def replace(self, worker: Any) -> None: ...

    def end(self) -> None: ...


def _guarded(work: Callable[[Any], Any], job: Any) -> _Outcome:
    """Do a job; an error is a result too, as long as it can travel."""
    try:
        return _Outcome(value=work(job))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"))
        return _Outcome(error=error)


def _end_with_parent() -> None:
    """End this process, in the middle of a job too, as soon as the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _process_main(connection: Connection) -> None:
    """A worker process: jobs come in, outcomes go out, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Before the first import of what computes, which the arguments bring with them.
    os.environ.update(SINGLE_THREADED)
    try:
        start, arguments = connection.recv()
        work: Callable[[Any], Any] | None = None

        def ready(job: Any) -> Any:
            nonlocal work
            if work is None:
                work = start(*arguments)
            return work(job)

        while True:
            connection.send(_guarded(ready, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _ProcessWorker:
    def __init__(self, start: Any, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_process_main, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.send((start, arguments))


class _ProcessEngine:
    """Spawned processes of this machine, each with a pipe."""

    def __init__(self, start: Any, arguments: tuple[Any, ...], settings: EngineSettings) -> None:
        self._start, self._arguments = start, arguments
        self.size = settings.workers or len(os.sched_getaffinity(0))
        self._workers: list[_ProcessWorker] = []

    def begin(self, workers: int) -> None:
        for _ in range(workers):
            self._workers.append(_ProcessWorker(self._start, self._arguments))

    def idle(self, busy: Container[Any]) -> list[Any]:
        return [worker for worker in self._workers if worker not in busy]

    def give(self, worker: _ProcessWorker, job: Any) -> None:
        # One that is gone already is found when its outcome is collected.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(job)

    def collect(self, busy: Iterable[Any]) -> list[tuple[Any, _Outcome | _Lost]]:
        by_connection = {worker.connection: worker for worker in busy}
        found: list[tuple[Any, _Outcome | _Lost]] = []
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]
            try:
                found.append((worker, worker.connection.recv()))
            except (EOFError, ConnectionResetError):
                worker.process.join()
                found.append((worker, _Lost(f"exit code {worker.process.exitcode}")))
        return found

    def replace(self, worker: _ProcessWorker) -> None:
        worker.connection.close()
        self._workers[self._workers.index(worker)] = _ProcessWorker(self._start, self._arguments)

    def end(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            # One that is in the middle of a job would finish it for no one.
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


class _RayActor:
    """What Ray runs in a process of its own on any machine of the cluster."""

    def __init__(self, begin: bytes) -> None:
        os.environ.update(SINGLE_THREADED)
        self._begin = begin
        self._work: Callable[[Any], Any] | None = None

    def do(self, job: Any) -> _Outcome:
        """One job."""
        return _guarded(self._ready, job)

    def _ready(self, job: Any) -> Any:
        if self._work is None:
            start, arguments = pickle.loads(self._begin)
            self._work = start(*arguments)
        return self._work(job)


class _RayEngine:
    """Ray actors, one core each; every machine of the cluster has this package installed."""

    def __init__(self, start: Any, arguments: tuple[Any, ...], settings: EngineSettings) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigurationError(
                "--engine ray: the package ray is not installed; pip install "
                "'vla_reasoner_ros[ray]'"
            ) from error
        self._ray = ray
        # Unpickled by the actor after it has chosen its threads.
        self._begin = pickle.dumps((start, arguments))
        self._mine = not ray.is_initialized()
        if self._mine:
            options: dict[str, Any] = {"address": settings.address or "local"}
            if not settings.address and settings.workers:
                options["num_cpus"] = settings.workers
            try:
                ray.init(**options, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigurationError(
                    f"--address {options['address']}: no Ray cluster answers: {error}"
                ) from error
        self.size = settings.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actors: list[Any] = []
        self._pending: dict[Any, Any] = {}

    def _actor(self) -> Any:
        return self._ray.remote(num_cpus=1, max_restarts=0)(_RayActor).remote(self._begin)

    def begin(self, workers: int) -> None:
        self._actors = [self._actor() for _ in range(workers)]

    def idle(self, busy: Container[Any]) -> list[Any]:
        return [actor for actor in self._actors if actor not in busy]

    def give(self, worker: Any, job: Any) -> None:
        self._pending[worker.do.remote(job)] = worker

    def collect(self, busy: Iterable[Any]) -> list[tuple[Any, _Outcome | _Lost]]:
        ready, _ = self._ray.wait(list(self._pending), num_returns=1)
        found: list[tuple[Any, _Outcome | _Lost]] = []
        for reference in ready:
            worker = self._pending.pop(reference)
            try:
                found.append((worker, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                found.append((worker, _Lost(type(error).__name__)))
        return found

    def replace(self, worker: Any) -> None:
        self._actors[self._actors.index(worker)] = self._actor()

    def end(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._mine:
            self._ray.shutdown()
