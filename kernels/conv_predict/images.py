"""conv_predict on tensors known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.convolution_geometry import Form, empty_prediction, geometry_from, kept_residual

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
    keep = kept_residual(activation, pool) != "nothing"
    results: tuple[Tensor, Tensor | None, Tensor | None] = empty_prediction(x, weight, geometry, strides, keep)
    launch_conv_predict(x, weight, bias, *results, geometry, activation, negative_slope, input_precision)
    return results
