"""Trajectories as knots of position, velocity and acceleration, joined by quintic polynomials.

A ``JointTrajectory`` is exactly what ros2_control's joint_trajectory_controller makes of its points
when all three are given, so what is checked here is what the arm is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vla_reasoner_ros.types import FloatArray

LARGEST_NUMBER = 1e6  # rad, rad/s and rad/s^2; no joint's comes near
MIN_DURATION = 0.01  # s, of a motion that does not move


@dataclass(frozen=True)
class MotionState:
    """Position, velocity and acceleration of all joints, each (J,): rad, rad/s, rad/s^2."""

    position: FloatArray
    velocity: FloatArray
    acceleration: FloatArray

    @staticmethod
    def at_rest(position: FloatArray) -> MotionState:
        """The state of an arm that stands still."""
        position = np.array(position, dtype=np.float64)
        return MotionState(position, np.zeros_like(position), np.zeros_like(position))

    @property
    def resting(self) -> bool:
        """Whether nothing moves."""
        return not (self.velocity.any() or self.acceleration.any())


@dataclass(frozen=True)
class JointTrajectory:
    """A motion of J joints through N knots, quintic in between (C2).

    Attributes:
        joint_names: the J joints.
        times: (N,) s, strictly increasing whole nanoseconds, the first 0: the commanded state.
        positions: (N, J) rad.
        velocities: (N, J) rad/s.
        accelerations: (N, J) rad/s^2.
    """

    joint_names: tuple[str, ...]
    times: FloatArray
    positions: FloatArray
    velocities: FloatArray
    accelerations: FloatArray

    @property
    def duration(self) -> float:
        """Seconds from the first knot to the last."""
        return float(self.times[-1])

    @property
    def end(self) -> MotionState:
        """The state at the last knot."""
        return MotionState(self.positions[-1], self.velocities[-1], self.accelerations[-1])

    def sample(self, time: float) -> MotionState:
        """The state at ``time`` s; before the first knot and after the last, those knots."""
        if time >= self.duration:
            return self.end
        x = max(time, 0.0)
        index = min(max(int(np.searchsorted(self.times, x, side="right")) - 1, 0), self._last)
        x -= float(self.times[index])
        powers = np.array(
            [
                [1.0, x, x**2, x**3, x**4, x**5],
                [0.0, 1.0, 2.0 * x, 3.0 * x**2, 4.0 * x**3, 5.0 * x**4],
                [0.0, 0.0, 2.0, 6.0 * x, 12.0 * x**2, 20.0 * x**3],
            ]
        )
        position, velocity, acceleration = powers @ self._coefficients[:, index]
        return MotionState(position, velocity, acceleration)

    def sample_positions(self, times: FloatArray) -> FloatArray:
        """Positions (M, J) at ascending ``times`` (M,) within the duration, s."""
        return self._evaluate(self._coefficients, times)

    def sample_velocities(self, times: FloatArray) -> FloatArray:
        """Velocities (M, J) at ascending ``times`` (M,) within the duration, s."""
        rates = self._coefficients[1:] * np.arange(1.0, 6.0)[:, None, None]
        return self._evaluate(rates, times)

    def _evaluate(self, coefficients: FloatArray, times: FloatArray) -> FloatArray:
        """Polynomials (K, N - 1, J) of the intervals at ascending times (M,): (M, J)."""
        bounds = np.searchsorted(times, self.times[1:-1])
        values = np.empty((len(times), coefficients.shape[2]))
        for index, (first, last) in enumerate(
            zip([0, *bounds], [*bounds, len(times)], strict=True)
        ):
            if first < last:
                powers = _powers(times[first:last] - self.times[index], len(coefficients))
                values[first:last] = powers @ coefficients[:, index]
        return values

    @cached_property
    def _coefficients(self) -> FloatArray:
        """Quintic coefficients (6, N - 1, J) in seconds, lowest power first."""
        h = np.diff(self.times)
        return unit_coefficients(self) / h[None, :, None] ** np.arange(6.0)[:, None, None]

    def shifted(self, offset: FloatArray) -> JointTrajectory:
        """The same motion from elsewhere: (J,) rad on top of every position."""
        return replace(self, positions=self.positions + offset)

    def from_time(self, time: float) -> JointTrajectory:
        """What is left of the motion from ``time`` s on, its clock starting there."""
        state = self.sample(time)
        later = self.times > time + 1e-9
        if not later.any():
            return resting(self.joint_names, state.position)
        times = np.concatenate([[0.0], self.times[later] - time])
        return JointTrajectory(
            self.joint_names,
            whole_nanoseconds(times),
            np.concatenate([state.position[None], self.positions[later]]),
            np.concatenate([state.velocity[None], self.velocities[later]]),
            np.concatenate([state.acceleration[None], self.accelerations[later]]),
        )

    def knots_from(self, time: float) -> JointTrajectory:
        """The knots at ``time`` s and later, the last one at least, their times as they are."""
        first = min(int(np.searchsorted(self.times, time - 0.5e-9)), len(self.times) - 1)
        return JointTrajectory(
            self.joint_names,
            self.times[first:],
            self.positions[first:],
            self.velocities[first:],
            self.accelerations[first:],
        )

    def resting_on(self, duration: float) -> JointTrajectory:
        """The same, and then rest at its end for ``duration`` s more."""
        return JointTrajectory(
            self.joint_names,
            whole_nanoseconds(np.append(self.times, self.times[-1] + duration)),
            *(
                np.concatenate([values, values[-1:]])
                for values in (self.positions, self.velocities, self.accelerations)
            ),
        )

    def to_rest(self) -> JointTrajectory:
        """The same without what it rests at its end for."""
        moving = self.velocities.any(axis=1) | self.accelerations.any(axis=1)
        moving |= (self.positions != self.positions[-1]).any(axis=1)
        last = int(np.flatnonzero(moving)[-1]) + 1 if moving.any() else 0
        last = min(last, len(self.times) - 1)
        return JointTrajectory(
            self.joint_names,
            self.times[: last + 1],
            self.positions[: last + 1],
            self.velocities[: last + 1],
            self.accelerations[: last + 1],
        )

    def then(self, time: float, other: JointTrajectory) -> JointTrajectory:
        """This motion until ``time`` s, then ``other``, which must start in the state there."""
        earlier = self.times < time - 1e-9
        times = np.concatenate([self.times[earlier], time + other.times])
        return JointTrajectory(
            self.joint_names,
            whole_nanoseconds(times),
            np.concatenate([self.positions[earlier], other.positions]),
            np.concatenate([self.velocities[earlier], other.velocities]),
            np.concatenate([self.accelerations[earlier], other.accelerations]),
        )

    @property
    def _last(self) -> int:
        return max(len(self.times) - 2, 0)


def resting(
    joint_names: tuple[str, ...], position: FloatArray, duration: float = MIN_DURATION
) -> JointTrajectory:
    """No motion: rest at ``position`` (J,) rad for ``duration`` s."""
    knots = np.array([position, position], dtype=np.float64)
    zeros = np.zeros_like(knots)
    return JointTrajectory(joint_names, np.array([0.0, duration]), knots, zeros, zeros)


def unit_coefficients(trajectory: JointTrajectory) -> FloatArray:
    """Quintic coefficients (6, N - 1, J) in time over interval length, lowest power first."""
    h = np.diff(trajectory.times)[:, None]
    p = trajectory.positions
    v0, v1 = trajectory.velocities[:-1] * h, trajectory.velocities[1:] * h
    a0, a1 = trajectory.accelerations[:-1] * h**2, trajectory.accelerations[1:] * h**2
    change = p[1:] - p[:-1]
    coefficients = np.empty((6, *change.shape))
    coefficients[0] = p[:-1]
    coefficients[1] = v0
    coefficients[2] = 0.5 * a0
    coefficients[3] = 10.0 * change - 6.0 * v0 - 4.0 * v1 - 1.5 * a0 + 0.5 * a1
    coefficients[4] = -15.0 * change + 8.0 * v0 + 7.0 * v1 + 1.5 * a0 - a1
    coefficients[5] = 6.0 * change - 3.0 * (v0 + v1) - 0.5 * (a0 - a1)
    return coefficients


def _powers(x: FloatArray, count: int) -> FloatArray:
    """Powers 0 to ``count - 1`` of (M,) numbers, (M, count)."""
    powers = np.empty((count, len(x)))
    powers[0] = 1.0
    for exponent in range(1, count):
        np.multiply(powers[exponent - 1], x, out=powers[exponent])
    return powers.T


def whole_nanoseconds(times: FloatArray) -> FloatArray:
    """Seconds rounded to what a message can say."""
    return np.round(times * 1e9) * 1e-9
