"""The quality of service of every stream, in one place.

A reliable subscriber never matches a best-effort publisher, the other way round it does: so what
is received from others is best effort unless the user says otherwise, and what is sent is reliable.
Commands are never latched: a controller that starts late must not get an old one.
"""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from vla_reasoner_ros.errors import ConfigurationError


def _profile(
    depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
    )


COMMAND = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Action chunks, trajectories and gripper commands: the newest counts, none is lost."""

HEARD = _profile(100, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""What is sent to the arm, where it is only listened to: a command of someone else counts even when
another one has come since."""

STOPS = tuple(
    _profile(100, ReliabilityPolicy.RELIABLE, durability)
    for durability in (DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE)
)
"""The two subscriptions to ``estop``: a latched one does not match an unlatched publisher, and a
stop must be heard from both. Every message counts: a button that was pressed and let go of while
the node was busy has stopped the arm."""

STATE = _profile(10, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""What our own nodes publish about themselves: joint states, observations, statistics, status."""

LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""Instructions, camera parameters and snapshots, for those who join late."""

DIAGNOSTICS = _profile(10, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""``/diagnostics``, as its aggregator expects."""

CLOCK = _profile(1, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""``/clock``, as :class:`rclpy.time_source.TimeSource` subscribes to it."""

RELIABILITIES = {
    "reliable": ReliabilityPolicy.RELIABLE,
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
}


def sensor(reliability: str, depth: int) -> QoSProfile:
    """A subscription to a sensor that someone else publishes.

    Args:
        reliability: ``reliable`` (nothing is lost; needs a reliable publisher) or ``best_effort``.
        depth: messages kept while the node is busy.

    Raises:
        ConfigurationError: another word.
    """
    if reliability not in RELIABILITIES:
        raise ConfigurationError(
            f"reliability: expected one of {', '.join(RELIABILITIES)}, got {reliability!r}"
        )
    return _profile(depth, RELIABILITIES[reliability], DurabilityPolicy.VOLATILE)
