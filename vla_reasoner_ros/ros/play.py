"""Play a recorded bag into a running graph, its time on /clock, where rosbag2 is not installed.

Only what the contract's nodes take is played, never a command. The time is that of the recorder, or
the recorded /clock where the stamps are a simulator's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rosgraph_msgs.msg import Clock

from vla_reasoner_ros.arguments import AMOUNT, POSITIVE
from vla_reasoner_ros.data.bag_ingest import RECORDED, STAMPS, STRING, TOLD, BagIngest, stamp_of
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.message_types import NANOSECONDS, to_nanoseconds
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.record import message_class
from vla_reasoner_ros.ros.verb_node import verb_node

TICK_NS = 10_000_000
"""Longest step of /clock."""


class Player:
    """Publishes a bag's messages at the pace they were recorded.

    Args:
        node: for the publishers; its namespace is that of the topics.
        bag: the bag.
        ingest: that knows the contract's topics in the bag, and where the time comes from.
        rate: seconds of the recording in a second.
    """

    def __init__(self, node: Node, bag: BagReader, ingest: BagIngest, rate: float = 1.0) -> None:
        self._bag, self._ingest, self._rate = bag, ingest, rate
        contract = ingest.contract
        names = [contract.joint_states.topic, *(c.topic for c in contract.cameras.values())]
        names += [contract.moments.instruction, "simulator_state"]
        self._publishers: dict[str, Any] = {}
        for name in names:
            topic = ingest.find(name)
            if topic is None:
                continue
            kind = bag.topics[topic].type
            profile = qos.LATCHED if kind == STRING else qos.STATE
            self._publishers[topic] = node.create_publisher(message_class(kind), name, profile)
        self._clock = node.create_publisher(Clock, "/clock", qos.CLOCK)
        self.played = 0
        self.now_ns = 0

    @property
    def listeners(self) -> int:
        """Subscriptions to what is played, the fewest of any stream."""
        streams = [self._publishers[topic] for topic in self._ingest.topics.values()]
        return min(publisher.get_subscription_count() for publisher in streams)

    def play(self, pause: Callable[[float], bool]) -> None:
        """Play everything.

        Args:
            pause: lets so many seconds pass; false ends the playing.
        """
        topics = {*self._publishers, *([TOLD] if self._ingest.clock == TOLD else [])}
        begun_ns: int | None = None
        begun = time.monotonic()
        for message in self._bag.messages(topics):
            if begun_ns is None:
                begun_ns = message.time_ns
            due = begun + (message.time_ns - begun_ns) / NANOSECONDS / self._rate
            while (left := due - time.monotonic()) > 0.0:
                step = min(left, TICK_NS / NANOSECONDS)
                if self._ingest.clock == RECORDED:
                    self._tell(message.time_ns - round(left * self._rate * NANOSECONDS))
                if not pause(step):
                    return
            self._publish(message)
        if begun_ns is not None and self._ingest.clock == RECORDED:
            self._tell(self.now_ns + TICK_NS)

    def _publish(self, message: BagMessage) -> None:
        if message.topic == TOLD:
            self._tell(to_nanoseconds(self._bag.deserialize(message).clock))
            return
        if self._ingest.clock == RECORDED:
            self._tell(message.time_ns)
        elif self._ingest.clock == STAMPS and message.topic in self._ingest.topics.values():
            self._tell(max(self.now_ns, stamp_of(message)))
        self._publishers[message.topic].publish(bytes(message.data))
        self.played += 1

    def _tell(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self._clock.publish(Clock(clock=to_stamp(now_ns)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bag", type=Path, help="folder of the bag, or one of its files")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--namespace", default="", help="to publish in")
    parser.add_argument("--bag-namespace", default="", help="of the topics in the bag")
    parser.add_argument("--rate", type=POSITIVE, default=1.0, help="times as fast as recorded")
    parser.add_argument(
        "--wait", type=AMOUNT, default=30.0, help="seconds to wait for subscriptions (default 30)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Play once."""
    if arguments.rate <= 0.0:
        raise ConfigurationError(f"--rate: expected more than 0, got {arguments.rate}")
    contract = load_contract(arguments.contract)
    with (
        BagReader(arguments.bag) as bag,
        verb_node("bag_player", arguments.namespace) as (node, executor, stopped),
    ):

        def pause(seconds: float) -> bool:
            executor.spin_once(timeout_sec=0.0)
            time.sleep(seconds)
            return not stopped()

        ingest = BagIngest(bag, contract, namespace=arguments.bag_namespace)
        player = Player(node, bag, ingest, arguments.rate)
        end = time.monotonic() + arguments.wait
        while not player.listeners and not stopped():
            if time.monotonic() > end:
                raise BagError(f"nobody subscribes to what {arguments.bag} plays")
            pause(0.05)
        print(f"play: {arguments.bag}, time from {ingest.clock}", file=sys.stderr)
        player.play(pause)
        print(f"play: {player.played} messages", file=sys.stderr)
    return 0
