"""A policy behind an openpi server: one websocket, MessagePack, the server's metadata first.

The protocol (openpi's ``WebsocketPolicyServer``): on connection the server sends its metadata; each
binary message of the client is one observation, each binary message of the server the answer, with
``actions`` (H, R) and ``server_timing``; a text message is the server's traceback. Answers carry no
number, so a late one cannot be told from the next: the connection that owes it is closed.

All waiting has a limit. A thread of its own owns the socket, connects and connects again; asking
while there is no connection fails at once.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies import wire
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.policies.convention import Convention
from vla_reasoner_ros.types import ActionChunk, Observation

NAME = "openpi"
HWC, CHW = "hwc", "chw"
_IDLE_LOOK_S = 0.5


@dataclass(frozen=True)
class Deadlines:
    """Limits of waiting, seconds.

    Attributes:
        connect: to connect and to receive the metadata.
        read: from the request sent to the answer received.
        total: from the call to its end, whatever hangs.
        start: for the first connection, when the policy is made.
        backoff: before the second attempt to connect; doubled after each failure.
        most_backoff: at most this much.
    """

    connect: float = 5.0
    read: float = 2.0
    total: float = 3.0
    start: float = 30.0
    backoff: float = 0.2
    most_backoff: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0.0 < value < 1e6:
                raise ConfigurationError(
                    f"policy {NAME}: deadline {name} must be positive seconds, got {value!r}"
                )


class Link:
    """The connection and the thread that owns it.

    Args:
        uri: of the server, ``ws://HOST:PORT``.
        deadlines: limits of waiting.
        max_bytes: a longer message closes the connection.
        headers: of the HTTP request.
    """

    def __init__(
        self, uri: str, deadlines: Deadlines, max_bytes: int, headers: Mapping[str, str]
    ) -> None:
        self.uri = uri
        self.connected = threading.Event()
        self.metadata: dict[Any, Any] = {}
        self.connections = 0
        self._deadlines, self._max_bytes, self._headers = deadlines, max_bytes, dict(headers)
        self._asked: queue.Queue[tuple[bytes, Future[Any]] | None] = queue.Queue()
        self._socket: socket.socket | None = None
        self._ending = threading.Event()
        self._trouble = "it is still connecting"
        threading.Thread(target=self._run, name=f"openpi {uri}", daemon=True).start()

    def ask(self, message: bytes) -> Any:
        """Send a request and wait for the answer.

        Raises:
            ModelError: there is no connection, or no usable answer in time.
        """
        if not self.connected.is_set():
            raise ModelError(f"policy {NAME}: no connection to {self.uri}: {self._trouble}")
        future: Future[Any] = Future()
        self._asked.put((message, future))
        try:
            return future.result(self._deadlines.total)
        except FutureTimeout:
            future.cancel()
            self.connected.clear()
            self._cut()
            raise ModelError(
                f"policy {NAME}: no answer of {self.uri} in {self._deadlines.total} s altogether"
            ) from None

    def wait(self) -> None:
        """Wait for the first connection.

        Raises:
            ConfigurationError: there is none in time; the message says why.
        """
        if not self.connected.wait(self._deadlines.start):
            raise ConfigurationError(
                f"policy {NAME}: no connection to {self.uri} in {self._deadlines.start} s: "
                f"{self._trouble}"
            )

    def close(self) -> None:
        """End the thread and the connection."""
        self._ending.set()
        self._asked.put(None)
        self._cut()

    def _cut(self) -> None:
        """Make whatever waits on the socket fail now."""
        if (held := self._socket) is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        delay = self._deadlines.backoff
        while not self._ending.is_set():
            before = self.connections
            try:
                self._connect_and_serve()
            except Exception as error:  # Whatever a network does, the next attempt starts clean.
                self._trouble = _told(error)
            self._refuse_waiting()
            delay = self._deadlines.backoff if self.connections > before else delay
            self._ending.wait(delay)
            delay = min(2.0 * delay, self._deadlines.most_backoff)

    def _connect_and_serve(self) -> None:
        with connect(
            self.uri,
            compression=None,
            max_size=self._max_bytes,
            open_timeout=self._deadlines.connect,
            close_timeout=1.0,
            # A server that computes answers no ping; our own deadlines say when it takes too long.
            ping_interval=None,
            proxy=None,
            additional_headers=self._headers or None,
        ) as connection:
            self._socket = connection.socket
            try:
                metadata = wire.unpack(_binary(connection.recv(timeout=self._deadlines.connect)))
                if not isinstance(metadata, dict):
                    raise ModelError(f"its metadata is {type(metadata).__name__}, not a mapping")
                self.metadata = metadata
                self.connections += 1
                self.connected.set()
                self._serve(connection)
            finally:
                self.connected.clear()
                self._cut()
                self._socket = None

    def _serve(self, connection: ClientConnection) -> None:
        """Answer requests until the connection fails."""
        while not self._ending.is_set():
            try:
                asked = self._asked.get(timeout=_IDLE_LOOK_S)
            except queue.Empty:
                if connection.protocol.state is not State.OPEN:
                    raise ModelError("the server closed the connection") from None
                continue
            if asked is None or not asked[1].set_running_or_notify_cancel():
                continue
            message, future = asked
            try:
                connection.send(message)
                answer = connection.recv(timeout=self._deadlines.read)
                answer = wire.unpack(_binary(answer))
            except Exception as error:
                self._trouble = _told(error)
                self.connected.clear()
                future.set_exception(ModelError(f"policy {NAME}: {self.uri}: {self._trouble}"))
                raise
            future.set_result(answer)

    def _refuse_waiting(self) -> None:
        while True:
            try:
                asked = self._asked.get_nowait()
            except queue.Empty:
                return
            if asked is not None and asked[1].set_running_or_notify_cancel():
                asked[1].set_exception(
                    ModelError(f"policy {NAME}: no connection to {self.uri}: {self._trouble}")
                )


class OpenPi:
    """The policy.

    Args:
        uri: of the server, ``ws://HOST:PORT``.
        convention: the meaning of inputs and outputs, see
            :class:`~vla_reasoner_ros.policies.convention.Convention`; its names of images and
            states are the server's keys, a dot makes a key within a key.
        deadlines: fields of :class:`Deadlines`, seconds.
        metadata: what the server's metadata must say; anything else refuses to configure.
        image_layout: ``hwc`` or ``chw``.
        max_bytes: the longest answer that is read.
        samples: chunks asked for at most, one request each; for servers that sample.
        api_key: sent as openpi's client sends it; empty sends none.

    Raises:
        ConfigurationError: a bad option, no connection in time, or other metadata than expected.
    """

    def __init__(
        self,
        uri: str,
        convention: Mapping[str, Any],
        deadlines: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        image_layout: str = HWC,
        max_bytes: int = 4_000_000,
        samples: int = 1,
        api_key: str = "",
    ) -> None:
        self._convention = Convention.from_mapping(convention, f"policy {NAME}")
        if not self._convention.horizon:
            raise ConfigurationError(
                f"policy {NAME}: convention needs 'horizon', the actions of the server's chunks"
            )
        if image_layout not in (HWC, CHW):
            raise ConfigurationError(
                f"policy {NAME}: image_layout is {HWC!r} or {CHW!r}, got {image_layout!r}"
            )
        if not uri.startswith(("ws://", "wss://")):
            raise ConfigurationError(f"policy {NAME}: uri must begin with ws:// or wss://: {uri!r}")
        try:
            limits = Deadlines(**(deadlines or {}))
        except TypeError as error:
            raise ConfigurationError(f"policy {NAME}: deadlines: {error}") from error
        self._channels_first, self._samples = image_layout == CHW, samples
        self.timing: dict[str, float] = {}
        """Milliseconds of the newest answer: the server's own and ``round_trip_ms``."""
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._link = Link(uri, limits, max_bytes, headers)
        self._finalizer = weakref.finalize(self, self._link.close)
        try:
            self._link.wait()
            self._expected, self._checked = dict(metadata or {}), self._link.connections
            self._require_metadata()
        except ConfigurationError:
            self._finalizer()
            raise

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        return self._convention.spec(NAME)

    @property
    def metadata(self) -> Mapping[Any, Any]:
        """What the server said of itself."""
        return self._link.metadata

    @property
    def connections(self) -> int:
        """How often it connected."""
        return self._link.connections

    def reset(self) -> None:
        """The protocol knows no reset: the server answers each observation afresh."""

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """One request a chunk; see :class:`~vla_reasoner_ros.policies.base.Policy`."""
        message = wire.pack(self.request(observation))
        return [self._ask(message, observation) for _ in range(max(1, min(n, self._samples)))]

    def request(self, observation: Observation) -> dict[str, Any]:
        """An observation as the server takes it."""
        owner = f"policy {NAME}"
        request: dict[str, Any] = {"prompt": observation.instruction}
        arrays: dict[str, NDArray[Any]] = {
            name: image.transpose(2, 0, 1) if self._channels_first else image
            for name, image in self._convention.images(observation, owner).items()
        }
        for name, array in (arrays | self._convention.states(observation, owner)).items():
            *outer, inner = name.split(".")
            branch = request
            for key in outer:
                branch = branch.setdefault(key, {})
            branch[inner] = np.ascontiguousarray(array)
        return request

    def _ask(self, message: bytes, observation: Observation) -> ActionChunk:
        started = time.perf_counter()
        answer = self._link.ask(message)
        if self._checked != self._link.connections:  # another server may answer there now
            try:
                self._require_metadata()
            except ConfigurationError as error:
                raise ModelError(str(error)) from error
            self._checked = self._link.connections
        if not isinstance(answer, dict) or "actions" not in answer:
            said = ", ".join(map(str, answer)) if isinstance(answer, dict) else type(answer)
            raise ModelError(f"policy {NAME}: {self._link.uri}: no 'actions' in the answer: {said}")
        self.timing = _timing(answer) | {"round_trip_ms": 1e3 * (time.perf_counter() - started)}
        return self._convention.chunk(answer["actions"], observation, f"policy {NAME}")

    def _require_metadata(self) -> None:
        for key, value in self._expected.items():
            found = self.metadata.get(key)
            if not np.array_equal(found, value):
                raise ConfigurationError(
                    f"policy {NAME}: {self._link.uri} says {key} {found!r}, expected {value!r}"
                )


def _binary(message: bytes | str) -> bytes:
    """The message, unless it is the server's complaint."""
    if isinstance(message, str):
        lines = message.strip().splitlines() or ["nothing"]
        raise ModelError(f"the server failed: {lines[-1][:300]}")
    return message


def _timing(answer: Mapping[str, Any]) -> dict[str, float]:
    timing = answer.get("server_timing")
    if not isinstance(timing, dict):
        return {}
    return {str(k): float(v) for k, v in timing.items() if isinstance(v, int | float)}


_SAID: tuple[tuple[type[Exception], Callable[[Exception], str]], ...] = (
    (TimeoutError, lambda error: "it did not answer in time"),
    (ConnectionClosed, lambda error: f"the connection was lost: {error}"),
    (ModelError, str),
)


def _told(error: Exception) -> str:
    for kind, tell in _SAID:
        if isinstance(error, kind):
            return tell(error)
    return f"{type(error).__name__}: {error}"
