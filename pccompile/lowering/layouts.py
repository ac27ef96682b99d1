"""Images with their channels last, as oneDNN convolves them on a CPU without putting them in order first.

A convolution given its input so returns its output so, elementwise operators and pooling keep the order, and with it
the values that inference moves have it. Sums are taken in another order than with the channels first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from pccompile.lowering.fragments import Substitution

__all__ = ["CHANNELS_LAST"]

_aten = torch.ops.aten
_FAST = (torch.float32, torch.bfloat16, torch.float16)
_WIDTH = 8  # channels that a register holds; of odd numbers of them either order takes as long


def _convolution(x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _aten.convolution.default(_channels_last(x, weight), weight, *args, **kwargs)  # type: ignore[no-any-return]


def _conv2d(x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return F.conv2d(_channels_last(x, weight), weight, *args, **kwargs)


def _view(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return x.reshape(shape)  # a copy where the order of the elements is another


def _adaptive_average(x: torch.Tensor, output_size: list[int]) -> torch.Tensor:
    if list(output_size) == [1, 1]:  # PyTorch's own sets its result's strides in place, which no graph can show
        return x.mean((-2, -1), keepdim=True)
    return _aten.adaptive_avg_pool2d.default(x, output_size)  # type: ignore[no-any-return]


def _channels_last(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype not in _FAST or weight.shape[0] % _WIDTH:
        return x
    _, channels, height, width = x.shape
    if x.stride() == (channels * height * width, 1, width * channels, channels):
        return x
    return x.clone(memory_format=torch.channels_last)  # even of one channel, where strides alone tell the order


CHANNELS_LAST = Substitution(
    {
        _aten.convolution.default: _convolution,
        _aten.conv2d.default: _conv2d,
        F.conv2d: _conv2d,
        _aten.adaptive_avg_pool2d.default: _adaptive_average,
        _aten.view.default: _view,
    }
)
