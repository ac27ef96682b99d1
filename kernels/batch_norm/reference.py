"""Batch normalisation in training mode in plain torch: what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named

__all__ = ["batch_norm_error_reference", "batch_norm_reference", "entering_reference", "sum_reference"]


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """(channels,) shaped to be broadcast against x (batch, channels, ...)."""
    return channels.to(torch.promote_types(x.dtype, torch.float32)).reshape(1, -1, *[1] * (x.dim() - 2))


def _others(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, x.dim())]


def batch_norm_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Output, mean, rstd and moved running statistics, computed in float32 or better and rounded once.

    Args:
        x: (batch, channels, ...), of any floating dtype.
        weight, bias, running_mean, running_var: (channels,), or None.
        momentum: how far running statistics move.
        eps: added to the variance.
    """
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(values, _others(x), correction=0)
    rstd = (variance + eps).rsqrt()
    output = (values - _along(mean, x)) * _along(rstd, x)
    if weight is not None:
        output = output * _along(weight, x)
    if bias is not None:
        output = output + _along(bias, x)
    unbiased = values.var(_others(x))
    moved = [
        None if old is None else (old + momentum * (new.to(old.dtype) - old))
        for old, new in ((running_mean, mean), (running_var, unbiased))
    ]
    return output.to(x.dtype), mean, rstd, moved[0], moved[1]


def batch_norm_error_reference(
    error: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The parent's error, like x, and the gradients of weight and bias (channels,), of error's dtype.

    Args:
        error, x: (batch, channels, ...).
        weight: (channels,), or None.
        mean, rstd: (channels,).
        gain: factor of the two gradients.
    """
    e = error.to(torch.promote_types(x.dtype, torch.float32))
    normal = (x.to(e.dtype) - _along(mean, x)) * _along(rstd, x)
    scale = _along(rstd, x) if weight is None else _along(rstd, x) * _along(weight, x)
    dims = _others(x)
    parent = scale * (e - e.mean(dims, keepdim=True) - normal * (e * normal).mean(dims, keepdim=True))
    return (
        parent.to(error.dtype),
        (gain * (e * normal).sum(dims)).to(error.dtype),
        (gain * e.sum(dims)).to(error.dtype),
    )


def sum_reference(
    normalised: Sequence[Tensor], addend: Tensor | None, activation: str, negative_slope: float = 0.01
) -> tuple[Tensor, Tensor]:
    """act(the sum of some normalised tensors and an addend), and its average over the dimensions after the channels.

    Args:
        normalised: (batch, channels, ...) each, float32 or better.
        addend: likewise, of any floating dtype, or None.
        activation, negative_slope: a key of pccompile.kernels.ACTIVATIONS, and the slope of leaky_relu.
    """
    total = sum(normalised[1:], normalised[0])
    if addend is not None:
        total = total + addend.to(total.dtype)
    output = activation_named(activation, negative_slope).function(total, negative_slope)
    return output, output.mean(tuple(range(2, output.dim())), keepdim=True) if output.dim() > 2 else output


def entering_reference(
    error: Tensor, factor: float, residual: Tensor | None, activation: str, negative_slope: float = 0.01
) -> Tensor:
    """The error with respect to that sum, float32 or better.

    Args:
        error: (batch, channels, ...), with respect to the output but for the factor.
        residual: what act' is read from, or None for the identity.
    """
    e = error.to(torch.promote_types(error.dtype, torch.float32)) * factor
    if residual is None:
        return e
    return e * activation_named(activation, negative_slope).slope(residual.to(e.dtype), negative_slope)
