"""conv_error and conv_error_into: the operators pccompile::conv_error(_into), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import (
    check_alike,
    check_device,
    check_input_precision,
    check_residual,
    check_shape,
    refusal,
)
from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.convolution_geometry import (
    ConvolutionArguments,
    Geometry,
    Pool,
    convolution_arguments,
    geometry_of,
)
from pccompile.kernels.linear_error.operator import ErrorSweep
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.results import SweepResults, only_asked

__all__ = ["conv_error", "conv_error_into"]

_WEIGHT = "(out, channels / groups, kernel height, kernel width)"


def conv_error(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> ErrorSweep:
    """The error sweep of pool(act(conv2d(x, W) + b)) in one launch, with d = act'(z) unpool(error).

    Not differentiable. Sums are in float32; d is rounded to the inputs' dtype before the two products.

    Args:
        error: (batch, out, height, width), with respect to the output; float32, bfloat16 or float16, any strides.
        residual: from conv_predict; None for the identity. Dtype and device are error's, from here on.
        argmax: from conv_predict, int8, of the error's shape; None but under a maximum.
        x: (batch, channels, height, width), the layer's input.
        weight: (out, channels / groups, kernel height, kernel width).
        activation: a key of pccompile.kernels.ACTIVATIONS.
        stride, padding, dilation, groups, pool: as given to conv_predict.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain d x.
        bias_gradient: whether to compute gain sum(d).
        gain: factor of the two gradients, read at run time.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        ErrorSweep: of error's dtype; laid out as x, as the weight, and contiguous.

    Raises:
        UsageError: no kernel takes this dtype, device, activation, pooling, stride or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another, or the residual or the argmax is missing.
    """
    convolution = convolution_arguments("conv_error", stride, padding, dilation, groups, pool)
    tensors = (error, residual, argmax, x, weight)
    asked = (parent_error, weight_gradient, bias_gradient)
    options = (gain, negative_slope, input_precision)
    outputs = torch.ops.pccompile.conv_error(*tensors, activation, *convolution, *asked, *options)
    return ErrorSweep(*only_asked(outputs, asked))


def conv_error_into(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> None:
    """conv_error into tensors that exist: overwritten, or added to in float32 and rounded once.

    Args:
        error, residual, argmax, x, weight, activation: as for conv_error.
        stride, padding, dilation, groups, pool: likewise.
        parent_error: as x, any strides, or None to leave it out.
        weight_gradient: as the weight, likewise.
        bias_gradient: (out,), likewise.
        accumulate_parent: add to parent_error, as where several vertices have this parent.
        accumulate_weight: add to weight_gradient, as where the weight is used more than once.
        accumulate_bias: add to bias_gradient, likewise.
        gain: factor of the two gradients, read at run time.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device, activation, pooling, stride or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another, or the residual or the argmax is missing.
    """
    convolution = convolution_arguments("conv_error", stride, padding, dilation, groups, pool)
    tensors = (error, residual, argmax, x, weight, parent_error, weight_gradient, bias_gradient)
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    options = (gain, negative_slope, input_precision)
    torch.ops.pccompile.conv_error_into(*tensors, activation, *convolution, *flags, *options)


def _check(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str,
    convolution: ConvolutionArguments,
    negative_slope: float,
    input_precision: str,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
) -> Geometry:
    """The checked arguments' geometry."""
    name = "conv_error"
    targets = {"parent_error": parent_error, "weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    check_alike(name, error=error, residual=residual, x=x, weight=weight, **targets)
    check_input_precision(input_precision)
    geometry = geometry_of(name, x, weight, *convolution)
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    images = "(batch, out, height, width)"
    check_shape(name, "error", error, shape, images, _WEIGHT)
    check_shape(name, "residual", residual, geometry.residual_shape(shape), images, _WEIGHT)
    check_shape(name, "argmax", argmax, shape, images, _WEIGHT)
    check_shape(name, "parent_error", parent_error, tuple(x.shape), "x's", _WEIGHT)
    check_shape(name, "weight_gradient", weight_gradient, tuple(weight.shape), _WEIGHT, _WEIGHT)
    check_shape(name, "bias_gradient", bias_gradient, (weight.shape[0],), "(out,)", _WEIGHT)
    check_residual(name, residual, activation, negative_slope)
    if (argmax is not None) != (geometry.pool == "max") or (argmax is not None and argmax.dtype is not torch.int8):
        raise ShapeError(
            f"{name}: the argmax is {None if argmax is None else argmax.dtype}, and the pooling {geometry.pool!r}",
            cure="pass the argmax that conv_predict returned, int8 under a maximum and None otherwise",
        )
    check_device(name, "argmax", argmax, "error", error)
    return geometry


def _empty_outputs(
    x: Tensor, weight: Tensor, parent_error: bool, weight_gradient: bool, bias_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As x, as the weight, and (out,); with no elements where it is not asked for."""
    return (
        torch.empty_like(x) if parent_error else x.new_empty((0, 0, 0, 0)),
        torch.empty_like(weight) if weight_gradient else x.new_empty((0, 0, 0, 0)),
        x.new_empty(weight.shape[:1] if bias_gradient else (0,)),
    )


@custom_operator("pccompile::conv_error")
def _conv_error(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: str,
    pool_window: Sequence[int],
    parent_error: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    gain: float,
    negative_slope: float,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    convolution = (stride, padding, dilation, groups, pool, pool_window)
    tensors = (error, residual, argmax, x, weight)
    geometry = _check(*tensors, activation, convolution, negative_slope, input_precision)
    asked = (parent_error, weight_gradient, bias_gradient)
    outputs = _empty_outputs(x, weight, *asked)
    if has_data(error):
        results = SweepResults(*only_asked(outputs, asked))
        launch_conv_error(*tensors, geometry, activation, *results, gain, negative_slope, input_precision)
    return outputs


_conv_error.register_autograd(refusal("the error sweep of a convolution was differentiated"))


@custom_operator("pccompile::conv_error_into", mutates=("parent_error", "weight_gradient", "bias_gradient"))
def _conv_error_into(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    parent_error: Tensor | None,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: str,
    pool_window: Sequence[int],
    accumulate_parent: bool,
    accumulate_weight: bool,
    accumulate_bias: bool,
    gain: float,
    negative_slope: float,
    input_precision: str,
) -> None:
    convolution = (stride, padding, dilation, groups, pool, pool_window)
    tensors, targets = (error, residual, argmax, x, weight), (parent_error, weight_gradient, bias_gradient)
    geometry = _check(*tensors, activation, convolution, negative_slope, input_precision, *targets)
    if has_data(error):
        results = SweepResults(*targets, accumulate_parent, accumulate_weight, accumulate_bias)
        launch_conv_error(*tensors, geometry, activation, *results, gain, negative_slope, input_precision)
