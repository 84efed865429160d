"""Where the package's own files lie, installed or in a source tree, with or without ROS."""

from __future__ import annotations

import os
from pathlib import Path

from vla_reasoner_ros.errors import ConfigurationError

PACKAGE = "vla_reasoner_ros"


def share_directory() -> Path:
    """The folder that holds ``config/``, ``launch/`` and ``resource/``.

    Raises:
        ConfigurationError: neither the source tree nor an installed share folder is there.
    """
    source = Path(__file__).resolve().parent.parent
    if (source / "config" / "robots").is_dir():
        return source
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        share = Path(prefix) / "share" / PACKAGE
        if prefix and (share / "config").is_dir():
            return share
    raise ConfigurationError(
        f"the share folder of {PACKAGE} was not found beside {source} nor in AMENT_PREFIX_PATH; "
        "source the workspace's setup.bash"
    )


def models_directory() -> Path:
    """The folder of the shipped weights and their cards."""
    return share_directory() / "resource" / "models"
