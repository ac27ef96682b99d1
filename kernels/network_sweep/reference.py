"""Strict inference of convolutions and linear layers in plain torch: what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pccompile.kernels.activations import activation_named
from pccompile.kernels.network_sweep.layout import NetworkLayer
from pccompile.kernels.strict_sweep.plan import Loss
from pccompile.kernels.strict_sweep.reference import inferred

__all__ = ["NetworkReference", "network_sweep_reference"]


class NetworkReference(NamedTuple):
    """What network_sweep_reference returns, layer by layer; the energies are (steps, batch).

    Attributes:
        values: after the last move; of an output without a free value, its prediction.
        errors: that Learn reads.
        weight_gradients, bias_gradients: gradient_factor J^T e, by each parameter.
        energies: of every sample in every step.
    """

    values: list[Tensor]
    errors: list[Tensor]
    weight_gradients: list[Tensor]
    bias_gradients: list[Tensor]
    energies: Tensor


def network_sweep_reference(
    x: Tensor,
    target: Tensor,
    layers: Sequence[NetworkLayer],
    *,
    steps: int,
    step_size: float,
    loss: Loss = "cross_entropy",
    loss_factor: float = 1.0,
    averaged: bool = False,
    momentum: float = 0.0,
    free_output: bool = False,
    learn_errors: Literal["current", "previous"] = "current",
    gradient_factor: float = -1.0,
    ignore_index: int = -100,
    negative_slope: float = 0.01,
) -> NetworkReference:
    """Strict inference as it is written down: in every step all predictions, all errors, then all moves.

    What goes back through a layer is the autograd engine's, not the kernel's formulas.

    Args are those of network_sweep, of any one floating dtype; everything is computed in that dtype.
    """
    values, errors, energies = inferred(
        x,
        target,
        len(layers),
        lambda layer, below: _predict(layers[layer], below, negative_slope),
        lambda layer, below, error: _carried_back(layers[layer], below, error, negative_slope)[0],
        *(steps, step_size, loss, loss_factor, averaged, momentum, free_output, learn_errors, ignore_index),
    )
    below = [x, *values[:-1]]
    learned = [_carried_back(*each, negative_slope)[1:] for each in zip(layers, below, errors, strict=True)]
    return NetworkReference(
        values,
        errors,
        [gradient_factor * weight for weight, _ in learned],
        [gradient_factor * bias for _, bias in learned],
        energies,
    )


def _predict(layer: NetworkLayer, x: Tensor, negative_slope: float) -> Tensor:
    function = activation_named(layer.activation, negative_slope).function
    if layer.linear:
        return function(functional.linear(x.flatten(1), layer.weight, layer.bias), negative_slope)
    stride, padding, dilation, groups = layer.form
    y = function(functional.conv2d(x, layer.weight, layer.bias, stride, padding, dilation, groups), negative_slope)
    pool = {"none": None, "max": functional.max_pool2d, "average": functional.avg_pool2d}[layer.pool]
    return y if pool is None else pool(y, layer.window[:2], layer.window[2:])


def _carried_back(
    layer: NetworkLayer, x: Tensor, error: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """J^T error by what a layer reads, by its weight and by its bias, which is zero where it has none."""
    with torch.enable_grad():
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        leaves = [tensor.detach().requires_grad_() for tensor in (x, layer.weight, bias)]
        read = NetworkLayer(leaves[1], leaves[2], layer.activation, layer.form, layer.pool, layer.window)
        prediction = _predict(read, leaves[0], negative_slope)
        above, weight, given = torch.autograd.grad(prediction, leaves, error.reshape(prediction.shape))
    return above, weight, given
