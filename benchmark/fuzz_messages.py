"""Random and hostile messages on every topic that a node listens to.

``python benchmark/fuzz_messages.py 100000`` gives each subscription of each node that many
messages, made from the message definitions, and prints one JSON object per subscription. The exit
code is 1 when something crashed, moved the arm, or was neither taken nor counted as dropped.

The nodes are the real ones, active, in this process. Messages are handed to their callbacks past
the middleware, so that none is lost in a queue and every one can be accounted for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
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
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from rosidl_parser import definition as idl
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.robots import load_robot

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
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, math.nan, math.inf, -math.inf, 0.04, 0.1, 3.2)
LENGTHS = (0, 0, 1, 2, 3, 7, 8, 9, 56, 56, 255, 27_648)
WORDS = (
    *("", " ", "base", "world", "rgb8", "bgr8", "mono8", "16UC1", "jpeg", "png", "agent", "wrist"),
    *("end_effector_delta", "joint_position", "x", "y", "z", "rx", "ry", "rz", "gripper"),
    *("fr3_finger_joint1", "fr3_finger_joint2", "\x00", "ä" * 50, "../" * 20, "%s%n", "a" * 5000),
    *load_robot("fr3").joint_names,
)
RESTED_RAD = 1e-3
"""How far a joint of the simulated arm may be from where it began."""


def message(kind: type, rng: np.random.Generator) -> Any:
    """A message of this type whose every field is random: plausible, extreme or senseless."""
    slots = zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=True)  # type: ignore[attr-defined]
    return kind(**{name: _value(slot, rng) for name, slot in slots})


def _value(kind: Any, rng: np.random.Generator) -> Any:
    if isinstance(kind, idl.NamespacedType):
        module = importlib.import_module(".".join(kind.namespaces))
        return message(getattr(module, kind.name), rng)
    if isinstance(kind, idl.AbstractString):
        return str(rng.choice(WORDS))
    if isinstance(kind, idl.Array | idl.AbstractSequence):
        return _sequence(kind, rng)
    if kind.typename == "boolean":
        return bool(rng.integers(2))
    if kind.typename in idl.FLOATING_POINT_TYPES:
        return float(rng.choice(FLOATS)) if rng.integers(2) else float(rng.normal())
    if kind.typename == "octet":
        return rng.bytes(1)
    low, high = _limits(kind.typename)
    return int(rng.choice((low, high, 0, 1, *rng.integers(0, 100, 4))))


def _limits(typename: str) -> tuple[int, int]:
    bits = int(typename.removeprefix("u").removeprefix("int"))
    return (
        (0, 2**bits - 1) if typename.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def _sequence(kind: Any, rng: np.random.Generator) -> Any:
    element = kind.value_type
    size = kind.size if isinstance(kind, idl.Array) else int(rng.choice(LENGTHS))
    if isinstance(kind, idl.BoundedSequence):
        size = min(size, kind.maximum_size)
    simple = isinstance(element, idl.BasicType)
    if simple and element.typename in ("uint8", "octet"):
        return rng.bytes(size)
    if simple and element.typename in idl.FLOATING_POINT_TYPES:
        values = rng.normal(size=size)
        bad = rng.random(size) < 0.05
        values[bad] = rng.choice(FLOATS, bad.sum())
        return values.tolist()
    return [_value(element, rng) for _ in range(min(size, 56))]


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


def fuzz(nodes: tuple[str, ...], count: int, seed: int) -> tuple[list[Count], list[str]]:
    """Give every subscription of these nodes ``count`` messages; counts and problems."""
    counts: list[Count] = []
    problems: list[str] = []
    with watching() as watch:
        for name in nodes:
            with active(name) as node:
                for subscription in _ordered(node):
                    rng = np.random.default_rng([seed, len(counts)])
                    try:
                        counts.append(_flood(node, subscription, count, rng))
                    except Exception:
                        where = f"{name}, {subscription.topic_name}"
                        problems.append(f"{where}: crashed\n{traceback.format_exc()}")
                if node.state != "active":
                    problems.append(f"{name} is {node.state}: {node.stop_reason}")
        problems += watch.problems
    lost = [c for c in counts if c.sent != c.dropped + c.taken]
    return counts, problems + [f"{c}: not all are counted" for c in lost]


@contextmanager
def active(name: str) -> Iterator[Any]:
    """One of the nodes, configured and active."""
    class_name, options = NODES[name]
    module = importlib.import_module(f"vla_reasoner_ros.nodes.{name}")
    overrides = [Parameter(key, value=value) for key, value in options.items()]
    node = getattr(module, class_name)(name, parameter_overrides=overrides)
    set_logger_level(node.get_logger().name, LoggingSeverity.FATAL)
    try:
        if not node.start():
            raise RuntimeError(f"{name}: {node.stop_reason}")
        yield node
    finally:
        node.stop()
        node.destroy_node()


def _ordered(node: Any) -> list[Subscription]:
    """The node's own subscriptions; a stop comes last, since nothing is heeded after it."""
    own = [s for s in node.subscriptions if s.topic_name not in ("/clock", "/parameter_events")]
    return sorted(own, key=lambda s: (s.topic_name.endswith("estop"), s.topic_name))


def _flood(node: Any, subscription: Subscription, count: int, rng: np.random.Generator) -> Count:
    found = Count(node.get_name(), subscription.topic_name)
    callback: Callable[[Any], None] = subscription.callback
    for _ in range(count):
        said = message(subscription.msg_type, rng)
        before = sum(dropped for dropped, _ in node.dropped.values())
        callback(serialize_message(said) if subscription.raw else said)
        after = sum(dropped for dropped, _ in node.dropped.values())
        found.sent += 1
        found.dropped += after - before
        found.taken += after == before
    return found


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
    counts, problems = fuzz(tuple(options.node or NODES), options.messages, options.seed)
    rclpy.try_shutdown()
    for count in counts:
        print(json.dumps(asdict(count)))
    print(f"{time.monotonic() - begin:.0f} s, {len(problems)} problems", file=sys.stderr)
    print("\n".join(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
