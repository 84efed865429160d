"""How far ahead of now a new motion starts: longer than it takes to plan it, learned as it goes."""

from __future__ import annotations

from collections import deque

REMEMBERED = 32  # planning times
SHARE = 2  # a motion is planned in at most one part in SHARE of the time until it starts


class LeadTime:
    """The time from now to the start of a motion that is still to be planned.

    On a machine that plans slowly it grows with the longest of the last planning times, and shrinks
    again when they are forgotten.
    """

    def __init__(self) -> None:
        self._spent_ns: deque[int] = deque(maxlen=REMEMBERED)

    def lead_ns(self, least_ns: int, most_ns: int) -> int:
        """The lead for the next motion, ns.

        Args:
            least_ns: what is asked for, ns; never less.
            most_ns: how far it may grow, ns.
        """
        return max(least_ns, min(SHARE * max(self._spent_ns, default=0), most_ns))

    def in_time(self, spent_ns: int, lead_ns: int) -> bool:
        """Remember how long planning took; whether its motion reaches the arm before it starts."""
        self._spent_ns.append(max(spent_ns, 0))
        return spent_ns <= 0 or SHARE * spent_ns <= lead_ns
