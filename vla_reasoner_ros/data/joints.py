"""Joint states by name: from whatever order a driver publishes to the robot's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_reasoner_ros.errors import ConfigurationError, ObservationError
from vla_reasoner_ros.types import FloatArray

KNOWN_ORDERS = 16
"""Orders of joints that are remembered."""


@dataclass(frozen=True)
class JointLayout:
    """Which joints a ``sensor_msgs/JointState`` must hold.

    Attributes:
        names: the joints to read, in the order wanted: the arm's, then the gripper's.
        ignored: further joints that the message may hold.
        needs_velocities: whether a message without velocities is refused.

    Raises:
        ConfigurationError: a joint is named twice.
    """

    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    needs_velocities: bool = True
    _orders: dict[tuple[str, ...], list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Names as messages hold them, to where :attr:`names` are among them: drivers rarely change."""

    def __post_init__(self) -> None:
        everything = (*self.names, *self.ignored)
        twice = sorted({name for name in everything if everything.count(name) > 1})
        if twice:
            raise ConfigurationError(f"joint names: {', '.join(twice)} named more than once")

    def read(self, message: Any, topic: str) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities in the order of :attr:`names`.

        Args:
            message: anything with ``name``, ``position`` and ``velocity``, from ROS or a bag.
            topic: for the error text.

        Returns:
            Positions (J,) and velocities (J,), SI units; velocities are NaN where the message has
            none and they are not needed.

        Raises:
            ObservationError: a joint is missing, unknown, named twice, or its numbers are missing
                or not finite.
        """
        names = tuple(message.name)
        order = self._orders.get(names)
        if order is None:
            order = self._order(names, topic)
            if len(self._orders) == KNOWN_ORDERS:
                self._orders.clear()
            self._orders[names] = order
        positions = self._column(message.position, names, order, topic, "position")
        if len(message.velocity) == 0 and not self.needs_velocities:
            return positions, np.full(len(order), np.nan)
        return positions, self._column(message.velocity, names, order, topic, "velocity")

    def _order(self, names: Sequence[str], topic: str) -> list[int]:
        index = {name: position for position, name in enumerate(names)}
        if len(index) != len(names):
            raise ObservationError(f"{topic}: joints are named twice in {', '.join(names)}")
        self._require_known(names, topic)
        return [index[name] for name in self.names]

    def _require_known(self, names: Sequence[str], topic: str) -> None:
        missing = [name for name in self.names if name not in names]
        if missing:
            raise ObservationError(
                f"{topic}: joints {', '.join(missing)} are missing; got "
                f"{', '.join(names) or 'none'}"
            )
        unknown = [name for name in names if name not in self.names and name not in self.ignored]
        if unknown:
            raise ObservationError(
                f"{topic}: joints {', '.join(unknown)} are unknown; expected "
                f"{', '.join(self.names)}"
            )

    def _column(
        self,
        values: Sequence[float],
        names: Sequence[str],
        order: list[int],
        topic: str,
        quantity: str,
    ) -> FloatArray:
        if len(values) != len(names):
            raise ObservationError(
                f"{topic}: {len(values)} numbers of {quantity} for {len(names)} joints"
            )
        column = np.asarray(values, dtype=np.float64)[order]
        if not np.isfinite(column).all():
            bad = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ObservationError(
                f"{topic}: {quantity} of joint {self.names[bad]} is {column[bad]}, expected a "
                "finite number"
            )
        return column
