"""What was commanded, is commanded and will be: the running motion and those before it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory
from vla_reasoner_ros.control.trajectory import MotionState, resting
from vla_reasoner_ros.types import FloatArray

CYCLES_NS = 5_000_000  # two cycles of an arm's controller at 500 Hz: it rests so long after an end


class Playback:
    """The motion that the arm's controller plays, and its history.

    Args:
        joint_names: the J joints.
    """

    def __init__(self, joint_names: tuple[str, ...]) -> None:
        self._joint_names = joint_names
        self._motions: deque[tuple[int, TimedTrajectory]] = deque()

    @property
    def motion(self) -> TimedTrajectory | None:
        """The newest motion, at its end perhaps; None before the first."""
        return self._motions[-1][1] if self._motions else None

    def clear(self) -> None:
        """Forget everything."""
        self._motions.clear()

    def moving(self, now_ns: int) -> bool:
        """Whether a motion has not ended yet."""
        motion = self.motion
        return motion is not None and now_ns < motion.end_ns

    def state(self, time_ns: int) -> MotionState | None:
        """The state that the newest motion commands at a time; None before the first."""
        motion = self.motion
        return None if motion is None else motion.at(time_ns)

    def position_then(self, time_ns: int) -> FloatArray | None:
        """The joints (J,) that were commanded at an earlier time; None before the first motion."""
        for since_ns, motion in reversed(self._motions):
            if since_ns <= time_ns:
                return motion.at(time_ns).position
        return None

    def shift(self, offset: FloatArray) -> None:
        """Count all that was commanded from elsewhere: (J,) rad on top."""
        self._motions = deque(
            (since_ns, replace(motion, trajectory=motion.trajectory.shifted(offset)))
            for since_ns, motion in self._motions
        )

    def doubt(self) -> None:
        """Count the newest motion as known at its end only."""
        since_ns, motion = self._motions.pop()
        self._motions.append((since_ns, replace(motion, known_ns=motion.end_ns)))

    def follow(self, motion: TimedTrajectory, now_ns: int, keep: float) -> TimedTrajectory:
        """Let a motion take over when it starts; until then the running one goes on.

        The arm's controller is as well known to be where it should be as in the running motion. At
        rest that is found out from the new motion's start on, until when it may come from anywhere
        near.

        Args:
            motion: starts now or later, in the state that is commanded then.
            now_ns: the time.
            keep: seconds for which what was commanded must be remembered.

        Returns:
            The whole motion from now on, to be sent.
        """
        lead = (motion.start_ns - now_ns) / NANOSECONDS
        if lead > 0.0:
            running = self.motion
            if running is None or now_ns >= running.end_ns + CYCLES_NS:
                head = resting(self._joint_names, motion.trajectory.positions[0], lead)
                known_ns = motion.start_ns
            else:
                head, known_ns = running.from_time(now_ns), running.known_ns
            whole = head.then(lead, motion.trajectory)
            motion = TimedTrajectory(now_ns, whole, max(known_ns, motion.known_ns), motion.rest)
        self._motions.append((now_ns, motion))
        oldest = now_ns - round(keep * NANOSECONDS)
        while len(self._motions) > 1 and self._motions[1][0] < oldest:
            self._motions.popleft()
        return motion
