"""Time-optimal motions without waypoints: the decelerating hold and the slow move to a pose.

Ruckig computes them; their jerk is constant between the knots, which the controller's quintic
interpolation reproduces exactly.
"""

from __future__ import annotations

import numpy as np
import ruckig

from vla_reasoner_ros.control.robots import JointLimits
from vla_reasoner_ros.control.trajectory import (
    MIN_DURATION,
    JointTrajectory,
    MotionState,
    resting,
)
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

MERGE = 2e-6  # s; knots closer than this become one
HEADROOM = 0.99  # of acceleration and jerk, for what merging and whole nanoseconds cost
BRAKES = (HEADROOM, 0.97, 0.94)  # tried in turn: Ruckig finds no way from one state in thousands
EASE = 0.5  # of acceleration and jerk, for a stop from a state that is not known exactly
SOFTLY = 0.15  # s; in so long a stop an arm that is 0.01 rad beside where it should be gets there
STOP_REST = 0.5  # s; a stop says for so long after its end to rest there, should it come late
SETTLED = 1e-12  # rad/s and rad/s^2 below which a joint counts as at rest


def brake(joint_names: tuple[str, ...], start: MotionState, limits: JointLimits) -> JointTrajectory:
    """From a commanded state to rest as fast as acceleration and jerk allow, each joint by itself.

    Where Ruckig finds no such motion it is one quintic.

    Args:
        joint_names: the J joints.
        start: the commanded state at time 0.
        limits: acceleration and jerk are respected; where the start already breaks the
            acceleration limit, it only gets smaller.

    Raises:
        TrajectoryError: the state is not finite.
    """
    joints = len(joint_names)
    request = _request(start, joints)
    if max(np.abs(start.velocity).max(), np.abs(start.acceleration).max()) < SETTLED:
        return resting(joint_names, start.position)
    request.control_interface = ruckig.ControlInterface.Velocity
    request.synchronization = ruckig.Synchronization.No
    request.target_velocity = [0.0] * joints
    for share in BRAKES:
        acceleration = np.maximum(share * limits.acceleration, np.abs(start.acceleration))
        request.max_acceleration = acceleration.tolist()
        request.max_jerk = (share * limits.jerk).tolist()
        try:
            return _solve(joint_names, request, start)
        except TrajectoryError:
            continue
    return ease_out(joint_names, start, limits, share=HEADROOM)


def move_to(
    joint_names: tuple[str, ...],
    start: MotionState,
    target: FloatArray,
    limits: JointLimits,
) -> JointTrajectory:
    """From a commanded state to rest at ``target`` (J,) rad, all joints arriving together.

    Raises:
        TrajectoryError: there is no such motion within the limits.
    """
    joints = len(joint_names)
    if np.abs(target - start.position).max() < SETTLED and start.resting:
        return resting(joint_names, start.position)
    request = _request(start, joints)
    request.synchronization = ruckig.Synchronization.Time
    request.target_position = np.asarray(target, dtype=np.float64).tolist()
    request.target_velocity = [0.0] * joints
    request.max_velocity = (HEADROOM * limits.velocity).tolist()
    request.max_acceleration = (HEADROOM * limits.acceleration).tolist()
    request.max_jerk = (HEADROOM * limits.jerk).tolist()
    return _solve(joint_names, request, start)


def ease_to(
    joint_names: tuple[str, ...],
    position: FloatArray,
    target: FloatArray,
    limits: JointLimits,
    least: float = MIN_DURATION,
) -> JointTrajectory:
    """From rest at one position (J,) to rest at another, rad, in one quintic.

    It takes ``least`` s or longer. Only its end is sent. Wherever the arm's controller really is
    between the two, its interpolation from there takes the same time for a shorter way: it goes
    smoothly, or not at all.
    """
    way = np.abs(target - position)
    # The quintic's largest speed, acceleration and jerk are these multiples of way / T^n.
    duration = max(
        float(np.max(1.875 * way / limits.velocity)),
        float(np.sqrt(np.max(5.7736 * way / limits.acceleration))),
        float(np.cbrt(np.max(60.0 * way / limits.jerk))),
    )
    duration = max(duration / HEADROOM, least)
    knots = np.stack([position, target])
    zeros = np.zeros_like(knots)
    times = np.array([0.0, round(duration * 1e9) * 1e-9])
    return JointTrajectory(joint_names, times, knots, zeros, zeros)


def ease_out(
    joint_names: tuple[str, ...],
    start: MotionState,
    limits: JointLimits,
    least: float = MIN_DURATION,
    share: float = EASE,
) -> JointTrajectory:
    """To rest in one quintic, at a share of the acceleration and jerk that the limits allow.

    For a state that is known roughly, as after a jump of the clock: only the end is sent, and the
    arm's controller interpolates to it from where it really is. It takes ``least`` s or longer.
    """
    duration = max(
        float(np.max(1.5 * np.abs(start.velocity) / (share * limits.acceleration))),
        float(np.sqrt(np.max(6.0 * np.abs(start.velocity) / (share * limits.jerk)))),
        float(np.max(np.abs(start.acceleration) / (0.1 * share * limits.jerk))),
        least,
    )
    way = duration * (start.velocity / 2.0 + duration * start.acceleration / 12.0)
    zeros = np.zeros_like(way)
    return JointTrajectory(
        joint_names,
        np.array([0.0, round(duration * 1e9) * 1e-9]),
        np.stack([start.position, start.position + way]),
        np.stack([start.velocity, zeros]),
        np.stack([start.acceleration, zeros]),
    )


def _request(start: MotionState, joints: int) -> ruckig.InputParameter:
    if not all(np.isfinite(v).all() for v in (start.position, start.velocity, start.acceleration)):
        raise TrajectoryError(f"no motion from a state that is not finite: {start}")
    request = ruckig.InputParameter(joints)
    request.current_position = start.position.tolist()
    request.current_velocity = start.velocity.tolist()
    request.current_acceleration = start.acceleration.tolist()
    request.target_acceleration = [0.0] * joints
    return request


def _solve(
    joint_names: tuple[str, ...], request: ruckig.InputParameter, start: MotionState
) -> JointTrajectory:
    joints = len(joint_names)
    motion = ruckig.Trajectory(joints)
    try:
        result = ruckig.Ruckig(joints).calculate(request, motion)
    except (ruckig.RuckigError, ValueError, SystemError) as error:  # of numbers too large as well
        raise TrajectoryError(f"no motion from {start.position.tolist()} rad: {error}") from error
    if result not in (ruckig.Result.Working, ruckig.Result.Finished):
        raise TrajectoryError(f"no motion from {start.position.tolist()} rad: {result.name}")
    times = np.round(_knot_times(motion) * 1e9) * 1e-9
    states = np.array([motion.at_time(time) for time in times])  # (N, 3, J)
    states[0] = start.position, start.velocity, start.acceleration
    states[-1, 1:] = 0.0
    return JointTrajectory(joint_names, times, states[:, 0], states[:, 1], states[:, 2])


def _knot_times(motion: ruckig.Trajectory) -> FloatArray:
    """When any joint's jerk changes (N,), s, and the end."""
    switches = [0.0, motion.duration]
    for profile in motion.profiles[0]:
        elapsed = 0.0
        for duration in [*profile.brake.t, *profile.t]:
            elapsed += duration
            switches.append(elapsed)
    ordered = np.unique(np.clip(switches, 0.0, motion.duration))
    apart = np.concatenate([[True], np.diff(ordered) > MERGE])
    kept = ordered[apart]
    if len(kept) == 1:
        return np.array([0.0, max(motion.duration, 1e-9)])
    kept[-1] = motion.duration
    return kept
