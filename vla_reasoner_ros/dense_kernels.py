"""The inner loop of dense layers as vector code: a tile of rows times a panel of columns.

Small networks in small batches are bound by calls and by memory, not by arithmetic; a library call
per layer costs as much as the layer. These tiles are inlined into one compiled function per network
(:mod:`vla_reasoner_ros.perceptron`). The tile follows Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication" (2008): all of its sums stay in registers, the weights come
packed in the order in which they are read. Every sum is taken in the order of the inputs, so that a
row's result does not depend on the batch that it is in, or on the number of threads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

binding.initialize_native_asmparser()
FEATURES = binding.get_host_cpu_features()
LANES = 16 if FEATURES.get("avx512f") else 8
"""Numbers in a register of the widest kind."""
PANEL = 2 * LANES
"""Columns in a panel: two registers, so that every input that is loaded is used twice."""
TILES = (8, 4, 1) if FEATURES.get("avx512f") else (4, 2, 1)
"""Rows of the tiles that there are, so that sums, weights and one input fit into the registers."""
HAS_BFLOAT16 = bool(FEATURES.get("avx512bf16")) and LANES == 16
"""Whether the processor multiplies pairs of bfloat16 (AVX512_BF16)."""
IDENTITY, RELU, SILU = range(3)

_FLOAT, _INT, _SHORT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_SHORTS = ir.VectorType(_SHORT, LANES)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXPONENTIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
"""exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2, highest power first (Cephes, expf)."""
_LARGEST = 87.0
"""exp of this and of its negative are finite and normal in float32."""


def tile(rows: int, bfloat16: bool) -> Any:
    """An intrinsic that computes ``act(x @ w + b)`` for some rows and one panel of columns.

    Its arguments are addresses and byte counts: ``x``, bytes between its rows, the panel ``w``,
    inputs (pairs of them with bfloat16), bias, ``y``, bytes between its rows, the activation, and
    whether ``y`` is written as bfloat16.

    Args:
        rows: in the tile.
        bfloat16: inputs and weights are pairs of bfloat16, summed in float32; else float32.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, x_step, w, inputs, bias, y, y_step, activation, narrow = arguments
        halves = [_offset(builder, bias, _LONG(4 * LANES), i) for i in range(2)]
        start = [_load(builder, half, _FLOATS) for half in halves] * rows
        addresses = [_offset(builder, x, x_step, row) for row in range(rows)]
        sums = _sums(builder, bfloat16, addresses, w, inputs, start)
        width = builder.select(narrow, _LONG(2 * LANES), _LONG(4 * LANES))
        for place, total in enumerate(sums):
            target = _offset(builder, y, y_step, place // 2)
            target = _offset(builder, target, width, place % 2)
            _store(builder, _activated(builder, total, activation), target, narrow)
        return context.get_dummy_value()

    @intrinsic
    def compute(
        context: Any,
        x: Any,
        x_step: Any,
        w: Any,
        inputs: Any,
        bias: Any,
        y: Any,
        y_step: Any,
        activation: Any,
        narrow: Any,
    ) -> Any:
        return types.void(*[types.int64] * 8, types.boolean), generate

    return compute


def _sums(
    builder: ir.IRBuilder,
    bfloat16: bool,
    rows: list[Any],
    panel: Any,
    inputs: Any,
    start: list[Any],
) -> list[Any]:
    """The loop over the inputs; returns the sums, two registers a row."""
    before = builder.block
    body, after = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed(">", inputs, _LONG(0)), body, after)
    builder.position_at_end(body)
    place = builder.phi(_LONG)
    sums = [builder.phi(_FLOATS) for _ in start]
    here = builder.add(panel, builder.mul(place, _LONG(4 * PANEL)))
    kind = _INTS if bfloat16 else _FLOATS
    weights = [
        _load(builder, _offset(builder, here, _LONG(4 * LANES), i), kind, aligned=True)
        for i in range(2)
    ]
    begin = builder.mul(place, _LONG(4))
    multiply = _dot_pairs if bfloat16 else _multiply_add
    following = []
    for i, row in enumerate(rows):
        number = _load(builder, builder.add(row, begin), kind.element)
        number = _broadcast(builder, number)
        following += [multiply(builder, number, weights[k], sums[2 * i + k]) for k in range(2)]
    next_place = builder.add(place, _LONG(1))
    place.add_incoming(_LONG(0), before)
    place.add_incoming(next_place, body)
    for total, begun, done in zip(sums, start, following, strict=True):
        total.add_incoming(begun, before)
        total.add_incoming(done, body)
    builder.cbranch(builder.icmp_signed("<", next_place, inputs), body, after)
    builder.position_at_end(after)
    results = []
    for begun, done in zip(start, following, strict=True):
        result = builder.phi(_FLOATS)
        result.add_incoming(begun, before)
        result.add_incoming(done, body)
        results.append(result)
    return results


def _activated(builder: ir.IRBuilder, value: Any, activation: Any) -> Any:
    """Apply the activation to a vector."""
    zero = _constant(0.0)
    with builder.if_else(builder.icmp_signed("==", activation, _LONG(SILU))) as (silu, other):
        with silu:
            denominator = builder.fadd(_constant(1.0), _exponential(builder, builder.fneg(value)))
            smooth = builder.fdiv(value, denominator)
            silu_block = builder.block
        with other:
            positive = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
            is_relu = builder.icmp_signed("==", activation, _LONG(RELU))
            simple = builder.select(is_relu, positive, value)
            other_block = builder.block
    result = builder.phi(_FLOATS)
    result.add_incoming(smooth, silu_block)
    result.add_incoming(simple, other_block)
    return result


def _exponential(builder: ir.IRBuilder, x: Any) -> Any:
    """Exponential of a vector, to 2 units in the last place; NaN stays NaN."""
    for bound, relation in ((_LARGEST, ">"), (-_LARGEST, "<")):
        limit = _constant(bound)
        x = builder.select(builder.fcmp_ordered(relation, x, limit), limit, x)
    power = _intrinsic(builder, "rint", builder.fmul(x, _constant(_LOG2_E)))
    rest = _multiply_add(builder, power, _constant(-_LN2_HIGH), x)
    rest = _multiply_add(builder, power, _constant(-_LN2_LOW), rest)
    series = _constant(_EXPONENTIAL[0])
    for coefficient in _EXPONENTIAL[1:]:
        series = _multiply_add(builder, series, rest, _constant(coefficient))
    series = _multiply_add(builder, series, builder.fmul(rest, rest), rest)
    series = builder.fadd(series, _constant(1.0))
    # 2 ** power: its exponent's bits, with NaN's kept out of the conversion.
    known = builder.select(builder.fcmp_ordered("ord", power, power), power, _constant(0.0))
    exponent = builder.add(builder.fptosi(known, _INTS), _splat(_INTS, 127))
    scale = builder.bitcast(builder.shl(exponent, _splat(_INTS, 23)), _FLOATS)
    return builder.fmul(series, scale)


def _store(builder: ir.IRBuilder, value: Any, address: Any, narrow: Any) -> None:
    """Write a vector, as float32 or rounded to the nearest even bfloat16."""
    with builder.if_else(narrow) as (short, full):
        with short:
            bits = builder.bitcast(value, _INTS)
            odd = builder.and_(builder.lshr(bits, _splat(_INTS, 16)), _splat(_INTS, 1))
            up = builder.add(builder.add(bits, _splat(_INTS, 0x7FFF)), odd)
            # Rounding up a NaN could make it infinite or zero.
            broken = builder.fcmp_unordered("uno", value, value)
            up = builder.select(broken, builder.or_(bits, _splat(_INTS, 0x400000)), up)
            half = builder.trunc(builder.lshr(up, _splat(_INTS, 16)), _SHORTS)
            builder.store(half, builder.inttoptr(address, _SHORTS.as_pointer()), align=2)
        with full:
            builder.store(value, builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


def _dot_pairs(builder: ir.IRBuilder, x: Any, w: Any, total: Any) -> Any:
    """``total + x0 w0 + x1 w1`` for pairs of bfloat16, in one instruction."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _INTS, _INTS])
    code = "vdpbf16ps $3, $2, $0"
    return builder.asm(kind, code, "=v,0,v,v", [total, x, w], side_effect=False)


def _multiply_add(builder: ir.IRBuilder, x: Any, w: Any, total: Any) -> Any:
    return _intrinsic(builder, "fma", x, w, total)


def _intrinsic(builder: ir.IRBuilder, name: str, *arguments: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments)),
        f"llvm.{name}.v{LANES}f32",
    )
    return builder.call(function, arguments)


def _broadcast(builder: ir.IRBuilder, number: Any) -> Any:
    kind = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _INT(0))
    order = ir.Constant(_INTS, [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), order)


def _load(builder: ir.IRBuilder, address: Any, kind: Any, aligned: bool = False) -> Any:
    pointer = builder.inttoptr(address, kind.as_pointer())
    return builder.load(pointer, align=4 * LANES if aligned else 4)


def _offset(builder: ir.IRBuilder, address: Any, step: Any, count: int) -> Any:
    return builder.add(address, builder.mul(step, _LONG(count)))


def _constant(value: float) -> Any:
    return _splat(_FLOATS, value)


def _splat(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)
