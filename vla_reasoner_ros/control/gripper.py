"""When which gripper command is due."""

from __future__ import annotations

from collections import deque

from vla_reasoner_ros.types import FloatArray


class GripperSchedule:
    """Openings with their times; each is given out once, and only when it changes something."""

    def __init__(self) -> None:
        self._commands: deque[tuple[int, float]] = deque()
        self._sent: float | None = None

    def forget(self) -> None:
        """Drop all commands and what was sent last."""
        self.clear()
        self._sent = None

    def repeat(self) -> None:
        """What was sent last did not come about: it is given out again when it is asked for."""
        self._sent = None

    def clear(self) -> None:
        """Drop the commands that are not due yet; the gripper stays as it is."""
        self._commands.clear()

    def replace(self, dues: list[int], openings: FloatArray | None, first: int) -> None:
        """Take other commands.

        Args:
            dues: when each is due, ns, ascending; none, or one for each action from ``first`` on.
            openings: (H,) opening fractions of a chunk; None when it commands no gripper.
            first: the first action that is left of the chunk.
        """
        self.clear()
        if openings is not None and dues:
            self._commands.extend(zip(dues, openings[first:].tolist(), strict=True))

    def due(self, now_ns: int, inclusive: bool) -> float | None:
        """The newest opening that is due and not what was sent last, None when there is none.

        Args:
            now_ns: the time.
            inclusive: whether what is due exactly now counts. A chunk that arrives now would
                replace it, so that a mere passing of time does better to wait for the next look.
        """
        due: float | None = None
        while self._commands:
            when, opening = self._commands[0]
            if when > now_ns or (when == now_ns and not inclusive):
                break
            self._commands.popleft()
            due = opening
        if due is None or due == self._sent:
            return None
        self._sent = due
        return due
