"""The product of two matrices by tiles, for kernels whose operands lie in buffers of float32."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.tiles import tile_indices

__all__ = ["product_tile"]


@triton.jit
def product_tile(
    left_ptr,
    left_row_stride,
    left_sum_stride,
    right_ptr,
    right_sum_stride,
    right_column_stride,
    rows,  # (BLOCK_ROWS,)
    row_count,
    columns,  # (BLOCK_COLUMNS,)
    column_count,
    sum_count,
    OPERAND: tl.constexpr,  # dtype of the operands: both are rounded to it, the sum is float32
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """left right at the given rows and columns, float32, summed in the order of the tiles; zero outside."""
    row_inside = (rows < row_count)[:, None]
    column_inside = (columns < column_count)[None, :]
    left_rows = left_ptr + (rows * left_row_stride)[:, None]
    right_columns = right_ptr + (columns * right_column_stride)[None, :]
    accumulator = tl.full((rows.shape[0], columns.shape[0]), 0.0, tl.float32)
    for tile in range(0, (sum_count + BLOCK_SUM - 1) // BLOCK_SUM):
        summed = tile_indices(tile, BLOCK_SUM, WIDE)
        inside = summed < sum_count
        left = tl.load(
            left_rows + (summed * left_sum_stride)[None, :], mask=row_inside & inside[None, :], other=0.0
        ).to(OPERAND)
        right = tl.load(
            right_columns + (summed * right_sum_stride)[:, None], mask=inside[:, None] & column_inside, other=0.0
        ).to(OPERAND)
        if UPCAST:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        accumulator = tl.dot(left, right, accumulator, input_precision=INPUT_PRECISION)
    return accumulator
