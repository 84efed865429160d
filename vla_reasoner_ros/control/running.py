"""The motion that the arm is told to make: how it is replaced, braked, repeated and taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory
from vla_reasoner_ros.control.echo import SentCommands
from vla_reasoner_ros.control.lead import SHARE, LeadTime
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.outputs import Tracking
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.playback import CYCLES_NS
from vla_reasoner_ros.control.queue import ChunkRejected, RejectionReason
from vla_reasoner_ros.control.reference import Reference
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.control.stopping import SOFTLY, STOP_REST
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
        self._lead = LeadTime()
        self._sent = SentCommands()
        self.parameters = parameters
        self.forget()

    def forget(self) -> None:
        """There is no motion any more."""
        self.stopping = self.returning = False
        self.left_at: FloatArray | None = None
        self._approach: TimedTrajectory | None = None  # its way until the motion is known

    def leave(self) -> None:
        """There is no motion any more, but the arm's controller still rests where it ended."""
        motion = self._reference.motion
        left_at = self.left_at if motion is None else motion.trajectory.end.position
        self.forget()
        self.left_at = left_at

    def run(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        """Make a motion the running one; what is to be sent for it."""
        self.forget()
        keep = self.parameters.chunk.max_observation_age + 1
        sent = self._reference.playback.follow(motion, now_ns, keep)
        self._sent.add(sent.start_ns, sent.trajectory.positions[-1])
        return sent

    def take_over(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        """The same for a chunk's motion, which starts at :meth:`switch_ns`."""
        approach = None
        if self.left_at is not None:
            wait = (motion.start_ns - now_ns) / NANOSECONDS
            way = self._way_back(MotionState.at_rest(self.left_at), wait)
            approach = TimedTrajectory(now_ns, way)
        sent = self.run(motion, now_ns)
        self._approach = approach
        return sent

    def run_foreign(self, motion: TimedTrajectory, now_ns: int) -> None:
        """Know what someone else makes the arm do; until ``known_ns`` only roughly."""
        self.run(motion, now_ns)
        self._approach = motion

    def resend(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        """What is left of a motion, to be sent."""
        self._sent.add(now_ns, motion.trajectory.positions[-1])
        return replace(motion, start_ns=now_ns, trajectory=motion.from_time(now_ns))

    def is_own(self, stamp_ns: int, last: FloatArray) -> bool:
        """Whether a command that was heard, by its stamp and last position (J,), was sent here."""
        return self._sent.has(stamp_ns, last)

    @property
    def known_ns(self) -> int:
        """From when on the arm's controller does exactly what it was told, ns.

        Until then it comes from where it was to where the motion is, and no chunk may take over: it
        would begin the rest of that way with a step.
        """
        motion = self._reference.motion
        return 0 if motion is None else motion.known_ns

    def lead_ns(self) -> int:
        """How far ahead of now a chunk's motion takes over at the earliest.

        The first one leaves time for the arm's controller to come from where it was told to be to
        where the arm is, which differ by what gravity makes of a position servo.
        """
        motion = self.parameters.motion
        first = self._reference.motion is None
        least = max(motion.lead_time, motion.settle_time) if first else motion.lead_time
        most = motion.max_lead_time
        return self._lead.lead_ns(round(least * NANOSECONDS), round(most * NANOSECONDS))

    def switch_ns(self, now_ns: int) -> int:
        """When a chunk's motion takes over.

        Where the arm's controller was left somewhere, it gets as long for its way to where the arm
        is as a slow motion takes. Where the arm rests, it gets the time to come from where the arm
        is measured, in case it has been started anew there since.

        Raises:
            ChunkRejected: that way would break a limit.
        """
        lead_ns = self.lead_ns()
        motion, arm = self._reference.motion, self._reference.joints.newest.positions
        by_joints = self._reference.tracking is Tracking.JOINTS
        if by_joints and motion is not None and now_ns >= motion.end_ns:
            way = self._planner.from_anywhere(arm, motion.trajectory.end.position)
            lead_ns = max(lead_ns, round(way.duration * NANOSECONDS))
        if self.left_at is not None:
            try:
                way = self._way_back(MotionState.at_rest(self.left_at), self._shortest)
            except TrajectoryError as error:
                text = (
                    f"the arm's way from where it was told to be to where it is: {error}; if "
                    "others have commanded it since, clean this node up and configure it anew"
                )
                raise ChunkRejected(RejectionReason.LIMIT, text) from error
            lead_ns = max(lead_ns, round(way.duration * NANOSECONDS))
        return now_ns + lead_ns

    def spent_ns(self, since_ns: int) -> int:
        """How long planning has taken since a time, ns."""
        return 0 if self._clock is None else self._clock() - since_ns

    def in_time(self, spent_ns: int, lead_ns: int) -> bool:
        """Remember how long planning a chunk took; whether its motion starts late enough."""
        return self._lead.in_time(spent_ns, lead_ns)

    def can_brake(self, now_ns: int) -> bool:
        """Whether there is a motion to brake, which is no stop already."""
        return self._reference.moving(now_ns) and not self.stopping

    def doubt(self, now_ns: int) -> None:
        """The arm's controller is not known to do what it was told, before the motion ends."""
        if self._reference.moving(now_ns):
            self._reference.playback.doubt()

    def comes_from_nowhere(self, now_ns: int) -> bool:
        """Whether nothing is known of how the arm's controller comes to the motion's start."""
        motion = self._reference.motion
        return (
            motion is not None and now_ns < motion.known_ns and self._about(motion, now_ns) is None
        )

    def _about(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory | None:
        """What the arm's controller does about, where nothing is known better; None: not even that.

        Without a joint state that does not help.
        """
        if now_ns >= motion.known_ns or not self._reference.joints:
            return None
        return motion if motion.known_ns >= motion.end_ns else self._approach

    def brake(self, now_ns: int) -> TimedTrajectory | None:
        """Replace the running motion by the fastest stop; None when it ends before that begins."""
        motion = self._reference.motion
        assert motion is not None  # can_brake said so
        about = self._about(motion, now_ns)
        if about is not None:
            return self._brake_about(about, now_ns)
        lead_ns = least_ns = round(self._delivery * NANOSECONDS)
        most_ns = round(self.parameters.motion.max_lead_time * NANOSECONDS)
        for _ in range(LEAD_ATTEMPTS):  # the last one counts, however long it took
            switch_ns = max(now_ns + lead_ns, motion.known_ns)
            if switch_ns >= motion.end_ns:
                return None
            stop = self._planner.stop(motion.at(switch_ns))
            spent_ns = self.spent_ns(now_ns)
            if SHARE * spent_ns <= lead_ns:
                break
            now_ns += spent_ns
            lead_ns = max(least_ns, min(SHARE * spent_ns, most_ns))
        return self._run_stop(TimedTrajectory(switch_ns, stop, rest=STOP_REST), now_ns)

    def _brake_about(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory | None:
        """Stop on a way of which the arm's controller may be anywhere between its ends.

        It is slow, and only the end of the stop is sent.
        """
        measured = self._reference.joints.newest.positions
        stop = self._planner.ease_out_of_return(motion.at(now_ns), measured, self._delivery)
        if now_ns + round(stop.duration * NANOSECONDS) >= motion.end_ns:
            return None
        return self._run_stop(self._to_end_of(stop, now_ns), now_ns)

    def ease_out(self, state: MotionState, settles: float, now_ns: int) -> TimedTrajectory:
        """Stop gently from a state that is known roughly.

        Args:
            state: the commanded one.
            settles: s, how long the arm's controller still needs to come to it.
            now_ns: the time.
        """
        shortest = max(self._shortest, SOFTLY)
        if settles > 0.0:
            stop = resting(self._robot.joint_names, state.position, max(settles, shortest))
        else:
            stop = self._planner.ease_out(state, shortest)
        return self._run_stop(self._to_end_of(stop, now_ns), now_ns)

    def _to_end_of(self, stop: JointTrajectory, now_ns: int) -> TimedTrajectory:
        """A stop of which only the end is told."""
        end_ns = now_ns + round(stop.duration * NANOSECONDS)
        return TimedTrajectory(now_ns, stop, known_ns=end_ns, rest=STOP_REST)

    def _run_stop(self, stop: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        sent = self.run(stop, now_ns)
        self.stopping = True
        return sent

    def back(self, now_ns: int) -> TimedTrajectory:
        """Bring the command from where it rests to where the arm is.

        Raises:
            TrajectoryError: the way would break a limit.
        """
        way = self._way_back(self._reference.commanded(now_ns), self._shortest)
        end_ns = now_ns + round(way.duration * NANOSECONDS)
        sent = self.run(TimedTrajectory(now_ns, way, known_ns=end_ns), now_ns)
        self.returning = True
        return sent

    def _way_back(self, start: MotionState, least: float) -> JointTrajectory:
        return self._planner.back(start, self._reference.joints.newest.positions, least)

    @property
    def _delivery(self) -> float:
        """The longest that a stop may take to the arm, s."""
        return min(self.parameters.motion.stop_lead_time, self.parameters.motion.max_lead_time)

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
        if now_ns >= motion.end_ns + CYCLES_NS:
            rest = resting(self._robot.joint_names, motion.trajectory.end.position, pause)
            motion = TimedTrajectory(now_ns, rest, now_ns + round(pause * NANOSECONDS))
        return replace(self.resend(motion, now_ns), rest=pause)
