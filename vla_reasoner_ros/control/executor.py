"""The arm controller without ROS: chunks and joint states in, trajectories out, every gate between.

All times are integer nanoseconds of one clock, given by the caller, so that simulated time works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.commands import (
    NANOSECONDS,
    NOTHING,
    Accepted,
    Commands,
    ControllerState,
    ExecutorStatus,
    TimedTrajectory,
)
from vla_reasoner_ros.control.decode import (
    JumpError,
    gripper_openings,
    joint_waypoints,
    require_convention,
)
from vla_reasoner_ros.control.echo import SentCommands, as_played
from vla_reasoner_ros.control.ensemble import TemporalEnsemble
from vla_reasoner_ros.control.gripper import GripperSchedule
from vla_reasoner_ros.control.joint_states import JointStateBuffer
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.lead import LeadTime
from vla_reasoner_ros.control.motion import COLLISION, MotionPlanner
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.playback import Playback
from vla_reasoner_ros.control.queue import ChunkQueue, ChunkRejected, RejectionReason, Trimmed
from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState, resting
from vla_reasoner_ros.control.validator import LimitViolation
from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    KinematicsError,
    TrajectoryError,
    VlaReasonerError,
)
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, Representation

RAMP_DISTANCE = 0.05  # rad; a first absolute waypoint farther away is approached slowly
REPEATED_REST = 0.1  # s; a repeated motion ends that much later, to be there before its end
LEAD_ATTEMPTS = 3  # at planning a motion before it was to start
OVERSHOOT = 0.02  # rad; room beyond the margin for a spline that swings past its waypoints

_VIOLATIONS = {
    "workspace": RejectionReason.WORKSPACE,
    COLLISION: RejectionReason.SELF_COLLISION,
}

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


class ResetRefused(VlaReasonerError):
    """A reset while the cause of the stop persists."""


@dataclass(frozen=True)
class _Plan:
    trajectory: JointTrajectory
    arrivals: FloatArray  # s, at each waypoint; none in a slow approach, which skips the chunk
    stretch: float
    openings: FloatArray | None
    meant: FloatArray  # (N, J) rad, the waypoints as the policy means them


@dataclass
class _Hold:
    """A hold that the executor began by itself."""

    reason: str
    latched: bool = False  # only a reset ends it
    resync: bool = False  # the command goes back to the measured position before it ends


class ChunkExecutor:
    """Turns chunks into motion of one arm, and stops it when something is wrong.

    Call :meth:`measured` with every joint state, :meth:`submit` with every chunk and :meth:`tick`
    at least every ``watchdog.period``; publish the :class:`Commands` that :meth:`submit`,
    :meth:`tick`, :meth:`hold`, :meth:`emergency_stop` and :meth:`stop` return. When
    ``enable_control`` is false all of them are empty, though everything is computed and checked.

    A motion always ends at rest, so when chunks stop coming the arm stops by itself. It stops
    earlier, by deceleration within the robot's limits, when

    - joint states are missing or older than ``watchdog.max_joint_state_age`` (ends by itself),
    - the arm does not follow (ends after the command has gone back to where the arm is),
    - the clock stands still though real time passes (ends by itself),
    - someone else commands the arm (needs :meth:`reset`),
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
    ) -> None:
        self.parameters = parameters
        self.robot: Robot = load_robot(parameters.robot, parameters.limits)
        self.kinematics = Kinematics(self.robot, urdf)
        if action_spec is not None:
            require_convention(action_spec, self.robot)
        self._spec = action_spec
        self._clock = clock
        self._planner = MotionPlanner(self.robot, self.kinematics, parameters.motion)
        self._queue = ChunkQueue(parameters.chunk)
        self._joints = JointStateBuffer(self.robot)
        self._playback = Playback(self.robot.joint_names)
        self._gripper = GripperSchedule()
        self._ensemble = TemporalEnsemble()
        self._lead, self._stop_lead = LeadTime(), LeadTime()
        self._accepted = 0
        self._rejected = 0
        self._last_rejection = ""
        self._now_ns: int | None = None
        self._user_hold = ""
        self._emergency = False
        self._latched = False
        self._hold: _Hold | None = None
        self._stopping = False
        self._resyncing = False
        self._pending: TimedTrajectory | None = None
        self._sent = SentCommands()
        self._stands_since: tuple[int | None, float] = (None, 0.0)

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
        old = self.parameters
        if (parameters.robot, parameters.limits) != (old.robot, old.limits):
            raise ConfigurationError(
                f"parameters robot, limits: fixed at {old.robot!r}, {old.limits!r}; got "
                f"{parameters.robot!r}, {parameters.limits!r}"
            )
        self._planner.set_parameters(parameters.motion)
        disabled = old.enable_control and not parameters.enable_control
        commands = self._decelerate(now_ns) if disabled else NOTHING
        self.parameters = parameters
        self._queue.parameters = parameters.chunk
        if old.enable_control != parameters.enable_control:
            self._forget(now_ns)
        return commands

    # -- what the arm says ------------------------------------------------------------------

    def measured(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> None:
        """Take a joint state.

        One that is older than the last is ignored; one of the same stamp replaces it.

        Args:
            stamp_ns: when it was measured, ns.
            positions: (J,) rad, in the robot's order.
            velocities: (J,) rad/s.

        Raises:
            ObservationError: wrong width, or a number that is not finite.
        """
        jump = self._joints.add(stamp_ns, positions, velocities)
        if jump:
            self._hold = _Hold(f"{jump}; reset when this is explained", latched=True)

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
        self._require_convention(chunk.spec)
        for _ in range(LEAD_ATTEMPTS):
            self._require_free(now_ns)
            self._queue.require_acceptable(chunk, now_ns)
            switch_ns = now_ns + self._lead_ns()
            start = self._commanded(switch_ns)
            trimmed = self._queue.trim(chunk, switch_ns)
            base = self._joints_at(chunk.observation_stamp_ns)
            plan = self._plan(chunk, trimmed, base, start, switch_ns)
            spent_ns = self._spent_ns(now_ns)
            if self._lead.in_time(spent_ns, switch_ns - now_ns):
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
        if ends and self.parameters.chunk.ensemble:
            self._ensemble.add(_due_ns(switch_ns, trimmed), plan.meant)
        commands = NOTHING
        if enabled:
            sent = self._run(motion, now_ns)
            self._schedule_gripper(trimmed, plan.openings, switch_ns, ends)
            commands = Commands(sent, self._gripper.due(now_ns, inclusive=True))
        return Accepted(commands, motion, trimmed.first, plan.stretch, base)

    def _plan(
        self,
        chunk: ActionChunk,
        trimmed: Trimmed,
        base: FloatArray,
        start: MotionState,
        switch_ns: int,
    ) -> _Plan:
        try:
            openings = gripper_openings(chunk, self.parameters.gripper)
            waypoints = joint_waypoints(
                chunk,
                self.kinematics,
                base,
                trimmed.first,
                self.parameters.chunk,
                self.parameters.motion.position_margin + OVERSHOOT,
            )
            if self._approach_is_slow(chunk.spec, start, waypoints[0]):
                approach = self._planner.to(start, waypoints[0])
                return _Plan(approach, np.empty(0), 1.0, openings, waypoints)
            meant = waypoints
            if self.parameters.chunk.ensemble:
                decay = self.parameters.chunk.ensemble_decay
                waypoints = self._ensemble.mean(_due_ns(switch_ns, trimmed), meant, decay)
            self._require_steps(start, waypoints)
            asked = np.diff(trimmed.due, prepend=0.0)
            spline, stretch = self._planner.through(start, waypoints, asked)
        except JumpError as error:
            raise ChunkRejected(RejectionReason.JUMP, str(error)) from error
        except ActionChunkError as error:
            raise ChunkRejected(RejectionReason.CONTENT, str(error)) from error
        except KinematicsError as error:
            raise ChunkRejected(RejectionReason.UNREACHABLE, str(error)) from error
        except LimitViolation as error:
            reason = _VIOLATIONS.get(error.violation.limit, RejectionReason.LIMIT)
            raise ChunkRejected(reason, str(error)) from error
        except TrajectoryError as error:
            raise ChunkRejected(RejectionReason.LIMIT, str(error)) from error
        return _Plan(spline.trajectory, spline.arrivals, stretch, openings, meant)

    def _require_free(self, now_ns: int) -> None:
        if self._latched:
            raise ChunkRejected(RejectionReason.STOPPED, "the emergency stop is latched")
        if self._user_hold:
            raise ChunkRejected(RejectionReason.HOLDING, self._user_hold)
        if self._hold is not None:
            raise ChunkRejected(RejectionReason.HOLDING, self._hold.reason)
        problem = self._joint_problem(now_ns)
        if not problem and self._playback.motion is None and self.parameters.enable_control:
            problem = self._joints.motion()
        if problem:
            raise ChunkRejected(RejectionReason.JOINT_STATE, problem)

    def _require_convention(self, spec: ActionSpec) -> None:
        try:
            require_convention(spec, self.robot)
            if self._spec is not None:
                self._spec.require_same(spec, "the controller", "the chunk")
        except ConfigurationError as error:
            raise ChunkRejected(RejectionReason.CONVENTION, str(error)) from error

    def _spent_ns(self, since_ns: int) -> int:
        return 0 if self._clock is None else self._clock() - since_ns

    def _approach_is_slow(self, spec: ActionSpec, start: MotionState, waypoint: FloatArray) -> bool:
        absolute = spec.representation in (Representation.JOINT_POSITION, Representation.EE_POSE)
        far = np.abs(waypoint - start.position).max() > RAMP_DISTANCE
        return bool(absolute and far and start.resting and self._queue.fresh)

    def _require_steps(self, start: MotionState, waypoints: FloatArray) -> None:
        steps = np.abs(np.diff(waypoints, axis=0, prepend=start.position[None]))
        largest = self.parameters.chunk.max_joint_step
        if steps.max() > largest:
            step, joint = np.unravel_index(int(np.argmax(steps)), steps.shape)
            raise JumpError(
                f"{self.robot.joint_names[joint]} jumps by {steps[step, joint]:.4g} rad at "
                f"waypoint {step}, allowed are {largest:g} rad"
            )

    # -- time -------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> Commands:
        """Look after the arm: due gripper commands, stops, and what follows a stop."""
        self._follow_clock(now_ns)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return Commands(pending)
        if not self.parameters.enable_control:
            self._recover(now_ns)
            return NOTHING
        self._watch(now_ns)
        if self._hold is None and not self._user_hold and not self._latched:
            return Commands(None, self._gripper.due(now_ns, inclusive=False))
        resync = self._hold is not None and self._hold.resync
        returning = self._resyncing and resync and not self._joint_problem(now_ns)
        if self._playback.moving(now_ns) and not self._stopping and not returning:
            return self._decelerate(now_ns)
        return self._after_stop(now_ns)

    def wall_tick(self, now_ns: int, wall: float) -> Commands:
        """Look whether the clock still goes; to be called by a clock that nothing stops.

        Args:
            now_ns: the time.
            wall: that other clock, s.
        """
        if now_ns != self._stands_since[0]:
            self._stands_since = now_ns, wall
            return NOTHING
        stood = wall - self._stands_since[1]
        allowed = self.parameters.watchdog.max_clock_standstill
        free = self._hold is None and self.parameters.enable_control
        if not (free and 0.0 < allowed < stood and self._playback.moving(now_ns)):
            return NOTHING
        self._hold = _Hold(
            f"the clock has stood still for {stood:.3f} s of real time, allowed are {allowed:g} s"
        )
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
        if not self.parameters.enable_control or self._sent.has(stamp_ns, points.positions[-1]):
            return NOTHING
        self._follow_clock(now_ns)
        names = self.robot.joint_names
        motion = as_played(names, points, stamp_ns, now_ns, self.commanded)
        self._run(motion, now_ns)
        self._interrupt(now_ns)
        self._hold = _Hold(
            "someone else commands the arm; reset when this is explained", latched=True
        )
        return self._decelerate(now_ns)

    def repeat(self, now_ns: int) -> Commands:
        """What is left of the running motion, or rest where it ended, once more.

        It changes nothing; it answers a simulator that waits for a trajectory when a chunk was
        refused.
        """
        motion = self._playback.motion
        if not self.parameters.enable_control or motion is None or self._latched:
            return NOTHING
        pause = self.parameters.motion.lead_time + REPEATED_REST
        trajectory = resting(self.robot.joint_names, motion.trajectory.end.position, pause)
        if self._playback.moving(now_ns):
            rest = motion.from_time(now_ns)
            trajectory = rest.then(rest.duration, trajectory)
        self._sent.add(now_ns, trajectory.positions[-1])
        return Commands(TimedTrajectory(now_ns, trajectory))

    # -- stops ------------------------------------------------------------------------------

    def hold(self, now_ns: int, reason: str = "hold requested") -> Commands:
        """Decelerate to rest and refuse chunks until :meth:`release`."""
        self._follow_clock(now_ns)
        self._user_hold = reason
        return self._decelerate(now_ns)

    def release(self, now_ns: int) -> None:
        """End a :meth:`hold`; chunks from observations since now are taken."""
        if self._user_hold:
            self._user_hold = ""
            self._interrupt(now_ns)

    def emergency_stop(self, active: bool, now_ns: int) -> Commands:
        """Set or clear the emergency stop; setting it latches until :meth:`reset`."""
        self._follow_clock(now_ns)
        self._emergency = active
        if not active:
            return NOTHING
        self._latched = True
        return self._decelerate(now_ns)

    def stop(self, now_ns: int) -> Commands:
        """Decelerate to rest once, as before a shutdown; no state changes."""
        self._follow_clock(now_ns)
        return self._decelerate(now_ns)

    def reset(self, now_ns: int) -> None:
        """End the latched stop and every hold; chunks from observations since now are taken.

        When the arm was not where it was told to be, the next joint state becomes the commanded
        one.

        Raises:
            ResetRefused: the emergency stop is still set, joint states are missing or the arm
                still moves.
        """
        self._follow_clock(now_ns)
        if self._emergency:
            raise ResetRefused("the emergency stop is still set")
        problem = self._joint_problem(now_ns)
        if not problem and self._playback.moving(now_ns):
            problem = "the arm still decelerates"
        problem = problem or self._joints.motion()
        if problem:
            raise ResetRefused(problem)
        displaced = self._hold is not None and (self._hold.latched or self._hold.resync)
        self._latched = False
        self._user_hold = ""
        self._hold = None
        if displaced:
            self.reset_reference(now_ns)
        else:
            self._interrupt(now_ns)

    def reset_reference(self, now_ns: int) -> None:
        """Forget motion and chunks; the next joint state becomes the commanded one.

        For an episode that starts anew with the arm somewhere else. What was wrong with the old
        position is forgotten as well; a requested hold and the emergency stop stay.
        """
        self._forget(now_ns)
        self._hold = None
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
            tracking_error=self._tracking_error(),
        )

    @property
    def lead_time(self) -> float:
        """How far ahead of now the next motion starts, s; ``motion.lead_time``, or longer."""
        return self._lead_ns() / NANOSECONDS

    def commanded(self, time_ns: int) -> MotionState | None:
        """The commanded state at a time; None before the first joint state."""
        if not self._joints and self._playback.motion is None:
            return None
        return self._commanded(time_ns)

    def _state(self, now_ns: int) -> tuple[ControllerState, str]:
        if self._latched:
            still = "set" if self._emergency else "cleared, waiting for a reset"
            return ControllerState.STOPPED, f"emergency stop {still}"
        if not self.parameters.enable_control:
            return ControllerState.DRY_RUN, "enable_control is false"
        if self._user_hold:
            return ControllerState.HOLDING, self._user_hold
        if self._hold is not None:
            return ControllerState.HOLDING, self._hold.reason
        if not self._joints:
            return ControllerState.WAITING, "no joint state yet"
        if self._playback.motion is None:
            return ControllerState.WAITING, "no chunk yet"
        if not self._playback.moving(now_ns):
            return ControllerState.HOLDING, "no new chunk"
        if self._stopping:
            return ControllerState.HOLDING, "decelerating"
        return ControllerState.EXECUTING, ""

    # -- inside -----------------------------------------------------------------------------

    def _interrupt(self, now_ns: int) -> None:
        """The motion ends here; only newer observations count, and no older chunk."""
        self._queue.interrupt(now_ns)
        self._ensemble.clear()

    def _forget(self, not_before_ns: int | None) -> None:
        """No motion, no chunks; what was seen before a time is ignored from now on."""
        self._joints.clear(not_before_ns)
        self._queue.clear(not_before_ns)
        self._playback.clear()
        self._gripper.forget()
        self._ensemble.clear()
        self._pending = None
        self._stopping = self._resyncing = False

    def _follow_clock(self, now_ns: int) -> None:
        """Notice time that jumps back: a moving arm decelerates by the next tick's command."""
        last, self._now_ns = self._now_ns, now_ns
        if last is None or now_ns >= last:
            return
        state = self._playback.state(last)
        self._forget(None)
        if state is not None and not state.resting:
            easing = TimedTrajectory(now_ns, self._planner.ease_out(state))
            self._pending = self._run(easing, now_ns)
            self._stopping = True

    def _lead_ns(self) -> int:
        """Time until a new motion takes over.

        The first one leaves time for the arm's controller to come from where it was told to be to
        where the arm is, which differ by what gravity makes of a position servo.
        """
        motion = self.parameters.motion
        first = self._playback.motion is None
        least = max(motion.lead_time, motion.settle_time) if first else motion.lead_time
        return self._grown_ns(self._lead, least)

    def _grown_ns(self, lead: LeadTime, least: float) -> int:
        most = self.parameters.motion.max_lead_time
        return lead.lead_ns(round(least * NANOSECONDS), round(most * NANOSECONDS))

    def _run(self, motion: TimedTrajectory, now_ns: int) -> TimedTrajectory:
        """Make a motion the running one; what is to be sent for it."""
        self._stopping = self._resyncing = False
        keep = self.parameters.chunk.max_observation_age + 1
        sent = self._playback.follow(motion, now_ns, keep)
        self._sent.add(sent.start_ns, sent.trajectory.positions[-1])
        return sent

    def _decelerate(self, now_ns: int) -> Commands:
        """Replace the running motion by the fastest stop."""
        self._gripper.clear()
        motion = self._playback.motion
        if motion is None or not self._playback.moving(now_ns) or self._stopping:
            return NOTHING
        self._interrupt(now_ns)
        for _ in range(LEAD_ATTEMPTS):  # the last one counts, however long it took
            lead_ns = self._grown_ns(self._stop_lead, self.parameters.motion.stop_lead_time)
            switch_ns = now_ns + lead_ns
            if switch_ns >= motion.end_ns:
                return NOTHING
            stop = self._planner.stop(motion.at(switch_ns))
            spent_ns = self._spent_ns(now_ns)
            if self._stop_lead.in_time(spent_ns, lead_ns):
                break
            now_ns += spent_ns
        sent = self._run(TimedTrajectory(switch_ns, stop), now_ns)
        self._stopping = True
        return Commands(sent)

    def _watch(self, now_ns: int) -> None:
        """Begin and end the holds that need no one's word."""
        if self._hold is not None:
            self._recover(now_ns)
            return
        problem = self._joint_problem(now_ns)
        if problem:
            self._hold = _Hold(problem) if self._joints else None
            return
        error = self._tracking_error()
        allowed = self.parameters.watchdog.max_tracking_error
        if error > allowed:
            self._hold = _Hold(
                f"the arm does not follow: {error:.3f} rad behind the command, allowed are "
                f"{allowed:g} rad",
                resync=True,
            )

    def _recover(self, now_ns: int) -> None:
        """End a hold whose cause is gone."""
        hold = self._hold
        if hold is None or hold.latched or hold.resync or self._playback.moving(now_ns):
            return
        if not self._joint_problem(now_ns):
            self._hold = None
            self._interrupt(now_ns)

    def _after_stop(self, now_ns: int) -> Commands:
        """After the arm failed to follow: bring the command back to where the arm is."""
        hold = self._hold
        busy = self._user_hold or self._latched or self._playback.moving(now_ns)
        if hold is None or not hold.resync or busy or self._joint_problem(now_ns):
            return NOTHING
        if self._resyncing:
            hold.resync = False
            self._recover(now_ns)
            return NOTHING
        try:
            motion = self._planner.back(self._commanded(now_ns), self._joints.newest.positions)
        except TrajectoryError as error:
            self._hold = _Hold(f"{hold.reason}; the way back is closed: {error}", latched=True)
            return NOTHING
        sent = self._run(TimedTrajectory(now_ns, motion), now_ns)
        self._resyncing = True
        return Commands(sent)

    def _schedule_gripper(
        self, trimmed: Trimmed, openings: FloatArray | None, switch_ns: int, ends: list[int]
    ) -> None:
        self._gripper.clear()
        if openings is None or not ends:
            return
        dues = ends if self.parameters.gripper.due == "end" else [switch_ns, *ends[:-1]]
        self._gripper.replace(zip(dues, openings[trimmed.first :].tolist(), strict=True))

    def _commanded(self, time_ns: int) -> MotionState:
        state = self._playback.state(time_ns)
        return MotionState.at_rest(self._joints.newest.positions) if state is None else state

    def _joints_at(self, stamp_ns: int) -> FloatArray:
        """What displacements start from: commanded joints while the arm followed, else measured."""
        if self._playback.motion is None:
            return self._joints.newest.positions
        measured = self._joints.positions_at(stamp_ns)
        commanded = self._playback.position_then(stamp_ns)
        if commanded is None:
            return measured
        error = np.abs(commanded - measured).max()
        return commanded if error <= self.parameters.chunk.max_reference_error else measured

    def _tracking_error(self) -> float:
        """The largest difference of commanded and measured position, rad."""
        if not self._joints:
            return 0.0
        newest = self._joints.newest
        commanded = self._playback.position_then(newest.stamp_ns)
        return 0.0 if commanded is None else float(np.abs(commanded - newest.positions).max())

    def _joint_problem(self, now_ns: int) -> str:
        """Why the joint states do not allow motion; empty when they do."""
        return self._joints.problem(
            now_ns,
            self.parameters.watchdog.max_joint_state_age,
            self.parameters.chunk.max_clock_lead,
        )


def _due_ns(switch_ns: int, trimmed: Trimmed) -> FloatArray:
    """When the actions that are left are due, (N,) whole ns."""
    return switch_ns + np.round(trimmed.due * NANOSECONDS)
