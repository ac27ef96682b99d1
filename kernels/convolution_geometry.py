"""What the convolution kernels share on the host: geometry of a convolution and its pooling, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.tiles import needs_wide_offsets

__all__ = [
    "LARGEST_WINDOW",
    "ConvolutionArguments",
    "Form",
    "Geometry",
    "Pool",
    "convolution_arguments",
    "empty_image",
    "empty_prediction",
    "geometry_from",
    "geometry_of",
    "kept_residual",
    "pair",
    "pool_arguments",
    "strides_of",
    "wide_images",
]

LARGEST_WINDOW = 64  # positions of a pooling window: one tile of rows holds whole windows

Form = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]  # stride, padding, dilation, groups

# As the operators take it: stride, padding, dilation, groups; the pooling's kind, and its window and stride together.
ConvolutionArguments = tuple[Sequence[int], Sequence[int], Sequence[int], int, str, Sequence[int]]

_LEAST = {"padding": 0}


class Pool(NamedTuple):
    """A pooling whose windows do not overlap, without padding; what is left over at the far edges is dropped.

    Attributes:
        kind: "max" or "average".
        window: its height and width, or one number for both; at most 64 positions.
        stride: likewise, at least the window; None for the window.
    """

    kind: Literal["max", "average"]
    window: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Geometry:
    """A convolution's integers, each pair (height, width), and those of the pooling behind it (1 where there is none).

    Attributes:
        kernel, stride, padding, dilation, groups: the convolution's.
        pool: "none", "max" or "average".
        window, window_stride: the pooling's.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pool: str
    window: tuple[int, int]
    window_stride: tuple[int, int]

    @property
    def constants(self) -> tuple[int, ...]:
        """The kernels' GEOMETRY; its last two are how far apart the taps are that meet one row (column) of x."""
        steps = tuple(s // gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))
        return (*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups, *steps)

    @property
    def pooling(self) -> tuple[str, int, int, int, int]:
        """The kernels' POOLING."""
        return (self.pool, *self.window, *self.window_stride)

    @property
    def taps(self) -> int:
        """Kernel elements per channel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def padded_window(self) -> int:
        """Rows of a tile that a pooling window takes: a power of two."""
        positions = self.window[0] * self.window[1]
        return 1 << (positions - 1).bit_length()

    def convolved(self, height: int, width: int) -> tuple[int, int]:
        """The convolution's height and width, for an image's."""
        return self._along(0, height), self._along(1, width)

    def pooled(self, height: int, width: int) -> tuple[int, int]:
        """The height and width behind the pooling, for an image's."""
        convolved = self.convolved(height, width)
        rows, columns = ((convolved[i] - self.window[i]) // self.window_stride[i] + 1 for i in (0, 1))
        return rows, columns

    def residual_shape(self, output: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what act' is read from: the output's, or under an average all positions its windows cover."""
        if self.pool != "average":
            return output
        return (*output[:2], output[2] * self.window[0], output[3] * self.window[1])

    def sizes(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The kernels' sizes: batch, channels, height, width, outputs, convolved height and width, pooled likewise."""
        batch, channels, height, width = x.shape
        image = (height, width)
        return (batch, channels, *image, weight.shape[0], *self.convolved(*image), *self.pooled(*image))

    def direct(self, weight: Tensor) -> bool:
        """Whether groups are so narrow (depthwise, say) that products of matrices would mostly multiply by zero."""
        return self.groups > 1 and weight.shape[0] // self.groups * weight.shape[1] <= 64

    def column_tiles(self, channels: int, block: int, direct: bool) -> int:
        """Tiles of channels: of each group, or across all of them where direct."""
        return -(-channels // block) if direct else self.groups * -(-(channels // self.groups) // block)

    def _along(self, dimension: int, size: int) -> int:
        reach = self.dilation[dimension] * (self.kernel[dimension] - 1) + 1
        return (size + 2 * self.padding[dimension] - reach) // self.stride[dimension] + 1


def pair(operation: str, name: str, value: int | Sequence[int]) -> list[int]:
    """A height and a width, from one number for both or from the two.

    Raises:
        UsageError: it is neither, or smaller than makes sense.
    """
    both = [value, value] if isinstance(value, int) else list(value)
    least = _LEAST.get(name, 1)
    if len(both) != 2 or any(not isinstance(size, int) or size < least for size in both):
        raise UsageError(f"{operation}: {name}={value!r}", cure=f"use an integer of at least {least}, or two of them")
    return both


def pool_arguments(operation: str, pool: Pool | None) -> tuple[str, list[int]]:
    """A pooling as the operators take it: its kind, and the window's and the stride's height and width.

    Raises:
        UsageError: a size is not a positive integer, or two of them.
    """
    if pool is None:
        return "none", [1, 1, 1, 1]
    window = pair(operation, "pool.window", pool.window)
    stride = window if pool.stride is None else pair(operation, "pool.stride", pool.stride)
    return pool.kind, window + stride


def convolution_arguments(
    operation: str,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    pool: Pool | None,
) -> ConvolutionArguments:
    """A convolution and its pooling as the operators take them.

    Raises:
        UsageError: a size is not an integer that makes sense, or two of them.
    """
    sizes = {"stride": stride, "padding": padding, "dilation": dilation}
    pairs = [pair(operation, name, size) for name, size in sizes.items()]
    return pairs[0], pairs[1], pairs[2], groups, *pool_arguments(operation, pool)


def geometry_of(
    operation: str,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: str,
    pool_window: Sequence[int],
) -> Geometry:
    """The geometry of a convolution of x (batch, channels, height, width) by weight (out, channels / groups, kernel
    height, kernel width), and of its pooling.

    Raises:
        ShapeError: x, weight and groups do not fit one another, or nothing is left of the image.
        UsageError: the pooling's windows overlap, are too large, or of an unknown kind.
    """
    if x.dim() != 4 or weight.dim() != 4:
        raise ShapeError(
            f"{operation}: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}",
            cure="x is (batch, channels, height, width) and weight (out, channels / groups, kernel height and width)",
        )
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ShapeError(
            f"{operation}: x has {x.shape[1]} channels and weight {tuple(weight.shape)}, in {groups} groups",
            cure="x has groups times the weight's second dimension, and groups divides its first",
        )
    window, window_stride = tuple(pool_window[:2]), tuple(pool_window[2:])
    if pool not in ("none", "max", "average"):
        raise UsageError(f"{operation}: no kernel for the pooling {pool!r}", cure='use "max" or "average"')
    if window[0] * window[1] > LARGEST_WINDOW or any(s < w for s, w in zip(window_stride, window, strict=True)):
        raise UsageError(
            f"{operation}: a pooling of {window} at a stride of {window_stride}",
            cure=f"windows must not overlap, nor have more than {LARGEST_WINDOW} positions: pool afterwards",
        )
    kernel = (weight.shape[2], weight.shape[3])
    geometry = Geometry(
        kernel, _two(stride), _two(padding), _two(dilation), groups, pool, _two(window), _two(window_stride)
    )
    image = (x.shape[2], x.shape[3])
    if min(*kernel, *geometry.convolved(*image), *geometry.pooled(*image)) < 1:
        raise ShapeError(
            f"{operation}: nothing is left of an image of {image} under a kernel of {kernel} and windows of {window}",
            cure="use a larger image, or more padding",
        )
    return geometry


@lru_cache(maxsize=1024)
def geometry_from(kernel: tuple[int, int], form: Form, pool: str, window: tuple[int, int, int, int]) -> Geometry:
    """The geometry of arguments known to fit: a kernel's height and width, a pooling's window and then its stride."""
    return Geometry(kernel, *form, pool, window[:2], window[2:])


def kept_residual(activation: str, pool: str) -> str:
    """What a prediction keeps beside its output: "nothing", "output" (at every position averaged) or "preactivation".

    Where a maximum is taken, only the pre-activation at the maximum is kept: the derivative is zero everywhere else.
    """
    kind: str = activation_named(activation).residual
    if kind == "none" or (kind == "output" and pool != "average"):
        return "nothing"
    return kind


def empty_image(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor (batch, channels, height, width) of another's device, channels last if that one is."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.empty(
        tuple(shape),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def empty_prediction(
    x: Tensor, weight: Tensor, geometry: Geometry, strides: Sequence[int], keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a convolution of x gives (or its error): of these strides, (batch, out, pooled height, pooled width).

    With it the residual, if it is kept, and the argmax, if there is a maximum; see `Geometry.residual_shape`.
    """
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    output = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    argmax = torch.empty_like(output, dtype=torch.int8) if geometry.pool == "max" else None
    if not keep:
        return output, None, argmax
    kept = geometry.residual_shape(shape)
    return output, torch.empty_like(output) if kept == shape else x.new_empty(kept), argmax


def wide_images(geometry: Geometry, rows: int, *tensors: Tensor | None) -> bool:
    """Whether offsets need 64 bits: of the tensors' elements, or of the rows that tiles are laid over."""
    return rows * geometry.padded_window >= 2**30 or needs_wide_offsets(*tensors)


def strides_of(tensor: Tensor | None) -> tuple[int, ...]:
    """A tensor's strides; of one that is not there, some that are never read."""
    return (0, 0, 0, 0) if tensor is None else tuple(tensor.stride())


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
