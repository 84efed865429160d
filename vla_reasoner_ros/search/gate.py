"""Whether a search can pay: asked once the policy's own macro-action has been imagined."""

from __future__ import annotations

from enum import Enum

from vla_reasoner_ros.search.parameters import Gate


class Verdict(str, Enum):
    """What the gate says."""

    OFF = "off"
    RUN = "run"
    SHORTEN = "shorten"
    SKIP = "skip"


def ask(gate: Gate, slope: float, disagreement: float) -> Verdict:
    """Decide from what the policy's own macro-action is imagined to bring.

    Args:
        gate: thresholds.
        slope: value after it less value now.
        disagreement: standard deviation of the value's ensemble after it; 0 without an ensemble.
    """
    if not gate.enabled:
        return Verdict.OFF
    if disagreement > gate.trust:
        return Verdict.SKIP
    if disagreement <= gate.agreement:
        if slope >= gate.skip_slope:
            return Verdict.SKIP
        if slope >= gate.shorten_slope:
            return Verdict.SHORTEN
    return Verdict.RUN
