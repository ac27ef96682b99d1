"""Batch normalisation in training mode in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_norm_error_reference", "batch_norm_reference"]


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
