"""The prediction of a linear layer in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named

__all__ = ["linear_predict_reference"]


def linear_predict_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor | None]:
    """act(x W^T + b) and the residual that act' is read from, computed in float32 or better and rounded once.

    Args:
        x: (..., in), of any floating dtype.
        weight: (out, in), of x's dtype.
        bias: (out,), or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.

    Returns:
        The prediction (..., out) and its residual: the prediction, the pre-activation (..., out), or None.

    Raises:
        UsageError: there is no such activation.
    """
    function = activation_named(activation, negative_slope)
    accumulated = torch.promote_types(x.dtype, torch.float32)
    z = x.to(accumulated) @ weight.to(accumulated).mT
    if bias is not None:
        z = z + bias.to(accumulated)
    prediction = function.function(z, negative_slope).to(x.dtype)
    residuals = {"none": None, "output": prediction, "preactivation": z.to(x.dtype)}
    return prediction, residuals[function.residual]
