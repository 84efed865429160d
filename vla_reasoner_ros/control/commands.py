"""What the arm controller says: commands for the arm, answers to chunks, and its status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.types import FloatArray

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class TimedTrajectory:
    """A motion and when it starts.

    Attributes:
        start_ns: the time of the first knot, ns. Its state is the commanded one there.
        trajectory: the motion.
        known_ns: from this time on the arm's controller does exactly that, ns. Before it comes from
            where it is, which is known roughly: only what is later is told to it.
        rest: s, how long its message says to rest at the end, for one that arrives after the end.
    """

    start_ns: int
    trajectory: JointTrajectory
    known_ns: int = 0
    rest: float = 0.0

    @property
    def told(self) -> JointTrajectory:
        """The knots of its message, their times from ``start_ns``.

        joint_trajectory_controller of Jazzy remembers the state that it commands for the next cycle
        with the time of this one, and begins there what it interpolates to the first point of a
        message: a moving arm makes two cycles' way in one. So a message begins with the knot at its
        stamp, which is past when it arrives, and the controller goes on between the knots. Where it
        is not known to be in that state, it has to come to the first knot from where it is.
        """
        known = (self.known_ns - self.start_ns) / NANOSECONDS
        told = self.trajectory.knots_from(known)
        return told.resting_on(self.rest) if self.rest > 0.0 else told

    @property
    def end_ns(self) -> int:
        """When the arm has come to rest, ns."""
        return self.start_ns + round(self.trajectory.duration * NANOSECONDS)

    def at(self, time_ns: int) -> MotionState:
        """The commanded state at a time."""
        return self.trajectory.sample((time_ns - self.start_ns) / NANOSECONDS)

    def from_time(self, time_ns: int) -> JointTrajectory:
        """What is left of it at a time."""
        return self.trajectory.from_time((time_ns - self.start_ns) / NANOSECONDS)


@dataclass(frozen=True)
class Commands:
    """What is to be published now; None where nothing is.

    Attributes:
        trajectory: for the joint trajectory controller; replaces the running one.
        gripper: opening fraction, 0 closed to 1 open.
    """

    trajectory: TimedTrajectory | None = None
    gripper: float | None = None


NOTHING = Commands()


@dataclass(frozen=True)
class Accepted:
    """A chunk that passed every gate.

    Attributes:
        commands: what is to be published now; nothing in a dry run.
        motion: what was planned, in a dry run as well.
        trimmed: actions of the chunk that were past already.
        stretch: duration over the duration asked for; 1 when no limit came near.
        base: (J,) rad, the joints that displacements were added to.
    """

    commands: Commands
    motion: TimedTrajectory
    trimmed: int
    stretch: float
    base: FloatArray


class ControllerState(IntEnum):
    """As in ``ControllerStatus.msg``."""

    DRY_RUN = 0
    WAITING = 1
    EXECUTING = 2
    HOLDING = 3
    STOPPED = 4


@dataclass(frozen=True)
class ExecutorStatus:
    """The fields of ``ControllerStatus.msg``."""

    state: ControllerState
    reason: str
    sequence: int
    actions_consumed: int
    chunks_accepted: int
    chunks_rejected: int
    last_rejection: str
    tracking_error: float
    actions_frozen: int = 0
