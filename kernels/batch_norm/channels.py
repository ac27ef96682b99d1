"""Where the elements of a block of channels lie: what the two kernels of batch_norm share."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.batch_norm.configurations import Configuration, configuration_for
from pccompile.kernels.devices import Architecture, precision_of
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "chosen_for",
    "load_elements",
    "places_of",
    "pointer",
    "store_elements",
    "stride_of",
    "strides_of",
    "three_dimensional",
]


@triton.jit
def places_of(block, outer, inner, WIDE: tl.constexpr, BLOCK_ELEMENTS: tl.constexpr, BLOCK_INNER: tl.constexpr):
    """(sample, position in it, whether there is one) of each element of a block; with BLOCK_INNER of whole samples."""
    if BLOCK_INNER > 0:
        lane = tile_indices(0, BLOCK_ELEMENTS, WIDE)
        sample = block * (BLOCK_ELEMENTS // BLOCK_INNER) + lane // BLOCK_INNER
        position = lane % BLOCK_INNER
    else:
        element = tile_indices(block, BLOCK_ELEMENTS, WIDE)
        sample = element // inner
        position = element % inner
    return sample, position, (sample < outer) & (position < inner)


@triton.jit
def load_elements(pointer, strides, channel, sample, position, within):
    """(BLOCK_ELEMENTS, BLOCK_CHANNELS) elements of a tensor (outer, channels, inner), float32, zero outside."""
    place = (sample * strides[0] + position * strides[2])[:, None]
    return tl.load(pointer + (channel * strides[1])[None, :] + place, mask=within, other=0.0).to(tl.float32)


@triton.jit
def store_elements(pointer, strides, channel, sample, position, within, values, ACCUMULATE: tl.constexpr):
    """Write such elements, or add to them."""
    if ACCUMULATE:
        values += load_elements(pointer, strides, channel, sample, position, within)
    place = (sample * strides[0] + position * strides[2])[:, None]
    tl.store(pointer + (channel * strides[1])[None, :] + place, values.to(pointer.dtype.element_ty), mask=within)


# On the host ----------------------------------------------------------------------------------------------------------


def chosen_for(x: Tensor, architecture: Architecture, pools: bool = False) -> Configuration:
    """How a launch over (outer, channels, inner) is cut up."""
    adjacent = x.shape[2] == 1 or x.stride(1) == 1
    return configuration_for(architecture, precision_of(x.dtype, "ieee"), *x.shape, adjacent, pools)


def pointer(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A tensor, or one that the kernel will not look at."""
    return instead if tensor is None else tensor


def stride_of(tensor: Tensor | None) -> int:
    """A vector's stride; 0 where there is none."""
    return 0 if tensor is None else tensor.stride(0)


def strides_of(tensor: Tensor | None) -> tuple[Any, ...]:
    """Three strides; 0 where there is no tensor."""
    return (0, 0, 0) if tensor is None else tensor.stride()


def three_dimensional(x: Tensor) -> Tensor:
    """(batch, channels, inner)."""
    return x[:, :, None] if x.dim() == 2 else x.flatten(2)
