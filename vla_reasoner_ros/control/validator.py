"""The gate before the arm: a trajectory as the controller will play it, against every limit.

The trajectory is resampled at 1 kHz with the controller's own quintic interpolation and
differentiated backward, as Franka's control interface does with what it receives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import JointLimits, Workspace
from vla_reasoner_ros.control.trajectory import LARGEST_NUMBER, JointTrajectory
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

PERIOD = 1e-3  # s, the resampling period
CARTESIAN_STRIDE = 10  # every 10 ms: 0.1 mm between samples at the arm's largest acceleration
RELATIVE_TOLERANCE = 1e-5  # of rates: rounding of differences over 1 ms, and of knot times to 1 ns
_BEFORE = 3  # samples before the start that its differences need
_AFTER = 3  # samples after the end, likewise
MAX_DURATION = 600.0  # s, bounds the memory that one check may take


@dataclass(frozen=True)
class Violation:
    """One broken limit.

    Attributes:
        what: joint name, or ``TCP``.
        limit: which limit: position, velocity, acceleration, jerk, workspace, speed,
            self-collision, rest, finite.
        time: s from the start of the trajectory.
        value: what was found.
        bound: what is allowed.
        unit: the unit of both.
    """

    what: str
    limit: str
    time: float
    value: float
    bound: float
    unit: str

    def __str__(self) -> str:
        return (
            f"{self.what} breaks its {self.limit} limit of {self.bound:.6g} {self.unit} at "
            f"{self.time:.3f} s: {self.value:.6g} {self.unit}"
        )


class LimitViolation(TrajectoryError):
    """A trajectory that breaks a limit; ``violation`` has the parts of the message."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


def joint_violation(trajectory: JointTrajectory, limits: JointLimits) -> Violation | None:
    """The first broken joint limit of a trajectory, None when it respects all.

    Checked are finiteness, rest at the end, and position, velocity, acceleration and jerk by
    backward differences at 1 kHz, from the sample before the start on.
    """
    names = trajectory.joint_names
    structural = _structure(trajectory)
    if structural is not None:
        return structural
    count = int(np.ceil(trajectory.duration / PERIOD - 1e-9))
    times = np.minimum(np.arange(count + 1) * PERIOD, trajectory.duration)
    played = np.concatenate([_before(trajectory), trajectory.sample_positions(times)])
    # One row per joint, and rest after the end: differences and extremes run along memory.
    position = np.empty((len(names), len(played) + _AFTER))
    position[:, : len(played)] = played.T
    position[:, len(played) :] = played[-1][:, None]
    velocity = np.diff(position) / PERIOD
    acceleration = np.diff(velocity) / PERIOD
    jerk = np.diff(acceleration) / PERIOD
    position = position[:, _BEFORE:]
    slow, fast = -limits.velocity[:, None], limits.velocity[:, None]
    if limits.velocity_envelope is not None:
        slow, fast = (bound.T for bound in limits.velocity_bounds(position.T))
    acceleration_limit, jerk_limit = limits.acceleration[:, None], limits.jerk[:, None]
    low, high = limits.position_min[:, None], limits.position_max[:, None]
    checks = (
        ("position", "rad", position, low, high, 1e-9),
        ("velocity", "rad/s", velocity[:, 2:], slow, fast, 1e-6),
        (
            "acceleration",
            "rad/s^2",
            acceleration[:, 1:],
            -acceleration_limit,
            acceleration_limit,
            1e-4,
        ),
        ("jerk", "rad/s^3", jerk, -jerk_limit, jerk_limit, 1e-1),
    )
    for name, unit, values, lowest, highest, slack in checks:
        relative = 0.0 if name == "position" else RELATIVE_TOLERANCE
        tolerance = slack + relative * np.abs(highest)
        if lowest.shape[1] == 1:
            inside = np.all(values.min(axis=1) >= (lowest - tolerance)[:, 0]) and np.all(
                values.max(axis=1) <= (highest + tolerance)[:, 0]
            )
        else:
            inside = np.all(values >= lowest - tolerance) and np.all(values <= highest + tolerance)
        if inside:
            continue
        under = values < lowest - tolerance
        step, joint = np.argwhere((under | (values > highest + tolerance)).T)[0]
        bound = np.broadcast_to(lowest if under[joint, step] else highest, values.shape)
        return Violation(
            names[joint],
            name,
            float(step * PERIOD),
            float(values[joint, step]),
            float(bound[joint, step]),
            unit,
        )
    return None


def tcp_violation(
    trajectory: JointTrajectory,
    kinematics: Kinematics,
    workspace: Workspace,
    linear_speed: float,
    angular_speed: float,
) -> tuple[Violation | None, float]:
    """The first broken limit of the tool centre point, and how fast it moves.

    Args:
        trajectory: the motion.
        kinematics: the arm's.
        workspace: the box that the TCP must stay in, base frame, m.
        linear_speed: largest TCP speed, m/s.
        angular_speed: largest TCP angular speed, rad/s.

    Returns:
        The violation or None, and the largest ratio of speed to its limit.
    """
    step = PERIOD * CARTESIAN_STRIDE
    times = np.append(np.arange(0.0, trajectory.duration, step), trajectory.duration)
    position, twist = kinematics.twists(
        trajectory.sample_positions(times), trajectory.sample_velocities(times)
    )
    outside = (position < workspace.min) | (position > workspace.max)
    speeds = np.sqrt(np.square(twist).reshape(-1, 2, 3).sum(axis=2))
    bounds = np.array([linear_speed, angular_speed])
    ratio = float((speeds / bounds).max())
    if outside.any():
        index, axis = np.argwhere(outside)[0]
        value = position[index, axis]
        bound = workspace.min[axis] if value < workspace.min[axis] else workspace.max[axis]
        return (
            Violation(
                f"TCP {'xyz'[axis]}",
                "workspace",
                float(times[index]),
                float(value),
                float(bound),
                "m",
            ),
            ratio,
        )
    if ratio > 1.0:
        index, kind = np.unravel_index(int(np.argmax(speeds / bounds)), speeds.shape)
        return (
            Violation(
                "TCP",
                ("speed", "angular speed")[kind],
                float(times[index]),
                float(speeds[index, kind]),
                float(bounds[kind]),
                ("m/s", "rad/s")[kind],
            ),
            ratio,
        )
    return None, ratio


def require_valid(trajectory: JointTrajectory, limits: JointLimits) -> None:
    """Refuse a trajectory that breaks a joint limit.

    Raises:
        LimitViolation: the first broken limit.
    """
    violation = joint_violation(trajectory, limits)
    if violation is not None:
        raise LimitViolation(violation)


def _structure(trajectory: JointTrajectory) -> Violation | None:
    arrays = (trajectory.positions, trajectory.velocities, trajectory.accelerations)
    for name, values in zip(("position", "velocity", "acceleration"), arrays, strict=True):
        # What is far beyond any joint would only overflow in the differences.
        sound = np.abs(values) < LARGEST_NUMBER
        if not sound.all():
            knot, joint = np.argwhere(~sound)[0]
            return Violation(
                trajectory.joint_names[joint],
                f"finite {name}",
                float(trajectory.times[knot]),
                float(values[knot, joint]),
                LARGEST_NUMBER,
                "",
            )
    steps = np.diff(trajectory.times)
    if not np.isfinite(trajectory.times).all() or np.any(steps <= 0.0):
        return Violation(
            "time", "ascending", float(trajectory.times[-1]), float(np.min(steps)), 0.0, "s"
        )
    if trajectory.duration > MAX_DURATION:
        return Violation("time", "duration", 0.0, trajectory.duration, MAX_DURATION, "s")
    for name, values in (("velocity", arrays[1][-1]), ("acceleration", arrays[2][-1])):
        if values.any():
            joint = int(np.argmax(np.abs(values)))
            return Violation(
                trajectory.joint_names[joint],
                f"rest {name} at the end",
                trajectory.duration,
                float(values[joint]),
                0.0,
                "",
            )
    return None


def _before(trajectory: JointTrajectory) -> FloatArray:
    """Three samples (3, J) before the start, at the commanded acceleration."""
    back = -PERIOD * np.array([[3.0], [2.0], [1.0]])
    return (
        trajectory.positions[0]
        + back * trajectory.velocities[0]
        + 0.5 * back**2 * trajectory.accelerations[0]
    )
