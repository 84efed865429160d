"""Imagined paths as markers for RViz and Foxglove, and what a decision is joined from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from geometry_msgs.msg import Point, Pose, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vla_reasoner_ros.evaluation.views import rgb
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.search.candidates import POLICY
from vla_reasoner_ros.search.lines import CHOSEN, ImaginedPath

WIDTHS = {CHOSEN: 0.006, POLICY: 0.004}
"""Of the line of each role, m; the others are thinner."""
THIN = 0.0015
TEXT_HEIGHT, TEXT_ABOVE = 0.02, 0.03


def paths_to_markers(paths: Sequence[ImaginedPath], frame: str, stamp_ns: int) -> MarkerArray:
    """A line for each path, coloured by its value from dark blue (low) to yellow (high).

    The namespaces ``chosen``, ``policy`` and ``rejected`` can be switched apart. The first marker
    removes those of the decision before.

    Args:
        paths: see :func:`vla_reasoner_ros.search.lines.imagined_paths`.
        frame: of their points.
        stamp_ns: of the observation decided on.
    """
    markers = [Marker(header=header(stamp_ns, frame), action=Marker.DELETEALL)]
    for path in paths:
        colour = _colour(path.shade)
        width = WIDTHS.get(path.role, THIN)
        points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in path.points]
        line = _marker(Marker.LINE_STRIP, path, frame, stamp_ns, 2 * path.candidate)
        line.points, line.scale.x, line.color = points, width, colour
        end = _marker(Marker.SPHERE, path, frame, stamp_ns, 2 * path.candidate + 1)
        end.pose.position, end.color = points[-1], colour
        end.scale = Vector3(x=2.0 * width, y=2.0 * width, z=2.0 * width)
        markers += [line, end]
        if path.role in WIDTHS:
            text = _marker(Marker.TEXT_VIEW_FACING, path, frame, stamp_ns, 0)
            text.ns = f"{path.role}/value"
            x, y, z = (float(number) for number in path.points[-1])
            text.pose.position = Point(x=x, y=y, z=z + TEXT_ABOVE)
            text.scale.z, text.color = TEXT_HEIGHT, _white()
            text.text = f"{path.role} {path.value:.3f}"
            markers.append(text)
    return MarkerArray(markers=markers)


def _marker(kind: int, path: ImaginedPath, frame: str, stamp_ns: int, number: int) -> Marker:
    marker = Marker(
        header=header(stamp_ns, frame), ns=path.role, id=number, type=kind, action=Marker.ADD
    )
    marker.pose = Pose()
    marker.pose.orientation.w = 1.0
    return marker


def _colour(shade: float) -> ColorRGBA:
    red, green, blue = (channel / 255.0 for channel in rgb(shade))
    return ColorRGBA(r=red, g=green, b=blue, a=1.0)


def _white() -> ColorRGBA:
    return ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)


class Joiner:
    """Puts together what belongs to one stamp, in whatever order it comes.

    Args:
        kept: stamps that are remembered.
    """

    def __init__(self, kept: int = 32) -> None:
        self._kept = kept
        self._parts: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def add(self, stamp_ns: int, name: str, value: Any) -> dict[str, Any]:
        """Add a part; returns all parts of this stamp so far."""
        parts = self._parts.setdefault(stamp_ns, {})
        parts[name] = value
        while len(self._parts) > self._kept:
            self._parts.popitem(last=False)
        return parts

    def forget(self, stamp_ns: int) -> None:
        """Forget a stamp that is done."""
        self._parts.pop(stamp_ns, None)

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()
