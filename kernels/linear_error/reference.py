"""The error sweep of a linear layer in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named

__all__ = ["linear_error_reference"]


def linear_error_reference(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    gain: float = 1.0,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """d W, gain d^T x and gain sum(d) with d = error * act'(z), computed in float32 or better and rounded once.

    d itself is rounded to x's dtype before the products, as the kernel's operands are.

    Args:
        error: (..., out), with respect to the layer's output.
        residual: (..., out), what act' is read from; None for the identity.
        x: (..., in).
        weight: (out, in).
        activation: a key of pccompile.kernels.ACTIVATIONS.
        gain: factor of the two gradients.
        negative_slope: of leaky_relu.

    Returns:
        The parent's error (..., in), dW (out, in) and db (out,), in x's dtype.

    Raises:
        UsageError: there is no such activation.
    """
    accumulated = torch.promote_types(x.dtype, torch.float32)
    d = error.to(accumulated)
    function = activation_named(activation, negative_slope)
    if function.residual != "none":
        assert residual is not None
        d = d * function.slope(residual.to(accumulated), negative_slope)
    operand = d.to(x.dtype).to(accumulated)
    parent_error = operand @ weight.to(accumulated)
    weight_gradient = gain * (operand.flatten(0, -2).mT @ x.to(accumulated).flatten(0, -2))
    bias_gradient = gain * d.flatten(0, -2).sum(0)
    return parent_error.to(x.dtype), weight_gradient.to(x.dtype), bias_gradient.to(x.dtype)
