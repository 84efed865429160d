"""The child's side of :mod:`~vla_reasoner_ros.policies.process`: one policy in a loop.

It imports no more than NumPy, MessagePack and YAML before the policy does, so that a Python made
for the policy alone can run it.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import socket
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ModelError, VlaReasonerError
from vla_reasoner_ros.policies import wire
from vla_reasoner_ros.policies.base import Policy, PolicySpec, PrefixConditioned
from vla_reasoner_ros.types import ActionChunk, ActionSpec, Observation

_LENGTH = struct.Struct("<Q")
MAX_BYTES = 64_000_000
STATE = (
    "joint_names",
    "joint_positions",
    "joint_velocities",
    "ee_position",
    "ee_quaternion",
    "gripper",
    "instruction",
    "ee_frame",
)
"""Fields of an observation that travel in the message; images lie in the shared memory."""


def send(connection: socket.socket, value: Any) -> None:
    """Write one message, its length first.

    Raises:
        OSError: the other side is gone, or the socket's time limit passed.
        ModelError: the value cannot be packed.
    """
    _write(connection, wire.pack(value))


def _write(connection: socket.socket, data: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side closed the socket.
        OSError: the socket's time limit passed.
        ModelError: it is no message.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_BYTES:
        raise ModelError(f"message: {length} bytes, at most {MAX_BYTES} are read")
    return wire.unpack(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def spec_to_mapping(spec: PolicySpec) -> dict[str, Any]:
    """As plain values."""
    return {**dataclasses.asdict(spec), "action": spec.action.to_mapping()}


def spec_from_mapping(values: dict[str, Any]) -> PolicySpec:
    """The inverse of :func:`spec_to_mapping`."""
    return PolicySpec(
        **{
            **values,
            "action": ActionSpec.from_mapping(values["action"]),
            "cameras": {name: (size[0], size[1]) for name, size in values["cameras"].items()},
            "state": tuple(values["state"]),
            "joint_names": tuple(values["joint_names"]),
        }
    )


def views(
    memory: mmap.mmap, cameras: dict[str, tuple[int, int]], writable: bool
) -> dict[str, NDArray[np.uint8]]:
    """The cameras' images (H, W, 3) in the shared memory, one after the other."""
    pixels = np.frombuffer(memory, np.uint8)
    images, offset = {}, 0
    for name, (height, width) in cameras.items():
        end = offset + 3 * height * width
        images[name] = pixels[offset:end].reshape(height, width, 3)
        images[name].setflags(write=writable)
        offset = end
    return images


def memory_size(cameras: dict[str, tuple[int, int]]) -> int:
    """Bytes of all images; a mapping of nothing is not allowed, so at least one."""
    return max(1, sum(3 * height * width for height, width in cameras.values()))


class _Server:
    """Answers the parent's messages."""

    def __init__(self, policy: Policy, memory_descriptor: int) -> None:
        self._policy = policy
        self._descriptor = memory_descriptor
        self._images: dict[str, NDArray[np.uint8]] | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        ask = message["ask"]
        if ask == "propose":
            chunks = self._policy.propose(self._observation(message), message["n"])
            return {"chunks": [chunk.actions for chunk in chunks]}
        if ask == "condition":
            actions = message["actions"]
            spec = self._policy.spec.action
            prefix = None if actions is None else ActionChunk(spec, actions, 0)
            assert isinstance(self._policy, PrefixConditioned)  # told the parent so
            self._policy.condition_on_prefix(prefix)
            return {}
        self._policy.reset()
        return {}

    def _observation(self, message: dict[str, Any]) -> Observation:
        if self._images is None:
            cameras = self._policy.spec.cameras
            size = memory_size(cameras)
            memory = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
            self._images = views(memory, cameras, writable=False)
        return Observation(
            stamp_ns=message["stamp_ns"],
            images=self._images,
            **{name: message[name] for name in STATE},
        )


def serve(connection: socket.socket, memory_descriptor: int) -> None:
    """Make the policy that the first message names and answer until the socket is closed."""
    try:
        first = receive(connection)
        try:
            policy = plugins.create("policy", first["policy"], first["options"])
            greeting = {
                "spec": spec_to_mapping(policy.spec),
                "prefix": isinstance(policy, PrefixConditioned),
            }
        except Exception as error:
            send(connection, _failure(error))
            return
        send(connection, greeting)
        server = _Server(policy, memory_descriptor)
        while True:
            message = receive(connection)
            try:
                answer = wire.pack(server.answer(message))
            except Exception as error:  # The parent raises it; the policy lives on.
                answer = wire.pack(_failure(error))
            _write(connection, answer)
    except (EOFError, OSError):
        return  # The parent is gone.


def _failure(error: Exception) -> dict[str, str]:
    text = str(error) if isinstance(error, VlaReasonerError) else f"{type(error).__name__}: {error}"
    return {"error": type(error).__name__, "message": text}


def main(connection_descriptor: int, memory_descriptor: int) -> None:
    """Serve on inherited descriptors."""
    connection = socket.socket(fileno=connection_descriptor)
    connection.setblocking(True)
    serve(connection, memory_descriptor)
    # Libraries' threads may not end; nothing is left to be saved.
    os._exit(0)
