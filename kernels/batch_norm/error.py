"""The Triton kernel of batch_norm's error sweep, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activation_slope
from pccompile.kernels.batch_norm.channels import (
    chosen_for,
    load_elements,
    places_of,
    pointer,
    store_elements,
    stride_of,
    strides_of,
    three_dimensional,
)
from pccompile.kernels.batch_norm.configurations import Configuration
from pccompile.kernels.devices import architecture_of, registers_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.results import SweepResults
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices, write_tile

__all__ = ["ErrorBranch", "batch_norm_error_kernel", "error_branch", "launch_batch_norm_error"]


@triton.jit
def _entering(
    entry, strides, channel, sample, position, within, error_factor, negative_slope, ACTIVATION: tl.constexpr
):
    """d = factor error act'(z) of a block."""
    d = load_elements(entry[0], strides[0], channel, sample, position, within) * error_factor
    if ACTIVATION != "identity":
        residual = load_elements(entry[1], strides[1], channel, sample, position, within)
        d *= activation_slope(residual, negative_slope, ACTIVATION)
    return d


@triton.jit
def _normal(branch, strides, channel, sample, position, within, mean, rstd):
    """(x - mean) rstd of a block."""
    x = load_elements(branch[0], strides[0], channel, sample, position, within)
    return (x - mean[None, :]) * rstd[None, :]


@triton.jit
def _write_gradients(branch, strides, channel, inside, along, shift, gain, ASKED: tl.constexpr):
    """dw and db, where they are asked for."""
    if ASKED[2]:
        write_tile(branch[5] + channel * strides[3], gain * along, inside, ASKED[5])
    if ASKED[3]:
        write_tile(branch[6] + channel * strides[4], gain * shift, inside, ASKED[6])


@triton.jit
def _scale(branch, strides, channel, inside, rstd, ASKED: tl.constexpr):
    """The derivative of the output by (x - mean) rstd, times rstd."""
    if ASKED[0]:
        rstd *= tl.load(branch[1] + channel * strides[1], mask=inside, other=0.0).to(tl.float32)
    return rstd


@triton.jit
def batch_norm_error_kernel(
    entry,  # pointers: error, residual, d; each (outer, channels, inner)
    entry_strides,  # three each
    branch,  # pointers: x, weight, mean, rstd (float32), parent error, dw, db
    branch_strides,  # x's three, the weight's, the parent error's three, dw's, db's
    other,  # of the normalisation that was added
    other_strides,
    outer,
    channels,
    inner,
    error_factor,
    negative_slope,
    gain,
    other_gain,
    ASKED: tl.constexpr,  # weight is there; parent, dw, db are asked for; and are added to what is there
    OTHER_ASKED: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    KEEP_D: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    """The error sweep of a block of channels."""
    channel = tile_indices(tl.program_id(0), BLOCK_CHANNELS, WIDE)
    inside = channel < channels
    elements = outer * inner
    blocks = (elements + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS
    mean = tl.load(branch[2] + channel, mask=inside, other=0.0)
    rstd = tl.load(branch[3] + channel, mask=inside, other=0.0)
    shifts = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    alongs = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    if HAS_OTHER:
        other_mean = tl.load(other[2] + channel, mask=inside, other=0.0)
        other_rstd = tl.load(other[3] + channel, mask=inside, other=0.0)
        other_alongs = tl.full((BLOCK_ELEMENTS, BLOCK_CHANNELS), 0.0, tl.float32)
    for block in range(0, blocks):
        sample, position, there = places_of(block, outer, inner, WIDE, BLOCK_ELEMENTS, 0)
        within = there[:, None] & inside[None, :]
        d = _entering(entry, entry_strides, channel, sample, position, within, error_factor, negative_slope, ACTIVATION)
        if KEEP_D:
            store_elements(entry[2], entry_strides[2], channel, sample, position, within, d, False)
        shifts += d
        alongs += d * _normal(branch, branch_strides, channel, sample, position, within, mean, rstd)
        if HAS_OTHER:
            other_normal = _normal(other, other_strides, channel, sample, position, within, other_mean, other_rstd)
            other_alongs += d * other_normal
    shift = sum_of(shifts, 0)
    along = sum_of(alongs, 0)
    _write_gradients(branch, branch_strides, channel, inside, along, shift, gain, ASKED)
    if HAS_OTHER:
        other_along = sum_of(other_alongs, 0)
        _write_gradients(other, other_strides, channel, inside, other_along, shift, other_gain, OTHER_ASKED)

    if ASKED[1] or OTHER_ASKED[1]:
        shift = shift / elements
        along = along / elements
        scale = _scale(branch, branch_strides, channel, inside, rstd, ASKED)
        if HAS_OTHER:
            other_along = other_along / elements
            other_scale = _scale(other, other_strides, channel, inside, other_rstd, OTHER_ASKED)
        if KEEP_D:
            tl.debug_barrier()
        for block in range(0, blocks):
            sample, position, there = places_of(block, outer, inner, WIDE, BLOCK_ELEMENTS, 0)
            within = there[:, None] & inside[None, :]
            if KEEP_D:  # as it was written: one tensor instead of two
                d = load_elements(entry[2], entry_strides[2], channel, sample, position, within)
            else:
                d = _entering(
                    entry, entry_strides, channel, sample, position, within, error_factor, negative_slope, ACTIVATION
                )
            d -= shift[None, :]
            if ASKED[1]:
                normal = _normal(branch, branch_strides, channel, sample, position, within, mean, rstd)
                parent = scale[None, :] * (d - normal * along[None, :])
                place = branch_strides[2]
                store_elements(branch[4], place, channel, sample, position, within, parent, ASKED[4])
            if OTHER_ASKED[1]:
                normal = _normal(other, other_strides, channel, sample, position, within, other_mean, other_rstd)
                parent = other_scale[None, :] * (d - normal * other_along[None, :])
                place = other_strides[2]
                store_elements(other[4], place, channel, sample, position, within, parent, OTHER_ASKED[4])


@dataclass(frozen=True)
class ErrorBranch:
    """What the error sweep of one normalisation reads and writes.

    Attributes:
        x: (outer, channels, inner).
        weight: (channels,), or None.
        mean, rstd: (channels,), float32, contiguous.
        parent_error: (outer, channels, inner), or None to leave it out; it may be the error.
        weight_gradient, bias_gradient: (channels,), or None to leave them out.
        accumulate_parent: add to parent_error rather than overwrite it.
        accumulate_weight: likewise, of weight_gradient.
        accumulate_bias: likewise, of bias_gradient.
        gain: factor of the two gradients, not of the parent's error.
    """

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    rstd: Tensor
    parent_error: Tensor | None = None
    weight_gradient: Tensor | None = None
    bias_gradient: Tensor | None = None
    accumulate_parent: bool = False
    accumulate_weight: bool = False
    accumulate_bias: bool = False
    gain: float = 1.0

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        """As the kernel takes them."""
        results = (self.parent_error, self.weight_gradient, self.bias_gradient)
        return (
            *(self.x, pointer(self.weight, self.x), self.mean, self.rstd),
            *(pointer(result, self.x) for result in results),
        )

    @property
    def strides(self) -> tuple[Any, ...]:
        """As the kernel takes them."""
        vectors = stride_of(self.weight_gradient), stride_of(self.bias_gradient)
        return (self.x.stride(), stride_of(self.weight), strides_of(self.parent_error), *vectors)

    @property
    def asked(self) -> tuple[bool, ...]:
        """As the kernel takes it."""
        given = (self.weight, self.parent_error, self.weight_gradient, self.bias_gradient)
        return (
            *(tensor is not None for tensor in given),
            *(self.accumulate_parent, self.accumulate_weight, self.accumulate_bias),
        )

    def clear_gradients(self) -> None:
        """Sums over nothing."""
        gradients = ((self.weight_gradient, self.accumulate_weight), (self.bias_gradient, self.accumulate_bias))
        for gradient, accumulate in gradients:
            if gradient is not None and not accumulate:
                gradient.zero_()


def error_branch(
    x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, results: SweepResults, gain: float
) -> ErrorBranch:
    """The branch of a normalisation of x (batch, channels, ...), whose parent's error is like x; of any strides."""
    parent = None if results.parent_error is None else three_dimensional(results.parent_error)
    statistics = mean.contiguous(), rstd.contiguous()
    return ErrorBranch(three_dimensional(x), weight, *statistics, parent, *results[1:], gain=gain)


def launch_batch_norm_error(
    error: Tensor,
    branch: ErrorBranch,
    *,
    other: ErrorBranch | None = None,
    residual: Tensor | None = None,
    d: Tensor | None = None,
    error_factor: float = 1.0,
    activation: str = "identity",
    negative_slope: float = 0.01,
    configuration: Configuration | None = None,
) -> None:
    """Write (or add) the error sweep of act(normalised channels + addend) into the caller's tensors, unchecked.

    Args:
        error: (outer, channels, inner), with respect to the output; strides may be zero.
        branch: what was normalised, and its results.
        other: another of the same shape that was normalised by itself and added; or None.
        residual: (outer, channels, inner), what act' is read from; None for the identity.
        d: (outer, channels, inner), the error with respect to the sum, overwritten; or None to leave it out.
        error_factor: the error is this many times what is given.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    x = branch.x
    architecture = architecture_of(x.device)
    outer, channels, inner = x.shape
    if x.numel() == 0:
        for each in (branch, other):
            if each is not None:
                each.clear_gradients()
        return
    chosen = configuration or chosen_for(x, architecture)
    second = branch if other is None else other
    # of several errors the compiler would rather spill than use more registers
    registers = registers_of(architecture) if d is not None or other is not None else None
    count_launch("batch_norm_error")
    with torch.cuda.device_of(x):
        batch_norm_error_kernel[(triton.cdiv(channels, chosen.block_channels),)](
            (error, pointer(residual, x), pointer(d, x)),
            (error.stride(), strides_of(residual), strides_of(d)),
            branch.pointers,
            branch.strides,
            second.pointers,
            second.strides,
            outer,
            channels,
            inner,
            float(error_factor),
            float(negative_slope),
            float(branch.gain),
            float(second.gain),
            ASKED=branch.asked,
            OTHER_ASKED=(False,) * 7 if other is None else other.asked,
            HAS_OTHER=other is not None,
            KEEP_D=d is not None,
            ACTIVATION=activation,
            WIDE=needs_wide_offsets(error, residual, d, x, second.x, branch.parent_error, second.parent_error),
            BLOCK_CHANNELS=chosen.block_channels,
            BLOCK_ELEMENTS=chosen.block_elements,
            num_warps=chosen.warps,
            **({} if registers is None else {"maxnreg": registers}),
        )
