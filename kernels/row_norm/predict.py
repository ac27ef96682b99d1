"""The Triton kernel of row_norm's prediction, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.devices import architecture_of, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.moments import add_to_moments, moments_along
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.row_norm.configurations import Configuration, configuration_for
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices

__all__ = ["launch_row_norm_predict", "row_norm_predict_kernel"]


@triton.jit
def _write_normal(
    x,
    mean,
    rstd,
    weight_ptr,
    bias_ptr,
    output_row,
    column,
    within,
    columns,
    weight_stride,
    bias_stride,
    output_column_stride,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """A tile of (x - mean) * rstd * weight + bias."""
    output = (x - mean[:, None]) * rstd[:, None]
    if WEIGHT:
        weight = tl.load(weight_ptr + column * weight_stride, mask=column < columns, other=0.0)
        output = output * weight.to(tl.float32)[None, :]
    if BIAS:
        bias = tl.load(bias_ptr + column * bias_stride, mask=column < columns, other=0.0)
        output += bias.to(tl.float32)[None, :]
    tl.store(
        output_row[:, None] + (column * output_column_stride)[None, :],
        output.to(output_row.dtype.element_ty),
        mask=within,
    )


@triton.jit
def row_norm_predict_kernel(
    x_ptr,  # (rows, columns)
    weight_ptr,  # (columns,)
    bias_ptr,  # (columns,)
    output_ptr,  # (rows, columns)
    mean_ptr,  # (rows,), float32
    rstd_ptr,  # (rows,), float32
    rows,
    columns,
    x_row_stride,
    x_column_stride,
    weight_stride,
    bias_stride,
    output_row_stride,
    output_column_stride,
    eps,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    WHOLE: tl.constexpr,  # a tile has all columns
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A block of rows, normalised."""
    row = tile_indices(tl.program_id(0), BLOCK_ROWS, WIDE)
    inside = row < rows
    x_row = x_ptr + row * x_row_stride
    output_row = output_ptr + row * output_row_stride
    mean = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
    if WHOLE:
        column = tile_indices(0, BLOCK_COLUMNS, WIDE)
        within = inside[:, None] & (column < columns)[None, :]
        x = tl.load(x_row[:, None] + (column * x_column_stride)[None, :], mask=within, other=0.0).to(tl.float32)
        if CENTRED:
            mean = sum_of(x, 1) / columns
        centred = tl.where(within, x - mean[:, None], 0.0)
        squares = sum_of(centred * centred, 1)
    else:
        count = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
        means = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
        squared = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
        for run in range(0, (columns + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
            column = tile_indices(run, BLOCK_COLUMNS, WIDE)
            within = inside[:, None] & (column < columns)[None, :]
            x = tl.load(x_row[:, None] + (column * x_column_stride)[None, :], mask=within, other=0.0).to(tl.float32)
            if CENTRED:
                count, means, squared = add_to_moments(x, within, count, means, squared)
            else:
                squared += x * x
        if CENTRED:
            mean, squares = moments_along(count, means, squared, 1)
        else:
            squares = sum_of(squared, 1)
    rstd = 1.0 / tl.sqrt(squares / columns + eps)
    if CENTRED:
        tl.store(mean_ptr + row, mean, mask=inside)
    tl.store(rstd_ptr + row, rstd, mask=inside)
    if WHOLE:
        _write_normal(
            x,
            mean,
            rstd,
            weight_ptr,
            bias_ptr,
            output_row,
            column,
            within,
            columns,
            weight_stride,
            bias_stride,
            output_column_stride,
            WEIGHT,
            BIAS,
        )
    else:
        for run in range(0, (columns + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
            column = tile_indices(run, BLOCK_COLUMNS, WIDE)
            within = inside[:, None] & (column < columns)[None, :]
            x = tl.load(x_row[:, None] + (column * x_column_stride)[None, :], mask=within, other=0.0).to(tl.float32)
            _write_normal(
                x,
                mean,
                rstd,
                weight_ptr,
                bias_ptr,
                output_row,
                column,
                within,
                columns,
                weight_stride,
                bias_stride,
                output_column_stride,
                WEIGHT,
                BIAS,
            )


def launch_row_norm_predict(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    eps: float,
    configuration: Configuration | None = None,
) -> None:
    """Write normalised rows into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (rows, columns).
        weight: (columns,), or None.
        bias: (columns,), or None.
        output: (rows, columns), overwritten.
        mean: (rows,), float32, overwritten; None to not subtract the mean.
        rstd: (rows,), float32, overwritten.
        eps: added to the variance (to the mean square).
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(x.device)
    rows, columns = x.shape
    if x.numel() == 0:  # rows without columns have no statistics
        for statistic in (mean, rstd):
            if statistic is not None:
                statistic.fill_(torch.nan)
        return
    chosen = configuration or configuration_for(architecture, precision_of(x.dtype, "ieee"), rows, columns)
    count_launch("row_norm_predict")
    with torch.cuda.device_of(x):
        row_norm_predict_kernel[(triton.cdiv(rows, chosen.block_rows),)](
            x,
            x if weight is None else weight,
            x if bias is None else bias,
            output,
            rstd if mean is None else mean,
            rstd,
            rows,
            columns,
            *x.stride(),
            0 if weight is None else weight.stride(0),
            0 if bias is None else bias.stride(0),
            *output.stride(),
            float(eps),
            CENTRED=mean is not None,
            WEIGHT=weight is not None,
            BIAS=bias is not None,
            WIDE=needs_wide_offsets(x, weight, bias, output),
            WHOLE=chosen.whole,
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_COLUMNS=chosen.block_columns,
            num_warps=chosen.warps,
        )
