"""Drawing over a camera's picture: lines, and a few words on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

WHITE, DARK = (255, 255, 255), (15, 19, 22)
SUBPIXELS = 3
"""Bits of the fraction of a pixel that lines are drawn with."""
FAR = 1e5
"""Pixels; a line that leads farther away comes from a point beside the camera and is left out."""
LARGEST = 4096
"""Pixels of a side that no picture is enlarged beyond."""


@dataclass(frozen=True)
class Stroke:
    """A line.

    Attributes:
        points: (K, 2) pixels of the picture as it is drawn on; a line with NaN, or with a point
            :data:`FAR` away, is left out.
        colour: red, green, blue, 0 to 255.
        width: pixels.
        dashed: every second piece is left out.
    """

    points: NDArray[np.float64]
    colour: tuple[int, int, int]
    width: int
    dashed: bool = False


def enlarged(image: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """A copy of an (H, W, 3) picture at least this high, in its own aspect ratio.

    A very wide one is enlarged to :data:`LARGEST` at most.
    """
    scale = min(height / image.shape[0], LARGEST / max(image.shape))
    if scale <= 1.0:
        return image.copy()
    size = (round(scale * image.shape[1]), round(scale * image.shape[0]))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def draw(image: NDArray[np.uint8], strokes: Sequence[Stroke], words: Sequence[str]) -> None:
    """Draw into an (H, W, 3) RGB picture, the last stroke on top, words in lines from above."""
    for stroke in strokes:
        if len(stroke.points) < 2 or not (np.abs(stroke.points) < FAR).all():
            continue
        pieces = _dashes(stroke.points, 4.0 * stroke.width) if stroke.dashed else [stroke.points]
        lines = [np.round(piece * 2**SUBPIXELS).astype(np.int32)[:, None] for piece in pieces]
        for colour, width in ((WHITE, stroke.width + 2), (stroke.colour, stroke.width)):
            cv2.polylines(image, lines, False, colour, width, cv2.LINE_AA, SUBPIXELS)
        end = tuple(int(number) for number in np.round(stroke.points[-1]))
        cv2.circle(image, end, stroke.width + 1, stroke.colour, cv2.FILLED, cv2.LINE_AA)
    size = image.shape[0] / 900.0
    line = round(34 * size) + 4
    if words:
        band = image[: line * len(words) + 6]
        band[:] = (0.35 * band + 0.65 * np.array(DARK)).astype(np.uint8)
    for number, text in enumerate(words, 1):
        place = (8, line * number - 2)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, 1, cv2.LINE_AA)


def _dashes(points: NDArray[np.float64], length: float) -> list[NDArray[np.float64]]:
    """Pieces of a line, every second one of this length in pixels."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    pieces = []
    for start in np.arange(0.0, along[-1], 2.0 * length):
        inside = along[(along > start) & (along < start + length)]
        ends = np.concatenate([[start], inside, [min(start + length, along[-1])]])
        pieces.append(np.stack([np.interp(ends, along, points[:, axis]) for axis in (0, 1)], 1))
    return pieces
