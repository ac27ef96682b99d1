"""The gradients of all weights and biases of a chain, from the drives that a sweep has left, in one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.products import product_tile
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.strict_sweep.half_steps import first_tile, layer_field
from pccompile.kernels.strict_sweep.layout import Field
from pccompile.kernels.tiles import tile_indices

__all__ = ["chain_gradients_kernel"]

_IN = tl.constexpr(int(Field.IN))
_OUT = tl.constexpr(int(Field.OUT))
_PARENT = tl.constexpr(int(Field.PARENT))
_OWN = tl.constexpr(int(Field.OWN))
_WEIGHT_GRADIENT = tl.constexpr(int(Field.WEIGHT_GRADIENT))
_BIAS_GRADIENT = tl.constexpr(int(Field.BIAS_GRADIENT))


@triton.jit
def _sum_over_batch(drives_ptr, outputs, width, row_stride, batch, PLAN: tl.constexpr):
    """(block_out,) sum of d over the batch."""
    sums = tl.full((outputs.shape[0], PLAN.block_batch), 0.0, tl.float32)
    for tile in range(0, (batch + PLAN.block_batch - 1) // PLAN.block_batch):
        rows = tile_indices(tile, PLAN.block_batch, PLAN.wide)
        mask = (outputs < width)[:, None] & (rows < batch)[None, :]
        sums += tl.load(drives_ptr + outputs[:, None] + (rows * row_stride)[None, :], mask=mask, other=0.0)
    return sum_of(sums, 1)


@triton.jit
def _layer_gradients(source, given, layer, earlier, PLAN: tl.constexpr):
    """This program's tiles of factor d^T v and, in the first column of tiles, of factor sum(d); returns how many tiles
    the layer has. source is (pointer, row stride, column stride) of the parent's values."""
    source_ptr, source_row_stride, source_column_stride = source
    table_ptr, drives_ptr, gradients_ptr, batch, row_stride, factor = given
    OPERAND: tl.constexpr = gradients_ptr.dtype.element_ty
    INPUT_PRECISION: tl.constexpr = PLAN.input_precision
    in_features = layer_field(table_ptr, layer, _IN, False)
    out_features = layer_field(table_ptr, layer, _OUT, False)
    own = tl.multiple_of(layer_field(table_ptr, layer, _OWN, PLAN.wide), 16)
    weight_gradient_ptr = gradients_ptr + layer_field(table_ptr, layer, _WEIGHT_GRADIENT, True)
    bias_gradient_ptr = gradients_ptr + layer_field(table_ptr, layer, _BIAS_GRADIENT, True)
    in_tiles = tl.maximum((in_features + PLAN.block_in - 1) // PLAN.block_in, 1)
    tiles = in_tiles * ((out_features + PLAN.block_out - 1) // PLAN.block_out)
    for tile in range(first_tile(tl.program_id(0), tl.num_programs(0), earlier), tiles, tl.num_programs(0)):
        outputs = tile_indices(tile // in_tiles, PLAN.block_out, PLAN.wide)
        inputs = tile_indices(tile % in_tiles, PLAN.block_in, PLAN.wide)
        gradient = product_tile(
            drives_ptr + own,
            1,
            row_stride,
            source_ptr,
            source_row_stride,
            source_column_stride,
            outputs,
            out_features,
            inputs,
            in_features,
            batch,
            OPERAND,
            INPUT_PRECISION,
            PLAN.wide,
            PLAN.upcast,
            PLAN.block_batch,
        )
        place = outputs[:, None] * in_features + inputs[None, :]
        mask = (outputs < out_features)[:, None] & (inputs < in_features)[None, :]
        tl.store(weight_gradient_ptr + place, (gradient * factor).to(OPERAND), mask=mask)
        if tile % in_tiles == 0:
            sums = _sum_over_batch(drives_ptr + own, outputs, out_features, row_stride, batch, PLAN)
            tl.store(bias_gradient_ptr + outputs, (sums * factor).to(OPERAND), mask=outputs < out_features)
    return tiles


@triton.jit
def chain_gradients_kernel(
    x_ptr,  # (batch, in)
    table_ptr,  # (layers, fields) int64
    values_ptr,  # (batch, columns) float32
    drives_ptr,  # (batch, columns) float32
    gradients_ptr,  # every dW (out, in), then every db (out,)
    upstream_ptr,  # () float32
    batch,
    layers,
    x_batch_stride,
    x_in_stride,
    row_stride,
    factor,
    PLAN: tl.constexpr,
):
    """factor d_l^T v_{l-1} and factor sum(d_l) of every layer, a tile a program."""
    if PLAN.upstream:
        factor *= tl.load(upstream_ptr)
    given = (table_ptr, drives_ptr, gradients_ptr, batch, row_stride, factor)
    earlier = _layer_gradients((x_ptr, x_batch_stride, x_in_stride), given, 0, 0, PLAN)
    for layer in range(1, layers):
        parent = tl.multiple_of(layer_field(table_ptr, layer, _PARENT, PLAN.wide), 16)
        earlier += _layer_gradients((values_ptr + parent, row_stride, 1), given, layer, earlier, PLAN)
