"""Why the arm is to stand still: requested holds, the emergency stop, and holds of our own."""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.control.commands import ControllerState
from vla_reasoner_ros.control.queue import ChunkRejected, RejectionReason
from vla_reasoner_ros.errors import VlaReasonerError


class ResetRefused(VlaReasonerError):
    """A reset while the cause of the stop persists."""


@dataclass
class Hold:
    """A hold that no one asked for.

    Attributes:
        reason: why, in words.
        latched: only a reset ends it.
        resync: the command goes back to the measured position before it ends.
    """

    reason: str
    latched: bool = False
    resync: bool = False


@dataclass
class Stops:
    """What keeps the arm from moving at the moment.

    Attributes:
        requested: why someone asked for a hold; empty when no one did.
        emergency: the emergency stop is set.
        latched: it was set since the last reset.
        hold: the hold that no one asked for; None when there is none.
    """

    requested: str = ""
    emergency: bool = False
    latched: bool = False
    hold: Hold | None = None

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return self.latched or bool(self.requested) or self.hold is not None

    @property
    def displaced(self) -> bool:
        """Whether the arm may be somewhere else than it was told to be."""
        return self.hold is not None and (self.hold.latched or self.hold.resync)

    def clear(self) -> None:
        """There is nothing any more."""
        self.requested, self.emergency, self.latched, self.hold = "", False, False, None

    def require_none(self) -> None:
        """Refuse a chunk while there is any.

        Raises:
            ChunkRejected: with what it is.
        """
        if self.latched:
            raise ChunkRejected(RejectionReason.STOPPED, "the emergency stop is latched")
        if self.requested:
            raise ChunkRejected(RejectionReason.HOLDING, self.requested)
        if self.hold is not None:
            raise ChunkRejected(RejectionReason.HOLDING, self.hold.reason)

    def state(self, enabled: bool) -> tuple[ControllerState, str] | None:
        """State and reason as ``ControllerStatus.msg`` has them; None when the arm may move.

        Args:
            enabled: whether commands are sent at all.
        """
        if self.latched:
            still = "set" if self.emergency else "cleared, waiting for a reset"
            return ControllerState.STOPPED, f"emergency stop {still}"
        if not enabled:
            return ControllerState.DRY_RUN, "enable_control is false"
        if self.requested:
            return ControllerState.HOLDING, self.requested
        if self.hold is not None:
            return ControllerState.HOLDING, self.hold.reason
        return None
