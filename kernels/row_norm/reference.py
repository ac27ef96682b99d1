"""Layer and root-mean-square normalisation of rows in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["row_norm_error_reference", "row_norm_reference"]


def row_norm_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * rstd * weight + bias over the last dimension, in float32 or better and rounded once.

    Args:
        x: (..., columns), of any floating dtype.
        weight: (columns,), or None.
        bias: (columns,), or None.
        eps: added to the variance.
        centred: whether the mean is subtracted (layer normalisation) or not (root mean square).

    Returns:
        The output (..., columns) of x's dtype; mean (zero unless centred) and rstd (rows,) of float32 or better.
    """
    accumulated = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(accumulated)
    mean = rows.mean(-1, keepdim=True) if centred else torch.zeros_like(rows[..., :1])
    rstd = ((rows - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    output = (rows - mean) * rstd
    if weight is not None:
        output = output * weight.to(accumulated)
    if bias is not None:
        output = output + bias.to(accumulated)
    return output.to(x.dtype), mean.flatten(), rstd.flatten()


def row_norm_error_reference(
    error: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor, gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The parent's error and the gradients of weight and bias, in float32 or better and rounded once.

    Args:
        error: (..., columns).
        x: (..., columns).
        weight: (columns,), or None.
        mean: (rows,), or None where the mean was not subtracted.
        rstd: (rows,).
        gain: factor of the two gradients.

    Returns:
        (..., columns), (columns,) and (columns,), of error's dtype.
    """
    accumulated = torch.promote_types(error.dtype, torch.float32)
    e, values, scale = (t.to(accumulated) for t in (error, x, rstd.reshape(*x.shape[:-1], 1)))
    centre = torch.zeros_like(scale) if mean is None else mean.to(accumulated).reshape(scale.shape)
    normal = (values - centre) * scale
    g = e if weight is None else e * weight.to(accumulated)
    parent = g - normal * (g * normal).mean(-1, keepdim=True)
    if mean is not None:
        parent = parent - g.mean(-1, keepdim=True)
    columns = error.shape[-1]
    return (
        (parent * scale).to(error.dtype),
        (gain * (e * normal).reshape(-1, columns).sum(0)).to(error.dtype),
        (gain * e.reshape(-1, columns).sum(0)).to(error.dtype),
    )
