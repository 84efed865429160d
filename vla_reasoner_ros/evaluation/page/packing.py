"""Recordings into the blocks of data that the explorer's scripts read.

What lists, filters and charts need of every decision is one index of columns, read when the page
opens. Statistics, candidates and trees lie in compressed blocks, and pictures in blocks of lines,
that are unpacked when a decision is looked at. The block of the decision that is shown first comes
first: so a page of ten thousand decisions is there while the browser still reads the rest.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.page.moments import Moment, Recording
from vla_reasoner_ros.evaluation.records import project
from vla_reasoner_ros.search.lines import root_candidates
from vla_reasoner_ros.search.statistics import Status

BLOCK = 32
"""Decisions that are unpacked together."""
COMPRESSION = 4
"""Of zlib: nearly as small as the best, in half the time."""
JPEG_QUALITY = 80
SOURCES = ("search", "blend", "policy", "hold")
_NUMBERS = (
    ("time_ms", 3),
    ("budget_ms", 3),
    ("root_value", 4),
    ("chosen_value", 4),
    ("policy_value", 4),
    ("margin", 4),
    ("margin_required", 4),
    ("alpha", 4),
    ("drift", 5),
    ("simulations", 0),
    ("chosen_id", 0),
)
_FLAGS = {"deviated": "deviated", "missed": "deadline_missed", "drift_tripped": "drift_tripped"}


class Packer:
    """Collects decisions and writes them as the ``script`` elements of a page.

    Args:
        picture_width: pictures that are wider are made smaller, pixels.
    """

    def __init__(self, picture_width: int) -> None:
        self._width = picture_width
        self._recordings: list[dict[str, Any]] = []
        self._texts: dict[str, int] = {}
        names = ["time", "recording", "status", "reason", "source", "faults", "picture"]
        names += [name for name, _ in _NUMBERS] + list(_FLAGS)
        self._columns: dict[str, list[Any]] = {name: [] for name in names}
        self._details: list[dict[str, Any]] = []
        self._pictures: list[str] = []
        self._blocks: dict[int, str] = {}
        """Script elements by the number of the block, in the order of the page."""

    @property
    def count(self) -> int:
        """Decisions so far."""
        return len(self._columns["time"])

    def add(self, recording: Recording) -> None:
        """Pack a recording.

        Raises:
            ConfigurationError: a moment's statistics or tree lack a field, or a picture is no JPEG.
        """
        first = self.count
        for moment in recording.moments:
            try:
                self._add(moment, recording)
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"report: decision {self.count - first + 1} of {recording.title!r} is not what "
                    f"the planner says: {error!r}"
                ) from error
        if self.count == first:
            return
        last = self._columns["time"][-1]
        self._recordings.append(
            {
                "title": recording.title,
                "detail": recording.detail,
                "first": first,
                "count": self.count - first,
                "duration": round(max(recording.duration_s, last), 3),
                "size": list(recording.picture_size),
            }
        )

    def scripts(self) -> str:
        """The data as ``script`` elements; nothing can be added afterwards."""
        self._close_block()
        index = {
            "count": self.count,
            "block": BLOCK,
            "recordings": self._recordings,
            "columns": self._columns,
            "texts": list(self._texts),
        }
        text = _json(index).replace("<", "\\u003c")
        first = f'<script type="application/json" id="session-index">{text}</script>'
        told = self._most_telling() // BLOCK
        blocks = sorted(self._blocks, key=lambda number: number != told)
        return "\n".join([first, *(self._blocks[number] for number in blocks)])

    def _most_telling(self) -> int:
        """The decision that the page opens with, by the rule of its scripts."""
        deviated, margin = self._columns["deviated"], self._columns["margin"]
        return max(range(self.count), key=lambda i: (deviated[i], margin[i] or 0.0), default=0)

    def _add(self, moment: Moment, recording: Recording) -> None:
        said = moment.statistics
        details: dict[str, Any] = {
            "statistics": {
                name: _plain(value)
                for name, value in said.items()
                if not name.startswith("candidate_")
            },
            "candidates": _candidates(said),
            "tree": _tree(moment, recording),
            "remarks": list(moment.remarks),
        }
        picture = "" if moment.picture is None else _base64(_within(moment.picture, self._width))
        row: dict[str, Any] = {
            "time": round(moment.time_s, 3),
            "recording": len(self._recordings),
            "status": int(said["status"]),
            "reason": self._text(said["fallback_reason"]),
            "source": SOURCES.index(source_of(said)),
            "faults": [self._text(fault) for fault in moment.faults],
            "picture": int(bool(picture)),
        }
        row |= {name: _rounded(float(said[name]), digits) for name, digits in _NUMBERS}
        row |= {name: int(bool(said[field])) for name, field in _FLAGS.items()}
        if len(self._details) == BLOCK:
            self._close_block()
        self._details.append(details)
        self._pictures.append(picture)
        for name, value in row.items():
            self._columns[name].append(value)

    def _close_block(self) -> None:
        if not self._details:
            return
        number = (self.count - 1) // BLOCK
        packed = _base64(zlib.compress(_json(self._details).encode(), COMPRESSION))
        block = f'<script type="text/plain" id="session-details-{number}">{packed}</script>'
        if any(self._pictures):
            lines = "\n".join(self._pictures)
            block += f'\n<script type="text/plain" id="session-pictures-{number}">{lines}</script>'
        self._blocks[number] = block
        self._details, self._pictures = [], []

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def source_of(statistics: Mapping[str, Any]) -> str:
    """Who made the chunk that a decision sent: one of :data:`SOURCES`."""
    if int(statistics["status"]) == Status.HOLD:
        return "hold"
    if not statistics["deviated"]:
        return "policy"
    return "search" if float(statistics["alpha"]) == 0.0 else "blend"


def pack(recordings: Iterable[Recording], picture_width: int) -> tuple[int, str]:
    """How many decisions there are, and the ``script`` elements that hold them.

    Args:
        recordings: in the order of the timeline.
        picture_width: pictures that are wider are made smaller, pixels.

    Raises:
        ConfigurationError: see :meth:`Packer.add`.
    """
    packer = Packer(picture_width)
    for recording in recordings:
        packer.add(recording)
    return packer.count, packer.scripts()


def _candidates(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = ("ids", "visits", "values", "priors", "origins")
    return [
        {
            "id": int(number),
            "visits": int(visits),
            "value": _rounded(value, 4),
            "prior": _rounded(prior, 4),
            "origin": origin,
        }
        for number, visits, value, prior, origin in zip(
            *(said[f"candidate_{name}"] for name in columns), strict=True
        )
    ]


def _tree(moment: Moment, recording: Recording) -> dict[str, Any] | None:
    tree = moment.tree
    if tree is None:
        return None
    positions = np.asarray(tree["ee_positions"], dtype=np.float64).reshape(-1, 3)
    packed: dict[str, Any] = {
        "parents": [int(parent) for parent in tree["parents"]],
        "visits": [int(visits) for visits in tree["visits"]],
        "origins": list(tree["origins"]),
        "roots": root_candidates(tree, moment.statistics),
    }
    for name in ("values", "leaf_values", "priors"):
        packed[name] = _column(tree[name], 4)
    if len(positions) == len(packed["parents"]) and np.isfinite(positions).all():
        packed["positions"] = np.round(positions, 4).tolist()
        if recording.projection is not None:
            packed["pixels"] = _pixels(project(recording.projection, positions))
    if moment.frames:
        packed["frames"] = {int(node): _base64(frame) for node, frame in moment.frames.items()}
    return packed


def _pixels(points: NDArray[np.float64]) -> list[list[float] | None]:
    """Points on the picture; None for those behind the camera."""
    seen = np.asarray(np.isfinite(points).all(axis=1))
    rounded = np.round(points, 1).tolist()
    return [point if ahead else None for point, ahead in zip(rounded, seen, strict=True)]


def _within(picture: bytes, width: int) -> bytes:
    """A JPEG of at most this width, or a few pixels more."""
    data = np.frombuffer(picture, dtype=np.uint8)
    # An eighth of the size takes little more than reading the header.
    eighth = cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_8)
    if eighth is None:
        raise ValueError(f"a picture of {len(picture)} bytes is no image")
    if 8 * eighth.shape[1] < width + 8:
        return picture
    half = 4 * eighth.shape[1] >= width + 8
    image = cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR)
    assert image is not None
    height = round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def _column(values: Any, digits: int) -> list[float | None]:
    """Numbers rounded, None for what is not finite."""
    numbers = np.round(np.asarray(values, dtype=np.float64), digits)
    if np.isfinite(numbers).all():
        return numbers.tolist()
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def _plain(value: Any) -> Any:
    """A field of the statistics as JSON can hold it; an integer that JavaScript cannot, as text."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else str(int(value))
    return _rounded(float(value), 5)


def _rounded(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    return round(value, digits) if digits else round(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
