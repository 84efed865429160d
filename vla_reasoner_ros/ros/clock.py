"""ROS time as integer nanoseconds, and what to do when it jumps back."""

from __future__ import annotations

from collections.abc import Callable

from builtin_interfaces.msg import Time
from rclpy.clock import Clock, JumpHandle, JumpThreshold, TimeJump
from rclpy.duration import Duration

from vla_reasoner_ros.errors import ObservationError

NANOSECONDS = 1_000_000_000


def to_nanoseconds(stamp: Time) -> int:
    """A message's stamp in nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def to_stamp(nanoseconds: int) -> Time:
    """Nanoseconds as a message's stamp.

    Raises:
        ObservationError: outside of what ``builtin_interfaces/Time`` holds.
    """
    seconds, rest = divmod(int(nanoseconds), NANOSECONDS)
    if not 0 <= seconds < 2**31:
        raise ObservationError(f"stamp: expected 0 to 2^31 s, got {seconds} s")
    return Time(sec=seconds, nanosec=rest)


def on_jump_back(clock: Clock, callback: Callable[[float], None]) -> JumpHandle:
    """Call back when ROS time jumps back (a bag that starts over, a simulator that resets).

    Args:
        clock: the node's clock.
        callback: gets the jump, a negative number of seconds.

    Returns:
        The registration; it ends when the handle is unregistered.
    """

    def jumped(jump: TimeJump) -> None:
        if jump.delta.nanoseconds < 0:
            callback(jump.delta.nanoseconds / NANOSECONDS)

    threshold = JumpThreshold(
        min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
    )
    return clock.create_jump_callback(threshold, post_callback=jumped)
