"""Where fixed cameras stand, so that imagined paths can be drawn into their pictures.

A calibration is a YAML file (``config/cameras/``) with an entry for each camera::

    agent:
      size: [640, 480]            # width and height that focal and centre are for, pixels
      focal: [600.0, 600.0]       # fx, fy, pixels
      centre: [320.0, 240.0]      # cx, cy, pixels
      position: [1.1, 0.0, 0.7]   # of the camera in the frame of the arm's base, m
      quaternion: [0.0, 0.0, 0.0, 1.0]  # x y z w, of its optical frame: x right, y down, z ahead

Pictures are taken to be free of distortion. A picture of another size is the same view stretched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.types import FloatArray

LENGTHS = {"size": 2, "focal": 2, "centre": 2, "position": 3, "quaternion": 4}


@dataclass(frozen=True)
class FixedCamera:
    """A pinhole camera that does not move; fields as in the module's text.

    Raises:
        ConfigurationError: a field has another length, is not finite, or cannot be.
    """

    size: tuple[float, float]
    focal: tuple[float, float]
    centre: tuple[float, float]
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        for name, length in LENGTHS.items():
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != (length,) or not np.isfinite(values).all():
                raise ConfigurationError(f"{name}: expected {length} numbers, got {values}")
            if name in ("size", "focal") and not (values > 0.0).all():
                raise ConfigurationError(f"{name}: expected positive numbers, got {values}")
        norm = float(np.linalg.norm(self.quaternion))
        if abs(norm - 1.0) > 1e-3:
            raise ConfigurationError(f"quaternion: has norm {norm:.4f}, expected 1")

    def projection(self, width: int, height: int) -> FloatArray:
        """(3, 4) from homogeneous points in the base frame, m, to pixels of a picture."""
        x, y = width / self.size[0], height / self.size[1]
        intrinsic = np.array(
            [
                [x * self.focal[0], 0.0, x * self.centre[0]],
                [0.0, y * self.focal[1], y * self.centre[1]],
                [0.0, 0.0, 1.0],
            ]
        )
        rotation = Rotation.from_quat(self.quaternion).as_matrix().T
        moved = -(rotation @ np.asarray(self.position))
        return np.asarray(intrinsic @ np.hstack([rotation, moved[:, None]]), dtype=np.float64)


def load_cameras(name_or_path: str | Path) -> dict[str, FixedCamera]:
    """Camera name to calibration.

    Args:
        name_or_path: a name in ``config/cameras/``, or the path of a YAML file.

    Raises:
        ConfigurationError: the file cannot be read or an entry is wrong; the message names it.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_directory() / "config" / "cameras" / f"{name_or_path}.yaml"
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {str(name): _camera(name, entry) for name, entry in dict(content).items()}
    except OSError as error:
        raise ConfigurationError(f"cameras {path}: cannot be read: {error.strerror}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"cameras {path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"cameras {path}: not a calibration: {error}") from error


def _camera(name: Any, entry: Any) -> FixedCamera:
    try:
        return FixedCamera(**{key: tuple(value) for key, value in entry.items()})
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise ConfigurationError(f"{name}: expected {', '.join(LENGTHS)}, got {entry!r}") from error
