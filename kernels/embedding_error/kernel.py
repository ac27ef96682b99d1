"""The Triton kernel of embedding_error, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.devices import architecture_of, precision_of
from pccompile.kernels.embedding_error.configurations import Configuration, configuration_for
from pccompile.kernels.launches import count_launch
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices

__all__ = ["embedding_error_kernel", "launch_embedding_error"]


@triton.jit
def embedding_error_kernel(
    error_ptr,  # (uses, columns)
    sorted_ptr,  # (uses,), the rows used, in ascending order
    order_ptr,  # (uses,), where in error each of them is
    gradient_ptr,  # (rows, columns)
    uses,
    rows,
    columns,
    padding_row,  # or -1
    error_use_stride,
    error_column_stride,
    gradient_row_stride,
    gradient_column_stride,
    gain,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_USES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Adds a row's errors to its gradient, in the order of its uses; the program at its first use does it."""
    first = tl.program_id(0)
    row = tl.load(sorted_ptr + first).to(tl.int64)
    before = tl.load(sorted_ptr + first - 1, mask=first > 0, other=-1)
    if (row != before) & (row >= 0) & (row < rows) & (row != padding_row):
        for run in range(0, (columns + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
            column = tile_indices(run, BLOCK_COLUMNS, WIDE)
            accumulator = tl.full((BLOCK_USES, BLOCK_COLUMNS), 0.0, tl.float32)
            use = first
            more = row == row
            while more:
                place = use + tl.arange(0, BLOCK_USES)
                mine = tl.load(sorted_ptr + place, mask=place < uses, other=-1) == row
                source = tl.load(order_ptr + place, mask=mine, other=0)
                if not WIDE:
                    source = source.to(tl.int32)
                accumulator += tl.load(
                    error_ptr + (source * error_use_stride)[:, None] + (column * error_column_stride)[None, :],
                    mask=mine[:, None] & (column < columns)[None, :],
                    other=0.0,
                ).to(tl.float32)
                use += BLOCK_USES
                more = tl.load(sorted_ptr + use, mask=use < uses, other=-1) == row
            pointers = gradient_ptr + row * gradient_row_stride + column * gradient_column_stride
            total = gain * sum_of(accumulator, 0)
            total += tl.load(pointers, mask=column < columns, other=0.0).to(tl.float32)
            tl.store(pointers, total.to(gradient_ptr.dtype.element_ty), mask=column < columns)


def launch_embedding_error(
    error: Tensor,
    indices: Tensor,
    gradient: Tensor,
    *,
    padding_idx: int | None = None,
    gain: float = 1.0,
    configuration: Configuration | None = None,
) -> None:
    """Add the gradient of an embedding table to a tensor that the caller owns. Arguments are not checked.

    The indices are sorted first, by torch: equal ones then lie next to one another, in the order of their uses.

    Args:
        error: (uses, columns).
        indices: (uses,), of integers.
        gradient: (rows, columns), added to.
        padding_idx: a row without gradient, or None.
        gain: factor, read at run time.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(error.device)
    uses, columns = error.shape
    if error.numel() == 0:
        return
    chosen = configuration or configuration_for(architecture, precision_of(error.dtype, "ieee"), columns)
    ascending, order = torch.sort(indices, stable=True)
    count_launch("embedding_error")
    with torch.cuda.device_of(error):
        embedding_error_kernel[(uses,)](
            error,
            ascending,
            order,
            gradient,
            uses,
            gradient.shape[0],
            columns,
            -1 if padding_idx is None else padding_idx,
            *error.stride(),
            *gradient.stride(),
            float(gain),
            WIDE=needs_wide_offsets(error, gradient),
            BLOCK_USES=chosen.block_uses,
            BLOCK_COLUMNS=chosen.block_columns,
            num_warps=chosen.warps,
        )
