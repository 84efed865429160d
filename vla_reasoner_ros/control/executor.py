"""The arm controller without ROS: chunks and joint states in, trajectories out, every gate between.

All times are integer nanoseconds of one clock, given by the caller, so that simulated time works.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vla_reasoner_ros.control.chunk_motion import ChunkMotionMaker
from vla_reasoner_ros.control.commands import (
    NANOSECONDS,
    NOTHING,
    Accepted,
    Commands,
    ControllerState,
    ExecutorStatus,
    TimedTrajectory,
)
from vla_reasoner_ros.control.echo import as_played
from vla_reasoner_ros.control.gripper import GripperSchedule
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.outputs import Tracking
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkQueue, ChunkRejected, RejectionReason
from vla_reasoner_ros.control.reference import Reference
from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.control.running import LEAD_ATTEMPTS, RunningMotion
from vla_reasoner_ros.control.stops import Hold, ResetRefused, Stops
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.control.watchdog import Watchdog
from vla_reasoner_ros.errors import ConfigurationError, ObservationError, TrajectoryError
from vla_reasoner_ros.types import ActionChunk, ActionSpec, ChunkSource, FloatArray

__all__ = [
    "Accepted",
    "ChunkExecutor",
    "ChunkRejected",
    "Commands",
    "ControllerState",
    "ExecutorStatus",
    "ResetRefused",
    "TimedTrajectory",
]


class ChunkExecutor:
    """Turns chunks into motion of one arm, and stops it when something is wrong.

    Call :meth:`measured` with every joint state, :meth:`submit` with every chunk and :meth:`tick`
    at least every ``watchdog.period``; publish the :class:`Commands` that :meth:`submit`,
    :meth:`tick`, :meth:`hold`, :meth:`emergency_stop` and :meth:`stop` return. When
    ``enable_control`` is false all of them are empty, though everything is computed and checked.

    A motion always ends at rest, so when chunks stop coming the arm stops by itself. It stops
    earlier, by deceleration within the robot's limits, when

    - joint states are missing or older than ``watchdog.max_joint_state_age`` (ends by itself),
    - the arm does not follow, or its controller plays slower than told (ends after the command has
      gone back to where the arm is),
    - the clock stands still though real time passes (ends by itself),
    - someone else commands the arm, or its controller fails (needs :meth:`reset`),
    - joint positions jump as no arm can (needs :meth:`reset`),
    - :meth:`hold` says so (until :meth:`release`),
    - the emergency stop is set (until it is cleared and :meth:`reset` is called).

    After each of these, only chunks from newer observations are taken.

    Time that jumps back (a bag that starts over, a simulator's reset) ends the motion likewise, and
    chunks and joint states start anew. After an episode reset that moved the arm by other means,
    call :meth:`reset_reference`: the next joint state becomes the commanded one.

    Not thread-safe: call it from one thread or under one lock.

    Args:
        parameters: all parameters; ``robot`` and ``limits`` are read once.
        urdf: text of a URDF whose kinematics replace the robot file's; empty for none.
        action_spec: the only convention to take; None takes the first chunk's from then on.
        clock: tells the time, ns. With it, a motion whose planning used up more than half of its
            lead is planned again with a longer one, up to ``motion.max_lead_time``, since it could
            reach the arm after its start.
        tracking: what the arm's own controller follows.

    Attributes:
        parameters: the parameters in force.
        robot: the robot with the limits in force.
        kinematics: its kinematics.

    Raises:
        ConfigurationError: no such robot, a broken robot file or URDF, or a convention that the
            robot cannot follow.
    """

    def __init__(
        self,
        parameters: ControlParameters,
        urdf: str = "",
        action_spec: ActionSpec | None = None,
        clock: Callable[[], int] | None = None,
        tracking: Tracking = Tracking.JOINTS,
    ) -> None:
        self.parameters = parameters
        self.robot: Robot = load_robot(parameters.robot, parameters.limits)
        self.kinematics = Kinematics(self.robot, urdf)
        self._motions = ChunkMotionMaker(self.kinematics, parameters, action_spec)
        self._queue = ChunkQueue(parameters.chunk)
        self._reference = Reference(self.kinematics, parameters, tracking)
        self._running = RunningMotion(
            self.robot, self._reference, self._motions.planner, parameters, clock
        )
        self._gripper = GripperSchedule()
        self._stops = Stops()
        self._watchdog = Watchdog(self._reference, self._stops, parameters.watchdog)
        self._accepted = 0
        self._rejected = 0
        self._last_rejection = ""
        self._now_ns: int | None = None
        self._pending: TimedTrajectory | None = None

    def set_parameters(self, parameters: ControlParameters, now_ns: int) -> Commands:
        """Use other parameters from now on; all or nothing.

        Args:
            parameters: the new values; ``robot`` and ``limits`` must be the same.
            now_ns: the time.

        Returns:
            A decelerating hold when control was just disabled.

        Raises:
            ConfigurationError: another robot, or parameters that cannot work.
        """
        self.check_parameters(parameters)
        self._follow_clock(now_ns)
        old = self.parameters
        self._motions.set_parameters(parameters)
        disabled = old.enable_control and not parameters.enable_control
        self.parameters = parameters
        self._queue.parameters = parameters.chunk
        self._reference.parameters = self._running.parameters = parameters
        self._watchdog.parameters = parameters.watchdog
        commands = self._decelerate(now_ns, last=True) if disabled else NOTHING
        if old.enable_control != parameters.enable_control:
            self._leave(now_ns)
        return commands

    def check_parameters(self, parameters: ControlParameters) -> None:
        """Refuse what :meth:`set_parameters` would refuse; nothing changes.

        Raises:
            ConfigurationError: another robot, or parameters that cannot work.
        """
        old = self.parameters
        if (parameters.robot, parameters.limits) != (old.robot, old.limits):
            raise ConfigurationError(
                f"parameters robot, limits: fixed at {old.robot!r}, {old.limits!r}; got "
                f"{parameters.robot!r}, {parameters.limits!r}"
            )
        self._motions.check_parameters(parameters)

    # -- what the arm says ------------------------------------------------------------------

    def measured(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> None:
        """Take a joint state.

        One that is older than the last is ignored; one of the same stamp replaces it.

        Args:
            stamp_ns: when it was measured, ns.
            positions: (J,) rad, in the robot's order.
            velocities: (J,) rad/s.

        Raises:
            ObservationError: wrong width, a number not finite, or a stamp far ahead of the clock.
        """
        jump = self._reference.joints.add(stamp_ns, positions, velocities, self._now_ns)
        if jump:
            self._stops.hold = Hold(f"{jump}; reset when this is explained", latched=True)

    def speed_scaled(self, percent: float, now_ns: int) -> None:
        """Hear how fast the arm's controller plays what it is told; the next tick stops the arm.

        Below 100 the arm falls behind its command by an unknown way, so that what is sent next
        would begin with a step.

        Args:
            percent: of the time that passes, 0 to 100, as ``speed_scaling_state_broadcaster`` of
                Universal Robots has it; what was never heard is 100.
            now_ns: the time.

        Raises:
            ObservationError: not a number from 0 on.
        """
        if not 0.0 <= percent < math.inf:
            raise ObservationError(f"speed_scaling: expected a percentage from 0 on, got {percent}")
        self._watchdog.speed = percent
        if self._watchdog.scaled_down:
            self._running.doubt(now_ns)

    # -- what the planner says --------------------------------------------------------------

    def submit(self, chunk: ActionChunk, now_ns: int) -> Accepted:
        """Plan a chunk and make it the running motion, or refuse it whole.

        Raises:
            ChunkRejected: the reason and the text say which gate refused it; the running motion
                goes on to its rest.
        """
        self._follow_clock(now_ns)
        try:
            accepted = self._take(chunk, now_ns)
        except ChunkRejected as rejection:
            self.reject(f"chunk {chunk.sequence}: {rejection}")
            raise
        self._accepted += 1
        return accepted

    def reject(self, text: str) -> None:
        """Count a chunk as refused: one that could not even be read."""
        self._rejected += 1
        self._last_rejection = text

    def _take(self, chunk: ActionChunk, now_ns: int) -> Accepted:
        enabled = self.parameters.enable_control
        self._motions.require_convention(chunk.spec)
        for _ in range(LEAD_ATTEMPTS):
            self._require_free(now_ns)
            self._queue.require_acceptable(chunk, now_ns)
            self._require_known(now_ns)
            if not self._reference.moving(now_ns):
                self._reference.adopt()
            switch_ns = self._running.switch_ns(now_ns)
            start = self._reference.commanded(switch_ns)
            trimmed = self._queue.trim(chunk, switch_ns)
            base = self._reference.at_observation(chunk.observation_stamp_ns)
            plan = self._motions.make(chunk, trimmed, base, start, switch_ns)
            spent_ns = self._running.spent_ns(now_ns)
            if self._running.in_time(spent_ns, switch_ns - now_ns):
                break
            now_ns += spent_ns
        else:
            raise ChunkRejected(
                RejectionReason.LATE,
                f"planning the motion took {1e-6 * spent_ns:.1f} ms, and it was to start after "
                f"{1e-6 * (switch_ns - now_ns + spent_ns):.1f} ms",
            )
        motion = TimedTrajectory(switch_ns, plan.trajectory)
        arrivals = plan.arrivals.tolist() if enabled else []
        ends = [switch_ns + round(arrival * NANOSECONDS) for arrival in arrivals]
        self._queue.commit(chunk, trimmed, switch_ns, ends)
        commands = NOTHING
        if enabled:
            self._motions.taken(plan, trimmed, switch_ns)
            sent = self._running.take_over(motion, now_ns)
            at_end = self.parameters.gripper.due == "end"
            dues = ends if at_end else [switch_ns, *ends][:-1]
            # A hold knows what the gripper measures: told that, it would let go of a wide object.
            openings = None if chunk.source is ChunkSource.HOLD else plan.openings
            self._gripper.replace(dues, openings, trimmed.first)
            commands = Commands(sent, self._gripper.due(now_ns, inclusive=True))
        return Accepted(commands, motion, trimmed.first, plan.stretch, base)

    def _require_free(self, now_ns: int) -> None:
        self._stops.require_none()
        problem = self._reference.problem(now_ns)
        must_stand = self.parameters.enable_control and self._reference.starts_measured(now_ns)
        problem = problem or (self._reference.joints.motion() if must_stand else "")
        if problem:
            raise ChunkRejected(RejectionReason.JOINT_STATE, problem)

    def _require_known(self, now_ns: int) -> None:
        unknown_ns = self._running.known_ns - now_ns
        if unknown_ns > 0:
            raise ChunkRejected(
                RejectionReason.HOLDING,
                f"the arm's controller still comes to where the arm is, for "
                f"{unknown_ns / NANOSECONDS:.3f} s",
            )

    # -- time -------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> Commands:
        """Look after the arm: due gripper commands, stops, and what follows a stop."""
        self._follow_clock(now_ns)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return Commands(pending)
        enabled = self.parameters.enable_control
        if self._watchdog.look(now_ns) if enabled else self._watchdog.recover(now_ns):
            self._interrupt(now_ns)
        if not enabled:
            return NOTHING
        if not self._stops.any:
            return Commands(None, self._gripper.due(now_ns, inclusive=False))
        self._gripper.clear()
        resync = self._stops.hold is not None and self._stops.hold.resync
        returning = self._running.returning and resync and not self._reference.problem(now_ns)
        if self._running.can_brake(now_ns) and not returning:
            return self._decelerate(now_ns)
        return self._after_stop(now_ns)

    def wall_tick(self, now_ns: int, wall: float) -> Commands:
        """Look whether the clock still goes; to be called by a clock that nothing stops.

        Args:
            now_ns: the time.
            wall: that other clock, s.
        """
        enabled = self.parameters.enable_control
        if not (enabled and self._watchdog.clock_stands(now_ns, wall)):
            return NOTHING
        return self._decelerate(now_ns)

    def heard(self, points: JointTrajectory, stamp_ns: int, now_ns: int) -> Commands:
        """Hear a command on its way to the arm; one that is not ours is decelerated from.

        Args:
            points: the message: its points with their times from ``stamp_ns``.
            stamp_ns: when it starts, ns; 0 means now.
            now_ns: the time.

        Raises:
            TrajectoryError: the arm would not play it, so that nothing has changed.
        """
        if self._running.is_own(stamp_ns, points.positions[-1]):
            return NOTHING
        if not self.parameters.enable_control:
            self._running.left_at = None  # others take the arm's controller elsewhere
            return NOTHING
        self._follow_clock(now_ns)
        joints = self.robot.joint_names
        played = as_played(joints, points, stamp_ns, now_ns, self.commanded)
        self._hold_intruder(now_ns)
        self._running.run_foreign(played, now_ns)
        return self._decelerate(now_ns)

    def intruded(self, now_ns: int, played: bool = True) -> Commands:
        """Someone else commands the arm, in a way that says nothing of its motion.

        Args:
            now_ns: the time.
            played: whether the arm's controller may take it.

        Returns:
            A gentle stop from what was commanded until now; nothing where that is not known.
        """
        if not self.parameters.enable_control:
            self._running.left_at = None  # others take the arm's controller elsewhere
            return NOTHING
        self._follow_clock(now_ns)
        self._hold_intruder(now_ns)
        if not played:
            return self._decelerate(now_ns)
        self._gripper.clear()
        state, self._pending = self.commanded(now_ns), None
        if state is None:
            return NOTHING
        return Commands(self._running.ease_out(state, 0.0, now_ns))

    def _hold_intruder(self, now_ns: int) -> None:
        self._interrupt(now_ns)
        self._stops.hold = Hold(
            "someone else commands the arm; reset when this is explained", latched=True
        )

    def failed(self, reason: str, playing: TimedTrajectory | None, now_ns: int) -> Commands:
        """The arm's controller does not do as it was told: stop it, until :meth:`reset`.

        Args:
            reason: why, in its words.
            playing: what it does instead; None when it stands, or comes to a stand by itself.
            now_ns: the time.

        Returns:
            A deceleration of what it does; nothing when that is what it refused.
        """
        if not self.parameters.enable_control:
            return NOTHING
        self._follow_clock(now_ns)
        self._pending = None
        refused = self._running.stopping
        self._interrupt(now_ns)
        self._gripper.clear()
        self._stops.hold = Hold(f"{reason}; reset when this is explained", latched=True)
        if playing is None or now_ns >= playing.end_ns:
            self._running.leave()
            self._reference.playback.clear()
            return NOTHING
        rest = playing.from_time(now_ns)
        self._running.run(TimedTrajectory(now_ns, rest, playing.known_ns), now_ns)
        if refused:
            self._running.stopping = True
            return NOTHING
        return self._decelerate(now_ns)

    def gripper_failed(self) -> None:
        """The gripper did not do what was commanded last: the next chunk may command it again."""
        self._gripper.repeat()

    def repeat(self, now_ns: int) -> Commands:
        """What is left of the running motion, or rest where it ended, once more.

        It changes nothing; it answers a simulator that waits for a trajectory when a chunk was
        refused.
        """
        if not self.parameters.enable_control or self._stops.latched:
            return NOTHING
        return Commands(self._running.repeated(now_ns))

    # -- stops ------------------------------------------------------------------------------

    def hold(self, now_ns: int, reason: str = "hold requested") -> Commands:
        """Decelerate to rest and refuse chunks until :meth:`release`."""
        self._follow_clock(now_ns)
        self._stops.requested = reason
        return self._decelerate(now_ns)

    def release(self, now_ns: int) -> None:
        """End a :meth:`hold`; chunks from observations since now are taken."""
        if self._stops.requested:
            self._stops.requested = ""
            self._interrupt(now_ns)

    def emergency_stop(self, active: bool, now_ns: int) -> Commands:
        """Set or clear the emergency stop; setting it latches until :meth:`reset`."""
        self._follow_clock(now_ns)
        self._stops.emergency = active
        if not active:
            return NOTHING
        self._stops.latched = True
        return self._decelerate(now_ns)

    def stop(self, now_ns: int) -> Commands:
        """Decelerate to rest once, as before a shutdown; no state changes."""
        self._follow_clock(now_ns)
        return self._decelerate(now_ns, last=True)

    def reset(self, now_ns: int) -> None:
        """End the latched stop and every hold; chunks from observations since now are taken.

        The next joint state becomes the commanded one, and the next motion leaves the arm's
        controller time to come there slowly: whatever stopped it, it may have started anew where
        the arm was then, or still be where it was told to be.

        Raises:
            ResetRefused: the emergency stop is still set, joint states are missing or the arm
                still moves.
        """
        self._follow_clock(now_ns)
        if self._stops.emergency:
            raise ResetRefused("the emergency stop is still set")
        problem = self._reference.problem(now_ns)
        if not problem and self._reference.moving(now_ns):
            problem = "the arm still decelerates"
        problem = problem or self._reference.joints.motion()
        if problem:
            raise ResetRefused(problem)
        self._stops.clear()
        self.reset_reference(now_ns)

    def reset_reference(self, now_ns: int) -> None:
        """Forget motion and chunks; the next joint state becomes the commanded one.

        For an arm that may be somewhere else than it was told to be. What was wrong with the old
        position is forgotten as well; a requested hold and the emergency stop stay. The next motion
        leaves the arm's controller time to come from where it was left.
        """
        self._leave(now_ns)
        self._stops.hold = None
        self._now_ns = now_ns

    # -- what it says -----------------------------------------------------------------------

    def status(self, now_ns: int) -> ExecutorStatus:
        """What it does and why."""
        state, reason = self._state(now_ns)
        return ExecutorStatus(
            state=state,
            reason=reason,
            sequence=self._queue.sequence,
            actions_consumed=self._queue.actions_consumed(now_ns),
            chunks_accepted=self._accepted,
            chunks_rejected=self._rejected,
            last_rejection=self._last_rejection,
            tracking_error=self._reference.tracking_error(),
            actions_frozen=self._queue.actions_frozen(now_ns + self._running.lead_ns()),
        )

    @property
    def lead_time(self) -> float:
        """How far ahead of now the next motion starts, s; ``motion.lead_time``, or longer."""
        return self._running.lead_ns() / NANOSECONDS

    def commanded(self, time_ns: int) -> MotionState | None:
        """The commanded state at a time; None before the first joint state."""
        if not self._reference.joints and self._reference.motion is None:
            return None
        return self._reference.commanded(time_ns)

    def _state(self, now_ns: int) -> tuple[ControllerState, str]:
        stopped = self._stops.state(self.parameters.enable_control)
        if stopped is not None:
            return stopped
        if not self._reference.joints:
            return ControllerState.WAITING, "no joint state yet"
        if self._reference.motion is None:
            return ControllerState.WAITING, "no chunk yet"
        if not self._reference.moving(now_ns):
            return ControllerState.HOLDING, "no new chunk"
        if self._running.stopping:
            return ControllerState.HOLDING, "decelerating"
        return ControllerState.EXECUTING, ""

    # -- inside -----------------------------------------------------------------------------

    def _interrupt(self, now_ns: int) -> None:
        """The motion ends here; only newer observations count, and no older chunk."""
        self._queue.interrupt(now_ns)
        self._motions.clear()

    def _forget(self, not_before_ns: int | None) -> None:
        """No motion, no chunks; what was seen before a time is ignored from now on."""
        self._reference.clear(not_before_ns)
        self._queue.clear(not_before_ns)
        self._gripper.forget()
        self._motions.clear()
        self._pending = None

    def _leave(self, not_before_ns: int | None) -> None:
        """The same, but the arm's controller still rests where it was told to."""
        self._running.leave()
        self._forget(not_before_ns)

    def _follow_clock(self, now_ns: int) -> None:
        """Notice time that jumps back: a moving arm decelerates by the next tick's command."""
        last, self._now_ns = self._now_ns, now_ns
        if last is None or now_ns >= last:
            return
        state, moving = self._reference.playback.state(last), self._reference.moving(last)
        settles = (self._running.known_ns - last) / NANOSECONDS
        if self._stops.displaced:
            self._leave(None)
        else:  # a simulator's reset takes the arm's controller along
            self._forget(None)
            self._running.forget()
        if state is not None and moving:
            self._pending = self._running.ease_out(state, settles, now_ns)

    def _decelerate(self, now_ns: int, last: bool = False) -> Commands:
        """Replace the running motion by the fastest stop.

        While the arm's controller comes from it is not known where to where the motion starts, it
        is let come there, if there will be a look to stop it then.
        """
        self._gripper.clear()
        pending, self._pending = self._pending, None
        if not self._running.can_brake(now_ns):
            return Commands(pending)
        self._interrupt(now_ns)
        if self._running.comes_from_nowhere(now_ns) and not last:
            return NOTHING
        return Commands(self._running.brake(now_ns))

    def _after_stop(self, now_ns: int) -> Commands:
        """After the arm failed to follow: bring the command back to where the arm is."""
        hold = self._stops.hold
        busy = self._stops.requested or self._stops.latched or self._reference.moving(now_ns)
        busy = busy or self._watchdog.scaled_down
        if hold is None or not hold.resync or busy or self._reference.problem(now_ns):
            return NOTHING
        if self._reference.tracking is Tracking.TWIST:
            self._reference.adopt()
        placed = self._reference.motion is not None
        if self._running.returning or self._reference.tracking is Tracking.TWIST or not placed:
            hold.resync = False  # there is no position to bring back, or none any more
            if self._watchdog.recover(now_ns):
                self._interrupt(now_ns)
            return NOTHING
        try:
            return Commands(self._running.back(now_ns))
        except TrajectoryError as error:
            self._stops.hold = Hold(f"{hold.reason}; the way back is closed: {error}", latched=True)
            return NOTHING
