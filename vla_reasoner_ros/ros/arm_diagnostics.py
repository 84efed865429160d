"""What the arm controller says about itself on ``/diagnostics``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vla_reasoner_ros.control.commands import ControllerState, ExecutorStatus
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros.diagnostics import Level, Report, because, summary, too_high


@dataclass(frozen=True)
class ArmThresholds:
    """When the arm is not well; 0 is off. An emergency stop is always an ERROR."""

    stale: float = parameter(
        0.0,
        "Wall-clock time without a chunk, accepted or not, after which is STALE. Set it where the "
        "planner is never paused.",
        unit="s",
        minimum=0.0,
    )
    hold_warn: float = parameter(
        1e-6, "Wall-clock time of a hold above which is WARN.", unit="s", minimum=0.0
    )
    hold_error: float = parameter(
        0.0, "Wall-clock time of a hold above which is ERROR.", unit="s", minimum=0.0
    )
    rejected_warn: float = parameter(
        1e-6,
        "Share of the chunks since the last report that broke a limit or were unusable, above "
        "which is WARN.",
        minimum=0.0,
        maximum=1.0,
    )
    rejected_error: float = parameter(
        0.5,
        "Share of the chunks since the last report that broke a limit or were unusable, above "
        "which is ERROR.",
        minimum=0.0,
        maximum=1.0,
    )
    tracking_warn: float = parameter(
        0.0,
        "Largest difference of a joint from its command above which is WARN.",
        unit="rad",
        minimum=0.0,
    )
    tracking_error: float = parameter(
        0.0,
        "Largest difference of a joint from its command above which is ERROR.",
        unit="rad",
        minimum=0.0,
    )


class ArmDiagnostics:
    """Reports on the controller, with shares and times since the report before.

    Args:
        thresholds: gives the newest thresholds.
        clock: wall-clock time, s.
    """

    def __init__(
        self,
        thresholds: Callable[[], ArmThresholds],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._thresholds = thresholds
        self._clock = clock
        self._heard = self._moved = clock()
        self._accepted = self._rejected = 0

    def report(self, status: ExecutorStatus, lead: float) -> Report:
        """The controller's diagnostics; meant to be asked for at a steady rate.

        Args:
            status: what it does and why.
            lead: how far ahead of now the next motion starts, s.
        """
        now, limits = self._clock(), self._thresholds()
        accepted = status.chunks_accepted - self._accepted
        rejected = status.chunks_rejected - self._rejected
        self._accepted, self._rejected = status.chunks_accepted, status.chunks_rejected
        if accepted or rejected:
            self._heard = now
        holding = status.state is ControllerState.HOLDING
        if not holding:
            self._moved = now
        held = now - self._moved
        values = {
            "state": status.state.name,
            "chunks accepted": status.chunks_accepted,
            "chunks rejected": status.chunks_rejected,
            "last rejection": status.last_rejection,
            "tracking error rad": status.tracking_error,
            "held s": held,
            "lead s": lead,
        }
        if status.state is ControllerState.STOPPED:
            return Report(Level.ERROR, status.reason or "stopped", values)
        silent = now - self._heard
        if limits.stale and silent > limits.stale:
            return Report(Level.STALE, f"no chunk for {silent:.1f} s", values)
        share = rejected / max(1, accepted + rejected)
        findings = [
            because(
                too_high("rejected", share, limits.rejected_warn, limits.rejected_error),
                status.last_rejection,
            ),
            because(
                too_high("held", held, limits.hold_warn, limits.hold_error, " s"), status.reason
            ),
            too_high(
                "tracking error",
                status.tracking_error,
                limits.tracking_warn,
                limits.tracking_error,
                " rad",
            ),
        ]
        return summary(
            findings, status.reason or status.state.name.lower().replace("_", " "), values
        )
