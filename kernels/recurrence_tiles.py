"""What the kernels of recurrent layers share: a program owns a tile of the batch for all time steps, and streams U.

Pieces of a kernel: where a tile of a state lies, tiles of every gate read and written, a state as it starts, the
products of the hidden states with a tile of every gate's units, and those that carry the gates' errors back. What they
pass around:

    owned   (row, inside, batch, units): the samples that a program owns, which of them there are, a state's sizes
    weight  (pointer, gate stride, unit stride) of U, (gates units, units)
    PLAN    recurrences.Plan
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
    "state_product",
    "state_tile",
    "store_gates",
    "store_scaled_gates",
]


@triton.jit
def state_tile(unit_tile, owned, PLAN: tl.constexpr):
    """The units of a tile, which of its elements there are, and their offsets in (batch, units), contiguous."""
    row, inside, _, units = owned
    unit = tile_indices(unit_tile, PLAN.block_units, PLAN.wide)
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
def store_gates(gate_ptr, gates, row, unit, within, units, COUNT: tl.constexpr):
    """Write tiles of COUNT gates into (batch, COUNT units), contiguous."""
    target = gate_ptr + (row * (COUNT * units))[:, None] + unit[None, :]
    for gate in tl.static_range(0, COUNT):
        tl.store(target + gate * units, gates[gate].to(gate_ptr.dtype.element_ty), mask=within)


@triton.jit
def store_scaled_gates(gate_ptr, gain_ptr, gates, row, unit, within, units, COUNT: tl.constexpr):
    """Write tiles of the gates, each times its gain of (COUNT,), float32; see `store_gates`."""
    first = gates[0] * tl.load(gain_ptr)
    second = gates[1] * tl.load(gain_ptr + 1)
    third = gates[2] * tl.load(gain_ptr + 2)
    if COUNT == 4:
        fourth = gates[3] * tl.load(gain_ptr + 3)
        store_gates(gate_ptr, (first, second, third, fourth), row, unit, within, units, COUNT)
    else:
        store_gates(gate_ptr, (first, second, third), row, unit, within, units, COUNT)


@triton.jit
def _operand(pointers, mask, PLAN: tl.constexpr):
    """A tile that is a factor of a product."""
    operand = tl.load(pointers, mask=mask, other=0.0)
    if PLAN.upcast:  # the interpreter's bfloat16 dot is wrong: multiply in float32
        operand = operand.to(tl.float32)
    return operand


@triton.jit
def start_state(
    target_ptr,  # (batch, units), contiguous
    given,  # (pointer, batch stride, unit stride) of (batch, units)
    owned,
    GIVEN: tl.constexpr,
    PLAN: tl.constexpr,
):
    """Copy the state that is given, or write zeros. A barrier must follow before it is read."""
    given_ptr, batch_stride, unit_stride = given
    row, _, _, units = owned
    for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
        unit, within, here = state_tile(unit_tile, owned, PLAN)
        state = tl.full(within.shape, 0.0, tl.float32)
        if GIVEN:
            state += load_tile(given_ptr, row, batch_stride, unit, unit_stride, within)
        tl.store(target_ptr + here, state.to(target_ptr.dtype.element_ty), mask=within)


@triton.jit
def gate_products(
    z,  # of each gate (batch, units) at the tile, float32
    hidden_ptr,  # (batch, units), contiguous
    weight,
    owned,
    unit,  # of the tile
    COUNT: tl.constexpr,  # of gates: three or four
    PLAN: tl.constexpr,
):
    """Each gate's z + h U^T at a tile of units, the hidden states loaded once for all gates."""
    weight_ptr, gate_stride, unit_stride = weight
    row, inside, _, units = owned
    z_0, z_1, z_2 = z[0], z[1], z[2]
    if COUNT == 4:
        z_3 = z[3]
    gate_apart = units * gate_stride
    for sum_tile in range(0, (units + PLAN.block_sum - 1) // PLAN.block_sum):
        source = tile_indices(sum_tile, PLAN.block_sum, PLAN.wide)
        summed = source < units
        hidden = _operand(
            hidden_ptr + (row * units)[:, None] + source[None, :], inside[:, None] & summed[None, :], PLAN
        )
        factor = weight_ptr + (source * unit_stride)[:, None] + (unit * gate_stride)[None, :]
        there = summed[:, None] & (unit < units)[None, :]
        z_0 = tl.dot(hidden, _operand(factor, there, PLAN), z_0, input_precision=PLAN.input_precision)
        factor += gate_apart
        z_1 = tl.dot(hidden, _operand(factor, there, PLAN), z_1, input_precision=PLAN.input_precision)
        factor += gate_apart
        z_2 = tl.dot(hidden, _operand(factor, there, PLAN), z_2, input_precision=PLAN.input_precision)
        if COUNT == 4:
            factor += gate_apart
            z_3 = tl.dot(hidden, _operand(factor, there, PLAN), z_3, input_precision=PLAN.input_precision)
    if COUNT == 4:
        return z_0, z_1, z_2, z_3
    else:
        return z_0, z_1, z_2


@triton.jit
def state_product(left_ptr, width, right, owned, unit, PLAN: tl.constexpr):
    """The product of (batch, width), contiguous, and (width, units), a pointer and its strides, at a tile of units."""
    right_ptr, right_sum_stride, right_unit_stride = right
    row, _, batch, units = owned
    INPUT_PRECISION: tl.constexpr = PLAN.input_precision
    return product_tile(
        left_ptr,
        width,
        1,
        right_ptr,
        right_sum_stride,
        right_unit_stride,
        row,
        batch,
        unit,
        units,
        width,
        left_ptr.dtype.element_ty,
        INPUT_PRECISION,
        PLAN.wide,
        PLAN.upcast,
        PLAN.block_sum,
    )


@triton.jit
def carry_back(
    carried_ptr,  # (batch, units), float32, contiguous
    error_ptr,  # (batch, gates units), contiguous
    weight,
    owned,
    GATES: tl.constexpr,
    ADD: tl.constexpr,  # to what is carried already
    PLAN: tl.constexpr,
):
    """The error of the hidden states before a step: d U, where a program's tile of d was written before a barrier."""
    _, _, _, units = owned
    for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
        unit, within, here = state_tile(unit_tile, owned, PLAN)
        error = state_product(error_ptr, GATES * units, weight, owned, unit, PLAN)
        if ADD:
            error += tl.load(carried_ptr + here, mask=within, other=0.0)
        tl.store(carried_ptr + here, error, mask=within)
