"""One step of inference for a convolution in plain torch: what the kernel is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pccompile.kernels.conv_error.reference import conv_error_reference
from pccompile.kernels.conv_predict.reference import conv_predict_reference
from pccompile.kernels.convolution_geometry import Pool

__all__ = ["conv_step_reference"]


def conv_step_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    activation: str = "identity",
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    siblings: Tensor | None = None,
    parent_error: Tensor | None = None,
    step_size: float = 1.0,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """e = v - pool(act(conv2d(x, W) + b)), what act' is read from, where maxima are, and the feedback or the moved x.

    Args:
        x: (batch, channels, height, width), the parent's value, of any floating dtype.
        weight, bias, activation, stride, padding, dilation, groups, pool: as of conv_predict.
        value: (batch, out, height, width), this vertex's.
        siblings: feedback of other children, as x; or None.
        parent_error: the parent's own error, as x; None for the feedback instead of the moved x.
        step_size: of the move.
        negative_slope: of leaky_relu.

    Returns:
        The error, its residual (None for the identity), its argmax (None but under a maximum), and W^T * d + siblings
        or x + step_size (W^T * d + siblings - parent_error). The prediction is rounded before it is compared, and d is
        formed from the rounded error, as in the kernel.

    Raises:
        UsageError: there is no such activation.
    """
    accumulated = torch.promote_types(x.dtype, torch.float32)
    convolution: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    convolution |= {"pool": pool, "negative_slope": negative_slope}
    given_bias = None if bias is None else bias.to(accumulated)
    exact = x.to(accumulated), weight.to(accumulated)
    prediction, residual, argmax = conv_predict_reference(*exact, given_bias, activation, **convolution)
    error = (value.to(accumulated) - prediction.to(x.dtype).to(accumulated)).to(x.dtype)
    kept = None if residual is None else residual.to(x.dtype)
    read = error.to(accumulated), None if kept is None else kept.to(accumulated), argmax
    feedback, _, _ = conv_error_reference(*read, *exact, activation, **convolution)
    if siblings is not None:
        feedback = feedback + siblings.to(accumulated)
    if parent_error is not None:
        feedback = x.to(accumulated) + step_size * (feedback - parent_error.to(accumulated))
    return error, kept, argmax, feedback.to(x.dtype)
