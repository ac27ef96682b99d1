"""The tiles of dW and db in conv_error's grid."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.arrivals import arrives_last
from pccompile.kernels.convolution_tiles import channel_columns, error_at_preactivation, image_rows
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import tile_indices, write_tile

__all__ = ["gradient_tile"]


@triton.jit
def _shared_sum(partial_ptr, offsets, splits, first, SLOT: tl.constexpr):
    """The partial sums of the programs that share a tile, added in the order of their positions."""
    total = tl.load(partial_ptr + first * SLOT + offsets, cache_modifier=".cg")
    for other in range(1, splits):
        total += tl.load(partial_ptr + (first + other) * SLOT + offsets, cache_modifier=".cg")
    return total


@triton.jit
def gradient_tile(
    error_ptr,
    residual_ptr,
    argmax_ptr,
    x_ptr,
    weight_gradient_ptr,
    bias_gradient_ptr,
    partial_ptr,  # (tiles, splits, SLOT) float32
    arrived_ptr,  # (tiles,) int32, zero
    error_strides,
    residual_strides,
    argmax_strides,
    x_strides,
    weight_gradient_strides,
    bias_gradient_strides,
    sizes,
    tile,
    in_tiles,
    split,
    splits,
    gain,
    negative_slope,
    ACTIVATION: tl.constexpr,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    DIRECT: tl.constexpr,
    SPLIT: tl.constexpr,
    RELEASE_LANES: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,  # 1 where DIRECT
    BLOCK_ROWS: tl.constexpr,
):
    """One tile of gain d x, summed over its share of the positions; in the first column of tiles, gain sum(d) too."""
    out_tile, in_tile = tile // in_tiles, tile % in_tiles
    per_group = sizes[1] // GEOMETRY[8]
    group, outputs, exist = channel_columns(out_tile, sizes[4] // GEOMETRY[8], GEOMETRY, DIRECT, BLOCK_OUT, WIDE)
    weights = tile_indices(in_tile, BLOCK_IN, WIDE)
    tap, channel = weights // per_group, weights % per_group
    down, right = tap // GEOMETRY[1], tap % GEOMETRY[1]
    weights_exist = tap < GEOMETRY[0] * GEOMETRY[1]
    if DIRECT:
        accumulator = tl.full((BLOCK_OUT, BLOCK_ROWS), 0.0, tl.float32)
        x_channel = (outputs // (sizes[4] // GEOMETRY[8]) * per_group)[:, None] + channel[None, :]
    else:
        accumulator = tl.full((BLOCK_OUT, BLOCK_IN), 0.0, tl.float32)
        x_channel = (group * per_group + channel)[None, :]
    # Reduced once, after the loop: a reduction in every iteration would wait for all warps.
    bias_accumulator = tl.full((BLOCK_OUT, BLOCK_ROWS), 0.0, tl.float32)
    row_tiles = (sizes[0] * sizes[5] * sizes[6] + BLOCK_ROWS - 1) // BLOCK_ROWS
    share = (row_tiles + splits - 1) // splits
    for row_tile in range(split * share, tl.minimum((split + 1) * share, row_tiles)):
        sample, y, x, inside = image_rows(row_tile, 0, sizes[0], 0, sizes[5], sizes[6], BLOCK_ROWS, WIDE)
        d = error_at_preactivation(  # (BLOCK_OUT, BLOCK_ROWS)
            error_ptr,
            residual_ptr,
            argmax_ptr,
            error_strides,
            residual_strides,
            argmax_strides,
            sizes,
            sample[None, :],
            outputs[:, None],
            y[None, :],
            x[None, :],
            exist[:, None] & inside[None, :],
            negative_slope,
            ACTIVATION,
            POOLING,
        )
        if BIAS_GRADIENT:
            bias_accumulator += d
        if WEIGHT_GRADIENT:
            if DIRECT:  # (BLOCK_OUT, BLOCK_ROWS)
                top = (y * GEOMETRY[2] - GEOMETRY[4])[None, :] + (down * GEOMETRY[6])[:, None]
                left = (x * GEOMETRY[3] - GEOMETRY[5])[None, :] + (right * GEOMETRY[7])[:, None]
                positions = (sample * x_strides[0])[None, :] + top * x_strides[2] + left * x_strides[3]
                mask = exist[:, None] & inside[None, :]
            else:  # (BLOCK_ROWS, BLOCK_IN)
                top = (y * GEOMETRY[2] - GEOMETRY[4])[:, None] + (down * GEOMETRY[6])[None, :]
                left = (x * GEOMETRY[3] - GEOMETRY[5])[:, None] + (right * GEOMETRY[7])[None, :]
                positions = (sample * x_strides[0])[:, None] + top * x_strides[2] + left * x_strides[3]
                mask = inside[:, None] & weights_exist[None, :]
            mask = mask & (top >= 0) & (top < sizes[2]) & (left >= 0) & (left < sizes[3])
            values = tl.load(x_ptr + positions + x_channel * x_strides[1], mask=mask, other=0.0)
            # Where values are kept in float32 beside narrower weights, products are in the weights' dtype.
            OPERAND: tl.constexpr = weight_gradient_ptr.dtype.element_ty
            operand = d.to(OPERAND)
            values = values.to(OPERAND)
            if DIRECT:
                accumulator += operand.to(tl.float32) * values.to(tl.float32)
            else:
                if UPCAST:
                    operand = operand.to(tl.float32)
                    values = values.to(tl.float32)
                accumulator = tl.dot(operand, values, accumulator, input_precision=INPUT_PRECISION)

    slot: tl.constexpr = BLOCK_OUT * (BLOCK_IN + 1)
    in_slot = tl.arange(0, BLOCK_OUT)
    first = tile * splits
    if DIRECT:
        accumulator = sum_of(accumulator, 1)[:, None]
    bias_sum = sum_of(bias_accumulator, 1)
    weight_offsets = in_slot[:, None] * BLOCK_IN + tl.arange(0, BLOCK_IN)[None, :]
    bias_offsets = in_slot + BLOCK_OUT * BLOCK_IN
    last = True
    if SPLIT:
        if WEIGHT_GRADIENT:
            tl.store(partial_ptr + (first + split) * slot + weight_offsets, accumulator)
        if BIAS_GRADIENT:  # noqa: SIM102 (a constant, and a value of the running program)
            if in_tile == 0:
                tl.store(partial_ptr + (first + split) * slot + bias_offsets, bias_sum)
        last = arrives_last(arrived_ptr + tile, splits, RELEASE_LANES)
    if last:
        if WEIGHT_GRADIENT:
            if SPLIT:
                accumulator = _shared_sum(partial_ptr, weight_offsets, splits, first, slot)
            pointers = (
                weight_gradient_ptr
                + (outputs * weight_gradient_strides[0])[:, None]
                + (
                    channel * weight_gradient_strides[1]
                    + down * weight_gradient_strides[2]
                    + right * weight_gradient_strides[3]
                )[None, :]
            )
            write_tile(pointers, accumulator * gain, exist[:, None] & weights_exist[None, :], ACCUMULATE_WEIGHT)
        if BIAS_GRADIENT:  # noqa: SIM102
            if in_tile == 0:
                if SPLIT:
                    bias_sum = _shared_sum(partial_ptr, bias_offsets, splits, first, slot)
                write_tile(
                    bias_gradient_ptr + outputs * bias_gradient_strides[0], bias_sum * gain, exist, ACCUMULATE_BIAS
                )
