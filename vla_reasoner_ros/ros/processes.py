"""A ROS graph of its own made of node processes that are watched while they live and end with it.

Each process leads its own process group, so that a Ctrl-C on the terminal reaches only whoever
started them; the kernel ends them too if that one is killed. What they print goes to one log file
each, whose last lines are the last words of a process that died.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError
from vla_reasoner_ros.paths import PACKAGE

_DOMAIN_LOCK_PORT = 22119
"""Base port of the locks by which tools of ROS 2 (domain_coordinator) share out domain ids."""
_DOMAINS = range(1, 101)
_PR_SET_PDEATHSIG = 1


class ProcessDiedError(VlaReasonerError, RuntimeError):
    """A process of the graph ended by itself; the message has its name and its last words."""


@dataclass(frozen=True)
class NodeProcess:
    """A node to start as a process of its own.

    Attributes:
        name: the node's name, also of its log file.
        executable: one of this package's executables.
        parameters: parameters by full name.
        parameter_files: YAML files in the form of ROS, read before ``parameters``.
        remappings: topic and service names, from and to.
    """

    name: str
    executable: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameter_files: Sequence[str | Path] = ()
    remappings: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """The command line."""
        words = [*executable(self.executable), "--ros-args", "-r", f"__node:={self.name}"]
        for source, target in self.remappings.items():
            words += ["-r", f"{source}:={target}"]
        for path in self.parameter_files:
            words += ["--params-file", str(path)]
        for name, value in self.parameters.items():
            words += ["-p", f"{name}:={_yaml(value)}"]
        return words


class DomainLease:
    """A ROS domain id that no one else on this machine uses, kept by a bound socket.

    Raises:
        ConfigurationError: all of them are taken.
    """

    def __init__(self) -> None:
        for domain in _DOMAINS:
            lock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                lock.bind(("", _DOMAIN_LOCK_PORT + domain))
            except OSError:
                lock.close()
                continue
            self.domain_id = domain
            self._lock = lock
            return
        raise ConfigurationError(
            f"ROS domain ids {_DOMAINS[0]} to {_DOMAINS[-1]} are all in use on this machine"
        )

    def release(self) -> None:
        """Let others have it."""
        self._lock.close()


class ProcessGraph:
    """Starts node processes and ends them; a context manager.

    Args:
        log_directory: one log file per process goes here.
        domain_id: the ROS domain; a free one is leased when None.

    Attributes:
        domain_id: the domain that the processes run in.
    """

    def __init__(self, log_directory: str | Path, domain_id: int | None = None) -> None:
        self._logs = Path(log_directory)
        self._logs.mkdir(parents=True, exist_ok=True)
        self._lease = DomainLease() if domain_id is None else None
        self.domain_id = self._lease.domain_id if self._lease else int(domain_id or 0)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupted = False

    @property
    def environment(self) -> dict[str, str]:
        """What the processes, and whoever wants to talk to them, run with."""
        return {
            "ROS_DOMAIN_ID": str(self.domain_id),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "PYTHONUNBUFFERED": "1",
            "RCUTILS_LOGGING_BUFFERED_STREAM": "0",
        }

    def start(self, node: NodeProcess) -> None:
        """Start a node.

        Raises:
            ConfigurationError: a process of this name runs already, or its executable is missing.
        """
        if node.name in self._processes:
            raise ConfigurationError(f"process {node.name}: there is already one of this name")
        with self.log(node.name).open("wb") as log:
            try:
                self._processes[node.name] = subprocess.Popen(
                    node.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.environment,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                raise ConfigurationError(f"process {node.name}: {error}") from error

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id."""
        return self._processes[name].pid

    def interrupt(self, *_: object) -> None:
        """Signal handler: end what runs now.

        Code that was called from C can lose the exception, so :meth:`check` raises it again.

        Raises:
            KeyboardInterrupt: always.
        """
        self._interrupted = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """See that every process lives and nobody interrupted.

        Raises:
            ProcessDiedError: one has ended.
            KeyboardInterrupt: :meth:`interrupt` was called.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                raise ProcessDiedError(
                    f"{name} died ({_ending(code)}); its last words, from {self.log(name)}:\n"
                    + self.last_words(name)
                )

    def last_words(self, name: str, lines: int = 12) -> str:
        """The last lines that a process printed, indented."""
        try:
            text = self.log(name).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            text = f"(the log cannot be read: {error.strerror})"
        last = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
        return "\n".join(f"  {line}" for line in last or ["(it said nothing)"])

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one process at once and forget it, so that it is missed by nobody but its peers."""
        process = self._processes.pop(name)
        os.killpg(process.pid, number)
        process.wait()

    def stop(self, grace: float = 5.0) -> None:
        """End every process: interrupt, then terminate, then kill, each group as a whole."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in self._processes.values():
                if process.poll() is None or number == signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, number)
            end = time.monotonic() + grace
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.0, end - time.monotonic()))
        self._processes.clear()
        if self._lease:
            self._lease.release()

    def __enter__(self) -> ProcessGraph:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def executable(name: str) -> list[str]:
    """The words that run one of this package's executables.

    Where the package is installed in a ROS workspace, that is what ``ros2 run`` would start;
    elsewhere the module that the executable stands for, on this interpreter.
    """
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        path = Path(prefix) / "lib" / PACKAGE / name
        if prefix and path.is_file():
            return [str(path)]
    return [sys.executable, "-m", f"{PACKAGE}.nodes.{name}"]


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return (
            repr(value)
            if math.isfinite(value)
            else repr(value).replace("inf", ".inf").replace("nan", ".nan")
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    if isinstance(value, (str, Path)):
        return "'" + str(value).replace("'", "''") + "'"
    return str(value)


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
