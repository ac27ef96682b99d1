"""A step of strict inference at one linear layer in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named

__all__ = ["linear_step_reference"]


def linear_step_reference(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """v - act(z), d W and act(z), computed in float32 or better.

    act(z) is rounded to x's dtype before it is compared, as values are, and d before the product, as in the kernel.

    Args:
        value: (batch, out).
        x: (batch, in).
        weight: (out, in).
        bias: (out,), or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.

    Returns:
        The error (batch, out), the drive (batch, in) and the prediction (batch, out), in x's dtype.

    Raises:
        UsageError: there is no such activation.
    """
    accumulated = torch.promote_types(x.dtype, torch.float32)
    function = activation_named(activation, negative_slope)
    z = x.to(accumulated) @ weight.to(accumulated).mT
    if bias is not None:
        z = z + bias.to(accumulated)
    prediction = function.function(z, negative_slope)
    error = value.to(accumulated) - prediction.to(x.dtype).to(accumulated)
    drive = error * function.slope(prediction if function.residual == "output" else z, negative_slope)
    parent = drive.to(x.dtype).to(accumulated) @ weight.to(accumulated)
    return error.to(x.dtype), parent.to(x.dtype), prediction.to(x.dtype)
