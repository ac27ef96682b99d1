"""The Triton kernels of batch_norm, and their launches."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.batch_norm.configurations import Configuration, configuration_for
from pccompile.kernels.devices import architecture_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.moments import add_to_moments, moments_along
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices

__all__ = [
    "batch_norm_error_kernel",
    "batch_norm_predict_kernel",
    "launch_batch_norm_error",
    "launch_batch_norm_predict",
]


@triton.jit
def _move(old_ptr, old_stride, new_ptr, new_stride, channel, inside, towards, momentum):
    """new = old + momentum (towards - old), of running statistics."""
    old = tl.load(old_ptr + channel * old_stride, mask=inside, other=0.0).to(tl.float32)
    new = old + momentum * (towards - old)
    tl.store(new_ptr + channel * new_stride, new.to(new_ptr.dtype.element_ty), mask=inside)


@triton.jit
def batch_norm_predict_kernel(
    x_ptr,  # (outer, channels, inner)
    weight_ptr,  # (channels,)
    bias_ptr,  # (channels,)
    old_mean_ptr,  # (channels,)
    old_var_ptr,  # (channels,)
    output_ptr,  # (outer, channels, inner)
    mean_ptr,  # (channels,), float32
    rstd_ptr,  # (channels,), float32
    new_mean_ptr,  # (channels,)
    new_var_ptr,  # (channels,)
    elements,  # of a channel: outer * inner
    channels,
    inner,
    x_outer_stride,
    x_channel_stride,
    x_inner_stride,
    weight_stride,
    bias_stride,
    old_mean_stride,
    old_var_stride,
    output_outer_stride,
    output_channel_stride,
    output_inner_stride,
    new_mean_stride,
    new_var_stride,
    momentum,
    eps,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    RUNNING_MEAN: tl.constexpr,
    RUNNING_VAR: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    """A block of channels, normalised."""
    channel = tile_indices(tl.program_id(0), BLOCK_CHANNELS, WIDE)
    inside = channel < channels
    blocks = (elements + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS
    x_channel = x_ptr + (channel * x_channel_stride)[None, :]
    output_channel = output_ptr + (channel * output_channel_stride)[None, :]
    count = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    means = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    squared = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    for block in range(0, blocks):
        element = tile_indices(block, BLOCK_ELEMENTS, WIDE)
        within = (element < elements)[:, None] & inside[None, :]
        place = element // inner * x_outer_stride + element % inner * x_inner_stride
        x = tl.load(x_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
        count, means, squared = add_to_moments(x, within, count, means, squared)
    mean, squares = moments_along(count, means, squared, 0)
    rstd = 1.0 / tl.sqrt(squares / elements + eps)
    tl.store(mean_ptr + channel, mean, mask=inside)
    tl.store(rstd_ptr + channel, rstd, mask=inside)
    if RUNNING_MEAN:
        _move(old_mean_ptr, old_mean_stride, new_mean_ptr, new_mean_stride, channel, inside, mean, momentum)
    if RUNNING_VAR:
        unbiased = squares / (elements - 1)
        _move(old_var_ptr, old_var_stride, new_var_ptr, new_var_stride, channel, inside, unbiased, momentum)

    scale = rstd
    if WEIGHT:
        scale = rstd * tl.load(weight_ptr + channel * weight_stride, mask=inside, other=0.0).to(tl.float32)
    shift = tl.full((BLOCK_CHANNELS,), 0.0, tl.float32)
    if BIAS:
        shift = tl.load(bias_ptr + channel * bias_stride, mask=inside, other=0.0).to(tl.float32)
    for block in range(0, blocks):
        element = tile_indices(block, BLOCK_ELEMENTS, WIDE)
        within = (element < elements)[:, None] & inside[None, :]
        place = element // inner * x_outer_stride + element % inner * x_inner_stride
        x = tl.load(x_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
        output = (x - mean[None, :]) * scale[None, :] + shift[None, :]
        place = element // inner * output_outer_stride + element % inner * output_inner_stride
        tl.store(output_channel + place[:, None], output.to(output_ptr.dtype.element_ty), mask=within)


@triton.jit
def _write_gradient(pointers, value, inside, ACCUMULATE: tl.constexpr):
    if ACCUMULATE:
        value += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def batch_norm_error_kernel(
    error_ptr,  # (outer, channels, inner)
    x_ptr,  # (outer, channels, inner)
    weight_ptr,  # (channels,)
    mean_ptr,  # (channels,), float32
    rstd_ptr,  # (channels,), float32
    parent_ptr,  # (outer, channels, inner)
    weight_gradient_ptr,  # (channels,)
    bias_gradient_ptr,  # (channels,)
    elements,  # of a channel: outer * inner
    channels,
    inner,
    error_outer_stride,
    error_channel_stride,
    error_inner_stride,
    x_outer_stride,
    x_channel_stride,
    x_inner_stride,
    weight_stride,
    parent_outer_stride,
    parent_channel_stride,
    parent_inner_stride,
    weight_gradient_stride,
    bias_gradient_stride,
    gain,
    WEIGHT: tl.constexpr,
    PARENT_ERROR: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_PARENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    """The error sweep of a block of channels."""
    channel = tile_indices(tl.program_id(0), BLOCK_CHANNELS, WIDE)
    inside = channel < channels
    blocks = (elements + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS
    error_channel = error_ptr + (channel * error_channel_stride)[None, :]
    x_channel = x_ptr + (channel * x_channel_stride)[None, :]
    mean = tl.load(mean_ptr + channel, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + channel, mask=inside, other=0.0)
    alongs = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    shifts = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    for block in range(0, blocks):
        element = tile_indices(block, BLOCK_ELEMENTS, WIDE)
        within = (element < elements)[:, None] & inside[None, :]
        place = element // inner * error_outer_stride + element % inner * error_inner_stride
        error = tl.load(error_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
        shifts += error
        place = element // inner * x_outer_stride + element % inner * x_inner_stride
        x = tl.load(x_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
        alongs += error * (x - mean[None, :]) * rstd[None, :]
    along = sum_of(alongs, 0)
    shift = sum_of(shifts, 0)
    if WEIGHT_GRADIENT:
        weight_gradient = weight_gradient_ptr + channel * weight_gradient_stride
        _write_gradient(weight_gradient, gain * along, inside, ACCUMULATE_WEIGHT)
    if BIAS_GRADIENT:
        bias_gradient = bias_gradient_ptr + channel * bias_gradient_stride
        _write_gradient(bias_gradient, gain * shift, inside, ACCUMULATE_BIAS)

    if PARENT_ERROR:
        scale = rstd
        if WEIGHT:
            scale = rstd * tl.load(weight_ptr + channel * weight_stride, mask=inside, other=0.0).to(tl.float32)
        along = along / elements
        shift = shift / elements
        for block in range(0, blocks):
            element = tile_indices(block, BLOCK_ELEMENTS, WIDE)
            within = (element < elements)[:, None] & inside[None, :]
            place = element // inner * error_outer_stride + element % inner * error_inner_stride
            error = tl.load(error_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
            place = element // inner * x_outer_stride + element % inner * x_inner_stride
            x = tl.load(x_channel + place[:, None], mask=within, other=0.0).to(tl.float32)
            normal = (x - mean[None, :]) * rstd[None, :]
            parent = scale[None, :] * (error - shift[None, :] - normal * along[None, :])
            place = element // inner * parent_outer_stride + element % inner * parent_inner_stride
            pointers = parent_ptr + (channel * parent_channel_stride)[None, :] + place[:, None]
            _write_gradient(pointers, parent, within, ACCUMULATE_PARENT)


def _chosen(x: Tensor) -> Configuration:
    outer, channels, inner = x.shape
    return configuration_for(outer * inner, channels, channels_adjacent=inner == 1 or x.stride(1) == 1)


def _stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def launch_batch_norm_predict(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    output: Tensor,
    mean: Tensor,
    rstd: Tensor,
    new_mean: Tensor | None,
    new_var: Tensor | None,
    momentum: float,
    eps: float,
    configuration: Configuration | None = None,
) -> None:
    """Write normalised channels into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (outer, channels, inner), not empty.
        weight, bias: (channels,), or None.
        running_mean, running_var: (channels,), of any floating dtype, or None.
        output: (outer, channels, inner), overwritten.
        mean, rstd: (channels,), float32, overwritten.
        new_mean, new_var: (channels,), the running statistics moved, overwritten: they may be running_mean and
            running_var; None where those are.
        momentum: how far running statistics move.
        eps: added to the variance.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture_of(x.device)
    outer, channels, inner = x.shape
    chosen = configuration or _chosen(x)
    count_launch("batch_norm_predict")
    with torch.cuda.device_of(x):
        batch_norm_predict_kernel[(triton.cdiv(channels, chosen.block_channels),)](
            x,
            x if weight is None else weight,
            x if bias is None else bias,
            x if running_mean is None else running_mean,
            x if running_var is None else running_var,
            output,
            mean,
            rstd,
            x if new_mean is None else new_mean,
            x if new_var is None else new_var,
            outer * inner,
            channels,
            inner,
            *x.stride(),
            _stride(weight),
            _stride(bias),
            _stride(running_mean),
            _stride(running_var),
            *output.stride(),
            _stride(new_mean),
            _stride(new_var),
            float(momentum),
            float(eps),
            WEIGHT=weight is not None,
            BIAS=bias is not None,
            RUNNING_MEAN=new_mean is not None,
            RUNNING_VAR=new_var is not None,
            WIDE=needs_wide_offsets(x, output),
            BLOCK_CHANNELS=chosen.block_channels,
            BLOCK_ELEMENTS=chosen.block_elements,
            num_warps=chosen.warps,
        )


def launch_batch_norm_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    configuration: Configuration | None = None,
) -> None:
    """Write (or add) the error sweep of normalised channels into tensors that the caller owns, unchecked.

    Args:
        error, x: (outer, channels, inner).
        weight: (channels,), or None.
        mean, rstd: (channels,), float32.
        parent_error: (outer, channels, inner), or None to leave it out; it may be the error.
        weight_gradient, bias_gradient: (channels,), or None to leave them out.
        accumulate_parent: add to parent_error rather than overwrite it.
        accumulate_weight: likewise, of weight_gradient.
        accumulate_bias: likewise, of bias_gradient.
        gain: factor of the two gradients, not of the parent's error.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture_of(x.device)
    outer, channels, inner = x.shape
    if x.numel() == 0:
        for gradient, accumulate in ((weight_gradient, accumulate_weight), (bias_gradient, accumulate_bias)):
            if gradient is not None and not accumulate:
                gradient.zero_()
        return
    chosen = configuration or _chosen(x)
    parent = error if parent_error is None else parent_error
    count_launch("batch_norm_error")
    with torch.cuda.device_of(x):
        batch_norm_error_kernel[(triton.cdiv(channels, chosen.block_channels),)](
            error,
            x,
            x if weight is None else weight,
            mean,
            rstd,
            parent,
            x if weight_gradient is None else weight_gradient,
            x if bias_gradient is None else bias_gradient,
            outer * inner,
            channels,
            inner,
            *error.stride(),
            *x.stride(),
            _stride(weight),
            *parent.stride(),
            _stride(weight_gradient),
            _stride(bias_gradient),
            float(gain),
            WEIGHT=weight is not None,
            PARENT_ERROR=parent_error is not None,
            WEIGHT_GRADIENT=weight_gradient is not None,
            BIAS_GRADIENT=bias_gradient is not None,
            ACCUMULATE_PARENT=accumulate_parent,
            ACCUMULATE_WEIGHT=accumulate_weight,
            ACCUMULATE_BIAS=accumulate_bias,
            WIDE=needs_wide_offsets(error, x, parent),
            BLOCK_CHANNELS=chosen.block_channels,
            BLOCK_ELEMENTS=chosen.block_elements,
            num_warps=chosen.warps,
        )
