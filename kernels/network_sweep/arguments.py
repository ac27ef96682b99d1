"""What the kernels for networks refuse."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_shape
from pccompile.kernels.convolution_geometry import geometry_of
from pccompile.kernels.network_sweep.layout import NetworkLayer

__all__ = ["check_network"]


def check_network(operation: str, x: Tensor, layers: Sequence[NetworkLayer], negative_slope: float = 0.01) -> None:
    """Check that the layers follow one another from x.

    Raises:
        UsageError: no kernel takes this dtype, activation, pooling or convolution, or there is no layer.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    if not layers:
        raise UsageError(f"{operation}: a network of no layers", cure="give at least one layer")
    parameters = {f"weights[{index}]": layer.weight for index, layer in enumerate(layers)}
    biases = {f"biases[{index}]": layer.bias for index, layer in enumerate(layers)}
    check_alike(operation, x=x, **parameters, **biases)
    if x.dim() != (2 if layers[0].linear else 4):
        raise ShapeError(
            f"{operation}: x has shape {tuple(x.shape)}",
            cure="x is (batch, channels, height, width), or (batch, in) where the first layer is linear",
        )
    image = tuple(x.shape[1:])
    for index, layer in enumerate(layers):
        activation_named(layer.activation, negative_slope)
        image = _checked(operation, index, layer, image)
        check_shape(operation, f"biases[{index}]", layer.bias, (layer.weight.shape[0],), "(out,)")


def _checked(operation: str, index: int, layer: NetworkLayer, image: tuple[int, ...]) -> tuple[int, ...]:
    """What a layer makes of an image, by shape."""
    weight = layer.weight
    if weight.dim() not in (2, 4) or 0 in weight.shape:
        raise ShapeError(
            f"{operation}: weights[{index}] has shape {tuple(weight.shape)}",
            cure="a weight is (out, in), or (out, channels, kernel height, kernel width)",
        )
    if layer.linear:
        if layer.pool != "none":
            raise UsageError(f"{operation}: layer {index} is linear and pools", cure="pool behind a convolution")
        check_shape(operation, f"weights[{index}]", weight, (weight.shape[0], prod(image)), "(out, in)")
        return (weight.shape[0],)
    if len(image) != 3:
        raise ShapeError(f"{operation}: layer {index} convolves what a linear layer gives", cure="convolve images")
    if layer.form[3] != 1:
        raise UsageError(
            f"{operation}: layer {index} has {layer.form[3]} groups", cure="use conv_step, which takes them"
        )
    read = torch.empty((1, *image), device="meta")
    geometry = geometry_of(operation, read, weight, *layer.form, layer.pool, layer.window)
    return (weight.shape[0], *geometry.pooled(*image[1:]))
