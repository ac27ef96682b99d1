"""network_sweep: the operators pccompile::network_sweep and ::network_gradients, and what to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import UsageError
from pccompile.kernels.arguments import check_input_precision, refusal
from pccompile.kernels.network_sweep.arguments import check_network
from pccompile.kernels.network_sweep.launch import launch_network_gradients, launch_network_sweep
from pccompile.kernels.network_sweep.layout import Layout, NetworkLayer, gradients_by_layer, layout_of
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.strict_sweep.arguments import check_buffers, check_sweep
from pccompile.kernels.strict_sweep.launch import Settings, empty_buffers
from pccompile.kernels.strict_sweep.plan import Loss

__all__ = ["NetworkSweep", "network_gradients", "network_sweep"]

_FORM = 10  # integers that say how a layer convolves and pools


class NetworkSweep(NamedTuple):
    """What network_sweep returns: per layer, views of buffers of float32 in which the layers lie side by side.

    Attributes:
        values: (batch, out, height, width) each, or (batch, out), after the last move; of an output without a free
            value, its prediction.
        errors: likewise, what Learn reads: v - mu, and -dF/dmu of an output without a free value.
        weight_gradients: of the weights' shapes and dtype, contiguous; None where not asked for.
        bias_gradients: (out,) each, likewise.
        energies: (steps + 1, batch) float32, one row less for learn_errors="previous": the energy of each sample in
            each step; None where not asked for.
    """

    values: list[Tensor]
    errors: list[Tensor]
    weight_gradients: list[Tensor] | None
    bias_gradients: list[Tensor] | None
    energies: Tensor | None


def network_sweep(
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
    energies: bool = False,
    gradients: bool = True,
    gradient_factor: float = -1.0,
    upstream: Tensor | None = None,
    ignore_index: int = -100,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    convolution_precision: str = "ieee",
) -> NetworkSweep:
    """Strict inference of a small network of layers, each the next one's input: the feed-forward pass, T steps, and the
    gradients of the energy.

    Not differentiable. Values and errors are float32 whatever x is; products are formed in x's dtype and summed in
    float32. Compiled once for a network.

    Args:
        x: (batch, channels, height, width), or (batch, in) where the first layer is linear; float32, bfloat16 or
            float16, any strides.
        target: (batch,) int64 for cross-entropy, (batch, outputs) for the squared error.
        layers: convolutions of one group, with their poolings, and linear layers behind them; dtype and device are
            x's. An output that has no free value does not pool.
        steps: T, at least 1, read at run time.
        step_size: eta, read at run time.
        loss, loss_factor, averaged, momentum, free_output, learn_errors, energies: as of strict_sweep.
        gradients: whether to compute the gradients, in a second launch.
        gradient_factor, upstream, ignore_index, negative_slope: as of strict_sweep.
        input_precision: how float32 products of linear layers are formed, "ieee" or "tf32".
        convolution_precision: how those of convolutions are.

    Returns:
        NetworkSweep.

    Raises:
        UsageError: no kernel takes this dtype, device, activation, convolution, pooling, loss or precision; steps < 1;
            nothing has a free value.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    check_network("network_sweep", x, layers, negative_slope)
    values, errors, drives, recorded = torch.ops.pccompile.network_sweep(
        x,
        target,
        *_encoded(layers),
        loss,
        free_output,
        learn_errors,
        energies,
        steps,
        step_size,
        momentum,
        loss_factor,
        ignore_index,
        negative_slope,
        input_precision,
        convolution_precision,
        averaged,
    )
    learned = None
    if gradients:
        learned = network_gradients(
            x,
            values,
            drives,
            layers,
            factor=gradient_factor,
            upstream=upstream,
            input_precision=input_precision,
            convolution_precision=convolution_precision,
        )
    layout = layout_of(x.shape[1:], layers, free_output)
    return NetworkSweep(
        _by_layer(values, layers, layout),
        _by_layer(errors, layers, layout),
        learned[0] if learned else None,
        learned[1] if learned else None,
        recorded if energies else None,
    )


def network_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    layers: Sequence[NetworkLayer],
    *,
    factor: float = -1.0,
    upstream: Tensor | None = None,
    input_precision: str = "ieee",
    convolution_precision: str = "ieee",
) -> tuple[list[Tensor], list[Tensor]]:
    """factor times what each layer's drives give by its weight, and by its bias, in one launch.

    Args:
        x, layers: as for network_sweep.
        values, drives: (batch, columns) float32 each, what pccompile::network_sweep returned.
        factor: of the gradients.
        upstream: a further factor on the device, (), float32, or None.
        input_precision, convolution_precision: as for network_sweep.

    Returns:
        dW and db of every layer, in x's dtype: contiguous views of one buffer.

    Raises:
        UsageError: no kernel takes this dtype, device or precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    flat = torch.ops.pccompile.network_gradients(
        x, values, drives, *_encoded(layers), factor, upstream, input_precision, convolution_precision
    )
    found: tuple[list[Tensor], list[Tensor]] = gradients_by_layer(flat, layers, layout_of(x.shape[1:], layers))
    return found


def _by_layer(buffer: Tensor, layers: Sequence[NetworkLayer], layout: Layout) -> list[Tensor]:
    """Views of a buffer of values or errors."""
    found = []
    for layer, place in zip(layers, layout.places, strict=True):
        flat = buffer.narrow(1, place.own, place.width)
        found.append(flat if layer.linear else flat.unflatten(1, place.image))
    return found


# Operators take no sequences of layers: a layer is spread over sequences of what they do take.


def _encoded(
    layers: Sequence[NetworkLayer],
) -> tuple[list[Tensor], list[Tensor | None], str, str, list[int]]:
    """Weights, biases, activations, poolings, and the integers of each layer."""
    forms = [number for layer in layers for pair in (*layer.form[:3], layer.window) for number in pair]
    return (
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        ",".join(layer.activation for layer in layers),
        ",".join(layer.pool for layer in layers),
        forms,
    )


def _decoded(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], activations: str, pools: str, forms: Sequence[int]
) -> tuple[NetworkLayer, ...]:
    """The layers that `_encoded` was given."""
    found = []
    named = zip(weights, biases, activations.split(","), pools.split(","), strict=True)
    for index, (weight, bias, activation, pool) in enumerate(named):
        a, b, c, d, e, f, *window = forms[_FORM * index : _FORM * (index + 1)]
        form = ((a, b), (c, d), (e, f), 1)
        found.append(NetworkLayer(weight, bias, activation, form, pool, tuple(window)))  # type: ignore[arg-type]
    return tuple(found)


@custom_operator("pccompile::network_sweep")
def _network_sweep(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: str,
    pools: str,
    forms: Sequence[int],
    loss: str,
    free_output: bool,
    learn_errors: str,
    record: bool,
    steps: int,
    step_size: float,
    momentum: float,
    loss_factor: float,
    ignore_index: int,
    negative_slope: float,
    input_precision: str,
    convolution_precision: str,
    averaged: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(
        loss,  # type: ignore[arg-type]
        free_output,
        learn_errors,  # type: ignore[arg-type]
        record,
        steps,
        step_size,
        momentum,
        loss_factor,
        ignore_index,
        negative_slope,
        input_precision,
        averaged,
    )
    layers = _decoded(weights, biases, activations, pools, forms)
    check_network("network_sweep", x, layers, negative_slope)
    layout = layout_of(x.shape[1:], layers, free_output)
    check_sweep("network_sweep", x, target, layout.places[-1].width, settings)
    check_input_precision(convolution_precision)
    if not free_output and (len(layers) == 1 or layers[-1].pool != "none"):
        raise UsageError(
            "network_sweep: nothing has a free value, or the output pools",
            cure="give a hidden layer, and pool before the last one",
        )
    buffers = empty_buffers(x, layout.columns, settings, layout.drive_columns)
    if has_data(x):
        launch_network_sweep(x, target, layers, settings, convolution_precision, buffers)
    return buffers.values, buffers.errors, buffers.drives, buffers.energies


@custom_operator("pccompile::network_gradients")
def _network_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: str,
    pools: str,
    forms: Sequence[int],
    factor: float,
    upstream: Tensor | None,
    input_precision: str,
    convolution_precision: str,
) -> Tensor:
    layers = _decoded(weights, biases, activations, pools, forms)
    check_network("network_gradients", x, layers)
    check_input_precision(input_precision)
    check_input_precision(convolution_precision)
    layout = layout_of(x.shape[1:], layers)
    with_free_output = layout_of(x.shape[1:], layers, True).columns
    expected = with_free_output if values.shape[-1] == with_free_output else layout.columns
    buffers = {"values": (values, expected), "drives": (drives, layout.drive_columns)}
    check_buffers("network_gradients", x, buffers, upstream)
    gradients = x.new_empty(layout.gradients)
    if has_data(x):
        launch_network_gradients(
            x, values, drives, layers, gradients, factor, upstream, input_precision, convolution_precision
        )
    return gradients


_refuse = refusal("a strict sweep of a network was differentiated")
_network_sweep.register_autograd(_refuse)
_network_gradients.register_autograd(_refuse)
