"""The Triton kernel of conv_step, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activation_named
from pccompile.kernels.conv_step.configurations import CONFIGURATIONS, Configuration, bands_for
from pccompile.kernels.convolution_geometry import Geometry, strides_of, wide_images
from pccompile.kernels.convolution_tiles import (
    image_offsets,
    image_rows,
    parent_sum,
    pool_windows,
    preactivation_sum,
    store_residual,
    window_rows,
)
from pccompile.kernels.devices import architecture_of, interpreted, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.tiles import as_stored

__all__ = ["conv_step_kernel", "launch_conv_step"]


@triton.jit
def _windows_read(first, end, bands_end, sizes, GEOMETRY: tl.constexpr, POOLING: tl.constexpr):
    """(first, count) of the rows of windows whose error reaches x's lines [first, end), times the stride.

    The first band takes all rows above its own, and the last all below, though no x is under them.
    """
    above = tl.maximum(first * GEOMETRY[2] + GEOMETRY[4] - (GEOMETRY[0] - 1) * GEOMETRY[6], 0)
    below = tl.minimum(end * GEOMETRY[2], sizes[2]) - 1 + GEOMETRY[4]
    top = (above + GEOMETRY[2] - 1) // GEOMETRY[2] // POOLING[3]
    bottom = tl.minimum(below // GEOMETRY[2] // POOLING[3] + 1, sizes[7])
    top = tl.where(first == 0, 0, top)
    bottom = tl.where(end >= bands_end, sizes[7], bottom)
    return top, tl.maximum(bottom - top, 0)


@triton.jit
def conv_step_kernel(
    x_ptr,  # (batch, channels, height, width)
    weight_ptr,  # (out, channels / groups, kernel height, kernel width)
    bias_ptr,  # (out,)
    value_ptr,  # (batch, out, pooled height, pooled width)
    error_ptr,  # likewise
    residual_ptr,
    argmax_ptr,
    siblings_ptr,  # as x
    parent_error_ptr,  # as x
    target_ptr,  # as x
    x_strides,
    weight_strides,
    bias_strides,
    value_strides,
    error_strides,
    residual_strides,
    argmax_strides,
    siblings_strides,
    parent_error_strides,
    target_strides,
    sizes,
    bands,
    band_lines,
    out_tiles,
    in_tiles,
    step_size,
    negative_slope,
    ACTIVATION: tl.constexpr,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    PADDED_WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    FEEDBACK: tl.constexpr,
    SIBLINGS: tl.constexpr,
    MOVE: tl.constexpr,
    DIRECT: tl.constexpr,
    FLATTEN: tl.constexpr,
    FLATTEN_PARENT: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    PARENT_ROWS: tl.constexpr,
    PARENT_IN: tl.constexpr,
    PARENT_OUT: tl.constexpr,
):
    """One band of one sample: its error, and behind a barrier what the error carries back to x."""
    sample = tl.program_id(0) // bands
    first_line = tl.program_id(0) % bands * band_lines
    lines = (sizes[2] + GEOMETRY[2] - 1) // GEOMETRY[2]
    end_line = tl.minimum(first_line + band_lines, lines)
    first_window, window_lines = _windows_read(first_line, end_line, lines, sizes, GEOMETRY, POOLING)

    row_tiles = (window_lines * sizes[8] * PADDED_WINDOW + BLOCK_ROWS - 1) // BLOCK_ROWS
    for tile in range(0, row_tiles * out_tiles):
        rows = window_rows(
            tile // out_tiles,
            sample,
            1,
            first_window,
            window_lines,
            sizes[8],
            POOLING,
            PADDED_WINDOW,
            BLOCK_ROWS,
            WIDE,
        )
        z, outputs, exist = preactivation_sum(
            x_ptr,
            weight_ptr,
            bias_ptr,
            x_strides,
            weight_strides,
            bias_strides,
            sizes,
            rows,
            tile % out_tiles,
            GEOMETRY,
            POOLING,
            HAS_BIAS,
            DIRECT,
            FLATTEN,
            INPUT_PRECISION,
            WIDE,
            UPCAST,
            BLOCK_ROWS,
            BLOCK_OUT,
            BLOCK_IN,
        )
        prediction, argmax, kept = pool_windows(
            z, rows, negative_slope, ACTIVATION, POOLING, PADDED_WINDOW, BLOCK_ROWS, BLOCK_OUT
        )
        windows = image_rows(
            tile // out_tiles,
            sample,
            1,
            first_window,
            window_lines,
            sizes[8],
            BLOCK_ROWS // PADDED_WINDOW,
            WIDE,
        )
        mask = windows[3][:, None] & exist[None, :]
        value = tl.load(
            value_ptr + image_offsets(windows[0], outputs, windows[1], windows[2], value_strides), mask=mask, other=0.0
        )
        tl.store(
            error_ptr + image_offsets(windows[0], outputs, windows[1], windows[2], error_strides),
            (value.to(tl.float32) - as_stored(prediction, value, UPCAST)).to(error_ptr.dtype.element_ty),
            mask=mask,
        )
        if POOLING[0] == "max":
            tl.store(
                argmax_ptr + image_offsets(windows[0], outputs, windows[1], windows[2], argmax_strides),
                argmax.to(tl.int8),
                mask=mask,
            )
        store_residual(
            residual_ptr,
            residual_strides,
            prediction,
            kept,
            z,
            negative_slope,
            rows,
            windows,
            outputs,
            exist,
            ACTIVATION,
            POOLING,
            KEEP,
        )

    if FEEDBACK:
        # The feedback reads what other threads of this program have written.
        tl.debug_barrier()
        columns = (sizes[3] + GEOMETRY[3] - 1) // GEOMETRY[3]
        block_tiles = ((end_line - first_line) * columns + PARENT_ROWS - 1) // PARENT_ROWS
        per_phase = block_tiles * in_tiles
        for tile in range(0, GEOMETRY[2] * GEOMETRY[3] * per_phase):
            within = tile % per_phase
            blocks = image_rows(
                within // in_tiles, sample, 1, first_line, end_line - first_line, columns, PARENT_ROWS, WIDE
            )
            feedback, y, x, channels, exist = parent_sum(
                error_ptr,
                residual_ptr,
                argmax_ptr,
                weight_ptr,
                error_strides,
                residual_strides,
                argmax_strides,
                weight_strides,
                sizes,
                tile // per_phase,
                blocks,
                within % in_tiles,
                negative_slope,
                ACTIVATION,
                GEOMETRY,
                POOLING,
                DIRECT,
                FLATTEN_PARENT,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                PARENT_ROWS,
                PARENT_IN,
                PARENT_OUT,
            )
            mask = (blocks[3] & (y < sizes[2]) & (x < sizes[3]))[:, None] & exist[None, :]
            if SIBLINGS:
                offsets = image_offsets(blocks[0], channels, y, x, siblings_strides)
                feedback += tl.load(siblings_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if MOVE:
                offsets = image_offsets(blocks[0], channels, y, x, parent_error_strides)
                feedback -= tl.load(parent_error_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
                offsets = image_offsets(blocks[0], channels, y, x, x_strides)
                feedback = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) + step_size * feedback
            tl.store(
                target_ptr + image_offsets(blocks[0], channels, y, x, target_strides),
                feedback.to(target_ptr.dtype.element_ty),
                mask=mask,
            )


def launch_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    target: Tensor | None,
    geometry: Geometry,
    activation: str,
    siblings: Tensor | None = None,
    parent_error: Tensor | None = None,
    step_size: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a step into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (batch, channels, height, width), the parent's value.
        weight: (out, channels / groups, kernel height, kernel width).
        bias: (out,), or None.
        value: (batch, out, pooled height, pooled width), this vertex's.
        error: as the value, overwritten.
        residual: of geometry.residual_shape(error's), overwritten; None for the identity.
        argmax: as the error, int8, overwritten; None but under a maximum.
        target: as x and not x itself, overwritten by the feedback or the moved x; None to compute neither.
        geometry: of the convolution and its pooling.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        siblings: as x, added to the feedback, or None; may be the target.
        parent_error: as x, for the moved x; None for the feedback.
        step_size: of the move.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(x.device)
    sizes = geometry.sizes(x, weight)
    direct, groups = geometry.direct(weight), geometry.groups
    table = CONFIGURATIONS[architecture][precision_of(x.dtype, input_precision)]
    chosen = configuration or table["direct" if direct else "product"]
    lines = triton.cdiv(sizes[2], geometry.stride[0])
    band_lines = triton.cdiv(lines, chosen.bands or bands_for(architecture, geometry, sizes[0], lines))
    bands = triton.cdiv(lines, band_lines)
    rows = max(sizes[2] * sizes[3], sizes[7] * sizes[8] * geometry.padded_window)
    images = (x, weight, bias, value, error, residual, argmax, siblings, parent_error, target)
    programs = sizes[0] * bands
    if programs == 0:
        return
    count_launch("conv_step")
    with torch.cuda.device_of(x):
        conv_step_kernel[(programs,)](
            x,
            weight,
            weight if bias is None else bias,
            value,
            error,
            error if residual is None else residual,
            error if argmax is None else argmax,
            x if siblings is None else siblings,
            x if parent_error is None else parent_error,
            x if target is None else target,
            x.stride(),
            weight.stride(),
            (0,) if bias is None else bias.stride(),
            value.stride(),
            error.stride(),
            strides_of(residual),
            strides_of(argmax),
            strides_of(siblings),
            strides_of(parent_error),
            strides_of(target),
            sizes,
            bands,
            band_lines,
            geometry.column_tiles(sizes[4], chosen.block_out, direct),
            geometry.column_tiles(sizes[1], chosen.parent_in, direct),
            float(step_size),
            float(negative_slope),
            ACTIVATION=activation,
            GEOMETRY=geometry.constants,
            POOLING=geometry.pooling,
            PADDED_WINDOW=geometry.padded_window,
            HAS_BIAS=bias is not None,
            KEEP="nothing" if residual is None else activation_named(activation).residual,
            FEEDBACK=target is not None,
            SIBLINGS=siblings is not None,
            MOVE=parent_error is not None,
            DIRECT=direct,
            FLATTEN=weight.shape[1] < chosen.block_in,
            FLATTEN_PARENT=sizes[4] // groups < chosen.parent_out,
            INPUT_PRECISION=input_precision,
            WIDE=wide_images(geometry, rows, *images),
            UPCAST=interpreted() and x.dtype is not torch.float32,
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_OUT=chosen.block_out,
            BLOCK_IN=chosen.block_in,
            PARENT_ROWS=chosen.parent_rows,
            PARENT_IN=chosen.parent_in,
            PARENT_OUT=chosen.parent_out,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
