"""conv_predict: the operator pccompile::conv_predict, its derivative, and the function to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_input_precision, check_shape
from pccompile.kernels.conv_error.operator import conv_error
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.convolution_geometry import (
    ConvolutionArguments,
    Geometry,
    Pool,
    convolution_arguments,
    empty_image,
    geometry_of,
    kept_residual,
)
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["ConvPrediction", "conv_predict"]


class ConvPrediction(NamedTuple):
    """What conv_predict returns.

    Attributes:
        output: pool(act(x * W + b)), (batch, out, height, width).
        residual: what act' is read from: the output itself, another tensor like it, under an average one of all the
            positions that windows cover, or None for the identity.
        argmax: under a maximum, where in its window (row by row) it is, int8, of the output's shape; otherwise None.
    """

    output: Tensor
    residual: Tensor | None
    argmax: Tensor | None


def conv_predict(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> ConvPrediction:
    """pool(act(conv2d(x, W) + b)) in one launch, with what the error sweep reads.

    Differentiable once in x, weight and bias. Products are summed in float32. Results are channels last if x is.

    Args:
        x: (batch, channels, height, width), float32, bfloat16 or float16, any strides.
        weight: (out, channels / groups, kernel height, kernel width), of x's dtype and device, any strides.
        bias: (out,), likewise, or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        stride, padding, dilation: an integer, or one for the height and one for the width.
        groups: groups of channels and outputs that are convolved apart.
        pool: a pooling of the activation in the same launch, its windows without overlap; or None.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        ConvPrediction: output and residual in x's dtype, and the maxima's argmax.

    Raises:
        UsageError: no kernel takes this dtype, device, activation, pooling, stride or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    kind = activation_named(activation, negative_slope).residual
    convolution = convolution_arguments("conv_predict", stride, padding, dilation, groups, pool)
    output, residual, argmax = torch.ops.pccompile.conv_predict(
        x, weight, bias, activation, *convolution, negative_slope, input_precision
    )
    pool_kind = "none" if pool is None else pool.kind
    given_argmax = argmax if pool_kind == "max" else None
    if kept_residual(activation, pool_kind) != "nothing":
        return ConvPrediction(output, residual, given_argmax)
    return ConvPrediction(output, output.detach() if kind == "output" else None, given_argmax)


def _geometry(
    x: Tensor, weight: Tensor, bias: Tensor | None, convolution: ConvolutionArguments, input_precision: str
) -> Geometry:
    """The checked arguments' geometry."""
    name = "conv_predict"
    check_alike(name, x=x, weight=weight, bias=bias)
    check_input_precision(input_precision)
    geometry = geometry_of(name, x, weight, *convolution)
    check_shape(name, "bias", bias, (weight.shape[0],), "(out,)", "(out, channels / groups, height, width)")
    return geometry


def _empty_outputs(x: Tensor, weight: Tensor, geometry: Geometry, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The output, its residual and its argmax, the last two without elements where they are not needed."""
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    keep = kept_residual(activation, geometry.pool) != "nothing"
    return (
        empty_image(x, shape),
        empty_image(x, geometry.residual_shape(shape) if keep else (0, 0, 0, 0)),
        empty_image(x, shape if geometry.pool == "max" else (0, 0, 0, 0), torch.int8),
    )


@custom_operator("pccompile::conv_predict")
def _conv_predict(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: str,
    pool_window: Sequence[int],
    negative_slope: float,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    convolution = (stride, padding, dilation, groups, pool, pool_window)
    geometry = _geometry(x, weight, bias, convolution, input_precision)
    output, residual, argmax = _empty_outputs(x, weight, geometry, activation)
    if has_data(x):
        kept = residual if kept_residual(activation, pool) != "nothing" else None
        results = (output, kept, argmax if pool == "max" else None)
        launch_conv_predict(x, weight, bias, *results, geometry, activation, negative_slope, input_precision)
    return output, residual, argmax


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.activation, *ctx.convolution, ctx.negative_slope, ctx.input_precision = inputs
    prediction, residual, argmax = output
    pool = ctx.convolution[4]
    if kept_residual(ctx.activation, pool) == "nothing":
        residual_or_none = prediction if activation_named(ctx.activation).residual == "output" else None
    else:
        residual_or_none = residual
    ctx.save_for_backward(x, weight, residual_or_none, argmax if pool == "max" else None)
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(residual, argmax)


def _backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, residual, argmax = ctx.saved_tensors
    stride, padding, dilation, groups, pool, window = ctx.convolution
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    sweep = conv_error(
        error,
        residual,
        argmax,
        x,
        weight,
        ctx.activation,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pool=None if pool == "none" else Pool(pool, tuple(window[:2]), tuple(window[2:])),
        parent_error=needs_x,
        weight_gradient=needs_weight,
        bias_gradient=needs_bias and ctx.has_bias,
        negative_slope=ctx.negative_slope,
        input_precision=ctx.input_precision,
    )
    return (*sweep, *[None] * 9)


_conv_predict.register_autograd(_backward, setup_context=_save)
