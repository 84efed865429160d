"""Charts of the reports as SVG text: no script, no library, sharp at any size.

The arms are told apart by colour (Okabe and Ito's palette, safe for colour-blind readers) AND by
the shape of the mark, and every number can be read beside its mark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

ARM_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5B5B5B")
CHOSEN, POLICY, REJECTED = "#0072B2", "#D55E00", "#9AA1A9"
# Cividis, five stops: even in lightness, the same for all readers.
_VALUE_STOPS = ((0, 34, 78), (66, 78, 108), (125, 124, 120), (188, 175, 111), (254, 232, 56))


@dataclass(frozen=True)
class Interval:
    """A number with its interval, all in the unit of the axis."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TreeNode:
    """A node of a search tree as the picture needs it; node 0 is the root."""

    parent: int
    visits: int
    value: float
    origin: str


def arm_colour(index: int) -> str:
    """The colour of the arm at this place in the list of arms."""
    return ARM_COLOURS[index % len(ARM_COLOURS)]


def value_colour(value: float) -> str:
    """The colour of a value in [0, 1]: dark blue is low, yellow is high; grey when unknown."""
    if not math.isfinite(value):
        return "#DDDDDD"
    place = min(max(value, 0.0), 1.0) * (len(_VALUE_STOPS) - 1)
    lower = min(int(place), len(_VALUE_STOPS) - 2)
    part = place - lower
    channels = [
        round(a + (b - a) * part)
        for a, b in zip(_VALUE_STOPS[lower], _VALUE_STOPS[lower + 1], strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*channels)


def mark(index: int, x: float, y: float, size: float = 5.0) -> str:
    """The mark of an arm: circle, square, diamond, triangle, in turn."""
    colour = arm_colour(index)
    shape = index % 4
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}"/>'
    if shape == 1:
        return (
            f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" '
            f'height="{2 * size:.1f}" fill="{colour}"/>'
        )
    offsets = (
        ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0))
        if shape == 2
        else ((0, -1.2), (1.2, 1.0), (-1.2, 1.0))
    )
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in offsets)
    return f'<polygon points="{points}" fill="{colour}"/>'


def legend(arms: Sequence[str]) -> str:
    """Marks and names of the arms in one line of HTML."""
    entries = [
        f'<span class="key"><svg width="16" height="16" aria-hidden="true">{mark(i, 8, 8)}</svg>'
        f"{escape(arm)}</span>"
        for i, arm in enumerate(arms)
    ]
    return f'<p class="legend">{"".join(entries)}</p>'


def interval_plot(
    rows: Sequence[tuple[str, Sequence[Interval | None]]],
    *,
    low: float,
    high: float,
    unit: str,
    label: str,
    zero_line: float | None = None,
    width: int = 760,
) -> str:
    """Rows of named intervals over one axis, one line per arm within each row.

    Args:
        rows: the row's name and its interval per arm, None where an arm has none.
        low: start of the axis.
        high: end of the axis.
        unit: written after each number.
        label: what the picture shows, for those who cannot see it.
        zero_line: a value to mark, such as "no difference".
        width: pixels.
    """
    left, right, line, gap = 130, 160, 18, 12
    span = width - left - right

    def place(value: float) -> float:
        return left + span * (min(max(value, low), high) - low) / (high - low)

    parts: list[str] = []
    y = 8.0
    for name, intervals in rows:
        middle = y + line * len(intervals) / 2
        parts.append(_text(left - 14, middle + 4, name, anchor="end"))
        for index, interval in enumerate(intervals):
            centre = y + line * (index + 0.5)
            if interval is not None and math.isfinite(interval.value):
                parts.append(
                    f'<line x1="{place(interval.low):.1f}" x2="{place(interval.high):.1f}" '
                    f'y1="{centre:.1f}" y2="{centre:.1f}" stroke="{arm_colour(index)}" '
                    'stroke-width="2.5" stroke-opacity="0.55"/>'
                )
                parts.append(mark(index, place(interval.value), centre))
                numbers = f"{interval.value:.0f}{unit} ({interval.low:.0f} to {interval.high:.0f})"
                parts.append(_text(width - right + 14, centre + 4, numbers, css="num"))
        y += line * len(intervals) + gap
    bottom = y
    grid: list[str] = []
    for tick in _ticks(low, high):
        x = place(tick)
        strong = zero_line is not None and abs(tick - zero_line) < 1e-9
        grid.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.1f}" class="'
            f'{"zero" if strong else "grid"}"/>'
        )
        grid.append(_text(x, bottom + 16, f"{tick:g}{unit}", anchor="middle", css="tick"))
    return _svg(width, bottom + 24, label, grid + parts)


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[float]]],
    parts_names: Sequence[str],
    *,
    unit: str,
    label: str,
    width: int = 760,
) -> str:
    """One bar per row, divided into named parts, with its total.

    Args:
        rows: the row's name and the size of each part.
        parts_names: the parts' names, in order.
        unit: of the sizes.
        label: what the picture shows.
        width: pixels.
    """
    left, right, height, gap = 200, 90, 22, 12
    longest = max((sum(sizes) for _, sizes in rows), default=0.0) or 1.0
    span = width - left - right
    drawn: list[str] = []
    y = 6.0
    for name, sizes in rows:
        drawn.append(_text(left - 14, y + height / 2 + 4, name, anchor="end"))
        x = float(left)
        for index, size in enumerate(sizes):
            length = span * size / longest
            title = f"{parts_names[index]}: {size:.1f} {unit}"
            drawn.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(length, 0):.1f}" height="{height}" '
                f'fill="{_part_colour(index)}" stroke="#fff"><title>{escape(title)}</title></rect>'
            )
            if length > 34:
                drawn.append(
                    _text(
                        x + length / 2,
                        y + height / 2 + 4,
                        f"{size:.0f}",
                        anchor="middle",
                        css="bar-dark" if index % 2 else "bar-light",
                    )
                )
            x += length
        drawn.append(_text(x + 10, y + height / 2 + 4, f"{sum(sizes):.0f} {unit}", css="num"))
        y += height + gap
    keys = "".join(
        f'<span class="key"><svg width="16" height="16" aria-hidden="true"><rect x="2" y="2" '
        f'width="12" height="12" fill="{_part_colour(i)}"/></svg>{escape(name)}</span>'
        for i, name in enumerate(parts_names)
    )
    return _svg(width, y, label, drawn) + f'<p class="legend">{keys}</p>'


def tree(nodes: Sequence[TreeNode], chosen: int, policy: int, *, width: int = 520) -> str:
    """A search tree: layers by depth, area by visits, colour by value between lowest and highest.

    Args:
        nodes: node 0 first, a parent before its children.
        chosen: the node of the root candidate that was chosen.
        policy: the node of the policy's own candidate.
        width: pixels.
    """
    children: list[list[int]] = [[] for _ in nodes]
    depth = [0] * len(nodes)
    for index, node in enumerate(nodes):
        if node.parent >= 0:
            children[node.parent].append(index)
            depth[index] = depth[node.parent] + 1
    columns = _columns(children)
    margin, layer = 22.0, 92.0
    widest = max(max(columns, default=0.0), 1.0)
    most = max((node.visits for node in nodes[1:]), default=1) or 1
    lowest = min(node.value for node in nodes)
    spread = max(node.value for node in nodes) - lowest or 1.0
    x = [margin + (width - 2 * margin) * column / widest for column in columns]
    y = [margin + layer * level for level in depth]
    edges: list[str] = []
    circles: list[str] = []
    for index, node in enumerate(nodes):
        colour = value_colour((node.value - lowest) / spread)
        special = CHOSEN if index == chosen else POLICY if index == policy else ""
        if node.parent >= 0:
            edges.append(
                f'<line x1="{x[node.parent]:.1f}" y1="{y[node.parent]:.1f}" x2="{x[index]:.1f}" '
                f'y2="{y[index]:.1f}" stroke="{special or "#C9CED3"}" '
                f'stroke-width="{2.5 if special else 1}"/>'
            )
        radius = 3.0 + 9.0 * math.sqrt(min(node.visits / most, 1.0))
        title = f"{node.origin}: value {node.value:.3f}, {node.visits} visits"
        circles.append(
            f'<circle cx="{x[index]:.1f}" cy="{y[index]:.1f}" r="{radius:.1f}" '
            f'fill="{colour}" stroke="{special or "#6B7280"}" '
            f'stroke-width="{3 if special else 0.8}"'
            f"{DASHED if index == policy and index != chosen else ''}>"
            f"<title>{escape(title)}</title></circle>"
        )
    height = 2 * margin + layer * max(depth, default=0)
    return _svg(width, height, f"search tree of {len(nodes)} nodes", edges + circles)


DASHED = ' stroke-dasharray="4 3"'


def paths_over_image(
    image: str,
    size: tuple[int, int],
    paths: Sequence[tuple[NDArray[np.float64], str, str]],
) -> str:
    """An image with lines drawn over it.

    Args:
        image: its data URI.
        size: width and height of the image, pixels.
        paths: (N, 2) points in pixels, with a role (``chosen``, ``policy`` or ``rejected``) and a
            text shown when pointed at.
    """
    width, height = size
    left, top, zoom = _window([points for points, _, _ in paths], size)
    # Strokes keep their size on the page however far the picture is magnified.
    thin = 1.0 / zoom
    parts = [f'<image href="{image}" width="{width}" height="{height}"/>']
    styles = {
        "rejected": (REJECTED, 1.6, ""),
        "policy": (POLICY, 2.6, f' stroke-dasharray="{6 * thin:.2f} {4 * thin:.2f}"'),
        "chosen": (CHOSEN, 3.4, ""),
    }
    order = sorted(paths, key=lambda path: list(styles).index(path[1]))
    for points, role, title in order:
        colour, stroke, dash = styles[role]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        stroke *= thin
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="#fff" stroke-opacity="0.7" '
            f'stroke-width="{stroke * 1.8:.2f}"/>'
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{stroke:.2f}"'
            f"{dash}><title>{escape(title)}</title></polyline>"
        )
        parts.append(
            f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="{stroke * 1.3:.2f}" '
            f'fill="{colour}" stroke="#fff" stroke-width="{thin:.2f}">'
            f"<title>{escape(title)}</title></circle>"
        )
    label = "imagined paths of the end effector"
    return _svg(width, height, label, parts, (left, top, width / zoom, height / zoom))


def _window(
    paths: Sequence[NDArray[np.float64]], size: tuple[int, int]
) -> tuple[float, float, float]:
    """Left and top corner, px, and magnification of the part of an image that holds the paths."""
    width, height = size
    if not paths:
        return 0.0, 0.0, 1.0
    points = np.concatenate(list(paths))
    low, high = points.min(axis=0), points.max(axis=0)
    needed = max(2.2 * (high[0] - low[0]) / width, 2.2 * (high[1] - low[1]) / height, 0.4)
    share = min(needed, 1.0)
    centre = (low + high) / 2
    left = min(max(centre[0] - share * width / 2, 0.0), width * (1 - share))
    top = min(max(centre[1] - share * height / 2, 0.0), height * (1 - share))
    return float(left), float(top), 1.0 / share


def _columns(children: Sequence[Sequence[int]]) -> list[float]:
    """A column for each node: leaves in order, a parent in the middle of its children."""
    columns = [0.0] * len(children)
    following = 0
    stack: list[tuple[int, bool]] = [(0, False)] if children else []
    while stack:
        node, done = stack.pop()
        if not children[node]:
            columns[node] = float(following)
            following += 1
        elif done:
            columns[node] = (columns[children[node][0]] + columns[children[node][-1]]) / 2
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children[node]))
    return columns


def _part_colour(index: int) -> str:
    palette = ("#0072B2", "#F0C05A", "#009E73", "#E3A6C6", "#4A4A4A", "#9ED2F2", "#D55E00")
    return palette[index % len(palette)]


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999), default=rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "name") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
    )


def _svg(
    width: float,
    height: float,
    label: str,
    parts: Sequence[str],
    view: tuple[float, float, float, float] | None = None,
) -> str:
    box = " ".join(f"{number:.1f}" for number in view or (0.0, 0.0, width, height))
    return (
        f'<svg viewBox="{box}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )
