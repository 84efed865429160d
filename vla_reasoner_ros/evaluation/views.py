"""One decision in pictures: imagined paths over what the camera saw, and as a Rerun recording."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.data.cameras import FixedCamera
from vla_reasoner_ros.data.overlay import Stroke, draw, enlarged
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.records import project
from vla_reasoner_ros.evaluation.svg import value_colour
from vla_reasoner_ros.search.candidates import POLICY
from vla_reasoner_ros.search.lines import CHOSEN, ImaginedPath
from vla_reasoner_ros.search.statistics import Status
from vla_reasoner_ros.types import Observation

# Okabe and Ito's blue and vermillion, as in the report.
ROLE_COLOURS = {CHOSEN: (0, 114, 178), POLICY: (213, 94, 0)}
ROLE_WIDTHS = {CHOSEN: 4, POLICY: 3}
ENTITY = "decision"
"""Path of everything in a Rerun recording."""


def rgb(shade: float) -> tuple[int, int, int]:
    """The colour of a value at this place between the lowest and the highest: cividis."""
    text = value_colour(shade)
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def words(statistics: Mapping[str, Any]) -> list[str]:
    """A decision in two short lines of plain letters."""
    status = Status(int(statistics["status"]))
    if statistics["deviated"]:
        first = f"candidate {statistics['chosen_id']} instead of the policy's own"
    elif status is Status.HOLD:
        first = "hold"
    else:
        first = "the policy's own"
    reason = statistics["fallback_reason"]
    second = f"{statistics['time_ms']:.0f} ms"
    if statistics["simulations"]:
        second += f", seen {statistics['root_value']:.2f}, margin {statistics['margin']:+.3f}"
    if statistics["deadline_missed"]:
        second += ", deadline missed"
    return [first if not reason else f"{first}: {reason}", second]


def annotated(
    image: NDArray[np.uint8],
    paths: Sequence[ImaginedPath],
    statistics: Mapping[str, Any],
    camera: FixedCamera | None,
    height: int,
) -> NDArray[np.uint8]:
    """A picture with a decision drawn on it.

    Args:
        image: (H, W, 3) RGB.
        paths: in the frame that the camera is calibrated in.
        statistics: the fields of SearchStatistics by name.
        camera: where it stands; None leaves the paths out.
        height: a smaller picture is enlarged to this height, pixels.

    Returns:
        (h, w, 3) RGB, a copy.
    """
    picture = enlarged(image, height)
    strokes = []
    if camera is not None:
        projection = camera.projection(picture.shape[1], picture.shape[0])
        for path in paths:
            colour = ROLE_COLOURS.get(path.role, rgb(path.shade))
            width = ROLE_WIDTHS.get(path.role, 1)
            points = project(projection, path.points)
            strokes.append(Stroke(points, colour, width, path.role == POLICY))
    draw(picture, strokes, words(statistics))
    return picture


class RerunLog:
    """Writes decisions to a Rerun recording (``.rrd``); the viewer opens it while it grows.

    Args:
        path: the file.

    Raises:
        ConfigurationError: ``rerun-sdk`` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import rerun
        except ImportError as error:
            raise ConfigurationError(
                f"a Rerun recording needs the extra 'rerun' (pip install rerun-sdk): {error}"
            ) from error
        self._rerun = rerun
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._stream = rerun.RecordingStream("vla_reasoner")
        self._stream.save(str(path))

    def add(
        self,
        observation: Observation,
        statistics: Mapping[str, Any],
        paths: Sequence[ImaginedPath],
        picture: NDArray[np.uint8] | None,
    ) -> None:
        """Log one decision at the stamp of its observation.

        Args:
            observation: what was decided on.
            statistics: the fields of SearchStatistics by name.
            paths: imagined, may be none.
            picture: the annotated picture; None where the observation has none.
        """
        rerun, log = self._rerun, self._stream.log
        self._stream.set_time("time", timestamp=observation.stamp_ns * 1e-9)
        for name, image in observation.images.items():
            log(f"camera/{name}", rerun.Image(image).compress(jpeg_quality=85))
        if picture is not None:
            log(f"{ENTITY}/picture", rerun.Image(picture).compress(jpeg_quality=85))
        colours = [ROLE_COLOURS.get(path.role, rgb(path.shade)) for path in paths]
        labels = [f"{path.candidate}: {path.value:.3f}" for path in paths]
        radii = [0.001 * ROLE_WIDTHS.get(path.role, 1) for path in paths]
        strips = [path.points for path in paths]
        log(
            f"{ENTITY}/paths",
            rerun.LineStrips3D(
                strips, colors=colours, radii=radii, labels=labels, show_labels=False
            ),
        )
        numbers = {"time_ms": "time_ms", "budget_ms": "budget_ms", "drift": "drift"}
        if statistics["simulations"]:
            numbers |= {
                "value/seen": "root_value",
                "value/chosen": "chosen_value",
                "value/policy": "policy_value",
            }
        for name, field in numbers.items():
            number = float(statistics[field])
            if math.isfinite(number):
                log(f"{ENTITY}/{name}", rerun.Scalars(number))
        text = " | ".join(words(statistics))
        level = "WARN" if statistics["fallback_reason"] else "INFO"
        log(f"{ENTITY}/words", rerun.TextLog(text, level=level))

    def close(self) -> None:
        """Write what is still waiting and close the file."""
        self._stream.flush()
        self._stream.disconnect()
