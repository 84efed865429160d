"""What became of the goals that an action server was given: the newest counts.

A goal that replaces a running one ends that one, and servers say so in their own way and in any
order of messages; only what is said of the newest goal, or an error that no replacement explains,
is a failure.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory

REPLACED = ("INVALID_GOAL", "CANCELED")
"""What servers say of a goal that another one has replaced (joint_trajectory_controller of Jazzy
aborts it with INVALID_GOAL)."""


@dataclass(frozen=True)
class Failure:
    """The arm does not do as it was told.

    Attributes:
        reason: why, in words.
        playing: the goal that the server still works on, and its motion; None when there is none.
    """

    reason: str
    playing: tuple[int, TimedTrajectory] | None


@dataclass(frozen=True)
class _Goal:
    number: int
    motion: TimedTrajectory
    sent_wall: float


class Goals:
    """Keeps account of the goals of one action.

    Args:
        name: of the action, for reasons.
        answer_timeout: how long the server may take to accept a goal, s of a monotonic clock.
        result_timeout: how long after the end of its motion a goal may still be under way, s of
            the node's clock.
    """

    def __init__(self, name: str, answer_timeout: float, result_timeout: float) -> None:
        self._name = name
        self._answer_timeout = answer_timeout
        self._result_timeout_ns = round(result_timeout * 1e9)
        self._count = 0
        self._newest = 0  # its number while nothing final was said of it, else 0
        self._unanswered: dict[int, _Goal] = {}
        self._playing: _Goal | None = None

    def sent(self, motion: TimedTrajectory, wall: float) -> int:
        """A goal is sent; its number.

        Args:
            motion: what it asks for.
            wall: monotonic, s.
        """
        self._count += 1
        self._newest = self._count
        self._unanswered[self._count] = _Goal(self._count, motion, wall)
        return self._count

    def forget(self) -> None:
        """Nothing that is still said matters."""
        self._newest = 0
        self._unanswered.clear()
        self._playing = None

    def accepted(self, number: int) -> bool:
        """The server works on a goal; whether it is still to."""
        goal = self._unanswered.pop(number, None)
        if goal is None:
            return False
        if self._playing is None or self._playing.number < number:
            self._playing = goal
        return True

    def rejected(self, number: int) -> Failure | None:
        """The server refused a goal, and goes on with the one before."""
        known = self._unanswered.pop(number, None)
        if known is None or number != self._newest:
            return None
        return self._failure("a goal was rejected")

    def ended(self, number: int, code: str, text: str) -> Failure | None:
        """A goal came to its end.

        Args:
            number: of the goal.
            code: name of the result's error code, or of the goal's status; empty for success.
            text: what else the server says.
        """
        if self._playing is not None and self._playing.number == number:
            self._playing = None
        newest = number == self._newest
        if newest:
            self._newest = 0
        if not code or (code in REPLACED and not newest):
            return None
        return self._failure(f"{code}: {text}" if text else code)

    def lost(self, reason: str) -> Failure:
        """A goal could not even be sent."""
        return self._failure(reason)

    def look(self, now_ns: int, wall: float) -> Failure | None:
        """What should have been said by now and was not.

        Args:
            now_ns: the time.
            wall: monotonic, s.
        """
        unanswered = self._unanswered.get(self._newest)
        if unanswered is not None:
            waited = wall - unanswered.sent_wall
            if waited <= self._answer_timeout:
                return None
            return self._failure(
                f"no answer to a goal for {waited:.3f} s, allowed are {self._answer_timeout:g} s"
            )
        if self._playing is None or self._playing.number != self._newest:
            return None
        motion = self._playing.motion
        late_ns = now_ns - motion.end_ns - round(motion.rest * NANOSECONDS)
        if late_ns <= self._result_timeout_ns:
            return None
        self._playing = None
        return self._failure(f"no result {1e-9 * late_ns:.3f} s after the end of the motion")

    def _failure(self, reason: str) -> Failure:
        """What is still unanswered is not wanted any more, should it be accepted."""
        self._newest = 0
        self._unanswered.clear()
        playing = self._playing
        return Failure(
            f"{self._name}: {reason}", (playing.number, playing.motion) if playing else None
        )
