"""The motion that the arm is told to make: how it is replaced, braked, repeated and taken back."""

from __future__ import annotations

from collections.abc import Callable

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory
from vla_reasoner_ros.control.echo import SentCommands
from vla_reasoner_ros.control.lead import LeadTime
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected, RejectionReason
from vla_reasoner_ros.control.reference import Reference
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.control.trajectory import (
    MIN_DURATION,
    JointTrajectory,
    MotionState,
    resting,
)
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

REPEATED_REST = 0.1  # s; a repeated motion ends that much later, to be there before its end
LEAD_ATTEMPTS = 3  # at planning a motion before it was to start


class RunningMotion:
    """Replaces the commanded motion by others, in time for the arm to take them.

    Args:
        robot: the arm.
        reference: what is commanded and measured.
        planner: of stops and of the way back.
        parameters: all parameters.
        clock: tells the time, ns; None when planning takes no time.

    Attributes:
        parameters: may be replaced at any time.
        stopping: the running motion is a stop.
        returning: the running motion brings the command back to where the arm is.
        settled_ns: when the first motion starts. Until then the arm's controller comes from where
            it was told to be to where the arm is, and no other motion may take over.
        left_at: (J,) rad, where the arm's controller was told to rest before the commanded position
            became the measured one; None when that is not known.
    """

    def __init__(
        self,
        robot: Robot,
        reference: Reference,
        planner: MotionPlanner,
        parameters: ControlParameters,
        clock: Callable[[], int] | None,
    ) -> None:
        self._robot = robot
        self._reference = reference
        self._planner = planner
        self._clock = clock
        self._lead, self._stop_lead = LeadTime(), LeadTime()
        self._sent = SentCommands()
        self.parameters = parameters
        self.forget()

    def forget(self) -> None:
        """There is no motion any more."""
        self.stopping = self.returning = False
        self.settled_ns = 0
        self.left_at: FloatArray | None = None

    def leave(self) -> None:
        """There is no motion any more, but the arm's controller still rests where it ended."""
        motion = self._reference.motion
        left_at = self.left_at if motion is None else motion.trajectory.end.position
        self.forget()
        self.left_at = left_at

    def run(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        """Make a motion the running one; what is to be sent for it."""
        settled_ns = motion.start_ns if self._reference.motion is None else self.settled_ns
        self.forget()
        self.settled_ns = settled_ns
        keep = self.parameters.chunk.max_observation_age + 1
        sent = self._reference.playback.follow(motion, now_ns, keep)
        self._sent.add(sent.start_ns, sent.trajectory.positions[-1])
        return sent

    def is_own(self, stamp_ns: int, last: FloatArray) -> bool:
        """Whether a command that was heard, by its stamp and last position (J,), was sent here."""
        return self._sent.has(stamp_ns, last)

    def lead_ns(self) -> int:
        """How far ahead of now a chunk's motion takes over at the earliest.

        The first one leaves time for the arm's controller to come from where it was told to be to
        where the arm is, which differ by what gravity makes of a position servo.
        """
        motion = self.parameters.motion
        first = self._reference.motion is None
        least = max(motion.lead_time, motion.settle_time) if first else motion.lead_time
        return self._grown_ns(self._lead, least)

    def switch_ns(self, now_ns: int) -> int:
        """When a chunk's motion takes over.

        Where the arm's controller was left somewhere, it gets as long for its way to where the arm
        is as a slow motion takes.

        Raises:
            ChunkRejected: that way would break a limit.
        """
        lead_ns = self.lead_ns()
        if self.left_at is not None:
            start = MotionState.at_rest(self.left_at)
            try:
                way = self._way_back(start)
            except TrajectoryError as error:
                text = (
                    f"the arm's way from where it was told to be to where it is: {error}; if "
                    "others have commanded it since, clean this node up and configure it anew"
                )
                raise ChunkRejected(RejectionReason.LIMIT, text) from error
            lead_ns = max(lead_ns, round(way.duration * NANOSECONDS))
        return max(now_ns + lead_ns, self.settled_ns)

    def spent_ns(self, since_ns: int) -> int:
        """How long planning has taken since a time, ns."""
        return 0 if self._clock is None else self._clock() - since_ns

    def in_time(self, spent_ns: int, lead_ns: int) -> bool:
        """Remember how long planning a chunk took; whether its motion starts late enough."""
        return self._lead.in_time(spent_ns, lead_ns)

    def can_brake(self, now_ns: int) -> bool:
        """Whether there is a motion to brake, which is no stop already."""
        return self._reference.moving(now_ns) and not self.stopping

    def brake(self, now_ns: int) -> TimedTrajectory | None:
        """Replace the running motion by the fastest stop; None when it ends before that begins."""
        motion = self._reference.motion
        assert motion is not None  # can_brake said so
        if self.returning:
            return self._brake_return(motion, now_ns)
        for _ in range(LEAD_ATTEMPTS):  # the last one counts, however long it took
            lead_ns = self._grown_ns(self._stop_lead, self.parameters.motion.stop_lead_time)
            switch_ns = max(now_ns + lead_ns, self.settled_ns)
            if switch_ns >= motion.end_ns:
                return None
            stop = self._planner.stop(motion.at(switch_ns))
            spent_ns = self.spent_ns(now_ns)
            if self._stop_lead.in_time(spent_ns, lead_ns):
                break
            now_ns += spent_ns
        sent = self.run(TimedTrajectory(switch_ns, stop), now_ns)
        self.stopping = True
        return sent

    def _brake_return(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory | None:
        """Stop on the way back, where the arm's controller may be anywhere between its ends.

        It is slow, and only the end of the stop is sent.
        """
        measured = self._reference.joints.newest.positions
        stop = self._planner.ease_out_of_return(motion.at(now_ns), measured, self._delivery)
        if now_ns + round(stop.duration * NANOSECONDS) >= motion.end_ns:
            return None
        sent = self.run(TimedTrajectory(now_ns, stop), now_ns)
        self.stopping = True
        return sent

    def ease_out(self, state: MotionState, settles: float, now_ns: int) -> TimedTrajectory:
        """Stop gently from a state that is known roughly.

        Args:
            state: the commanded one.
            settles: s, how long the arm's controller still needs to come to it.
            now_ns: the time.
        """
        if settles > 0.0:
            pause = max(settles, self._shortest)
            stop = resting(self._robot.joint_names, state.position, pause)
        else:
            stop = self._planner.ease_out(state, self._shortest)
        sent = self.run(TimedTrajectory(now_ns, stop), now_ns)
        self.stopping = True
        return sent

    def back(self, now_ns: int) -> TimedTrajectory:
        """Bring the command from where it rests to where the arm is.

        Raises:
            TrajectoryError: the way would break a limit.
        """
        motion = self._way_back(self._reference.commanded(now_ns))
        sent = self.run(TimedTrajectory(now_ns, motion), now_ns)
        self.returning = True
        return sent

    def _way_back(self, start: MotionState) -> JointTrajectory:
        arm = self._reference.joints.newest.positions
        return self._planner.back(start, arm, self._shortest)

    @property
    def _delivery(self) -> float:
        """The longest that a stop may take to the arm, s."""
        return self._grown_ns(self._stop_lead, self.parameters.motion.stop_lead_time) / NANOSECONDS

    @property
    def _shortest(self) -> float:
        """How long what begins at once must take, s, so that it has not ended when it arrives."""
        return max(MIN_DURATION, 2.0 * self._delivery)

    def repeated(self, now_ns: int) -> TimedTrajectory | None:
        """What is left of the motion, or rest where it ended; None before the first."""
        motion = self._reference.motion
        if motion is None:
            return None
        pause = self.parameters.motion.lead_time + REPEATED_REST
        trajectory = resting(self._robot.joint_names, motion.trajectory.end.position, pause)
        if self._reference.moving(now_ns):
            rest = motion.from_time(now_ns)
            trajectory = rest.then(rest.duration, trajectory)
        self._sent.add(now_ns, trajectory.positions[-1])
        return TimedTrajectory(now_ns, trajectory)

    def _grown_ns(self, lead: LeadTime, least: float) -> int:
        most = self.parameters.motion.max_lead_time
        return lead.lead_ns(round(least * NANOSECONDS), round(most * NANOSECONDS))
