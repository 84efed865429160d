"""The arm's own trajectory controller as a judge of commands, and what became of a chunk."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.executor import Accepted, TimedTrajectory
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.types import ActionChunk, FloatArray, Representation

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
EXACT = 1e-9  # rad
APPROACHED = 1e-6  # rad, to which a slow approach from a moving start ends at its target


class Judge:
    """The desired positions of joint_trajectory_controller (Jazzy) at 1 kHz, against the limits.

    A message is taken when it arrives. Until its first point the controller interpolates from what
    it desired in its last cycle (``interpolate_from_desired_state``), of which it remembers the
    time one cycle too early; then between the points, by quintic polynomials through position,
    velocity and acceleration; after the last it stays there. A message that tells its end alone is
    judged without that cycle: it is meant for an arm that is known to be somewhere near only, and
    docs/safety.md says what it then costs.

    Args:
        robot: the limits.
        now_ns: the time, ns.
        position: (J,) rad, where the arm stands; None for home.

    Attributes:
        problems: broken limits and commands that the controller would have rejected.
    """

    def __init__(self, robot: Robot, now_ns: int, position: FloatArray | None = None) -> None:
        limits = robot.limits
        self._robot = robot
        self._tick = now_ns // MILLISECOND
        rest = np.zeros((3, robot.joints))
        rest[0] = robot.home if position is None else position
        self._follow([(now_ns, rest)])
        self._tail = np.repeat(rest[:1], 3, axis=0)
        self._bounds = (
            ("acceleration", 2, limits.acceleration, 1e-3),
            ("jerk", 3, limits.jerk, 1.0),
        )
        self.problems: list[str] = []

    def hold(self, position: FloatArray) -> None:
        """Stand at a position (J,) rad from now on, as when started anew there."""
        rest = np.zeros((3, self._rest.shape[1]))
        rest[0] = position
        self._follow([(self._tick * MILLISECOND, rest)])
        self._tail = np.repeat(rest[:1], 3, axis=0)

    def receive(self, message: TimedTrajectory, now_ns: int) -> None:
        """A message arrives now."""
        told = message.told
        self.advance(now_ns)
        points = [
            (message.start_ns + round(t * SECOND), np.stack([p, v, a]))
            for t, p, v, a in zip(
                told.times.tolist(),
                told.positions,
                told.velocities,
                told.accelerations,
                strict=True,
            )
        ]
        times = [when for when, _ in points]
        if not points or points[-1][1][1].any():
            self.problems.append("rejected: does not end at rest")
        if any(b <= a for a, b in zip([message.start_ns - 1, *times], times, strict=False)):
            self.problems.append("rejected: times do not ascend")
        if times[-1] < now_ns:
            self.problems.append("rejected: ends in the past")
        last = self._tick * MILLISECOND
        since = last - MILLISECOND if message.known_ns < message.end_ns else last
        blend = [(since, self.desired(last))] if times[0] > last + MILLISECOND else []
        self._follow([*blend, *points])

    def advance(self, now_ns: int) -> None:
        """Play until now."""
        last = now_ns // MILLISECOND
        if last <= self._tick:
            return
        ticks = np.arange(self._tick + 1, last + 1) * MILLISECOND
        played = np.concatenate([self._tail, self._positions(ticks)])
        self._tick = last
        self._tail = played[-3:]
        limits = self._robot.limits
        now = played[3:]
        for bound, sign in ((limits.position_min, -1.0), (limits.position_max, 1.0)):
            over = sign * (now - bound)
            if over.max() > 1e-6:
                self._report("position", over, now)
        speed = np.diff(played, axis=0)[2:] * 1000.0
        slowest, fastest = limits.velocity_bounds(now)
        over = np.maximum(speed - fastest, slowest - speed) - 1e-5 * limits.velocity - 1e-6
        if over.max() > 0.0:
            self._report("velocity", over, speed)
        for name, order, bound, slack in self._bounds:
            values = np.diff(played, n=order, axis=0)[3 - order :] * 1000.0**order
            over = np.abs(values) - bound * (1.0 + 1e-5) - slack
            if over.max() > 0.0:
                self._report(name, over, values)

    def _report(self, name: str, over: FloatArray, values: FloatArray) -> None:
        tick, joint = np.unravel_index(int(np.argmax(over)), over.shape)
        self.problems.append(
            f"{self._robot.joint_names[joint]} breaks its {name} limit: "
            f"{values[tick, joint]:.6g}, {over[tick, joint]:.3g} too much"
        )

    def _positions(self, ticks: FloatArray) -> FloatArray:
        """Desired positions (N, J) at ascending times (N,), ns."""
        at = np.searchsorted(self._times, ticks, side="right") - 1
        positions = self._rest[np.maximum(at, 0)]
        inside = (at >= 0) & (at < len(self._times) - 1)
        segments, x = at[inside], (ticks[inside] - self._times[at[inside]])[:, None] / SECOND
        value = np.zeros((len(segments), positions.shape[1]))
        for power in range(5, -1, -1):
            value = value * x + self._coefficients[segments, power]
        positions[inside] = value
        return positions

    def desired(self, now_ns: int) -> FloatArray:
        """Position, velocity, acceleration (3, J) desired now, as far as messages have arrived."""
        at = int(np.searchsorted(self._times, now_ns, side="right")) - 1
        if at < 0 or at >= len(self._times) - 1:
            state = np.zeros((3, self._rest.shape[1]))
            state[0] = self._rest[max(at, 0)]
            return state
        x = (now_ns - int(self._times[at])) / SECOND
        powers = np.array([1.0, x, x**2, x**3, x**4, x**5])
        rates = np.zeros((3, 6))
        rates[0] = powers
        rates[1, 1:] = _FIRST * powers[:5]
        rates[2, 2:] = _SECOND * powers[:4]
        return np.asarray(rates @ self._coefficients[at])

    def _follow(self, knots: list[tuple[int, FloatArray]]) -> None:
        """Play from knot to knot: when, ns, and position, velocity, acceleration (3, J) there."""
        self._times = np.array([when for when, _ in knots], dtype=np.int64)
        states = np.stack([state for _, state in knots])
        self._rest = states[:, 0]
        self._coefficients = _hermite(np.diff(self._times) / SECOND, states)


_FIRST = np.arange(1.0, 6.0)  # of the derivatives of powers
_SECOND = np.array([2.0, 6.0, 12.0, 20.0])
_CONDITIONS = np.linalg.inv(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        [0.0, 0.0, 2.0, 6.0, 12.0, 20.0],
    ]
)


def _hermite(lengths: FloatArray, states: FloatArray) -> FloatArray:
    """Quintics between knots, by solving their six conditions.

    Args:
        lengths: (N - 1,) s.
        states: (N, 3, J) position, velocity, acceleration.

    Returns:
        (N - 1, 6, J), in powers of seconds.
    """
    h = lengths[:, None, None]
    scale = h ** np.arange(3.0)[:, None]
    conditions = np.concatenate([states[:-1] * scale, states[1:] * scale], axis=1)
    conditions[:, 3] -= states[:-1, 0]  # positions from the left knot: no digits are lost
    conditions[:, 0] = 0.0
    coefficients = (_CONDITIONS @ conditions) / h ** np.arange(6.0)[:, None]
    coefficients[:, 0] = states[:-1, 0]
    return coefficients


def departure(
    chunk: ActionChunk, accepted: Accepted, kinematics: Kinematics, given: ControlParameters
) -> str:
    """Where a chunk that was taken asks for something else than its motion does; empty: nowhere.

    Every waypoint must be a knot of the motion: joints exactly, poses within the tolerances of the
    inverse kinematics. Allowed are what docs/safety.md says: the first waypoint may be passed at
    ``motion.blend`` from a running motion, and the first absolute chunk may be a slow move to its
    first waypoint alone.
    """
    gripper = chunk.spec.gripper
    if gripper is not None:
        openings = chunk.actions[:, gripper.index]
        if np.any(np.abs(openings - 0.5) > 0.5 + given.gripper.tolerance + EXACT):
            return "a gripper command out of range was taken"
    knots = accepted.motion.trajectory.positions
    wanted = chunk.actions[:, chunk.spec.motion_indices]
    if chunk.spec.representation in (Representation.EE_DELTA, Representation.EE_POSE):
        return _pose_departure(chunk.spec.representation, wanted, accepted, kinematics, given)
    if chunk.spec.representation is Representation.JOINT_DELTA:
        wanted = accepted.base + np.cumsum(wanted, axis=0)
    wanted = wanted[accepted.trimmed :]
    approach = chunk.spec.representation is Representation.JOINT_POSITION and len(wanted) > 1
    if approach and np.abs(knots[-1] - wanted[0]).max() < APPROACHED:
        return ""
    later = wanted[1:]
    if len(later) and np.abs(knots[-len(later) :] - later).max() > EXACT:
        return f"waypoints {later.tolist()} became {knots[-len(later) :].tolist()}"
    if len(knots) >= len(wanted) and np.abs(knots[-len(wanted)] - wanted[0]).max() <= EXACT:
        return ""
    trajectory = accepted.motion.trajectory
    times = np.arange(0.0, trajectory.duration, 1e-3)
    near = np.abs(trajectory.sample_positions(times) - wanted[0]).max(axis=1).min()
    allowed = given.motion.blend if len(later) else 0.0
    return "" if near <= allowed + APPROACHED else f"waypoint 0 is passed at {near:.3g} rad"


def _pose_departure(
    representation: Representation,
    motion: FloatArray,
    accepted: Accepted,
    kinematics: Kinematics,
    given: ControlParameters,
) -> str:
    if representation is Representation.EE_POSE:
        positions, rotations = motion[:, :3], list(Rotation.from_quat(motion[:, 3:]))
    else:
        position, quaternion = kinematics.forward(accepted.base)
        positions = position + np.cumsum(motion[:, :3], axis=0)
        rotation, rotations = Rotation.from_quat(quaternion), []
        for turn in motion[:, 3:]:
            rotation = Rotation.from_rotvec(turn) * rotation
            rotations.append(rotation)
    knots = accepted.motion.trajectory.positions
    last = len(motion) - 1
    if representation is Representation.EE_POSE and len(knots) and accepted.trimmed < last:
        first = accepted.trimmed
        if not _apart(kinematics, knots[-1], positions[first], rotations[first], given):
            return ""
    for index in range(last, max(accepted.trimmed, min(accepted.trimmed + 1, last)) - 1, -1):
        problem = _apart(
            kinematics, knots[index - last - 1], positions[index], rotations[index], given
        )
        if problem:
            return f"waypoint {index}: {problem}"
    return ""


def _apart(
    kinematics: Kinematics,
    joints: FloatArray,
    position: FloatArray,
    rotation: Rotation,
    given: ControlParameters,
) -> str:
    reached, quaternion = kinematics.forward(joints)
    distance = float(np.linalg.norm(reached - position))
    angle = (Rotation.from_quat(quaternion) * rotation.inv()).magnitude()
    near = distance <= given.chunk.position_tolerance + EXACT
    if near and angle <= given.chunk.rotation_tolerance + 1e-6:
        return ""
    return f"{distance:.3g} m and {angle:.3g} rad from where the chunk wants it"
