"""conv_error on tensors known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from torch import Tensor

from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.convolution_geometry import Form, geometry_from
from pccompile.kernels.results import Target, results_for

__all__ = ["sweep_images"]


def sweep_images(
    error: Tensor,
    residual: Tensor | None,
    argmax: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str,
    negative_slope: float,
    form: Form,
    pool: str,
    window: tuple[int, int, int, int],
    parent: Target,
    weight_gradient: Target,
    bias_gradient: Target,
    gain: float,
    input_precision: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The parent's error, dW and db; None for what is not asked for.

    Args:
        error, residual, argmax, x, weight, activation, negative_slope, gain, input_precision: as for `conv_error`.
        form: stride, padding, dilation and groups.
        pool: "none", "max" or "average".
        window: height and width of the pooling's window, then of its stride.
        parent, weight_gradient, bias_gradient: the tensor to add to, or the strides of one to make, or None.
    """
    geometry = geometry_from((weight.shape[2], weight.shape[3]), form, pool, window)
    shapes = (x.shape, weight.shape, weight.shape[:1])
    results = results_for(parent, weight_gradient, bias_gradient, error, shapes)
    tensors = (error, residual, argmax, x, weight)
    launch_conv_error(*tensors, geometry, activation, *results, gain, negative_slope, input_precision)
    return results.parent_error, results.weight_gradient, results.bias_gradient
