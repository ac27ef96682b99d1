"""What the kernels of recurrent layers share: a program owns a tile of the batch for all time steps, and streams U.

Pieces of a kernel: where a tile of a state lies, tiles of every gate read and written, a state as it starts, the
products of the hidden states with a tile of every gate's units, and those that carry the gates' errors back.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.products import product_tile
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "carry_back",
    "gate_products",
    "load_gates",
    "load_tile",
    "start_state",
    "state_tile",
    "store_gates",
    "store_scaled_gates",
]


@triton.jit
def state_tile(unit_tile, row, inside, units, WIDE: tl.constexpr, BLOCK_UNITS: tl.constexpr):
    """The units of a tile, which of its elements there are, and their offsets in (batch, units), contiguous."""
    unit = tile_indices(unit_tile, BLOCK_UNITS, WIDE)
    return unit, inside[:, None] & (unit < units)[None, :], (row * units)[:, None] + unit[None, :]


@triton.jit
def load_tile(pointer, row, row_stride, unit, unit_stride, within):
    """A tile of (batch, units), float32; zero where there is none."""
    return tl.load(pointer + (row * row_stride)[:, None] + (unit * unit_stride)[None, :], mask=within, other=0.0).to(
        tl.float32
    )


@triton.jit
def load_gates(gate_ptr, row, row_stride, unit, gate_stride, within, units):
    """Tiles of four gates, `units` apart, float32."""
    apart = units * gate_stride
    return (
        load_tile(gate_ptr, row, row_stride, unit, gate_stride, within),
        load_tile(gate_ptr + apart, row, row_stride, unit, gate_stride, within),
        load_tile(gate_ptr + 2 * apart, row, row_stride, unit, gate_stride, within),
        load_tile(gate_ptr + 3 * apart, row, row_stride, unit, gate_stride, within),
    )


@triton.jit
def store_gates(gate_ptr, gate_0, gate_1, gate_2, gate_3, row, unit, within, units, FOUR: tl.constexpr):
    """Write tiles of the gates, four or three, into (batch, gates units), contiguous."""
    gates: tl.constexpr = 4 if FOUR else 3
    target = gate_ptr + (row * (gates * units))[:, None] + unit[None, :]
    dtype = gate_ptr.dtype.element_ty
    tl.store(target, gate_0.to(dtype), mask=within)
    tl.store(target + units, gate_1.to(dtype), mask=within)
    tl.store(target + 2 * units, gate_2.to(dtype), mask=within)
    if FOUR:
        tl.store(target + 3 * units, gate_3.to(dtype), mask=within)


@triton.jit
def store_scaled_gates(
    gate_ptr, gain_ptr, gate_0, gate_1, gate_2, gate_3, row, unit, within, units, FOUR: tl.constexpr
):
    """Write tiles of the gates, each times its gain of (gates,), float32; see `store_gates`."""
    gate_0 = gate_0 * tl.load(gain_ptr)
    gate_1 = gate_1 * tl.load(gain_ptr + 1)
    gate_2 = gate_2 * tl.load(gain_ptr + 2)
    if FOUR:
        gate_3 = gate_3 * tl.load(gain_ptr + 3)
    store_gates(gate_ptr, gate_0, gate_1, gate_2, gate_3, row, unit, within, units, FOUR)


@triton.jit
def _operand(pointers, mask, UPCAST: tl.constexpr):
    """A tile that is a factor of a product."""
    operand = tl.load(pointers, mask=mask, other=0.0)
    if UPCAST:  # the interpreter's bfloat16 dot is wrong: multiply in float32
        operand = operand.to(tl.float32)
    return operand


@triton.jit
def start_state(
    target_ptr,  # (batch, units), contiguous
    given_ptr,  # (batch, units)
    batch_stride,
    unit_stride,
    row,  # (BLOCK_BATCH,)
    inside,  # which of them there are
    units,
    GIVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """Copy the state that is given, or write zeros. A barrier must follow before it is read."""
    for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
        unit, within, here = state_tile(unit_tile, row, inside, units, WIDE, BLOCK_UNITS)
        state = tl.full((BLOCK_BATCH, BLOCK_UNITS), 0.0, tl.float32)
        if GIVEN:
            state += load_tile(given_ptr, row, batch_stride, unit, unit_stride, within)
        tl.store(target_ptr + here, state.to(target_ptr.dtype.element_ty), mask=within)


@triton.jit
def gate_products(
    z_0,  # (BLOCK_BATCH, BLOCK_UNITS), float32, as are the next
    z_1,
    z_2,
    z_3,  # where there is a fourth gate
    hidden_ptr,  # (batch, units), contiguous
    weight_ptr,  # (gates units, units)
    row,
    inside,
    unit,  # (BLOCK_UNITS,)
    units,
    weight_gate_stride,
    weight_unit_stride,
    FOUR: tl.constexpr,  # gates; else three
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """Each gate's z + h U^T at a tile of units, the hidden states loaded once for all gates."""
    gate_apart = units * weight_gate_stride
    for sum_tile in range(0, (units + BLOCK_SUM - 1) // BLOCK_SUM):
        source = tile_indices(sum_tile, BLOCK_SUM, WIDE)
        summed = source < units
        hidden = _operand(
            hidden_ptr + (row * units)[:, None] + source[None, :], inside[:, None] & summed[None, :], UPCAST
        )
        weight = weight_ptr + (source * weight_unit_stride)[:, None] + (unit * weight_gate_stride)[None, :]
        there = summed[:, None] & (unit < units)[None, :]
        z_0 = tl.dot(hidden, _operand(weight, there, UPCAST), z_0, input_precision=INPUT_PRECISION)
        weight += gate_apart
        z_1 = tl.dot(hidden, _operand(weight, there, UPCAST), z_1, input_precision=INPUT_PRECISION)
        weight += gate_apart
        z_2 = tl.dot(hidden, _operand(weight, there, UPCAST), z_2, input_precision=INPUT_PRECISION)
        if FOUR:
            weight += gate_apart
            z_3 = tl.dot(hidden, _operand(weight, there, UPCAST), z_3, input_precision=INPUT_PRECISION)
    return z_0, z_1, z_2, z_3


@triton.jit
def carry_back(
    carried_ptr,  # (batch, units), float32, contiguous
    error_ptr,  # (batch, gates), contiguous
    weight_ptr,  # (gates, units)
    row,
    inside,
    batch,
    units,
    gates,
    weight_gate_stride,
    weight_unit_stride,
    ADD: tl.constexpr,  # to what is carried already
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """The error of the hidden states before a step: d U, where a program's tile of d was written before a barrier."""
    for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
        unit, within, here = state_tile(unit_tile, row, inside, units, WIDE, BLOCK_UNITS)
        error = product_tile(
            error_ptr,
            gates,
            1,
            weight_ptr,
            weight_gate_stride,
            weight_unit_stride,
            row,
            batch,
            unit,
            units,
            gates,
            error_ptr.dtype.element_ty,
            INPUT_PRECISION,
            WIDE,
            UPCAST,
            BLOCK_SUM,
        )
        if ADD:
            error += tl.load(carried_ptr + here, mask=within, other=0.0)
        tl.store(carried_ptr + here, error, mask=within)
