"""conv_step on tensors known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.convolution_geometry import Form, empty_prediction, geometry_from

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
    keep = activation_named(activation).residual != "none"
    error, *kept = empty_prediction(x, weight, geometry, strides, keep)
    target = torch.empty_strided(x.shape, parent_strides, dtype=x.dtype, device=x.device)
    results, pull = (error, *kept, target), (siblings, parent_error, step_size)
    launch_conv_step(x, weight, bias, value, *results, geometry, activation, *pull, negative_slope, input_precision)
    return error, target
