"""Settings of the middleware that pictures need, unless the user has made their own."""

from __future__ import annotations

from collections.abc import MutableMapping

from vla_reasoner_ros.paths import share_directory

PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
_OWN_SETTINGS = (PROFILES, "FASTDDS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS")


def use_shared_memory(environment: MutableMapping[str, str]) -> None:
    """Point Fast DDS at ``config/fastdds.xml``; see there what happens without it.

    Call it before ``rclpy.init``. Another middleware ignores it.

    Args:
        environment: ``os.environ``, or the environment of a process to be started.

    Raises:
        ConfigurationError: the package's share folder is not found.
    """
    if not any(name in environment for name in _OWN_SETTINGS):
        environment[PROFILES] = str(share_directory() / "config" / "fastdds.xml")
