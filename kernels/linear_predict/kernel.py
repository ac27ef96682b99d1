"""The Triton kernel of linear_predict, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activate
from pccompile.kernels.devices import architecture_of, interpreted, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.linear_predict.configurations import Configuration, configuration_for
from pccompile.kernels.tiles import grouped_tile, needs_wide_offsets, tile_indices

__all__ = ["launch_linear_predict", "linear_predict_kernel"]


@triton.jit
def linear_predict_kernel(
    x_ptr,  # (batch, in)
    weight_ptr,  # (out, in)
    bias_ptr,  # (out,)
    prediction_ptr,  # (batch, out)
    preactivation_ptr,  # (batch, out)
    batch,
    out_features,
    in_features,
    x_batch_stride,
    x_in_stride,
    weight_out_stride,
    weight_in_stride,
    bias_stride,
    prediction_batch_stride,
    prediction_out_stride,
    preactivation_batch_stride,
    preactivation_out_stride,
    negative_slope,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PREACTIVATION: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_BATCH: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of act(x W^T + b), and of x W^T + b where it is kept."""
    batch_tiles = (batch + BLOCK_BATCH - 1) // BLOCK_BATCH
    out_tiles = (out_features + BLOCK_OUT - 1) // BLOCK_OUT
    batch_tile, out_tile = grouped_tile(tl.program_id(0), batch_tiles, out_tiles, GROUP)
    rows = tile_indices(batch_tile, BLOCK_BATCH, WIDE)
    columns = tile_indices(out_tile, BLOCK_OUT, WIDE)
    x_row = x_ptr + (rows * x_batch_stride)[:, None]
    weight_row = weight_ptr + (columns * weight_out_stride)[None, :]

    accumulator = tl.full((BLOCK_BATCH, BLOCK_OUT), 0.0, tl.float32)
    for in_tile in range(0, (in_features + BLOCK_IN - 1) // BLOCK_IN):
        inputs = tile_indices(in_tile, BLOCK_IN, WIDE)
        inside = inputs < in_features
        # (BLOCK_BATCH, BLOCK_IN) and (BLOCK_IN, BLOCK_OUT)
        x = tl.load(x_row + (inputs * x_in_stride)[None, :], mask=(rows < batch)[:, None] & inside[None, :], other=0.0)
        weight = tl.load(
            weight_row + (inputs * weight_in_stride)[:, None],
            mask=inside[:, None] & (columns < out_features)[None, :],
            other=0.0,
        )
        if UPCAST:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        accumulator = tl.dot(x, weight, accumulator, input_precision=INPUT_PRECISION)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns * bias_stride, mask=columns < out_features, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    prediction = activate(accumulator, negative_slope, ACTIVATION)
    inside_tile = (rows < batch)[:, None] & (columns < out_features)[None, :]
    tl.store(
        prediction_ptr + (rows * prediction_batch_stride)[:, None] + (columns * prediction_out_stride)[None, :],
        prediction.to(prediction_ptr.dtype.element_ty),
        mask=inside_tile,
    )
    if KEEP_PREACTIVATION:
        tl.store(
            preactivation_ptr
            + (rows * preactivation_batch_stride)[:, None]
            + (columns * preactivation_out_stride)[None, :],
            accumulator.to(preactivation_ptr.dtype.element_ty),
            mask=inside_tile,
        )


def launch_linear_predict(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prediction: Tensor,
    preactivation: Tensor | None,
    activation: str,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a prediction into a tensor that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (batch, in).
        weight: (out, in).
        bias: (out,), or None.
        prediction: (batch, out), overwritten.
        preactivation: (batch, out), overwritten, or None to not keep it.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    (batch, in_features), out_features = x.shape, weight.shape[0]
    architecture = architecture_of(x.device)
    if prediction.numel() == 0:
        return
    precision = precision_of(x.dtype, input_precision)
    chosen = configuration or configuration_for(architecture, precision, batch, out_features)
    kept = prediction if preactivation is None else preactivation
    given_bias = weight if bias is None else bias
    grid = (triton.cdiv(batch, chosen.block_batch) * triton.cdiv(out_features, chosen.block_out),)
    count_launch("linear_predict")
    with torch.cuda.device_of(x):
        linear_predict_kernel[grid](
            x,
            weight,
            given_bias,
            prediction,
            kept,
            batch,
            out_features,
            in_features,
            *x.stride(),
            *weight.stride(),
            given_bias.stride(0),
            *prediction.stride(),
            *kept.stride(),
            float(negative_slope),
            ACTIVATION=activation,
            HAS_BIAS=bias is not None,
            KEEP_PREACTIVATION=preactivation is not None,
            INPUT_PRECISION=input_precision,
            WIDE=needs_wide_offsets(x, weight, bias, prediction, preactivation),
            UPCAST=interpreted() and x.dtype is not torch.float32,
            BLOCK_BATCH=chosen.block_batch,
            BLOCK_OUT=chosen.block_out,
            BLOCK_IN=chosen.block_in,
            GROUP=chosen.group,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
