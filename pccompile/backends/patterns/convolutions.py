"""Convolutions and poolings of a flat graph as their kernels take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.match import argument, declined
from pccompile.kernels.convolution_geometry import LARGEST_WINDOW

__all__ = ["NO_POOL", "Convolution", "Pooling", "convolution", "pooling", "pooling_backward"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Convolution:
    """A convolution or what goes back through it.

    Attributes:
        x, weight, bias: what it reads; the bias is None where there is none.
        form: stride, padding, dilation and groups.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    form: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


@dataclass(frozen=True)
class Pooling:
    """A pooling whose windows do not overlap: the kernels' name for it, and its window's and stride's sizes."""

    kind: str
    window: tuple[int, int, int, int]


NO_POOL = Pooling("none", (1, 1, 1, 1))


def convolution(node: fx.Node) -> Convolution | None:
    """The convolution that a node is, or goes back through; None (with a reason) where no kernel takes its form."""
    x, weight = argument(node, "input"), argument(node, "weight")
    dimensions = x.meta["val"].dim() - 2
    if argument(node, "transposed") or dimensions != 2:
        kind = "a transposed" if argument(node, "transposed") else f"a {dimensions}-dimensional"
        declined(node, f"{kind} convolution has no kernel")
        return None
    is_forward = node.target is _aten.convolution.default
    stride, padding, dilation = (_two(argument(node, name)) for name in ("stride", "padding", "dilation"))
    bias = argument(node, "bias") if is_forward else None
    return Convolution(x, weight, bias, (stride, padding, dilation, argument(node, "groups")))


def _two(sizes: list[int]) -> tuple[int, int]:
    return sizes[0], sizes[-1]


# Poolings -------------------------------------------------------------------------------------------------------------


def pooling(node: fx.Node) -> Pooling | None:
    """The pooling that a node is, if a kernel takes it."""
    read = _FORWARD.get(node.target)
    return None if read is None else read(node)


def pooling_backward(node: fx.Node) -> Pooling | None:
    """The pooling that a node goes back through, if a kernel takes it."""
    read = _BACKWARD.get(node.target)
    return None if read is None else read(node)


def _usual(kind: str, node: fx.Node) -> Pooling | None:
    """A pooling without padding or overlap; an average leaves nothing over at the edges."""
    window = _two(argument(node, "kernel_size"))
    given = argument(node, "stride")
    stride = _two(given) if given else window
    is_plain = not any(argument(node, "padding")) and not argument(node, "ceil_mode")
    if kind == "max":
        is_plain = is_plain and all(size == 1 for size in argument(node, "dilation"))
    else:
        image = argument(node, "self").meta["val"].shape[-2:]
        covered = stride == window and all(size % part == 0 for size, part in zip(image, window, strict=True))
        is_plain = is_plain and covered and argument(node, "divisor_override") is None
    apart = all(step >= size for step, size in zip(stride, window, strict=True))
    if is_plain and apart and window[0] * window[1] <= LARGEST_WINDOW:
        return Pooling(kind, (*window, *stride))
    declined(node, "windows that overlap, are padded or leave an edge have no kernel")
    return None


_Read = Callable[[fx.Node], Pooling | None]

_FORWARD: Mapping[Any, _Read] = {
    _aten.max_pool2d_with_indices.default: partial(_usual, "max"),
    _aten.avg_pool2d.default: partial(_usual, "average"),
}
_BACKWARD: Mapping[Any, _Read] = {
    _aten.max_pool2d_with_indices_backward.default: partial(_usual, "max"),
    _aten.avg_pool2d_backward.default: partial(_usual, "average"),
}
