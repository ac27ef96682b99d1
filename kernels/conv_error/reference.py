"""The error sweep of a convolution in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn import grad as convolution_gradients

from pccompile.kernels.activations import activation_named
from pccompile.kernels.convolution_geometry import Pool, pool_arguments

__all__ = ["conv_error_reference"]


def conv_error_reference(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    gain: float = 1.0,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """W^T * d, gain d x and gain sum(d) with d = act'(z) unpool(error), in float32 or better and rounded once.

    d itself is rounded to x's dtype before the products, as the kernel's operands are.

    Args:
        error: (batch, out, height, width), with respect to the output.
        residual: what act' is read from, as conv_predict returns it; None for the identity.
        argmax: of each maximum in its window, as conv_predict returns it; None but under a maximum.
        x: (batch, channels, height, width).
        weight: (out, channels / groups, kernel height, kernel width).
        activation: a key of pccompile.kernels.ACTIVATIONS.
        stride, padding, dilation, groups, pool: as of conv_predict.
        gain: factor of the two gradients.
        negative_slope: of leaky_relu.

    Returns:
        The parent's error, dW and db, in x's dtype.

    Raises:
        UsageError: there is no such activation.
    """
    accumulated = torch.promote_types(x.dtype, torch.float32)
    function = activation_named(activation, negative_slope)
    slope = None if residual is None else function.slope(residual.to(accumulated), negative_slope)
    options = (stride, padding, dilation, groups)
    convolved = functional.conv2d(x, weight, None, *options).shape
    d = _unpooled(error.to(accumulated), slope, argmax, pool, convolved)
    operand = d.to(x.dtype).to(accumulated)
    parent_error = convolution_gradients.conv2d_input(x.shape, weight.to(accumulated), operand, *options)
    weight_gradient = gain * convolution_gradients.conv2d_weight(x.to(accumulated), weight.shape, operand, *options)
    return parent_error.to(x.dtype), weight_gradient.to(x.dtype), (gain * d.sum((0, 2, 3))).to(x.dtype)


def _unpooled(
    error: Tensor, slope: Tensor | None, argmax: Tensor | None, pool: Pool | None, shape: torch.Size
) -> Tensor:
    """d at every convolved position."""
    if pool is None:
        return error if slope is None else error * slope
    _, (height, width, down, right) = pool_arguments("conv_error", pool)
    d = error.new_zeros(shape)
    for position in range(height * width):
        y, x = divmod(position, width)
        if pool.kind == "average":
            share = error / (height * width)
            if slope is not None:
                share = share * slope[:, :, y::height, x::width]
        else:
            share = (error if slope is None else error * slope) * (argmax == position)
        window = d[:, :, y::down, x::right]
        window[:, :, : error.shape[2], : error.shape[3]] += share
    return d
