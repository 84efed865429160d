"""Multilayer perceptrons, and ensembles of them, for inference on the processor in small batches.

What PyTorch does in one call per layer, with its own cost each, is one compiled function here. A
row's answer depends neither on the batch that it is in nor on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.dense_kernels import (
    HAS_BFLOAT16,
    IDENTITY,
    PANEL,
    RELU,
    SILU,
    TILES,
    tile,
)
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.kernels import kernel

Floats = NDArray[np.float32]
ACTIVATIONS = {"relu": RELU, "silu": SILU}
PRECISIONS = ("float32", "bfloat16")
CHUNK = 64
"""Most rows that one thread carries through all layers at once: their activations fit its cache."""
_LINE = 64
"""Bytes of a cache line, and of the widest register."""

LAYER = np.dtype(
    [
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("panels", np.int64),
        ("weights", np.int64),  # bytes from the start of a member's weights
        ("bias", np.int64),  # bytes from the start of a member's biases
        ("activation", np.int64),
    ],
    align=True,
)


class Packed(NamedTuple):
    """A network as the compiled functions take it; E members."""

    layers: NDArray[Any]  # (L,) of LAYER
    weights: NDArray[np.uint8]  # (E, bytes)
    biases: NDArray[np.uint8]  # (E, bytes)
    scratch: NDArray[np.uint8]  # (threads, 2, bytes) activations of two layers


class Buffer:
    """One array that grows with the largest shape asked for; every shape is a view of it."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def __call__(self, *shape: int) -> Floats:
        """Room for a contiguous array, whose contents are whatever was there."""
        size = math.prod(shape)
        if size > len(self._numbers):
            self._numbers = np.empty(size, np.float32)
        return self._numbers[:size].reshape(shape)


class Perceptron:
    """Dense layers with one activation between them; the last one has none.

    With ``bfloat16`` weights and activations are rounded to 8 significant bits and products are
    summed in float32, which is twice as fast on a processor with AVX512_BF16.

    Args:
        weights: one (E, inputs, outputs) array per layer; E members side by side.
        biases: one (E, outputs) array per layer.
        activation: ``relu`` or ``silu``.
        precision: ``float32`` or ``bfloat16``.
        threads: that share the rows of a call.

    Raises:
        ConfigurationError: layers that do not fit one another, non-finite weights, an unknown
            option, or ``bfloat16`` on a processor without AVX512_BF16.
    """

    def __init__(
        self,
        weights: Sequence[Floats],
        biases: Sequence[Floats],
        activation: str,
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        _check(weights, biases, activation, precision, threads)
        self.precision = precision
        self.threads = threads
        self.members, self.inputs = weights[0].shape[:2]
        self.outputs = weights[-1].shape[2]
        self._narrow = precision == "bfloat16"
        self._packed = _pack(weights, biases, ACTIVATIONS[activation], self._narrow, threads)
        self._answer = Buffer()

    def __call__(self, inputs: Floats) -> Floats:
        """Answers (E, B, outputs) to (E, B, inputs), or to (1, B, inputs) shared by all members.

        The answer is valid until the next call.

        Raises:
            ValueError: inputs of another shape or type.
        """
        rows = inputs.shape[1] if inputs.ndim == 3 else 0
        if inputs.dtype != np.float32 or inputs.shape not in (
            (self.members, rows, self.inputs),
            (1, rows, self.inputs),
        ):
            raise ValueError(
                f"perceptron: expected ({self.members}, B, {self.inputs}) float32, got "
                f"{inputs.shape} {inputs.dtype}"
            )
        answer = self._answer(self.members, rows, self.outputs)
        run = _forward if self.threads == 1 else _forward_together
        run(self._packed, inputs, answer, self._narrow)
        return answer


def _check(
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    activation: str,
    precision: str,
    threads: int,
) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigurationError(f"perceptron: no activation {activation!r}, only relu and silu")
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"parameter precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}"
        )
    if precision == "bfloat16" and not HAS_BFLOAT16:
        raise ConfigurationError(
            "parameter precision: bfloat16 needs a processor with AVX512_BF16, this one has none"
        )
    if threads < 1:
        raise ConfigurationError(
            f"perceptron: expected a positive number of threads, got {threads}"
        )
    if not weights or len(weights) != len(biases):
        raise ConfigurationError(
            f"perceptron: expected as many weights as biases, got {len(weights)} and {len(biases)}"
        )
    width = None
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        fits = weight.ndim == 3 and bias.shape == (weight.shape[0], weight.shape[2])
        if (
            not fits
            or weight.shape[0] != weights[0].shape[0]
            or width not in (None, weight.shape[1])
        ):
            raise ConfigurationError(
                f"perceptron: layer {i} has weights {weight.shape} and biases {bias.shape}, after "
                f"{width} outputs"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ConfigurationError(f"perceptron: weights of layer {i} are not finite")
        width = weight.shape[2]


def _pack(
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    activation: int,
    narrow: bool,
    threads: int,
) -> Packed:
    """Weights in panels of :data:`PANEL` columns, input by input, or pair by pair of inputs."""
    layers = np.zeros(len(weights), LAYER)
    panels, offsets, at, bias_at, widest = [], [], 0, 0, 0
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        members, inputs, outputs = weight.shape
        count = -(-outputs // PANEL)
        padded = np.zeros(
            (members, inputs + (inputs % 2 if narrow else 0), count * PANEL), np.float32
        )
        padded[:, :inputs, :outputs] = weight
        if narrow:
            halves = np.empty(padded.shape, np.uint16)
            _to_bfloat16(padded.reshape(-1), halves.reshape(-1))
            pairs = halves.reshape(members, -1, 2, count, PANEL).transpose(0, 3, 1, 4, 2)
            panel = np.ascontiguousarray(pairs)
        else:
            single = padded.reshape(members, inputs, count, PANEL).transpose(0, 2, 1, 3)
            panel = np.ascontiguousarray(single)
        panels.append(panel.reshape(members, -1).view(np.uint8))
        offset = np.zeros((members, count * PANEL), np.float32)
        offset[:, :outputs] = bias
        offsets.append(offset.view(np.uint8))
        last = i == len(weights) - 1
        layers[i] = (inputs, outputs, count, at, bias_at, IDENTITY if last else activation)
        at += panels[-1].shape[1]
        bias_at += offset.shape[1] * 4
        widest = max(widest, inputs, count * PANEL)
    return Packed(
        layers,
        _aligned(np.concatenate(panels, axis=1)),
        _aligned(np.concatenate(offsets, axis=1)),
        _aligned(np.zeros((threads, 2, CHUNK * _row_bytes(widest)), np.uint8)),
    )


def _row_bytes(width: int) -> int:
    """Bytes between rows of activations: an odd number of lines, or rows share sets of a cache."""
    lines = -(-4 * width // _LINE)
    return _LINE * (lines + 1 - lines % 2)


def _aligned(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that begins on a cache line."""
    room = np.zeros(values.size + _LINE, np.uint8)
    begin = -room.ctypes.data % _LINE
    copy = room[begin : begin + values.size].reshape(values.shape)
    copy[:] = values
    return copy


def _panel_function(bfloat16: bool) -> Any:
    """A compiled function: all rows of one panel, in the largest tiles that fit."""
    large, small, single = (tile(rows, bfloat16) for rows in TILES)
    most, some, _ = TILES

    @numba.njit(inline="never")
    def panel(
        x: int,
        x_step: int,
        w: int,
        inputs: int,
        bias: int,
        y: int,
        y_step: int,
        activation: int,
        narrow: bool,
        rows: int,
    ) -> None:
        while rows >= most:
            large(x, x_step, w, inputs, bias, y, y_step, activation, narrow)
            x, y, rows = x + most * x_step, y + most * y_step, rows - most
        while rows >= some:
            small(x, x_step, w, inputs, bias, y, y_step, activation, narrow)
            x, y, rows = x + some * x_step, y + some * y_step, rows - some
        while rows > 0:
            single(x, x_step, w, inputs, bias, y, y_step, activation, narrow)
            x, y, rows = x + x_step, y + y_step, rows - 1

    return panel


_panel = _panel_function(False)
_panel_of_pairs = _panel_function(True) if HAS_BFLOAT16 else _panel


@kernel
def _chunk(
    packed: Packed,
    inputs: Floats,
    answer: Floats,
    narrow: bool,
    member: int,
    first: int,
    rows: int,
    place: int,
) -> None:
    """Carry some rows of one member through all layers."""
    source = packed.scratch[place, 0].ctypes.data
    target = packed.scratch[place, 1].ctypes.data
    step = packed.scratch.shape[2] // CHUNK
    weights = packed.weights[member].ctypes.data
    biases = packed.biases[member].ctypes.data
    given = inputs[member if len(inputs) > 1 else 0]
    _fill(packed.scratch[place, 0], step, given[first : first + rows], narrow)
    for i in range(len(packed.layers)):
        layer = packed.layers[i]
        last = i == len(packed.layers) - 1
        short = narrow and not last
        depth = (layer.inputs + 1) // 2 if narrow else layer.inputs
        for panel in range(layer.panels):
            w = weights + layer.weights + panel * depth * 4 * PANEL
            bias = biases + layer.bias + panel * 4 * PANEL
            y = target + panel * PANEL * (2 if short else 4)
            if narrow:
                _panel_of_pairs(
                    source, step, w, depth, bias, y, step, layer.activation, short, rows
                )
            else:
                _panel(source, step, w, depth, bias, y, step, layer.activation, short, rows)
        source, target = target, source
    final = packed.scratch[place, len(packed.layers) % 2].view(np.float32)
    outputs = packed.layers[-1].outputs
    for row in range(rows):
        for i in range(outputs):
            answer[member, first + row, i] = final[row * (step // 4) + i]


@kernel
def _fill(scratch: NDArray[np.uint8], step: int, given: Floats, narrow: bool) -> None:
    """Copy inputs (B, I) to where the first layer reads them, as it wants them."""
    rows, width = given.shape
    if narrow:
        short = scratch.view(np.uint16)
        for row in range(rows):
            begin = row * (step // 2)
            _to_bfloat16(given[row], short[begin : begin + width])
            if width % 2:
                short[begin + width] = 0
    else:
        numbers = scratch.view(np.float32)
        for row in range(rows):
            begin = row * (step // 4)
            for i in range(width):
                numbers[begin + i] = given[row, i]


@kernel
def _to_bfloat16(values: Floats, halves: NDArray[np.uint16]) -> None:
    """The upper halves of float32 numbers, rounded to the nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    for i in range(len(values)):
        up = bits[i] + np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        if values[i] != values[i]:
            up = bits[i] | np.uint32(0x400000)
        halves[i] = up >> np.uint32(16)


@kernel
def _forward(packed: Packed, inputs: Floats, answer: Floats, narrow: bool) -> None:
    """All members and rows, one chunk after the other."""
    members, rows = answer.shape[:2]
    for member in range(members):
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            _chunk(packed, inputs, answer, narrow, member, first, count, 0)


@numba.njit(cache=True, parallel=True)
def _forward_together(packed: Packed, inputs: Floats, answer: Floats, narrow: bool) -> None:
    """All members and rows, each thread its own share of the rows."""
    members, rows = answer.shape[:2]
    threads = len(packed.scratch)
    share = TILES[0] * (-(-rows // (threads * TILES[0])))
    for thread in numba.prange(threads):
        end = min(rows, (thread + 1) * share)
        for member in range(members):
            for first in range(thread * share, end, CHUNK):
                count = min(CHUNK, end - first)
                _chunk(packed, inputs, answer, narrow, member, first, count, thread)
