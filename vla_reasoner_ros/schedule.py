"""When the next decision is due; live and replayed decisions follow the same rule."""

from __future__ import annotations

FORGIVEN = 0.25
"""Of an action's duration: cameras do not run on the grid of the actions."""


def is_due(stamp_ns: int, decided_ns: int | None, executed: int, dt: float) -> bool:
    """Whether an observation is to be decided on.

    Args:
        stamp_ns: its stamp.
        decided_ns: stamp of the last observation decided on; None at the beginning.
        executed: actions executed of each chunk.
        dt: seconds from one action to the next.
    """
    if decided_ns is None:
        return True
    passed = stamp_ns - decided_ns
    # What comes from before the last decision is a clock that jumped back: a new beginning.
    return passed >= (executed - FORGIVEN) * dt * 1e9 or passed < 0
