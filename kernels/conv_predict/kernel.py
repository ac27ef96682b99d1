"""The Triton kernel of conv_predict, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.conv_predict.configurations import Configuration, configuration_for
from pccompile.kernels.convolution_geometry import Geometry, kept_residual, strides_of, wide_images
from pccompile.kernels.convolution_tiles import (
    image_offsets,
    image_rows,
    pool_windows,
    preactivation_sum,
    store_residual,
    window_rows,
)
from pccompile.kernels.devices import (
    architecture_of,
    interpreted,
    launch_options,
    precision_of,
)
from pccompile.kernels.launches import count_launch
from pccompile.kernels.tiles import grouped_tile

__all__ = ["conv_predict_kernel", "launch_conv_predict"]


@triton.jit
def conv_predict_kernel(
    x_ptr,  # (batch, channels, height, width)
    weight_ptr,  # (out, channels / groups, kernel height, kernel width)
    bias_ptr,  # (out,)
    output_ptr,  # (batch, out, pooled height, pooled width)
    residual_ptr,  # likewise, or every position that windows cover
    argmax_ptr,  # as the output
    x_strides,
    weight_strides,
    bias_strides,
    output_strides,
    residual_strides,
    argmax_strides,
    sizes,
    row_tiles,
    column_tiles,
    negative_slope,
    ACTIVATION: tl.constexpr,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    PADDED_WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    DIRECT: tl.constexpr,
    FLATTEN: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of pool(act(x * W + b)), and of what act' is read from."""
    row_tile, column_tile = grouped_tile(tl.program_id(0), row_tiles, column_tiles, GROUP)
    rows = window_rows(row_tile, 0, sizes[0], 0, sizes[7], sizes[8], POOLING, PADDED_WINDOW, BLOCK_ROWS, WIDE)
    z, outputs, exist = preactivation_sum(
        x_ptr,
        weight_ptr,
        bias_ptr,
        x_strides,
        weight_strides,
        bias_strides,
        sizes,
        rows,
        column_tile,
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
    output, argmax, kept = pool_windows(
        z, rows, negative_slope, ACTIVATION, POOLING, PADDED_WINDOW, BLOCK_ROWS, BLOCK_OUT
    )
    windows = image_rows(row_tile, 0, sizes[0], 0, sizes[7], sizes[8], BLOCK_ROWS // PADDED_WINDOW, WIDE)
    mask = windows[3][:, None] & exist[None, :]
    tl.store(
        output_ptr + image_offsets(windows[0], outputs, windows[1], windows[2], output_strides),
        output.to(output_ptr.dtype.element_ty),
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
        output,
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


def launch_conv_predict(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    geometry: Geometry,
    activation: str,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a prediction into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (batch, channels, height, width).
        weight: (out, channels / groups, kernel height, kernel width).
        bias: (out,), or None.
        output: (batch, out, pooled height, pooled width), overwritten.
        residual: of geometry.residual_shape(output's), overwritten, or None where kept_residual keeps nothing.
        argmax: as the output, int8, overwritten; None but under a maximum.
        geometry: of the convolution and its pooling.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(x.device)
    if output.numel() == 0:
        return
    sizes = geometry.sizes(x, weight)
    direct, per_group = geometry.direct(weight), weight.shape[0] // geometry.groups
    rows = sizes[0] * sizes[7] * sizes[8] * geometry.padded_window
    precision = precision_of(x.dtype, input_precision)
    chosen = configuration or configuration_for(architecture, precision, rows, per_group, geometry.groups, direct)
    row_tiles = triton.cdiv(rows, chosen.block_rows)
    column_tiles = geometry.column_tiles(weight.shape[0], chosen.block_out, direct)
    count_launch("conv_predict")
    with torch.cuda.device_of(x):
        conv_predict_kernel[(row_tiles * column_tiles,)](
            x,
            weight,
            weight if bias is None else bias,
            output,
            output if residual is None else residual,
            output if argmax is None else argmax,
            x.stride(),
            weight.stride(),
            (0,) if bias is None else bias.stride(),
            output.stride(),
            strides_of(residual),
            strides_of(argmax),
            sizes,
            row_tiles,
            column_tiles,
            float(negative_slope),
            ACTIVATION=activation,
            GEOMETRY=geometry.constants,
            POOLING=geometry.pooling,
            PADDED_WINDOW=geometry.padded_window,
            HAS_BIAS=bias is not None,
            KEEP="nothing" if residual is None else kept_residual(activation, geometry.pool),
            DIRECT=direct,
            FLATTEN=weight.shape[1] < chosen.block_in,
            INPUT_PRECISION=input_precision,
            WIDE=wide_images(geometry, rows, x, weight, bias, output, residual, argmax),
            UPCAST=interpreted() and x.dtype is not torch.float32,
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_OUT=chosen.block_out,
            BLOCK_IN=chosen.block_in,
            GROUP=chosen.group,
            **launch_options(architecture, chosen.warps, chosen.stages),
        )
