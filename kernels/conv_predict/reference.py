"""The prediction of a convolution in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pccompile.kernels.activations import activation_named
from pccompile.kernels.convolution_geometry import Pool, kept_residual, pool_arguments

__all__ = ["conv_predict_reference", "covered_windows"]


def covered_windows(z: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The windows of images: (batch, out, rows of windows, columns of windows, positions of a window)."""
    return z.unfold(2, window[0], stride[0]).unfold(3, window[1], stride[1]).flatten(-2)


def conv_predict_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """pool(act(conv2d(x, W) + b)), what act' is read from, and where maxima are; in float32 or better, rounded once.

    Args:
        x: (batch, channels, height, width), of any floating dtype.
        weight: (out, channels / groups, kernel height, kernel width), of x's dtype.
        bias: (out,), or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        stride, padding, dilation, groups: the convolution's.
        pool: a pooling of the activation, or None.
        negative_slope: of leaky_relu.

    Returns:
        The output, its residual (None for the identity) and the maxima's argmax in their windows, int8 (None without).

    Raises:
        UsageError: there is no such activation.
    """
    function = activation_named(activation, negative_slope)
    accumulated = torch.promote_types(x.dtype, torch.float32)
    given_bias = None if bias is None else bias.to(accumulated)
    z = functional.conv2d(x.to(accumulated), weight.to(accumulated), given_bias, stride, padding, dilation, groups)
    y = function.function(z, negative_slope)
    argmax = None
    if pool is not None:
        _, sizes = pool_arguments("conv_predict", pool)
        window, steps = (sizes[0], sizes[1]), (sizes[2], sizes[3])
        z, windows = covered_windows(z, window, steps), covered_windows(y, window, steps)
        if pool.kind == "max":
            y, first = windows.max(-1)
            z, argmax = z.gather(-1, first[..., None])[..., 0], first.to(torch.int8)
        else:
            y, z = windows.mean(-1), _side_by_side(z, window)
    output = y.to(x.dtype)
    kept = kept_residual(activation, "none" if pool is None else pool.kind)
    if kept == "output":
        return output, function.function(z, negative_slope).to(x.dtype), argmax
    residuals = {"none": None, "output": output, "preactivation": z.to(x.dtype)}
    return output, residuals[function.residual], argmax


def _side_by_side(windows: Tensor, window: tuple[int, int]) -> Tensor:
    """Windows (batch, out, rows, columns, positions) as images without what no window covers."""
    batch, out, rows, columns, _ = windows.shape
    images = windows.reshape(batch, out, rows, columns, *window).transpose(3, 4)
    return images.reshape(batch, out, rows * window[0], columns * window[1])
