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
def _bias_gradient(drives_ptr, outputs, width, row_stride, batch, WIDE: tl.constexpr, BLOCK_BATCH: tl.constexpr):
    """(BLOCK_OUT,) sum of d over the batch."""
    sums = tl.full((outputs.shape[0], BLOCK_BATCH), 0.0, tl.float32)
    for tile in range(0, (batch + BLOCK_BATCH - 1) // BLOCK_BATCH):
        rows = tile_indices(tile, BLOCK_BATCH, WIDE)
        mask = (outputs < width)[:, None] & (rows < batch)[None, :]
        sums += tl.load(drives_ptr + outputs[:, None] + (rows * row_stride)[None, :], mask=mask, other=0.0)
    return sum_of(sums, 1)


@triton.jit
def _layer_gradients(
    source,  # (pointer, row stride, column stride) of the parent's values
    x_ptr,
    table_ptr,
    drives_ptr,
    gradients_ptr,
    layer,
    earlier,
    batch,
    row_stride,
    factor,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """This program's tiles of factor d^T v and, in the first column of tiles, of factor sum(d); returns how many tiles
    the layer has."""
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    source_ptr, source_row_stride, source_column_stride = source
    in_features = layer_field(table_ptr, layer, _IN, False)
    out_features = layer_field(table_ptr, layer, _OUT, False)
    own = tl.multiple_of(layer_field(table_ptr, layer, _OWN, WIDE), 16)
    weight_gradient_ptr = gradients_ptr + layer_field(table_ptr, layer, _WEIGHT_GRADIENT, True)
    bias_gradient_ptr = gradients_ptr + layer_field(table_ptr, layer, _BIAS_GRADIENT, True)
    in_tiles = tl.maximum((in_features + BLOCK_IN - 1) // BLOCK_IN, 1)
    tiles = in_tiles * ((out_features + BLOCK_OUT - 1) // BLOCK_OUT)
    for tile in range(first_tile(tl.program_id(0), tl.num_programs(0), earlier), tiles, tl.num_programs(0)):
        outputs = tile_indices(tile // in_tiles, BLOCK_OUT, WIDE)
        inputs = tile_indices(tile % in_tiles, BLOCK_IN, WIDE)
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
            WIDE,
            UPCAST,
            BLOCK_BATCH,
        )
        place = outputs[:, None] * in_features + inputs[None, :]
        mask = (outputs < out_features)[:, None] & (inputs < in_features)[None, :]
        tl.store(weight_gradient_ptr + place, (gradient * factor).to(OPERAND), mask=mask)
        if tile % in_tiles == 0:
            sums = _bias_gradient(drives_ptr + own, outputs, out_features, row_stride, batch, WIDE, BLOCK_BATCH)
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
    HAS_UPSTREAM: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """factor d_l^T v_{l-1} and factor sum(d_l) of every layer, a tile a program."""
    if HAS_UPSTREAM:
        factor *= tl.load(upstream_ptr)
    earlier = _layer_gradients(
        (x_ptr, x_batch_stride, x_in_stride), x_ptr, table_ptr, drives_ptr, gradients_ptr, 0, 0, batch, row_stride, factor,
        INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_IN, BLOCK_BATCH,
    )  # fmt: skip
    for layer in range(1, layers):
        parent = tl.multiple_of(layer_field(table_ptr, layer, _PARENT, WIDE), 16)
        earlier += _layer_gradients(
            (values_ptr + parent, row_stride, 1), x_ptr, table_ptr, drives_ptr, gradients_ptr, layer, earlier, batch, row_stride, factor,
            INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_IN, BLOCK_BATCH,
        )  # fmt: skip
