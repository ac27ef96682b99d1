"""Linear layers of a given shape with random tensors, and awkward layouts of any tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pccompile.kernels.linear_predict.reference import linear_predict_reference


@dataclass(frozen=True)
class Layer:
    """x (batch, in), weight (out, in), bias (out,), error (batch, out) and residual (batch, out) of one layer."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    error: Tensor
    residual: Tensor | None
    activation: str

    @property
    def sweep(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, str]:
        """linear_error's arguments."""
        return self.error, self.residual, self.x, self.weight, self.activation


def normals(generator: torch.Generator | None, dtype: torch.dtype, device: str) -> Callable[..., Tensor]:
    """normal(*size) draws the next tensor of standard normal numbers, on the CPU whatever the device."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype).to(device)

    return normal


def random_layer(
    device: str,
    shape: tuple[int, int, int] = (63, 60, 33),
    activation: str = "gelu",
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """A layer of shape (batch, in, out) whose pre-activations have a standard deviation of about one."""
    batch, in_features, out = shape
    normal = normals(torch.Generator().manual_seed(7), dtype, device)
    x, bias, error = normal(batch, in_features), normal(out), normal(batch, out)
    weight = normal(out, in_features) / math.sqrt(max(in_features, 1))
    residual = linear_predict_reference(x, weight, bias, activation)[1]
    return Layer(x, weight, bias, error, residual, activation)


def transposed(tensor: Tensor) -> Tensor:
    """The same matrix, stored column by column."""
    return tensor.mT.contiguous().mT


def strided(tensor: Tensor) -> Tensor:
    """The same tensor as every second element of a NaN-filled one, along every dimension."""
    buffer = torch.full([2 * size + 1 for size in tensor.shape], torch.nan, dtype=tensor.dtype, device=tensor.device)
    view = buffer[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def scattered(layer: Layer) -> Layer:
    """The same layer with no contiguous tensor."""
    residual = None if layer.residual is None else strided(layer.residual)
    return replace(
        layer,
        x=transposed(layer.x),
        weight=strided(layer.weight),
        bias=strided(layer.bias),
        error=transposed(layer.error),
        residual=residual,
    )


def far_apart(tensor: Tensor) -> Tensor:
    """The same tensor with rows so far apart that the last one's offset does not fit in 32 bits."""
    rows, one = tensor.shape[0], tensor[0].contiguous()
    stride = 2**31 // (rows - 1) + 1
    buffer = torch.empty(stride * (rows - 1) + one.numel(), dtype=tensor.dtype, device=tensor.device)
    view = buffer.as_strided(tensor.shape, (stride, *one.stride()))
    view.copy_(tensor)
    return view
