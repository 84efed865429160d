"""Any policy in a process of its own, so that the node's interpreter lock stays free.

Images lie in memory that both processes map (an anonymous file: it goes when they go, whatever
happens); everything else is a message on a socket pair. The policy may live in another Python, with
libraries that do not fit beside ours. A worker that hangs or dies is ended and started again in the
background; until it is back each proposal fails at once, and the reasoner falls back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros import errors, plugins
from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    ModelError,
    ObservationError,
    VlaReasonerError,
)
from vla_reasoner_ros.policies import worker
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.types import ActionChunk, Observation

NAME = "process"
# Our package goes last on the path: the other Python's own libraries come before ours.
_CODE = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from vla_reasoner_ros.policies.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class _Worker:
    """One child process, from its start to its end."""

    def __init__(
        self, python: str, policy: str, options: Mapping[str, Any], start_s: float
    ) -> None:
        self._memory: mmap.mmap | None = None
        self._descriptor = os.memfd_create("vla_reasoner_images")
        ours, theirs = socket.socketpair()
        self._connection = ours
        root = str(Path(__file__).resolve().parent.parent.parent)
        command = [python, "-c", _CODE, root, str(theirs.fileno()), str(self._descriptor)]
        environment = dict(os.environ)
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)  # it leads to libraries of this Python
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(theirs.fileno(), self._descriptor),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        except OSError as error:
            ours.close()
            os.close(self._descriptor)
            raise ConfigurationError(f"policy {NAME}: cannot run {python}: {error}") from error
        finally:
            theirs.close()
        try:
            greeting = self.ask({"policy": policy, "options": dict(options)}, start_s)
            self.spec: PolicySpec = worker.spec_from_mapping(greeting["spec"])
            self.takes_prefix = bool(greeting["prefix"])
            size = worker.memory_size(self.spec.cameras)
            os.ftruncate(self._descriptor, size)
            self._memory = mmap.mmap(self._descriptor, size)
            self.images: dict[str, NDArray[np.uint8]] | None = worker.views(
                self._memory, self.spec.cameras, writable=True
            )
        except BaseException:
            self.end()
            raise

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def ask(self, message: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            VlaReasonerError: what the policy raised.
            _Broken: the worker died, hangs or talks nonsense.
        """
        self._connection.settimeout(limit_s)
        try:
            worker.send(self._connection, message)
            answer = worker.receive(self._connection)
        except TimeoutError as error:
            raise _Broken(f"the worker did not answer in {limit_s} s") from error
        except (EOFError, OSError) as error:
            raise _Broken(f"the worker {self._how_it_ended()}") from error
        except ModelError as error:
            raise _Broken(f"the worker answered nonsense: {error}") from error
        if "error" in answer:
            kind = getattr(errors, answer["error"], ModelError)
            raise kind(f"policy {NAME}: {answer['message']}")
        return answer

    def end(self) -> None:
        """Kill the child and let go of everything; again is nothing."""
        self.images = None
        self._connection.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._memory is not None:
            with contextlib.suppress(BufferError):  # the views of it are not collected yet
                self._memory.close()
            self._memory = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


class _Broken(ModelError):
    """The worker is of no more use."""


class _Keeper:
    """Keeps one worker running; owns it and the thread that starts it again."""

    def __init__(
        self, python: str, policy: str, options: Mapping[str, Any], start_s: float, backoff_s: float
    ) -> None:
        self._arguments = (python, policy, options, start_s)
        self._backoff_s = backoff_s
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self.restarts = 0
        self.trouble = ""
        self.ready = threading.Event()
        self.worker: _Worker | None = _Worker(*self._arguments)
        self.spec = self.worker.spec
        self.ready.set()

    def broken(self, found: _Worker, trouble: str) -> None:
        """End a worker and start another in the background."""
        with self._lock:
            if self.worker is not found:
                return
            self.worker, self.trouble = None, trouble
            self.ready.clear()
        found.end()
        threading.Thread(target=self._restart, name="policy restart", daemon=True).start()

    def close(self) -> None:
        """End everything."""
        self._ending.set()
        with self._lock:
            found, self.worker = self.worker, None
        if found is not None:
            found.end()

    def _restart(self) -> None:
        delay = self._backoff_s
        while not self._ending.wait(delay):
            try:
                made = _Worker(*self._arguments)
            except VlaReasonerError as error:
                self.trouble = str(error)
                delay = min(2.0 * delay, 60.0)
                continue
            if made.spec != self.spec:
                made.end()
                self.trouble = "the new worker's policy is of another spec than the first one's"
                return
            with self._lock:
                if not self._ending.is_set():
                    self.worker, made = made, None
                    self.restarts += 1
                    self.ready.set()
            if made is not None:
                made.end()
            return


class ProcessPolicy:
    """A policy of any kind in a worker process.

    Args:
        policy: the registered name of the policy that the worker makes.
        options: its options.
        options_file: YAML file with its options; ``options`` go over them.
        python: the interpreter; empty takes the running one. Another one needs NumPy, SciPy,
            PyYAML and msgpack, and what the policy itself imports.
        start_s: limit for the worker to load the policy, s.
        answer_s: limit for an answer, s; a worker that takes longer is killed and started again.
        backoff_s: pause before a restart, s; doubled after each failure.

    Raises:
        ConfigurationError: the worker cannot be started, or what the policy itself raises.
    """

    def __init__(
        self,
        policy: str,
        options: Mapping[str, Any] | None = None,
        options_file: str = "",
        python: str = "",
        start_s: float = 600.0,
        answer_s: float = 5.0,
        backoff_s: float = 0.2,
    ) -> None:
        for name, value in (("start_s", start_s), ("answer_s", answer_s), ("backoff_s", backoff_s)):
            if not value > 0.0:
                raise ConfigurationError(f"policy {NAME}: {name} must be positive, got {value}")
        if policy == NAME:
            raise ConfigurationError(f"policy {NAME}: a worker in a worker serves nobody")
        given = plugins.read_options(options_file) | dict(options or {})
        self._answer_s = answer_s
        try:
            self._keeper = _Keeper(python or sys.executable, policy, given, start_s, backoff_s)
        except _Broken as error:
            raise ConfigurationError(f"policy {NAME}: {policy!r}: {error}") from error
        self._finalizer = weakref.finalize(self, self._keeper.close)
        if self._keeper.worker is not None and self._keeper.worker.takes_prefix:
            self.condition_on_prefix = self._condition

    @property
    def spec(self) -> PolicySpec:
        """That of the policy in the worker, under its own name."""
        return self._keeper.spec

    @property
    def restarts(self) -> int:
        """How often the worker was started again."""
        return self._keeper.restarts

    @property
    def ready(self) -> threading.Event:
        """Set while there is a worker."""
        return self._keeper.ready

    @property
    def process_id(self) -> int | None:
        """The worker's; None while there is none."""
        found = self._keeper.worker
        return None if found is None else found.process_id

    def reset(self) -> None:
        """Forget the last episode; a worker that is away has nothing to forget."""
        if self._keeper.ready.is_set():
            with contextlib.suppress(ModelError):
                self._ask({"ask": "reset"})

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """See :class:`~vla_reasoner_ros.policies.base.Policy`.

        Raises:
            ModelError: also where the worker died, hangs or is being started again.
        """
        found = self._worker()
        self._write(found, observation)
        message = {name: getattr(observation, name) for name in worker.STATE}
        message |= {"ask": "propose", "stamp_ns": observation.stamp_ns, "n": n}
        chunks = self._ask(message, found)["chunks"]
        try:
            return [ActionChunk(self.spec.action, rows, observation.stamp_ns) for rows in chunks]
        except ActionChunkError as error:
            raise ModelError(f"policy {NAME}: {error}") from error

    def _condition(self, prefix: ActionChunk | None) -> None:
        """See :class:`~vla_reasoner_ros.policies.base.PrefixConditioned`."""
        if prefix is not None:
            self.spec.action.require_same(prefix.spec, f"policy {NAME}", "the prefix")
        self._ask({"ask": "condition", "actions": None if prefix is None else prefix.actions})

    def _write(self, found: _Worker, observation: Observation) -> None:
        images = found.images
        if images is None:
            raise ModelError(f"policy {NAME}: the worker is being ended")
        for name, target in images.items():
            if name not in observation.images:
                raise ObservationError(
                    f"policy {NAME}: camera {name!r} is missing; the observation has "
                    f"{', '.join(sorted(observation.images)) or 'none'}"
                )
            image = observation.images[name]
            if image.shape != target.shape:
                raise ObservationError(
                    f"policy {NAME}: camera {name!r} needs {target.shape[0]}x{target.shape[1]} "
                    f"pixels (height x width), got {image.shape[0]}x{image.shape[1]}"
                )
            np.copyto(target, image)

    def _worker(self) -> _Worker:
        found = self._keeper.worker
        if found is None:
            raise ModelError(
                f"policy {NAME}: the worker is being started again: {self._keeper.trouble}"
            )
        return found

    def _ask(self, message: dict[str, Any], found: _Worker | None = None) -> dict[str, Any]:
        found = found or self._worker()
        try:
            return found.ask(message, self._answer_s)
        except _Broken as error:
            self._keeper.broken(found, str(error))
            raise ModelError(f"policy {NAME}: {error}; it is being started again") from error
