"""The Triton kernel of conv_error, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.arrivals import arrival_counters, release_lanes
from pccompile.kernels.conv_error.configurations import Configuration, configuration_for, splits_for
from pccompile.kernels.conv_error.gradient import gradient_tile
from pccompile.kernels.convolution_geometry import Geometry, strides_of, wide_images
from pccompile.kernels.convolution_tiles import image_offsets, image_rows, parent_sum
from pccompile.kernels.devices import (
    architecture_of,
    interpreted,
    launch_options,
    precision_of,
)
from pccompile.kernels.launches import count_launch
from pccompile.kernels.results import SweepResults
from pccompile.kernels.tiles import grouped_tile, write_tile

__all__ = ["conv_error_kernel", "launch_conv_error"]


@triton.jit
def conv_error_kernel(
    error_ptr,  # (batch, out, pooled height, pooled width)
    residual_ptr,
    argmax_ptr,
    x_ptr,  # (batch, channels, height, width)
    weight_ptr,  # (out, channels / groups, kernel height, kernel width)
    parent_ptr,  # as x
    weight_gradient_ptr,  # as the weight
    bias_gradient_ptr,  # (out,)
    partial_ptr,
    arrived_ptr,
    error_strides,
    residual_strides,
    argmax_strides,
    x_strides,
    weight_strides,
    parent_strides,
    weight_gradient_strides,
    bias_gradient_strides,
    sizes,
    parent_row_tiles,  # of each phase
    parent_column_tiles,
    parent_programs,
    gradient_tiles,
    gradient_in_tiles,
    splits,
    gain,
    negative_slope,
    ACTIVATION: tl.constexpr,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    PARENT_ERROR: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_PARENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    DIRECT: tl.constexpr,
    FLATTEN: tl.constexpr,
    SPLIT: tl.constexpr,
    RELEASE_LANES: tl.constexpr,  # as arrivals.arrives_last takes it
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    PARENT_ROWS: tl.constexpr,
    PARENT_IN: tl.constexpr,
    PARENT_OUT: tl.constexpr,
    GRADIENT_OUT: tl.constexpr,
    GRADIENT_IN: tl.constexpr,
    GRADIENT_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of the parent's error, or one of the gradients: the first programs have the former."""
    program = tl.program_id(0)
    if PARENT_ERROR:  # noqa: SIM102 (a constant, and a value of the running program)
        if program < parent_programs:
            per_phase = parent_row_tiles * parent_column_tiles
            row_tile, column_tile = grouped_tile(program % per_phase, parent_row_tiles, parent_column_tiles, GROUP)
            height = (sizes[2] + GEOMETRY[2] - 1) // GEOMETRY[2]
            width = (sizes[3] + GEOMETRY[3] - 1) // GEOMETRY[3]
            blocks = image_rows(row_tile, 0, sizes[0], 0, height, width, PARENT_ROWS, WIDE)
            tile, y, x, channels, exist = parent_sum(
                error_ptr,
                residual_ptr,
                argmax_ptr,
                weight_ptr,
                error_strides,
                residual_strides,
                argmax_strides,
                weight_strides,
                sizes,
                program // per_phase,
                blocks,
                column_tile,
                negative_slope,
                ACTIVATION,
                GEOMETRY,
                POOLING,
                DIRECT,
                FLATTEN,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                PARENT_ROWS,
                PARENT_IN,
                PARENT_OUT,
            )
            inside = blocks[3] & (y < sizes[2]) & (x < sizes[3])
            write_tile(
                parent_ptr + image_offsets(blocks[0], channels, y, x, parent_strides),
                tile,
                inside[:, None] & exist[None, :],
                ACCUMULATE_PARENT,
            )
    if WEIGHT_GRADIENT or BIAS_GRADIENT:  # noqa: SIM102
        if program >= parent_programs:
            gradient_tile(
                error_ptr,
                residual_ptr,
                argmax_ptr,
                x_ptr,
                weight_gradient_ptr,
                bias_gradient_ptr,
                partial_ptr,
                arrived_ptr,
                error_strides,
                residual_strides,
                argmax_strides,
                x_strides,
                weight_gradient_strides,
                bias_gradient_strides,
                sizes,
                (program - parent_programs) % gradient_tiles,
                gradient_in_tiles,
                (program - parent_programs) // gradient_tiles,
                splits,
                gain,
                negative_slope,
                ACTIVATION,
                GEOMETRY,
                POOLING,
                WEIGHT_GRADIENT,
                BIAS_GRADIENT,
                ACCUMULATE_WEIGHT,
                ACCUMULATE_BIAS,
                DIRECT,
                SPLIT,
                RELEASE_LANES,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                GRADIENT_OUT,
                GRADIENT_IN,
                GRADIENT_ROWS,
            )


def launch_conv_error(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    activation: str,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write (or add) a convolution's error sweep into tensors that the caller owns. Arguments are not checked; the
    operator does.

    Args:
        error: (batch, out, pooled height, pooled width).
        residual: of geometry.residual_shape(error's), or None for the identity.
        argmax: as the error, int8; None but under a maximum.
        x: (batch, channels, height, width).
        weight: (out, channels / groups, kernel height, kernel width).
        geometry: of the convolution and its pooling.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        parent_error: as x, or None to leave it out.
        weight_gradient: as the weight, or None to leave it out.
        bias_gradient: (out,), or None to leave it out.
        accumulate_parent: add to parent_error rather than overwrite it.
        accumulate_weight: likewise, of weight_gradient.
        accumulate_bias: likewise, of bias_gradient.
        gain: factor of the two gradients, not of the parent's error.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(error.device)
    sizes = geometry.sizes(x, weight)
    direct, groups = geometry.direct(weight), geometry.groups
    phases = geometry.stride[0] * geometry.stride[1]
    parent_rows = sizes[0] * triton.cdiv(sizes[2], geometry.stride[0]) * triton.cdiv(sizes[3], geometry.stride[1])
    rows = sizes[0] * sizes[5] * sizes[6]
    precision = precision_of(error.dtype, input_precision)
    chosen = configuration or configuration_for(
        architecture, precision, phases * parent_rows, sizes[1] // groups, groups, direct
    )
    parent_row_tiles = triton.cdiv(parent_rows, chosen.parent_rows)
    parent_column_tiles = geometry.column_tiles(sizes[1], chosen.parent_in, direct)
    parent_programs = 0 if parent_error is None else phases * parent_row_tiles * parent_column_tiles
    gradient_in = 1 if direct else chosen.gradient_in
    in_tiles = 1 if weight_gradient is None else max(triton.cdiv(geometry.taps * weight.shape[1], gradient_in), 1)
    tiles = geometry.column_tiles(sizes[4], chosen.gradient_out, direct) * in_tiles
    wanted = weight_gradient is not None or bias_gradient is not None
    splits = chosen.splits or splits_for(architecture, tiles, triton.cdiv(rows, chosen.gradient_rows))
    split = wanted and splits > 1
    partial, arrived = error, error  # never read
    if split:
        slot = chosen.gradient_out * (gradient_in + 1)
        partial = torch.empty(tiles * splits * slot, dtype=torch.float32, device=error.device)
        arrived = arrival_counters(error.device, tiles)
    images = (error, residual, argmax, x, weight, parent_error, weight_gradient, bias_gradient)
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    results = SweepResults(parent_error, weight_gradient, bias_gradient, *flags)
    programs = parent_programs + (tiles * splits if wanted else 0)
    if programs == 0:
        return
    count_launch("conv_error")
    with torch.cuda.device_of(error):
        conv_error_kernel[(programs,)](
            error,
            error if residual is None else residual,
            error if argmax is None else argmax,
            x,
            weight,
            *results.pointers(error),
            partial,
            arrived,
            error.stride(),
            strides_of(residual),
            strides_of(argmax),
            x.stride(),
            weight.stride(),
            strides_of(parent_error),
            strides_of(weight_gradient),
            (0,) if bias_gradient is None else bias_gradient.stride(),
            sizes,
            parent_row_tiles,
            parent_column_tiles,
            parent_programs,
            tiles,
            in_tiles,
            splits,
            float(gain),
            float(negative_slope),
            ACTIVATION=activation,
            GEOMETRY=geometry.constants,
            POOLING=geometry.pooling,
            **results.constants,
            DIRECT=direct,
            FLATTEN=sizes[4] // groups < chosen.parent_out,
            SPLIT=split,
            RELEASE_LANES=release_lanes(architecture, chosen.warps),
            INPUT_PRECISION=input_precision,
            WIDE=wide_images(geometry, max(rows, phases * parent_rows), *images),
            UPCAST=interpreted() and error.dtype is not torch.float32,
            PARENT_ROWS=chosen.parent_rows,
            PARENT_IN=chosen.parent_in,
            PARENT_OUT=chosen.parent_out,
            GRADIENT_OUT=chosen.gradient_out,
            GRADIENT_IN=gradient_in,
            GRADIENT_ROWS=chosen.gradient_rows,
            GROUP=chosen.group,
            **launch_options(architecture, chosen.warps, chosen.stages),
        )
