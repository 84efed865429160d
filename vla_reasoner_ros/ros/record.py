"""Record what replay, training and reports need: the contract's streams, decisions, parameters.

Ends with Ctrl-C, after --seconds, or before the disk is full; what was written can be read in any
case. Every topic is subscribed as it is published, so nothing is lost that is sent reliably.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.task import Future

from vla_reasoner_ros.arguments import AMOUNT, COUNT, WHOLE
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.message_types import serialize
from vla_reasoner_ros.data.messages import SEARCH_TREE
from vla_reasoner_ros.data.recording import (
    PARAMETERS_TOPIC,
    STRING,
    Recording,
    Traffic,
    recorded_topics,
)
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.verb_node import verb_node
from vla_reasoner_ros.srv import GetSearchTree

QUEUE = 1000
"""Messages of a topic that wait while another is written."""
DISCOVERED_EVERY_S, TOLD_EVERY_S, ANSWER_S, ASKED_EVERY_S = 0.5, 10.0, 15.0, 1.0
LAST_TREES_S = 2.0
"""How long the end of a recording waits for the trees of its last decisions."""
PLANNER = "planner_node"
NODES = (
    PLANNER,
    "camera_node",
    "arm_controller_node",
    "deadman_node",
    "sim_node",
    "view_node",
)


class Recorder:
    """Subscribes to topics as they appear and hands their messages on.

    Args:
        node: for the subscriptions.
        topics: topic, relative to the namespace, to type.
        take: called with topic, type, bytes and the time, ns.
    """

    def __init__(
        self, node: Node, topics: dict[str, str], take: Callable[[str, str, bytes, int], None]
    ) -> None:
        self._node = node
        self._take = take
        self._wanted = {node.resolve_topic_name(name): kind for name, kind in topics.items()}
        self._subscriptions: dict[str, Any] = {}
        self._latched: dict[str, tuple[str, bytes]] = {}
        self._trees: Any = None
        self._asked: list[Future] = []
        self._tree_topic = node.resolve_topic_name("search_tree")
        self.refused: dict[str, str] = {}
        self._timer = node.create_timer(DISCOVERED_EVERY_S, self.discover)
        self.discover()

    @property
    def found(self) -> list[str]:
        """Topics that someone publishes."""
        return sorted(self._subscriptions)

    @property
    def missing(self) -> list[str]:
        """Topics that nobody publishes."""
        return sorted(set(self._wanted) - set(self._subscriptions))

    def discover(self) -> None:
        """Subscribe to what is published by now."""
        for topic, kind in self._wanted.items():
            publishers = self._node.get_publishers_info_by_topic(topic)
            if topic in self._subscriptions or not publishers:
                continue
            there = {info.topic_type for info in publishers}
            if there != {kind}:
                self.refused[topic] = f"{topic} has type {', '.join(there)}, expected {kind}"
                continue
            profiles = [info.qos_profile for info in publishers]
            reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
            latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
            self._subscriptions[topic] = self._node.create_subscription(
                message_class(kind),
                topic,
                partial(self._came, topic, kind, latched),
                QoSProfile(
                    history=HistoryPolicy.KEEP_LAST,
                    depth=QUEUE,
                    reliability=ReliabilityPolicy.RELIABLE
                    if reliable
                    else ReliabilityPolicy.BEST_EFFORT,
                    durability=DurabilityPolicy.TRANSIENT_LOCAL
                    if latched
                    else DurabilityPolicy.VOLATILE,
                ),
                raw=True,
            )

    def begin(self, take: Callable[[str, str, bytes, int], None]) -> None:
        """Hand on to somebody else from now, beginning with what is latched."""
        self._take = take
        for topic, (kind, data) in self._latched.items():
            take(topic, kind, data, time.time_ns())

    def ask_for_trees(self) -> None:
        """Ask the planner for the tree of every decision, unless it publishes them by itself."""
        self._trees = self._node.create_client(GetSearchTree, "planner_node/get_search_tree")

    def take_waiting(self) -> None:
        """Hand on what has come and was not looked at yet: nobody spins any more."""
        for subscription in self._subscriptions.values():
            for _ in range(QUEUE):
                waiting = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if waiting is None:
                    break
                subscription.callback(*waiting)

    @property
    def asking(self) -> bool:
        """Whether the planner has still to answer with a tree."""
        return any(not answer.done() for answer in self._asked)

    def _came(
        self, topic: str, kind: str, latched: bool, data: bytes, info: Mapping[str, int]
    ) -> None:
        if latched:
            self._latched[topic] = (kind, data)
        # When the middleware got it: a busy recorder takes what waits topic by topic, and a picture
        # that is written before the /clock that came first would seem to be of the future.
        self._take(topic, kind, data, info.get("received_timestamp") or time.time_ns())
        asked = topic.endswith("/search_statistics") and self._tree_topic not in self._subscriptions
        if asked and self._trees is not None and self._trees.service_is_ready():
            answer = self._trees.call_async(GetSearchTree.Request())
            answer.add_done_callback(self._tree_came)
            self._asked = [other for other in self._asked if not other.done()] + [answer]

    def _tree_came(self, future: Any) -> None:
        answer = future.result()
        if answer is not None and answer.success:
            data = serialize_message(answer.tree)
            self._take(self._tree_topic, SEARCH_TREE, data, time.time_ns())


def parameters_of(node: Node, executor: SingleThreadedExecutor, names: tuple[str, ...]) -> str:
    """The parameters of those of the nodes that run, as a ROS parameter file."""
    namespace = node.get_namespace().rstrip("/")
    there = {f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()}
    found: dict[str, Any] = {}
    for name in names:
        full = f"{namespace}/{name}"
        if full not in there:
            continue
        listed = _ask(node, executor, ListParameters, f"{full}/list_parameters", {})
        if listed is None:
            continue
        known = list(listed.result.names)
        got = _ask(node, executor, GetParameters, f"{full}/get_parameters", {"names": known})
        if got is None:
            continue
        values = {n: _plain(v) for n, v in zip(known, got.values, strict=True)}
        found[full] = {"ros__parameters": values}
    return str(yaml.safe_dump(found, sort_keys=True))


def _ask(
    node: Node, executor: SingleThreadedExecutor, kind: Any, name: str, fields: dict[str, Any]
) -> Any:
    client = node.create_client(kind, name)
    end = time.monotonic() + ANSWER_S
    futures: list[Future] = []
    asked_at = -math.inf
    while (now := time.monotonic()) < end and not any(future.done() for future in futures):
        # A busy service can answer before it has discovered who asked: then it is asked again.
        if now - asked_at >= ASKED_EVERY_S and client.service_is_ready():
            futures.append(client.call_async(kind.Request(**fields)))
            asked_at = now
        executor.spin_once(timeout_sec=0.05)
    node.destroy_client(client)
    return next((future.result() for future in futures if future.done()), None)


def _plain(value: Any) -> Any:
    plain = parameter_value_to_python(value)
    return list(plain) if hasattr(plain, "__iter__") and not isinstance(plain, str) else plain


def message_class(type_name: str) -> type:
    """The class of a message type, as in ``sensor_msgs/msg/Image``."""
    package, _, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)  # type: ignore[no-any-return]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--out", type=Path, help="folder to write (default: recordings/<time>)")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--namespace", default="", help="of nodes and topics")
    parser.add_argument("--topics", nargs="*", default=[], metavar="TOPIC:=TYPE", help="and these")
    parser.add_argument(
        "--seconds", type=AMOUNT, default=0.0, help="end by itself (default: never)"
    )
    parser.add_argument(
        "--measure", type=AMOUNT, default=2.0, help="seconds to measure sizes before"
    )
    parser.add_argument("--compress", action="store_true", help="by chunks; costs processor time")
    parser.add_argument("--split-mb", type=COUNT, default=1000, help="a new file after so many MB")
    parser.add_argument("--reserve-mb", type=WHOLE, default=500, help="room to leave on the disk")
    parser.add_argument("--no-trees", action="store_true", help="leave the search trees out")


def run(arguments: argparse.Namespace) -> int:
    """Measure, say what it will take, record until told to end."""
    topics = recorded_topics(load_contract(arguments.contract))
    for word in arguments.topics:
        topic, separator, kind = word.partition(":=")
        if not separator or kind.count("/") != 2:
            raise ConfigurationError(f"--topics: expected TOPIC:=PACKAGE/msg/TYPE, got {word!r}")
        topics[topic] = kind
    out = arguments.out or Path("recordings") / time.strftime("%Y%m%d_%H%M%S")
    with verb_node("recorder", arguments.namespace) as (node, executor, stopped):
        return record(node, executor, topics, out, arguments, stopped, sys.stderr.write)


def record(
    node: Node,
    executor: SingleThreadedExecutor,
    topics: dict[str, str],
    out: Path,
    options: argparse.Namespace,
    stopped: Callable[[], bool],
    say: Callable[[str], Any],
) -> int:
    """Record with a node.

    Args:
        node: its subscriptions.
        executor: that spins it.
        topics: see :class:`Recorder`.
        out: the bag's folder.
        options: as declared by :func:`add_arguments`.
        stopped: asked now and then whether to end.
        say: takes lines for the user.

    Returns:
        0, or 1 where the disk was full.
    """
    traffic = Traffic()
    recorder = Recorder(node, topics, lambda topic, _, data, __: traffic.take(topic, len(data)))
    recording = Recording(
        out,
        compress=options.compress,
        split_mb=options.split_mb,
        reserve_mb=options.reserve_mb,
    )
    try:
        _spin(executor, stopped, options.measure)
        for line in traffic.estimate(recording.free, options.measure or None):
            say(f"record: {line}\n")
        for problem in recorder.refused.values():
            say(f"record: {problem}\n")
        if recorder.missing:
            say(f"record: nobody publishes {', '.join(recorder.missing)} yet\n")
        snapshot = parameters_of(node, executor, NODES)
        if PLANNER not in snapshot:
            say(f"record: the parameters of {PLANNER} are not recorded: it does not answer\n")
        name = node.resolve_topic_name(PARAMETERS_TOPIC)
        recording.take(name, STRING, serialize(STRING, {"data": snapshot}), time.time_ns())
        if not options.no_trees:
            recorder.ask_for_trees()
        recorder.begin(recording.take)
        say(f"record: recording to {out}; Ctrl-C ends it\n")
        begun = tell_at = time.monotonic()
        while not stopped() and not recording.full:
            _spin(executor, stopped, 0.2)
            now = time.monotonic()
            if now - tell_at >= TOLD_EVERY_S:
                tell_at = now
                say(f"record: {recording.told()}, {recording.free / 1e6:.0f} MB of room\n")
            if options.seconds and now - begun >= options.seconds:
                break
        # An executor hands on one message of each topic in turn: the busiest ones still wait.
        recorder.take_waiting()
        until = time.monotonic() + LAST_TREES_S
        while recorder.asking and time.monotonic() < until:
            executor.spin_once(timeout_sec=0.05)
    finally:
        recording.close()
    say(f"record: {recording.told()} in {out}\n")
    if recording.full:
        say(f"record: ended: {recording.full}\n")
    return int(bool(recording.full))


def _spin(executor: SingleThreadedExecutor, stopped: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not stopped() and (left := end - time.monotonic()) > 0:
        try:
            executor.spin_once(timeout_sec=min(0.05, left))
        except ExternalShutdownException:
            return
