import base64
import contextlib
import hashlib
import re
import socket
import threading
import time

import msgpack
import numpy as np
import pytest
import tiny_policies as tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from websockets.sync.server import serve

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies import wire
from vla_reasoner_ros.policies.openpi import OpenPi
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ChunkSource

HORIZON = 10
GOOD = np.tile(np.array([0.01, 0.0, -0.01, 0.0, 0.0, 0.02, 0.9], np.float32), (HORIZON, 1))
METADATA = {"robot": "fr3", "reset_pose": [0.0, 1.0]}


# The format of openpi's client and server, written down a second time.


def write_array(value):
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(type(value))


def read_array(value):
    if b"__ndarray__" in value:
        return np.ndarray(value[b"shape"], np.dtype(value[b"dtype"]), value[b"data"])
    return value


def packed(value):
    return msgpack.packb(value, default=write_array)


class Server:
    """Speaks the protocol; what it answers is the test's."""

    def __init__(self, port=0):
        self.answer = lambda connection, asked: connection.send(
            packed({"actions": GOOD, "server_timing": {"infer_ms": 4.0}})
        )
        self.greeting = packed(METADATA)
        self.asked = []
        self.held = threading.Event()
        self._connections = []
        self._server = serve(self._serve, "127.0.0.1", port, compression=None, max_size=None)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def uri(self):
        return f"ws://127.0.0.1:{self.port}"

    def _serve(self, connection):
        self._connections.append(connection)
        connection.send(self.greeting)
        for message in connection:
            self.asked.append(msgpack.unpackb(message, object_hook=read_array))
            self.answer(connection, self.asked[-1])

    def hang(self, connection, asked):
        self.held.wait(60)

    def stop(self):
        self.held.set()
        self._server.shutdown()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def convention(**changes):
    state = {"observation/state": ["joint_positions", "gripper_closing"]}
    own = {"horizon": HORIZON, "state": state, "joint_names": list(tiny.JOINTS)}
    cameras = {"observation/image": "agent", "observation/wrist_image": "wrist"}
    return tiny.convention(**{"cameras": cameras} | own | changes)


LIMITS = {"connect": 30.0, "read": 30.0, "total": 40.0, "start": 60.0, "backoff": 0.05}


def connect(server, limits=None, **options):
    given = convention(**options.pop("convention", {}))
    return OpenPi(server.uri, given, deadlines=LIMITS | (limits or {}), **options)


def until_answered(policy):
    """The first chunk that comes; a slow machine may miss a short deadline some times."""
    deadline = time.monotonic() + 60
    while True:
        assert policy._link.connected.wait(60)
        try:
            return policy.propose(tiny.seen())[0]
        except ModelError:
            assert time.monotonic() < deadline


def test_an_observation_travels_and_its_chunk_comes_back(server):
    policy = connect(server)
    observation = tiny.seen()
    chunk = policy.propose(observation)[0]
    np.testing.assert_allclose(chunk.actions[:, :6], GOOD[:, :6], atol=1e-7)
    np.testing.assert_array_equal(chunk.actions[:, 6], 1.0)
    asked = server.asked[0]
    assert asked["prompt"] == tiny.INSTRUCTION
    np.testing.assert_array_equal(asked["observation/image"], observation.images["agent"])
    state = np.append(observation.joint_positions, 0.25)
    np.testing.assert_allclose(asked["observation/state"], state, atol=1e-6)
    assert asked["observation/state"].dtype == np.float32
    assert policy.metadata == METADATA
    assert policy.timing["infer_ms"] == 4.0
    assert policy.timing["round_trip_ms"] > 0.0


def test_dots_nest_keys_and_channels_may_come_first(server):
    cameras = {"images.cam_high": "agent", "images.cam_right_wrist": "wrist"}
    names = {"cameras": cameras, "state": {"state": ["joint_positions"]}}
    connect(server, convention=names, image_layout="chw").propose(tiny.seen())
    assert server.asked[0]["images"]["cam_high"].shape == (3, 28, 28)
    assert server.asked[0]["state"].shape == (7,)


def test_several_samples_are_several_requests(server):
    policy = connect(server, samples=3)
    assert len(policy.propose(tiny.seen(), 8)) == 3
    assert len(server.asked) == 3


FAULTS = {
    "garbage": (lambda c, _: c.send(b"\xc1\xff\x00"), "not MessagePack"),
    "no mapping": (lambda c, _: c.send(packed([1, 2])), "no 'actions'"),
    "no actions": (lambda c, _: c.send(packed({"error": 1})), "no 'actions' in the answer: error"),
    "a traceback": (lambda c, _: c.send("Traceback\nValueError: bad key"), "ValueError: bad key"),
    "wrong type": (
        lambda c, _: c.send(packed({"actions": GOOD.astype(np.uint8)})),
        "expected floating-point actions, got uint8",
    ),
    "an object array": (
        lambda c, _: c.send(
            msgpack.packb(
                {"actions": {b"__ndarray__": True, b"dtype": "|O", b"shape": [1], b"data": b"x"}}
            )
        ),
        "arrays of object do not pass",
    ),
    "fewer bytes than the shape says": (
        lambda c, _: c.send(
            msgpack.packb(
                {"actions": {b"__ndarray__": True, b"dtype": "<f4", b"shape": [9, 7], b"data": b""}}
            )
        ),
        "does not have 0 bytes",
    ),
    "wrong width": (
        lambda c, _: c.send(packed({"actions": GOOD[:, :6]})),
        r"expected actions of 7 numbers .*got shape \(10, 6\)",
    ),
    "too few": (lambda c, _: c.send(packed({"actions": GOOD[:3]})), "expected 10 actions, got 3"),
    "nan": (
        lambda c, _: c.send(packed({"actions": np.where(np.eye(10, 7), np.nan, GOOD)})),
        "number 0 of action 0 is nan",
    ),
    "100 MB": (lambda c, _: c.send(bytes(100_000_000)), "the connection was lost.*1009"),
    "a closed connection": (lambda c, _: c.close(), "the connection was lost"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_named_the_planner_holds_and_the_next_one_is_good(server, fault):
    policy = connect(server)
    good, (server.answer, message) = server.answer, FAULTS[fault]
    reasoner = Reasoner(policy, None, None, None)
    decision = reasoner.decide(tiny.seen())
    assert decision.chunk.source is ChunkSource.HOLD
    assert decision.policy_chunk is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(decision.statistics.fallback_reason)
    server.answer = good
    until_answered(policy)
    assert reasoner.decide(tiny.seen()).chunk.source is ChunkSource.POLICY


def half_a_frame(connection, asked):
    # Final binary frame of 64-bit length 1000, of which ten bytes come.
    connection.socket.sendall(bytes([0x82, 127]) + (1000).to_bytes(8, "big") + bytes(10))


@pytest.mark.parametrize("limit", ["read", "total"])
@pytest.mark.parametrize("half", [False, True])
def test_a_server_that_hangs_costs_no_more_than_the_deadline(server, limit, half):
    policy = connect(server, {limit: 0.3})
    good, server.answer = server.answer, half_a_frame if half else server.hang
    with pytest.raises(ModelError, match=r"did not answer in time|no answer .* altogether"):
        policy.propose(tiny.seen())
    server.answer = good
    server.held.set()
    assert until_answered(policy).steps == HORIZON
    assert policy.connections >= 2


def test_a_late_answer_is_not_taken_for_the_next_one(server):
    policy = connect(server, {"read": 0.3})
    good, late = server.answer, threading.Event()

    def answer_late(connection, asked):
        server.held.wait(60)
        with contextlib.suppress(Exception):
            connection.send(packed({"actions": 99.0 + GOOD}))
        late.set()

    server.answer = answer_late
    with pytest.raises(ModelError, match="did not answer in time"):
        policy.propose(tiny.seen())
    server.answer = good
    server.held.set()
    assert late.wait(60)
    assert until_answered(policy).actions.max() == 1.0


def test_a_server_that_reads_nothing_does_not_block():
    listening, held = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def greet_and_read_no_more():
        connection, _ = listening.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1]
        accept = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        answer += b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(accept)
        greeting = packed(METADATA)
        connection.sendall(answer + b"\r\n\r\n" + bytes([0x82, len(greeting)]) + greeting)
        held.wait(60)
        connection.close()

    threading.Thread(target=greet_and_read_no_more, daemon=True).start()
    # Far more than the sockets buffer, so that sending itself waits.
    given = convention(image_size=[2000, 2000], cameras={"image": "agent"})
    uri = f"ws://127.0.0.1:{listening.getsockname()[1]}"
    policy = OpenPi(uri, given, deadlines=LIMITS | {"total": 1.0})
    with pytest.raises(ModelError, match=r"no answer .* altogether"):
        policy.propose(tiny.seen(side=2000, cameras=("agent",)))
    held.set()
    listening.close()


def test_it_connects_again_to_a_server_that_was_away(server):
    policy = connect(server)
    assert policy.propose(tiny.seen())
    server.stop()
    failures = 0
    while failures < 2:
        try:
            policy.propose(tiny.seen())
        except ModelError as error:
            assert server.uri in str(error)  # noqa: PT017
            failures += 1
    again = Server(server.port)
    try:
        assert until_answered(policy).steps == HORIZON
    finally:
        again.stop()


def test_nobody_there_is_told_at_configure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"ws://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"no connection to {uri}.*refused"):
            OpenPi(uri, convention(), deadlines={"start": 0.5, "backoff": 0.05})


def test_a_port_that_accepts_and_is_silent_is_told_at_configure():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="no connection"):
            OpenPi(uri, convention(), deadlines={"connect": 0.2, "start": 0.8, "backoff": 0.05})


def test_other_metadata_than_expected_is_refused(server):
    assert connect(server, metadata={"robot": "fr3", "reset_pose": [0.0, 1.0]})
    with pytest.raises(ConfigurationError, match="says robot 'fr3', expected 'ur5e'"):
        connect(server, metadata={"robot": "ur5e"})


def test_another_server_that_took_its_place_is_refused_as_well(server):
    policy = connect(server, metadata={"robot": "fr3"})
    policy.propose(tiny.seen())
    server.stop()
    again = Server(server.port)
    again.greeting = packed({"robot": "ur5e"})
    try:
        said = []
        while not said or "says robot" not in said[-1]:
            with pytest.raises(ModelError) as caught:
                policy.propose(tiny.seen())
            said.append(str(caught.value))
        with pytest.raises(ModelError, match="says robot 'ur5e', expected 'fr3'"):
            policy.propose(tiny.seen())
    finally:
        again.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": {"horizon": 0}}, "needs 'horizon'"),
        ({"image_layout": "whc"}, "image_layout"),
        ({"deadlines": {"reed": 1.0}}, "reed"),
        ({"deadlines": {"read": -1.0}}, "deadline read must be positive"),
        ({"uri": "http://host:1"}, "must begin with ws://"),
    ],
)
def test_bad_options_are_named(options, message):
    given = {"uri": "ws://127.0.0.1:1", **options}
    given["convention"] = convention(**given.get("convention", {}))
    with pytest.raises(ConfigurationError, match=message):
        OpenPi(**given)


numbers = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0),
)


@given(numbers)
def test_arrays_survive_the_wire_in_both_dialects(array):
    message = {"array": array, "text": "é", "list": [1, 2.5, None, True]}
    assert wire.pack(message) == packed(message)
    back = wire.unpack(packed(message))
    np.testing.assert_array_equal(back["array"], array)
    assert back["array"].dtype == array.dtype
    assert back["list"] == message["list"]


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_named_error(data):
    with contextlib.suppress(ModelError):
        wire.unpack(data)


@pytest.mark.parametrize("value", [np.array([object()]), {"key": object()}, 2**70])
def test_what_needs_pickle_does_not_leave(value):
    with pytest.raises(ModelError, match="cannot be packed"):
        wire.pack(value)
