"""Where the package's own files lie, installed or in a source tree, with or without ROS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vla_reasoner_ros.errors import ConfigurationError

PACKAGE = "vla_reasoner_ros"
MODELS_VARIABLE = "VLA_REASONER_MODELS"


def share_directory() -> Path:
    """The folder that holds ``config/``, ``launch/`` and ``resource/``.

    Raises:
        ConfigurationError: neither the source tree nor an installed share folder is there.
    """
    source = Path(__file__).resolve().parent.parent
    if (source / "config" / "robots").is_dir():
        return source
    # colcon's, then pip's.
    for prefix in (*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix):
        share = Path(prefix) / "share" / PACKAGE
        if prefix and (share / "config").is_dir():
            return share
    raise ConfigurationError(
        f"the share folder of {PACKAGE} was not found beside {source}, in AMENT_PREFIX_PATH or in "
        f"{sys.prefix}; source the workspace's setup.bash"
    )


def models_directory() -> Path:
    """The folder of the weights and their cards.

    It is the shipped one unless the environment variable :data:`MODELS_VARIABLE` names another.

    Raises:
        ConfigurationError: the variable names something that is no folder.
    """
    given = os.environ.get(MODELS_VARIABLE, "")
    if not given:
        return share_directory() / "resource" / "models"
    if not Path(given).is_dir():
        raise ConfigurationError(f"{MODELS_VARIABLE}: there is no folder {given!r}")
    return Path(given)
