"""The Triton kernel of batch_norm's prediction, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activate
from pccompile.kernels.batch_norm.channels import (
    chosen_for,
    load_elements,
    places_of,
    pointer,
    store_elements,
    stride_of,
    strides_of,
)
from pccompile.kernels.batch_norm.configurations import Configuration
from pccompile.kernels.devices import architecture_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.moments import add_to_moments, moments_along
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices

__all__ = ["Branch", "batch_norm_predict_kernel", "launch_batch_norm_predict"]


@triton.jit
def _move(old_ptr, old_stride, new_ptr, new_stride, channel, inside, towards, momentum):
    """new = old + momentum (towards - old), of running statistics."""
    old = tl.load(old_ptr + channel * old_stride, mask=inside, other=0.0).to(tl.float32)
    new = old + momentum * (towards - old)
    tl.store(new_ptr + channel * new_stride, new.to(new_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _statistics(
    branch,
    strides,
    momentum,
    eps,
    outer,
    inner,
    channel,
    inside,
    HAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    """(mean, scale, shift) of each channel, after writing what is kept of the statistics and those that moved."""
    x_ptr, weight_ptr, bias_ptr, old_mean_ptr, old_var_ptr, mean_ptr, rstd_ptr, new_mean_ptr, new_var_ptr = branch
    x_strides, weight_stride, bias_stride, old_mean_stride, old_var_stride, new_mean_stride, new_var_stride = strides
    elements = outer * inner
    count = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    means = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    squared = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    for block in range(0, (elements + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS):
        sample, position, there = places_of(block, outer, inner, WIDE, BLOCK_ELEMENTS, 0)
        within = there[:, None] & inside[None, :]
        x = load_elements(x_ptr, x_strides, channel, sample, position, within)
        count, means, squared = add_to_moments(x, within, count, means, squared)
    mean, squares = moments_along(count, means, squared, 0)
    rstd = 1.0 / tl.sqrt(squares / elements + eps)
    tl.store(mean_ptr + channel, mean, mask=inside)
    tl.store(rstd_ptr + channel, rstd, mask=inside)
    if HAS[2]:
        _move(old_mean_ptr, old_mean_stride, new_mean_ptr, new_mean_stride, channel, inside, mean, momentum)
    if HAS[3]:
        unbiased = squares / (elements - 1)
        _move(old_var_ptr, old_var_stride, new_var_ptr, new_var_stride, channel, inside, unbiased, momentum)
    scale = rstd
    if HAS[0]:
        scale = rstd * tl.load(weight_ptr + channel * weight_stride, mask=inside, other=0.0).to(tl.float32)
    shift = tl.full((BLOCK_CHANNELS,), 0.0, tl.float32)
    if HAS[1]:
        shift = tl.load(bias_ptr + channel * bias_stride, mask=inside, other=0.0).to(tl.float32)
    return mean, scale, shift


@triton.jit
def batch_norm_predict_kernel(
    branch,  # pointers: x (outer, channels, inner), weight, bias, running statistics, mean, rstd, the moved statistics
    branch_strides,  # x's three; of weight, bias, running and moved statistics
    other,  # of the normalisation that is added
    other_strides,
    addend_ptr,  # (outer, channels, inner)
    addend_strides,
    output_ptr,  # (outer, channels, inner)
    output_strides,
    pooled_ptr,  # (outer, channels)
    pooled_strides,
    batches_ptr,  # int64 scalars: so many batches were seen
    new_batches_ptr,
    other_batches_ptr,
    other_new_batches_ptr,
    outer,
    channels,
    inner,
    momentum,
    eps,
    other_momentum,
    other_eps,
    negative_slope,
    HAS: tl.constexpr,  # weight, bias, running mean, running variance, batches
    OTHER_HAS: tl.constexpr,
    ADDEND: tl.constexpr,  # "none", "tensor", or "normalised": the other branch
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,  # a power of two that holds a sample's positions, where these are averaged; else 0
):
    """A block of channels: act(normalised (+ addend, or another normalised)), and its mean over each sample's."""
    channel = tile_indices(tl.program_id(0), BLOCK_CHANNELS, WIDE)
    inside = channel < channels
    if tl.program_id(0) == 0:
        if HAS[4]:
            tl.store(new_batches_ptr, tl.load(batches_ptr) + 1)
        if OTHER_HAS[4]:
            tl.store(other_new_batches_ptr, tl.load(other_batches_ptr) + 1)
    mean, scale, shift = _statistics(
        branch, branch_strides, momentum, eps, outer, inner, channel, inside, HAS, WIDE, BLOCK_CHANNELS, BLOCK_ELEMENTS
    )
    if ADDEND == "normalised":
        other_mean, other_scale, other_shift = _statistics(
            other,
            other_strides,
            other_momentum,
            other_eps,
            outer,
            inner,
            channel,
            inside,
            OTHER_HAS,
            WIDE,
            BLOCK_CHANNELS,
            BLOCK_ELEMENTS,
        )
    blocks = (outer * inner + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS
    if BLOCK_INNER > 0:
        samples: tl.constexpr = BLOCK_ELEMENTS // BLOCK_INNER
        blocks = (outer + samples - 1) // samples
    for block in range(0, blocks):
        sample, position, there = places_of(block, outer, inner, WIDE, BLOCK_ELEMENTS, BLOCK_INNER)
        within = there[:, None] & inside[None, :]
        x = load_elements(branch[0], branch_strides[0], channel, sample, position, within)
        output = (x - mean[None, :]) * scale[None, :] + shift[None, :]
        if ADDEND == "normalised":
            x = load_elements(other[0], other_strides[0], channel, sample, position, within)
            output += (x - other_mean[None, :]) * other_scale[None, :] + other_shift[None, :]
        elif ADDEND == "tensor":
            output += load_elements(addend_ptr, addend_strides, channel, sample, position, within)
        output = activate(output, negative_slope, ACTIVATION)
        store_elements(output_ptr, output_strides, channel, sample, position, within, output, False)
        if BLOCK_INNER > 0:
            apart = tl.reshape(tl.where(within, output, 0.0), (samples, BLOCK_INNER, BLOCK_CHANNELS))
            whole = tile_indices(block, samples, WIDE)
            tl.store(
                pooled_ptr + (whole * pooled_strides[0])[:, None] + (channel * pooled_strides[1])[None, :],
                (sum_of(apart, 1) / inner).to(pooled_ptr.dtype.element_ty),
                mask=(whole < outer)[:, None] & inside[None, :],
            )


@dataclass(frozen=True)
class Branch:
    """What one normalisation reads and writes.

    Attributes:
        x: (outer, channels, inner), not empty.
        weight, bias: (channels,), or None.
        running_mean, running_var: (channels,), of any floating dtype, or None.
        mean, rstd: (channels,), float32, overwritten.
        new_mean, new_var: (channels,), the running statistics moved, overwritten: they may be running_mean and
            running_var; None where those are.
        momentum: how far running statistics move.
        eps: added to the variance.
        batches, new_batches: int64 scalars, how many batches there were before and now; or None.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    mean: Tensor
    rstd: Tensor
    new_mean: Tensor | None
    new_var: Tensor | None
    momentum: float
    eps: float
    batches: Tensor | None = None
    new_batches: Tensor | None = None

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        """As the kernel takes them."""
        parts = (self.weight, self.bias, self.running_mean, self.running_var, self.mean, self.rstd)
        return (self.x, *(pointer(part, self.x) for part in (*parts, self.new_mean, self.new_var)))

    @property
    def strides(self) -> tuple[Any, ...]:
        """As the kernel takes them."""
        parts = (self.weight, self.bias, self.running_mean, self.running_var, self.new_mean, self.new_var)
        return (self.x.stride(), *map(stride_of, parts))

    @property
    def has(self) -> tuple[bool, ...]:
        """What is there."""
        parts = (self.weight, self.bias, self.new_mean, self.new_var, self.new_batches)
        return tuple(part is not None for part in parts)


def launch_batch_norm_predict(
    branch: Branch,
    output: Tensor,
    *,
    other: Branch | None = None,
    addend: Tensor | None = None,
    pooled: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    configuration: Configuration | None = None,
) -> None:
    """Write act(normalised channels + addend) into tensors that the caller owns. Unchecked; the operator checks.

    Args:
        branch: what is normalised.
        output: (outer, channels, inner), overwritten.
        other: another of the same shape, normalised by itself and added; or None.
        addend: (outer, channels, inner), added; or None, as where there is another branch.
        pooled: (outer, channels), the mean of the output over its last dimension, overwritten; or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    x = branch.x
    architecture = architecture_of(x.device)
    outer, channels, inner = x.shape
    chosen = configuration or chosen_for(x, architecture, pools=pooled is not None)
    second = branch if other is None else other
    added = "tensor" if addend is not None else "none"
    count_launch("batch_norm_predict")
    with torch.cuda.device_of(x):
        batch_norm_predict_kernel[(triton.cdiv(channels, chosen.block_channels),)](
            branch.pointers,
            branch.strides,
            second.pointers,
            second.strides,
            pointer(addend, x),
            strides_of(addend),
            output,
            output.stride(),
            pointer(pooled, x),
            (0, 0) if pooled is None else pooled.stride(),
            pointer(branch.batches, x),
            pointer(branch.new_batches, x),
            pointer(second.batches, x),
            pointer(second.new_batches, x),
            outer,
            channels,
            inner,
            float(branch.momentum),
            float(branch.eps),
            float(second.momentum),
            float(second.eps),
            float(negative_slope),
            HAS=branch.has,
            OTHER_HAS=(False,) * 5 if other is None else other.has,
            ADDEND=added if other is None else "normalised",
            ACTIVATION=activation,
            WIDE=needs_wide_offsets(x, second.x, addend, output),
            BLOCK_CHANNELS=chosen.block_channels,
            BLOCK_ELEMENTS=chosen.block_elements,
            BLOCK_INNER=0 if pooled is None else triton.next_power_of_2(inner),
            num_warps=chosen.warps,
        )
