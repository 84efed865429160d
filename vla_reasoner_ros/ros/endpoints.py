"""Quality of service as the user overrides it, and what the middleware says about it.

The parameters ``qos_overrides.<topic>.subscription.<policy>`` and ``.publisher.<policy>`` are those
of every ROS 2 node that allows it. Events of the middleware (incompatible offers, missed deadlines,
lost liveliness, lost messages) are counted by topic and shown on ``/diagnostics``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind, QoSProfile, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.diagnostics import Level, Report

PREFIX = "qos_overrides."
POLICIES = tuple(
    getattr(QoSPolicyKind, name)
    for name in (
        "HISTORY",
        "DEPTH",
        "RELIABILITY",
        "DEADLINE",
        "LIVELINESS",
        "LIVELINESS_LEASE_DURATION",
    )
)
"""What may be overridden. Durability may not: a latched command would move the arm late, and an
instruction that is not latched would be lost."""
FIXED = ("estop",)
"""Topics that nothing overrides, since a stop must be heard from every kind of publisher."""


@dataclass
class _Topic:
    """What became of one topic since configure; ``told`` is what the last report knew."""

    incompatible: int = 0
    policy: str = ""
    deadlines: int = 0
    lost: int = 0
    dead: bool = False
    told: tuple[int, int, int] = field(default=(0, 0, 0))

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.incompatible, self.deadlines, self.lost


class Endpoints:
    """Options of a node's publishers and subscriptions, and a report on their events.

    Args:
        node: the node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topics: dict[str, _Topic] = {}
        self._known: set[str] = set()
        # Before any endpoint: what rclpy declares for one that it makes stays declared after it.
        given = node.get_parameters_by_prefix(PREFIX.rstrip("."))
        self._given = {f"{PREFIX}{name}" for name in given}

    def subscription(self, topic: str, profile: QoSProfile) -> dict[str, Any]:
        """Profile and options for a new subscription, by the names of rclpy's arguments."""
        return self._options(topic, profile, "subscription", SubscriptionEventCallbacks)

    def publisher(self, topic: str, profile: QoSProfile) -> dict[str, Any]:
        """Profile and options for a new publisher, by the names of rclpy's arguments."""
        return self._options(topic, profile, "publisher", PublisherEventCallbacks)

    def require_used(self) -> None:
        """Refuse overrides of topics or policies that this node has not.

        Raises:
            ConfigurationError: it names them and what there is.
        """
        unused = sorted(self._given - self._known)
        if unused:
            raise ConfigurationError(
                f"{', '.join(unused)}: nothing here has this quality of service; known are "
                f"{', '.join(sorted(self._known))}"
            )

    def clear(self) -> None:
        """Forget everything, since all endpoints are gone."""
        self._topics.clear()
        self._known.clear()

    def report(self) -> Report:
        """What the middleware said.

        WARN where a deadline or messages were missed since the last report, and from the first
        incompatible peer until :meth:`clear`, since nobody tells when it has gone; ERROR while no
        publisher of a topic is alive.
        """
        values: dict[str, Any] = {}
        said = []
        level = Level.OK
        for name, topic in list(self._topics.items()):
            for what, count in zip(
                ("incompatible", "missed deadlines", "lost messages"), topic.counts, strict=True
            ):
                if count:
                    values[f"{name}: {what}"] = count
            if topic.incompatible:
                values[f"{name}: incompatible policy"] = topic.policy
                said.append(f"{name}: incompatible {topic.policy}")
            if topic.deadlines > topic.told[1]:
                said.append(f"{name}: deadline missed")
            if topic.lost > topic.told[2]:
                said.append(f"{name}: messages lost")
            if topic.dead:
                level = Level.ERROR
                said.append(f"{name}: no publisher is alive")
            topic.told = topic.counts
        if said:
            return Report(max(level, Level.WARN), "; ".join(said), values)
        return Report(Level.OK, f"{len(self._topics)} topics", values)

    def _options(
        self, name: str, profile: QoSProfile, role: str, events: Callable[..., Any]
    ) -> dict[str, Any]:
        if name in FIXED:
            return {"qos_profile": profile, "event_callbacks": events(use_default_callbacks=False)}
        full = self._node.resolve_topic_name(name)
        prefix = f"{PREFIX}{full}.{role}."
        self._known |= {prefix + policy.name.lower() for policy in POLICIES}
        topic = self._topics.setdefault(full, _Topic())
        callbacks = {"incompatible_qos": lambda event: self._incompatible(full, topic, event)}
        if f"{prefix}deadline" in self._given:
            callbacks["deadline"] = lambda event: _count_deadlines(topic, event)
        if role == "subscription":
            callbacks["message_lost"] = lambda event: _count_lost(topic, event)
            if f"{prefix}liveliness_lease_duration" in self._given:
                callbacks["liveliness"] = lambda event: _watch_liveliness(topic, event)
        return {
            "qos_profile": copy.copy(profile),
            "event_callbacks": events(**callbacks),
            "qos_overriding_options": QoSOverridingOptions(POLICIES),
        }

    def _incompatible(self, name: str, topic: _Topic, event: Any) -> None:
        topic.incompatible = event.total_count
        topic.policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._node.get_logger().warning(
            f"{name}: someone's quality of service is incompatible in {topic.policy}; nothing is "
            "exchanged with them"
        )


def _count_deadlines(topic: _Topic, event: Any) -> None:
    topic.deadlines = event.total_count


def _count_lost(topic: _Topic, event: Any) -> None:
    topic.lost = event.total_count


def _watch_liveliness(topic: _Topic, event: Any) -> None:
    topic.dead = event.alive_count == 0 and event.not_alive_count > 0
