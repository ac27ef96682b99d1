"""Convolutions of a given geometry with random tensors, and awkward layouts of the same tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from layers import normals, strided
from torch import Tensor

from pccompile.kernels import Pool
from pccompile.kernels.conv_predict.reference import conv_predict_reference
from pccompile.kernels.convolution_geometry import Geometry, geometry_of, pair, pool_arguments

# By name: (batch, channels, height, width), outputs, kernel, and the options of conv2d (and of the pooling).
GEOMETRIES: dict[str, tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "plain": ((1, 5, 11, 9), 7, (3, 3), {}),
    "padded": ((2, 7, 6, 5), 5, (3, 3), {"padding": 1}),
    "strided": ((3, 5, 11, 9), 7, (3, 3), {"stride": 2, "padding": 1}),
    "dilated": ((1, 5, 11, 9), 7, (3, 3), {"dilation": 2, "padding": 1}),
    "stride and dilation": ((1, 3, 11, 9), 5, (3, 2), {"stride": (2, 3), "dilation": (3, 2), "padding": (2, 1)}),
    "stride over the kernel": ((2, 5, 7, 6), 3, (1, 1), {"stride": (2, 3)}),
    "pointwise, many channels": ((2, 70, 4, 3), 18, (1, 1), {}),
    "many outputs": ((1, 3, 3, 4), 66, (2, 2), {"padding": 1}),
    "groups": ((2, 18, 5, 4), 20, (2, 2), {"groups": 2}),
    "narrow groups": ((2, 4, 5, 4), 2, (2, 2), {"groups": 2, "stride": (2, 1)}),
    "depthwise": ((2, 5, 6, 5), 5, (2, 2), {"groups": 5, "padding": 1, "dilation": 2}),
    "one pixel": ((1, 1, 1, 1), 1, (1, 1), {}),
}
POOLED: dict[str, tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "maximum": ((2, 5, 6, 5), 7, (3, 3), {"padding": 1, "pool": Pool("max", 2)}),
    "maximum of a strided": ((1, 5, 11, 5), 7, (3, 3), {"stride": 2, "padding": 1, "pool": Pool("max", (3, 2))}),
    "maximum with gaps": ((1, 5, 8, 4), 7, (2, 2), {"pool": Pool("max", (2, 1), (3, 2))}),
    "average": ((2, 5, 7, 5), 7, (3, 3), {"padding": 1, "pool": Pool("average", 2)}),
    "average with gaps": ((2, 5, 5, 7), 7, (3, 3), {"stride": 2, "padding": 2, "pool": Pool("average", (2, 1), 2)}),
    "average over the image": ((2, 5, 7, 5), 7, (1, 1), {"pool": Pool("average", (7, 5))}),
    "maximum, depthwise": ((1, 5, 5, 4), 5, (2, 2), {"groups": 5, "padding": 1, "pool": Pool("max", 2)}),
}


@dataclass(frozen=True)
class Convolution:
    """One layer's tensors; options are conv2d's and the pooling."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    error: Tensor
    residual: Tensor | None
    argmax: Tensor | None
    activation: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """What the launch functions take for the options."""
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "pool": None} | self.options
        pairs = [pair("test", name, options[name]) for name in ("stride", "padding", "dilation")]
        pool = pool_arguments("test", options["pool"])
        return geometry_of("test", self.x, self.weight, *pairs, options["groups"], *pool)

    @property
    def sweep(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, str]:
        """conv_error's arguments."""
        return self.error, self.residual, self.argmax, self.x, self.weight, self.activation


def random_convolution(
    device: str, geometry: str = "padded", activation: str = "gelu", dtype: torch.dtype = torch.float32
) -> Convolution:
    """A layer whose pre-activations have a standard deviation of about one, by its geometry's name."""
    size, out, kernel, options = (GEOMETRIES | POOLED)[geometry]
    normal = normals(torch.Generator().manual_seed(7), dtype, device)
    per_group = size[1] // options.get("groups", 1)
    x, bias = normal(*size), normal(out)
    weight = normal(out, per_group, *kernel) / (per_group * kernel[0] * kernel[1]) ** 0.5
    output, residual, argmax = conv_predict_reference(x, weight, bias, activation, **options)
    return Convolution(x, weight, bias, normal(*output.shape), residual, argmax, activation, options)


def channels_last(convolution: Convolution) -> Convolution:
    """The same layer with every image stored channels last."""
    names = ("x", "weight", "error", "residual", "argmax")
    images = {name: getattr(convolution, name) for name in names}
    return replace(
        convolution,
        **{
            name: None if image is None else image.contiguous(memory_format=torch.channels_last)
            for name, image in images.items()
        },
    )


def scattered(convolution: Convolution) -> Convolution:
    """The same layer with every floating tensor in the gaps of a NaN-filled one."""
    names = ("x", "weight", "bias", "error", "residual")
    tensors = {name: getattr(convolution, name) for name in names}
    return replace(
        convolution, **{name: None if tensor is None else strided(tensor) for name, tensor in tensors.items()}
    )
