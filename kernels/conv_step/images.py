"""conv_step on tensors known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.convolution_geometry import Form, geometry_from

__all__ = ["step_images"]


def step_images(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    siblings: Tensor | None,
    parent_error: Tensor | None,
    step_size: float,
    activation: str,
    negative_slope: float,
    form: Form,
    pool: str,
    window: tuple[int, int, int, int],
    input_precision: str,
    strides: Sequence[int],
    parent_strides: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The error, and what it gives the parent: the feedback or, where the parent's error is given, the moved x.

    Args:
        x, weight, bias, value, siblings, parent_error, step_size: as for `conv_step`.
        activation, negative_slope, input_precision: likewise.
        form: stride, padding, dilation and groups.
        pool: "none", "max" or "average".
        window: height and width of the pooling's window, then of its stride.
        strides: of the error.
        parent_strides: of what the parent is given.
    """
    geometry = geometry_from((weight.shape[2], weight.shape[3]), form, pool, window)
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    error = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    target = torch.empty_strided(x.shape, parent_strides, dtype=x.dtype, device=x.device)
    argmax = torch.empty_like(error, dtype=torch.int8) if pool == "max" else None
    residual = None
    if activation_named(activation).residual != "none":
        kept = geometry.residual_shape(shape)
        residual = torch.empty_like(error) if kept == shape else x.new_empty(kept)
    launch_conv_step(
        x,
        weight,
        bias,
        value,
        error,
        residual,
        argmax,
        target,
        geometry,
        activation,
        siblings=siblings,
        parent_error=parent_error,
        step_size=step_size,
        negative_slope=negative_slope,
        input_precision=input_precision,
    )
    return error, target
