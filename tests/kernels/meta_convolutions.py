"""Convolutions on the meta device: 3 x 3 to 64 outputs of images of 64 x 64, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from recorded import Case
from torch import Tensor

from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.convolution_geometry import Geometry, geometry_of
from pccompile.kernels.devices import ARCHITECTURES


class Layer(NamedTuple):
    """What takes turns over the cases; wide is int64 offsets."""

    pool: str
    channels: int
    stride: int
    wide: bool


LAYERS = (
    Layer("none", 64, 1, False),
    Layer("max", 64, 1, False),
    Layer("none", 3, 2, False),
    Layer("average", 64, 2, True),
)
# Tiles of narrow groups multiply in float32, whatever the arithmetic.
DIRECT: dict[str, Any] = {"precisions": ("half",), "architectures": ARCHITECTURES}


@dataclass(frozen=True)
class MetaConvolution:
    """One layer's tensors."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    output: Tensor
    residual: Tensor | None
    argmax: Tensor | None
    geometry: Geometry


def layer_of(case: Case) -> Layer:
    """The layer whose turn it is: another one for each architecture."""
    return LAYERS[(case.turn + case.turn // 4) % 4]


def meta_convolution(case: Case, direct: bool) -> MetaConvolution:
    """The layer whose turn it is, with as many groups as channels where direct."""
    layer = layer_of(case)
    channels = 64 if direct else layer.channels
    groups = channels if direct else 1

    def image(*size: int, dtype: torch.dtype | None = None) -> Tensor:
        options: dict[str, Any] = {"memory_format": torch.channels_last}
        return case.empty(*size, dtype=dtype, **options)

    x, weight = image(2**14 if layer.wide else 16, channels, 64, 64), image(64, channels // groups, 3, 3)
    window = [1, 1, 1, 1] if layer.pool == "none" else [2, 2, 2, 2]
    geometry = geometry_of("test", x, weight, [layer.stride] * 2, [1, 1], [1, 1], groups, layer.pool, window)
    shape = (x.shape[0], 64, *geometry.pooled(64, 64))
    return MetaConvolution(
        x,
        weight,
        case.empty(64),
        image(*shape),
        None if ACTIVATIONS[case.activation].residual == "none" else image(*geometry.residual_shape(shape)),
        image(*shape, dtype=torch.int8) if layer.pool == "max" else None,
        geometry,
    )
