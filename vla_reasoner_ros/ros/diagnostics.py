"""Named tasks that report their health on ``/diagnostics`` once a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from vla_reasoner_ros.ros.qos import DIAGNOSTICS


class Level(IntEnum):
    """The levels of ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Report:
    """What a task says about itself.

    Attributes:
        level: how bad it is.
        message: one line for a person.
        values: names to numbers or texts; floats are written with six significant digits.
    """

    level: Level
    message: str
    values: Mapping[str, Any] = field(default_factory=dict)


Finding = tuple[Level, str]
"""How bad something is, and one line about it."""


def too_high(name: str, number: float, warn: float, error: float, unit: str = "") -> Finding:
    """Judge a number that should be small, by two thresholds; a threshold of 0 is off.

    NaN, a number not known yet, is no fault.
    """
    for level, threshold in ((Level.ERROR, error), (Level.WARN, warn)):
        if threshold and number > threshold:
            return level, f"{name} {number:.3g}{unit}, expected at most {threshold:g}{unit}"
    return Level.OK, ""


def too_low(name: str, number: float, warn: float, error: float, unit: str = "") -> Finding:
    """Judge a number that should be large, by two thresholds; a threshold of 0 is off."""
    for level, threshold in ((Level.ERROR, error), (Level.WARN, warn)):
        if threshold and number < threshold:
            return level, f"{name} {number:.3g}{unit}, expected at least {threshold:g}{unit}"
    return Level.OK, ""


def because(finding: Finding, reason: str) -> Finding:
    """A judgement with what is known of its cause."""
    level, text = finding
    return level, f"{text}: {reason}" if reason else text


def summary(findings: Iterable[Finding], well: str, values: Mapping[str, Any]) -> Report:
    """One report of many findings: the worst level, and the text of all that are not well.

    Args:
        findings: the judgements.
        well: what to say when all is well.
        values: of the report.
    """
    bad = [finding for finding in findings if finding[0] is not Level.OK]
    if not bad:
        return Report(Level.OK, well, values)
    bad.sort(key=lambda finding: -finding[0])
    return Report(bad[0][0], "; ".join(text for _, text in bad), values)


class Updater:
    """Publishes one status per task, ``<node>: <task>``, at a steady rate of wall-clock time.

    A node in a namespace is named with it, as ``left/<node>``, since all share ``/diagnostics``.

    It goes on while simulated time stands still and in every lifecycle state, so that a node that
    refused to configure can still say why.

    Args:
        node: the node.
        period: seconds between two messages.
        hardware_id: what the node is about: a robot's or camera's name.
        callback_group: the group of its timer.
    """

    def __init__(
        self,
        node: Node,
        period: float = 1.0,
        hardware_id: str = "vla_reasoner_ros",
        callback_group: CallbackGroup | None = None,
    ) -> None:
        self._node = node
        self._name = node.get_fully_qualified_name().removeprefix("/")
        self._tasks: dict[str, Callable[[], Report]] = {}
        self.hardware_id = hardware_id
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", DIAGNOSTICS)
        self._timer = node.create_timer(
            period,
            self.publish,
            callback_group=callback_group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def add(self, name: str, task: Callable[[], Report]) -> None:
        """Add a task, or replace the one of this name."""
        self._tasks[name] = task

    def remove(self, name: str) -> None:
        """Take a task out; nothing happens when there is none."""
        self._tasks.pop(name, None)

    def keep(self, *names: str) -> None:
        """Take out all tasks but these."""
        self._tasks = {name: task for name, task in self._tasks.items() if name in names}

    def publish(self) -> None:
        """Publish now, as the timer does."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = [self._status(name, task) for name, task in list(self._tasks.items())]
        self._publisher.publish(message)

    def _status(self, name: str, task: Callable[[], Report]) -> DiagnosticStatus:
        try:
            report = task()
        except Exception as error:  # one broken task must not hide the others
            report = Report(Level.ERROR, f"this diagnostic itself failed: {error!r}")
        return DiagnosticStatus(
            name=f"{self._name}: {name}",
            level=bytes([report.level]),
            message=report.message,
            hardware_id=self.hardware_id,
            values=[KeyValue(key=key, value=_text(v)) for key, v in report.values.items()],
        )


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
