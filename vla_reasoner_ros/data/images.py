"""Image messages to RGB arrays and back, without ROS: live topics and bags share this code.

Encodings are those of ``sensor_msgs/image_encodings.hpp``. Rows may be padded (``step``), samples
of two bytes may be of either byte order; they are scaled to one and rounded, as cv_bridge does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ObservationError

RgbImage = NDArray[np.uint8]
MAX_PIXELS = 64_000_000
"""Larger images are refused: a header that claims more is broken, or meant to fill the memory."""


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a row make pixels.

    Attributes:
        channels: samples in a pixel.
        bytes_per_sample: 1 or 2.
        color_code: OpenCV's conversion to RGB; None when it is RGB.
    """

    channels: int
    bytes_per_sample: int
    color_code: int | None


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first two
# rows: bayer_rggb8 is BayerBG. 8UC1, 8UC3 and 8UC4 follow OpenCV: grey, BGR, BGRA.
ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, 1, None),
    "bgr8": Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "8UC4": Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "rgb16": Encoding(3, 2, None),
    "bgr16": Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "mono16": Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": Encoding(1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": Encoding(1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": Encoding(1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": Encoding(1, 1, cv2.COLOR_BayerGB2RGB),
    "uyvy": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuv422_yuy2": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
}


def decode_image(message: Any, topic: str, *, shared: bool = False) -> RgbImage:
    """The pixels of a ``sensor_msgs/Image``.

    Args:
        message: anything with the fields of that message, from ROS or from a bag.
        topic: for the error text.
        shared: the pixels may be the message's own bytes, for messages that nobody changes.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and, unless ``shared``, independent of the message.

    Raises:
        ObservationError: empty, unknown encoding, or ``step`` or the data's size does not fit.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ObservationError(
            f"{topic}: image is {width} x {height} pixels, expected 1 to {MAX_PIXELS} in all"
        )
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ObservationError(
            f"{topic}: encoding {message.encoding!r} is unknown; known are {', '.join(ENCODINGS)}"
        )
    row = width * encoding.channels * encoding.bytes_per_sample
    if step < row:
        raise ObservationError(
            f"{topic}: step is {step} bytes, expected at least {row} for {width} pixels of "
            f"{message.encoding}"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size != height * step:
        raise ObservationError(
            f"{topic}: data has {data.size} bytes, expected {height} rows x {step} = "
            f"{height * step}"
        )
    rows = data.reshape(height, step)[:, :row]
    if encoding.bytes_per_sample == 2:
        samples = np.ascontiguousarray(rows).view(">u2" if message.is_bigendian else "<u2")
        rows = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    pixels = np.ascontiguousarray(rows).reshape(height, width, encoding.channels)
    if shared and encoding.color_code is None:
        return pixels
    return _to_rgb(pixels, encoding.color_code, rows, topic, message.encoding)


def _to_rgb(
    pixels: RgbImage, color_code: int | None, rows: RgbImage, topic: str, encoding: str
) -> RgbImage:
    if color_code is None:
        return pixels.copy() if np.shares_memory(pixels, rows) else pixels
    try:
        return np.asarray(cv2.cvtColor(pixels, color_code), dtype=np.uint8)
    except cv2.error as error:  # chroma shared between two pixels needs an even width, for one
        height, width = pixels.shape[:2]
        raise ObservationError(
            f"{topic}: {encoding} image of {width} x {height} pixels cannot be converted: "
            f"{error.err}"
        ) from error


def decode_compressed(message: Any, topic: str) -> RgbImage:
    """The pixels of a ``sensor_msgs/CompressedImage`` in any format that OpenCV reads.

    Args:
        message: anything with the fields of that message.
        topic: for the error text.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ObservationError: empty, a depth image, or not an image of a known format.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size == 0:
        raise ObservationError(f"{topic}: compressed image is empty")
    if "compressedDepth" in message.format:
        raise ObservationError(
            f"{topic}: format {message.format!r} is a depth image, expected a color image"
        )
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ObservationError(f"{topic}: compressed image is broken: {error.err}") from error
    if image is None:
        raise ObservationError(
            f"{topic}: {data.size} bytes of format {message.format!r} are not a JPEG, PNG or other "
            "known image"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


DECODERS: dict[str, Callable[[Any, str], RgbImage]] = {
    "image": partial(decode_image, shared=True),
    "compressed": decode_compressed,
}
"""For recorded messages, by the word that a contract uses for the message type."""


def encode_jpeg(image: RgbImage, quality: int) -> bytes:
    """A JPEG file of an RGB image.

    Args:
        image: (H, W, 3) uint8, RGB.
        quality: 1 to 100.
    """
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: RgbImage) -> bytes:
    """A PNG file of an RGB image, (H, W, 3) uint8."""
    return _encode(".png", image, [])


def _encode(extension: str, image: RgbImage, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ObservationError(f"image of shape {image.shape} cannot be written as {extension}")
    return bytes(data)


def resize(image: RgbImage, height: int, width: int, fit: str) -> RgbImage:
    """An image of the size that a model takes.

    Args:
        image: (H, W, 3) uint8.
        height: of the result, pixels.
        width: of the result, pixels.
        fit: ``stretch`` uses the whole image; ``crop`` keeps the aspect ratio and cuts what
            sticks out, evenly on both sides.

    Returns:
        (height, width, 3) uint8; shrinking averages over areas, to the nearest grey value or the
        one beside it.
    """
    if fit == "crop":
        rows, columns = image.shape[:2]
        kept_rows = max(1, min(rows, round(columns * height / width)))
        kept_columns = max(1, min(columns, round(rows * width / height)))
        top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
        image = image[top : top + kept_rows, left : left + kept_columns]
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if shrinks and image.shape[0] % height == 0:  # OpenCV is quick at whole rows: do these first
        columns = image.shape[1]
        image = np.asarray(cv2.resize(image, (columns, height), interpolation=method))
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)
