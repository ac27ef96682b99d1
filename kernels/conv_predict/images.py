"""conv_predict on tensors known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.convolution_geometry import Form, geometry_from, kept_residual

__all__ = ["predict_images"]


def predict_images(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    form: Form,
    pool: str,
    window: tuple[int, int, int, int],
    input_precision: str,
    strides: Sequence[int],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The prediction, what is kept beside it to read act' from, and the argmax.

    Args:
        x, weight, bias, activation, negative_slope, input_precision: as for `conv_predict`.
        form: stride, padding, dilation and groups.
        pool: "none", "max" or "average".
        window: height and width of the pooling's window, then of its stride.
        strides: of the prediction.
    """
    geometry = geometry_from((weight.shape[2], weight.shape[3]), form, pool, window)
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    output = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    argmax = torch.empty_like(output, dtype=torch.int8) if pool == "max" else None
    residual = None
    if kept_residual(activation, pool) != "nothing":
        kept = geometry.residual_shape(shape)
        residual = torch.empty_like(output) if kept == shape else x.new_empty(kept)
    launch_conv_predict(
        x, weight, bias, output, residual, argmax, geometry, activation, negative_slope, input_precision
    )
    return output, residual, argmax
