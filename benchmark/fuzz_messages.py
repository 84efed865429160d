"""Random and hostile messages on every topic that a node listens to.

``python benchmark/fuzz_messages.py 100000`` gives each subscription of each node that many
messages, made from the message definitions, random or a valid one that goes bad field by field
(see :mod:`benchmark.hostile_messages`), and prints one JSON object per subscription. The exit
code is 1 when something crashed, moved the arm, or was neither taken nor counted as dropped.

The nodes are the real ones, active, in this process. Messages are handed to their callbacks past
the middleware, so that none is lost in a queue and every one can be accounted for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import rclpy
from rclpy.lifecycle import LifecyclePublisher
from rclpy.logging import LoggingSeverity, set_logger_level
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from benchmark.hostile_messages import HostileMessages
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.nodes.sim_node import SimParameters
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.ros.conversions import image_to_message, observation_to_message
from vla_reasoner_ros.ros.reports import statistics_to_message, tree_to_message
from vla_reasoner_ros.ros.simulation import joints_to_message, state_to_message
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.sim.world import World

NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "camera_node": ("CameraNode", {"contract": "sim"}),
    "planner_node": (
        "PlannerNode",
        {"planner.world_model": "simulator", "search.simulations": 2},
    ),
    "arm_controller_node": ("ArmControllerNode", {"enable_control": True}),
    "deadman_node": ("DeadmanNode", {}),
    "view_node": ("ViewNode", {}),
    "sim_node": ("SimNode", {}),
}
LISTENED = ("view_node",)
"""Nodes that do nothing unless somebody listens."""
PROGRESS = 1000
"""Messages between two lines about how far it is."""
FOUND_S = 60.0
"""Wall-clock seconds that discovery may take."""
RESTED_RAD = 1e-3
"""How far a joint of the simulated arm may be from where it began."""


@dataclass
class Count:
    """What became of the messages of one subscription."""

    node: str
    topic: str
    sent: int = 0
    dropped: int = 0
    taken: int = 0


class Watch:
    """Hears what the nodes publish: commands, and where the simulated arm is."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self._first: np.ndarray | None = None
        self.moved_rad = 0.0

    def heard(self, topic: str, said: Any) -> None:
        """Something was published."""
        if isinstance(said, JointTrajectory | Float64):
            self.commands.append(f"{topic}: {said}")
        elif isinstance(said, JointState):
            joints = np.array(said.position[:7])
            if self._first is None:
                self._first = joints
            self.moved_rad = max(self.moved_rad, float(np.abs(joints - self._first).max()))

    @property
    def problems(self) -> list[str]:
        """What must not have happened."""
        found = [f"a command was sent: {command[:300]}" for command in self.commands]
        if self.moved_rad > RESTED_RAD:
            found.append(f"the simulated arm moved by {self.moved_rad:.4f} rad")
        return found


@contextmanager
def watching() -> Iterator[Watch]:
    """Hear what lifecycle publishers publish."""
    watch, publish = Watch(), LifecyclePublisher.publish

    def listen(self: LifecyclePublisher, said: Any) -> None:
        watch.heard(self.topic_name, said)
        publish(self, said)

    LifecyclePublisher.publish = listen
    try:
        yield watch
    finally:
        LifecyclePublisher.publish = publish


def fuzz(
    nodes: tuple[str, ...],
    count: int,
    seed: int,
    tell: Callable[[Count], None] = lambda _: None,
) -> tuple[list[Count], list[str]]:
    """Give every subscription of these nodes ``count`` messages; counts and problems.

    Args:
        nodes: names of the nodes.
        count: messages for each subscription.
        seed: of the messages.
        tell: is told what became of each subscription's as soon as a node is through.
    """
    counts: list[Count] = []
    problems: list[str] = []
    valid = examples()
    with watching() as watch:
        for name in nodes:
            with active(name) as node:
                subscriptions = _ordered(node)
                streams = [
                    HostileMessages(
                        s.msg_type,
                        np.random.default_rng([seed, len(counts) + index]),
                        valid.get(s.msg_type),
                    )
                    for index, s in enumerate(subscriptions)
                ]
                found = [Count(node.get_name(), s.topic_name) for s in subscriptions]
                counts += found
                problems += _flood(
                    node, list(zip(subscriptions, streams, found, strict=True)), count
                )
                if node.state != "active":
                    problems.append(f"{name} is {node.state}: {node.stop_reason}")
            for each in found:
                tell(each)
        problems += watch.problems
    lost = [c for c in counts if c.sent != c.dropped + c.taken]
    return counts, problems + [f"{c}: not all are counted" for c in lost]


def examples() -> dict[type, Any]:
    """Valid messages, by type, of the topics on which a valid message commands nothing."""
    world = World()
    world.reset("lift_green", 0)
    observation = world.observation()
    state = state_to_message(world, 0, 0)
    joints = joints_to_message(world, SimParameters().finger_joints, 0)
    world.close()
    components = load_components(ComponentParameters(world_model="latent"))
    reasoner = Reasoner(
        components.policy,
        components.world_model,
        components.value,
        components.prior,
        SearchParameters(simulations=16),
    )
    decision = reasoner.decide(observation)
    assert decision.tree is not None
    found = (
        observation_to_message(observation),
        image_to_message(observation.images["agent"], 0, "agent"),
        joints,
        state,
        statistics_to_message(decision.statistics, 0),
        tree_to_message(decision.tree, observation.stamp_ns, 0, 0),
    )
    return {type(said): said for said in found}


@contextmanager
def active(name: str) -> Iterator[Any]:
    """One of the nodes, configured and active."""
    class_name, options = NODES[name]
    module = importlib.import_module(f"vla_reasoner_ros.nodes.{name}")
    overrides = [Parameter(key, value=value) for key, value in options.items()]
    node = getattr(module, class_name)(name, parameter_overrides=overrides)
    set_logger_level(node.get_logger().name, LoggingSeverity.FATAL)
    listener = rclpy.create_node("listener")
    try:
        if not node.start():
            raise RuntimeError(f"{name}: {node.stop_reason}")
        if name in LISTENED:
            _listen(listener, node)
        yield node
    finally:
        listener.destroy_node()
        node.stop()
        node.destroy_node()


def _listen(listener: Node, node: Any) -> None:
    managed = [p for p in node.publishers if isinstance(p, LifecyclePublisher)]
    for publisher in managed:
        listener.create_subscription(publisher.msg_type, publisher.topic_name, lambda _: None, 1)
    end = time.monotonic() + FOUND_S
    while not all(publisher.get_subscription_count() for publisher in managed):
        if time.monotonic() > end:
            raise RuntimeError(f"{node.get_name()}: its publishers are not found")
        time.sleep(0.05)


def _ordered(node: Any) -> list[Subscription]:
    """The node's own subscriptions; a stop comes last, since nothing is heeded after it."""
    own = [s for s in node.subscriptions if s.topic_name not in ("/clock", "/parameter_events")]
    return sorted(own, key=lambda s: (s.topic_name.endswith("estop"), s.topic_name))


def _flood(
    node: Any, streams: list[tuple[Subscription, HostileMessages, Count]], count: int
) -> list[str]:
    """Messages by turns, so that those of several topics meet; what crashed.

    A stop comes when all others have had theirs.
    """
    last = [stream for stream in streams if stream[2].topic.endswith("estop")]
    first = [stream for stream in streams if stream not in last]
    crashed: list[str] = []
    for group in (first, last):
        left = list(group)
        for turn in range(count):
            if turn % PROGRESS == 0 and left:
                print(f"{node.get_name()}: {turn} of {count}", file=sys.stderr, flush=True)
            for stream in list(left):
                try:
                    _give(node, *stream)
                except Exception:
                    left.remove(stream)
                    where = f"{node.get_name()}, {stream[2].topic}, message {turn}"
                    crashed.append(f"{where}: crashed\n{traceback.format_exc()}")
    return crashed


def _give(node: Any, subscription: Subscription, stream: HostileMessages, found: Count) -> None:
    said = stream.next(node.now_ns())
    before = sum(dropped for dropped, _ in node.dropped.values())
    found.sent += 1
    subscription.callback(serialize_message(said) if subscription.raw else said)
    after = sum(dropped for dropped, _ in node.dropped.values())
    found.dropped += after - before
    found.taken += after == before


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("messages", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--node", choices=NODES, action="append", help="all when none is given")
    options = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    rclpy.init()
    begin = time.monotonic()
    _, problems = fuzz(
        tuple(options.node or NODES),
        options.messages,
        options.seed,
        lambda count: print(json.dumps(asdict(count)), flush=True),
    )
    rclpy.try_shutdown()
    print(f"{time.monotonic() - begin:.0f} s, {len(problems)} problems", file=sys.stderr)
    print("\n".join(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
