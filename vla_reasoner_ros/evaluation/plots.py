"""Plots of evaluations and ablations as SVG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_reasoner_ros.evaluation.svg import ARM_COLOURS
from vla_reasoner_ros.files import write_atomically

MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@dataclass(frozen=True)
class Measured:
    """A number with its interval, percent or points; all None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One arm over all rows of a plot."""

    name: str
    points: Sequence[Measured]


def plot_rows(
    path: Path, rows: Sequence[str], series: Sequence[Series], axis: str, zero: bool = False
) -> None:
    """One line of marks with intervals for each row; series are told apart by colour and shape.

    Args:
        path: the SVG file to write.
        rows: their names, from top to bottom; plain text.
        series: the marks of each row.
        axis: what the horizontal axis shows, with its unit.
        zero: draw the line at zero, for differences.
    """
    # Imported here: a run that draws nothing does not pay for it.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    spread = 0.7 / max(len(series), 1)
    height = 1.1 + max(0.28, 0.17 * len(series)) * len(rows)
    figure = Figure(figsize=(7.0, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for index, one in enumerate(series):
        colour = ARM_COLOURS[index % len(ARM_COLOURS)]
        label: str | None = one.name
        for row, point in enumerate(one.points):
            if point.value is None:
                continue
            y = row + (index - (len(series) - 1) / 2) * spread
            if point.low is not None and point.high is not None:
                axes.plot([point.low, point.high], [y, y], color=colour, linewidth=1.5)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot([point.value], [y], marker, color=colour, markersize=5, label=label)
            label = None
    if zero:
        axes.axvline(0.0, color="#5B5B5B", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(axis)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    write_atomically(path, stream.getvalue())
