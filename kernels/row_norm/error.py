"""The Triton kernel of row_norm's error, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.arrivals import arrival_counters, arrives_last, fold_rows, release_lanes
from pccompile.kernels.devices import architecture_of, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.results import SweepResults
from pccompile.kernels.row_norm.configurations import GROUP, Configuration, configuration_for, programs_for
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices, write_tile

__all__ = ["launch_row_norm_error", "row_norm_error_kernel"]


@triton.jit
def _tiles(
    error_row,
    x_row,
    weight_ptr,
    mean,
    rstd,
    column,
    within,
    columns,
    error_column_stride,
    x_column_stride,
    weight_stride,
    WEIGHT: tl.constexpr,
):
    """Tiles of the error, of the error before the affine map, and of the normalised x; float32, zero outside."""
    error = tl.load(error_row[:, None] + (column * error_column_stride)[None, :], mask=within, other=0.0)
    x = tl.load(x_row[:, None] + (column * x_column_stride)[None, :], mask=within, other=0.0)
    error = error.to(tl.float32)
    normal = tl.where(within, (x.to(tl.float32) - mean[:, None]) * rstd[:, None], 0.0)
    inner = error
    if WEIGHT:
        weight = tl.load(weight_ptr + column * weight_stride, mask=column < columns, other=0.0)
        inner = error * weight.to(tl.float32)[None, :]
    return error, inner, normal


@triton.jit
def _write_parent(parent_row, column, inner, normal, along, shift, rstd, stride, within, ACCUMULATE: tl.constexpr):
    """A tile of rstd * (inner - normal * along - shift), `along` and `shift` being the row's means."""
    pointers = parent_row[:, None] + (column * stride)[None, :]
    parent = rstd[:, None] * (inner - normal * along[:, None] - shift[:, None])
    write_tile(pointers, parent, within, ACCUMULATE)


@triton.jit
def _fold_gradient(
    partial_ptr,
    count,
    target_ptr,
    target_stride,
    gain,
    columns,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target (+)= gain times the sum of `count` rows of partial sums."""
    for run in range(0, (columns + BLOCK - 1) // BLOCK):
        column = tile_indices(run, BLOCK, False)
        inside = column < columns
        total = gain * fold_rows(partial_ptr, columns, column, inside, count, ROWS, BLOCK)
        write_tile(target_ptr + column * target_stride, total, inside, ACCUMULATE)


@triton.jit
def row_norm_error_kernel(
    error_ptr,  # (rows, columns)
    x_ptr,  # (rows, columns)
    weight_ptr,  # (columns,)
    mean_ptr,  # (rows,), float32
    rstd_ptr,  # (rows,), float32
    parent_ptr,  # (rows, columns)
    weight_gradient_ptr,  # (columns,)
    bias_gradient_ptr,  # (columns,)
    weight_partial_ptr,  # (programs + groups, columns), float32
    bias_partial_ptr,  # (programs + groups, columns), float32
    arrivals_ptr,  # (1 + groups,)
    rows,
    columns,
    row_blocks,  # of each program
    error_row_stride,
    error_column_stride,
    x_row_stride,
    x_column_stride,
    weight_stride,
    parent_row_stride,
    parent_column_stride,
    weight_gradient_stride,
    bias_gradient_stride,
    gain,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    PARENT_ERROR: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_PARENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    WHOLE: tl.constexpr,  # a tile has all columns
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    FOLD_COLUMNS: tl.constexpr,
    RELEASE_LANES: tl.constexpr,
):
    """A run of blocks of rows; the last of each group, and the last group, add up their shares of the gradients."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    runs = (columns + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    weight_share = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
    bias_share = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
    for block in range(0, row_blocks):
        row = tile_indices(program * row_blocks + block, BLOCK_ROWS, WIDE)
        inside = row < rows
        error_row = error_ptr + row * error_row_stride
        x_row = x_ptr + row * x_row_stride
        parent_row = parent_ptr + row * parent_row_stride
        rstd = tl.load(rstd_ptr + row, mask=inside, other=0.0)
        mean = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
        if CENTRED:
            mean = tl.load(mean_ptr + row, mask=inside, other=0.0)
        along = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
        shift = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
        if WHOLE:
            column = tile_indices(0, BLOCK_COLUMNS, WIDE)
            within = inside[:, None] & (column < columns)[None, :]
            error, inner, normal = _tiles(
                error_row,
                x_row,
                weight_ptr,
                mean,
                rstd,
                column,
                within,
                columns,
                error_column_stride,
                x_column_stride,
                weight_stride,
                WEIGHT,
            )
            if PARENT_ERROR:
                along = sum_of(inner * normal, 1) / columns
                if CENTRED:
                    shift = sum_of(inner, 1) / columns
                _write_parent(
                    parent_row,
                    column,
                    inner,
                    normal,
                    along,
                    shift,
                    rstd,
                    parent_column_stride,
                    within,
                    ACCUMULATE_PARENT,
                )
            if WEIGHT_GRADIENT:
                weight_share += error * normal
            if BIAS_GRADIENT:
                bias_share += error
        else:
            if PARENT_ERROR:
                alongs = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
                shifts = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
                for run in range(0, runs):
                    column = tile_indices(run, BLOCK_COLUMNS, WIDE)
                    within = inside[:, None] & (column < columns)[None, :]
                    error, inner, normal = _tiles(
                        error_row,
                        x_row,
                        weight_ptr,
                        mean,
                        rstd,
                        column,
                        within,
                        columns,
                        error_column_stride,
                        x_column_stride,
                        weight_stride,
                        WEIGHT,
                    )
                    alongs += inner * normal
                    if CENTRED:
                        shifts += inner
                along = sum_of(alongs, 1) / columns
                if CENTRED:
                    shift = sum_of(shifts, 1) / columns
            for run in range(0, runs):
                column = tile_indices(run, BLOCK_COLUMNS, WIDE)
                within = inside[:, None] & (column < columns)[None, :]
                error, inner, normal = _tiles(
                    error_row,
                    x_row,
                    weight_ptr,
                    mean,
                    rstd,
                    column,
                    within,
                    columns,
                    error_column_stride,
                    x_column_stride,
                    weight_stride,
                    WEIGHT,
                )
                if PARENT_ERROR:
                    _write_parent(
                        parent_row,
                        column,
                        inner,
                        normal,
                        along,
                        shift,
                        rstd,
                        parent_column_stride,
                        within,
                        ACCUMULATE_PARENT,
                    )
                # The program's shares do not fit in registers: it keeps them where its partial sums will be.
                here = program * columns + column
                known = (column < columns) & (block > 0)
                if WEIGHT_GRADIENT:
                    share = tl.load(weight_partial_ptr + here, mask=known, other=0.0)
                    share += sum_of(error * normal, 0)
                    tl.store(weight_partial_ptr + here, share, mask=column < columns)
                if BIAS_GRADIENT:
                    share = tl.load(bias_partial_ptr + here, mask=known, other=0.0) + sum_of(error, 0)
                    tl.store(bias_partial_ptr + here, share, mask=column < columns)
            tl.debug_barrier()  # the next row reads the shares

    if WEIGHT_GRADIENT or BIAS_GRADIENT:
        if WHOLE:
            column = tile_indices(0, BLOCK_COLUMNS, WIDE)
            here = program * columns + column
            if WEIGHT_GRADIENT:
                tl.store(weight_partial_ptr + here, sum_of(weight_share, 0), mask=column < columns)
            if BIAS_GRADIENT:
                tl.store(bias_partial_ptr + here, sum_of(bias_share, 0), mask=column < columns)
        group = program // GROUP
        groups = (programs + GROUP - 1) // GROUP
        members = tl.minimum(programs - group * GROUP, GROUP)
        if arrives_last(arrivals_ptr + 1 + group, members, RELEASE_LANES):
            if groups > 1:
                first = group * GROUP * columns
                sum_of_group = (programs + group) * columns
                if WEIGHT_GRADIENT:
                    _fold_gradient(
                        weight_partial_ptr + first,
                        members,
                        weight_partial_ptr + sum_of_group,
                        1,
                        1.0,
                        columns,
                        False,
                        GROUP,
                        FOLD_COLUMNS,
                    )
                if BIAS_GRADIENT:
                    _fold_gradient(
                        bias_partial_ptr + first,
                        members,
                        bias_partial_ptr + sum_of_group,
                        1,
                        1.0,
                        columns,
                        False,
                        GROUP,
                        FOLD_COLUMNS,
                    )
            if arrives_last(arrivals_ptr, groups, RELEASE_LANES):
                first = tl.where(groups > 1, programs, 0) * columns
                count = tl.where(groups > 1, groups, programs)
                if WEIGHT_GRADIENT:
                    _fold_gradient(
                        weight_partial_ptr + first,
                        count,
                        weight_gradient_ptr,
                        weight_gradient_stride,
                        gain,
                        columns,
                        ACCUMULATE_WEIGHT,
                        GROUP,
                        FOLD_COLUMNS,
                    )
                if BIAS_GRADIENT:
                    _fold_gradient(
                        bias_partial_ptr + first,
                        count,
                        bias_gradient_ptr,
                        bias_gradient_stride,
                        gain,
                        columns,
                        ACCUMULATE_BIAS,
                        GROUP,
                        FOLD_COLUMNS,
                    )


def launch_row_norm_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    configuration: Configuration | None = None,
    programs: int | None = None,
) -> None:
    """Write (or add) the error sweep of normalised rows into tensors that the caller owns. Arguments are not checked.

    Args:
        error: (rows, columns).
        x: (rows, columns).
        weight: (columns,), or None.
        mean: (rows,), float32, contiguous; or None where it was not subtracted.
        rstd: (rows,), likewise.
        parent_error: (rows, columns), or None to leave it out; it may be the error.
        weight_gradient: (columns,), or None to leave it out.
        bias_gradient: (columns,), or None to leave it out.
        accumulate_parent: add to parent_error rather than overwrite it.
        accumulate_weight: likewise, of weight_gradient.
        accumulate_bias: likewise, of bias_gradient.
        gain: factor of the two gradients, not of the parent's error.
        configuration: how the launch is cut up; None chooses.
        programs: among how many programs the rows are divided; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(error.device)
    rows, columns = error.shape
    gradients = ((weight_gradient, accumulate_weight), (bias_gradient, accumulate_bias))
    if error.numel() == 0:
        for gradient, accumulate in gradients:
            if gradient is not None and not accumulate:
                gradient.zero_()
        return
    chosen = configuration or configuration_for(architecture, precision_of(error.dtype, "ieee"), rows, columns)
    each = triton.cdiv(triton.cdiv(rows, chosen.block_rows), programs or programs_for(rows, chosen))
    programs = triton.cdiv(triton.cdiv(rows, chosen.block_rows), each)
    groups = triton.cdiv(programs, GROUP)
    wanted = sum(gradient is not None for gradient, _ in gradients)
    partial = rstd.new_empty(max(wanted, 1), programs + groups if wanted else 0, columns)
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    results = SweepResults(parent_error, weight_gradient, bias_gradient, *flags)
    parent, weight_target, bias_target = results.pointers(error)
    count_launch("row_norm_error")
    with torch.cuda.device_of(error):
        row_norm_error_kernel[(programs,)](
            error,
            x,
            error if weight is None else weight,
            rstd if mean is None else mean,
            rstd,
            parent,
            weight_target,
            bias_target,
            partial[0],
            partial[-1],
            arrival_counters(error.device, 1 + groups),
            rows,
            columns,
            each,
            *error.stride(),
            *x.stride(),
            0 if weight is None else weight.stride(0),
            *parent.stride(),
            weight_target.stride(0),
            bias_target.stride(0),
            float(gain),
            CENTRED=mean is not None,
            WEIGHT=weight is not None,
            **results.constants,
            WIDE=needs_wide_offsets(error, x, weight, parent_error, weight_gradient, bias_gradient),
            WHOLE=chosen.whole,
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_COLUMNS=chosen.block_columns,
            GROUP=GROUP,
            FOLD_COLUMNS=min(chosen.block_columns, 512),
            RELEASE_LANES=release_lanes(architecture, chosen.warps),
            num_warps=chosen.warps,
        )
