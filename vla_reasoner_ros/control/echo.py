"""What is heard on the command topic: whose it is, and what the arm's controller makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from vla_reasoner_ros.control.commands import NANOSECONDS, TimedTrajectory
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState, whole_nanoseconds
from vla_reasoner_ros.errors import TrajectoryError
from vla_reasoner_ros.types import FloatArray

REMEMBERED = 64  # of the commands sent last
UNDER_WAY = 500_000_000  # ns; a command heard so soon after its stamp was taken by the arm at it


class SentCommands:
    """Recognises one's own commands when they come back on the topic."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED)

    def add(self, stamp_ns: int, last: FloatArray) -> None:
        """Remember a command by its stamp, ns, and its last position (J,), rad."""
        self._sent.append((stamp_ns, np.asarray(last, dtype=np.float64).tobytes()))

    def has(self, stamp_ns: int, last: FloatArray) -> bool:
        """Whether this is one of them."""
        return (stamp_ns, np.asarray(last, dtype=np.float64).tobytes()) in self._sent


def as_played(
    joint_names: tuple[str, ...],
    points: JointTrajectory,
    stamp_ns: int,
    now_ns: int,
    commanded: Callable[[int], MotionState | None],
) -> TimedTrajectory:
    """The motion that a joint trajectory controller plays after a message.

    Where points of the message are past already, it goes on between them. Else it goes from what is
    commanded when the message takes over to the first point (``interpolate_from_desired_state``),
    which is known to the last digit from that point on only. It stands at the last one.

    Args:
        joint_names: the J joints in the arm's order.
        points: the message: its points with their times from ``stamp_ns``, joints in any order.
        stamp_ns: when it starts, ns; 0 means now.
        now_ns: the time.
        commanded: the state that was commanded at a time, ns; None when that is not known.

    Raises:
        TrajectoryError: other joints, or a message that the controller would refuse.
    """
    if sorted(points.joint_names) != sorted(joint_names):
        raise TrajectoryError(
            f"joint trajectory: expected joints {list(joint_names)}, got {list(points.joint_names)}"
        )
    if np.any(np.diff(points.times, prepend=-1.0) <= 0.0) or points.velocities[-1].any():
        raise TrajectoryError("joint trajectory: expected rising times and rest at the end")
    points = points.to_rest()
    order = [points.joint_names.index(name) for name in joint_names]
    arrays = [v[:, order] for v in (points.positions, points.velocities, points.accelerations)]
    since_ns = stamp_ns if now_ns - UNDER_WAY < stamp_ns <= now_ns else now_ns
    offset = ((stamp_ns or now_ns) - since_ns) / NANOSECONDS
    times = points.times + offset
    if times[0] < 0.5e-9:
        own = JointTrajectory(joint_names, times - times[0], *arrays)
        return TimedTrajectory(since_ns, own.from_time(-float(times[0])))
    before = commanded(since_ns)
    if before is None:
        before = MotionState(*(values[0] for values in arrays))
    starts = (before.position, before.velocity, before.acceleration)
    position, velocity, acceleration = (
        np.concatenate([start[None], values]) for start, values in zip(starts, arrays, strict=True)
    )
    times = whole_nanoseconds(np.concatenate([[0.0], times]))
    played = JointTrajectory(joint_names, times, position, velocity, acceleration)
    known_ns = since_ns + round(float(times[1]) * NANOSECONDS)
    return TimedTrajectory(since_ns, played, known_ns)
