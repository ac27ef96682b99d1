"""strict_sweep and chain_gradients: the operators pccompile::strict_sweep and ::chain_gradients, and what to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.arguments import refusal
from pccompile.kernels.devices import architecture_of, interpreted, precision_of
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.strict_sweep.arguments import check_chain, check_gradients, check_sweep
from pccompile.kernels.strict_sweep.choice import fastest_form, likely_form
from pccompile.kernels.strict_sweep.configurations import configuration_for
from pccompile.kernels.strict_sweep.launch import (
    FORMS,
    Buffers,
    Form,
    Settings,
    empty_buffers,
    launch_chain_gradients,
    launch_strict_sweep,
)
from pccompile.kernels.strict_sweep.layout import Chain, Layout
from pccompile.kernels.strict_sweep.plan import Loss

__all__ = ["StrictSweep", "chain_gradients", "strict_sweep"]


class StrictSweep(NamedTuple):
    """What strict_sweep returns: per layer, views of buffers of float32 in which the layers lie side by side.

    Attributes:
        values: (batch, out) each, after the last move; of an output without a free value, its prediction.
        errors: (batch, out) each, what Learn reads: v - mu, and -dF/dmu of an output without a free value.
        drives: (batch, out) each, e act'(z): the left factor of a layer's gradient, whose right one is its input.
        weight_gradients: (out, in) each, in the weights' dtype, contiguous; None where not asked for.
        bias_gradients: (out,) each, likewise.
        energies: (steps + 1, batch) float32, one row less for learn_errors="previous": the energy of each sample in
            each step; None where not asked for.
    """

    values: list[Tensor]
    errors: list[Tensor]
    drives: list[Tensor]
    weight_gradients: list[Tensor] | None
    bias_gradients: list[Tensor] | None
    energies: Tensor | None


def strict_sweep(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
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
    form: Form | Literal["auto", "measured"] = "auto",
) -> StrictSweep:
    """Strict inference of a chain of linear layers: the feed-forward pass, T steps, and the gradients of the energy.

    Not differentiable. Values, errors and sums are float32; operands of products are rounded to x's dtype.

    Args:
        x: (batch, in), clamped; float32, bfloat16 or float16, any strides.
        target: (batch,) int64 classes for cross-entropy; (batch, out) of x's dtype for the squared error.
        weights: (out, in) each, of x's dtype and device, any strides; each layer's input is the one before.
        biases: (out,) each, likewise, or None.
        activations: for each layer a key of pccompile.kernels.ACTIVATIONS.
        steps: T, at least 1.
        step_size: eta.
        loss: "cross_entropy", or "squared_error", the sum over the outputs of (output - target)^2.
        loss_factor: what a sample's loss is multiplied by in the energy that inference descends. For a mean over the
            batch it is 1 where every sample descends its own energy and 1 / batch where the loss is taken as it is;
            mse_loss divides by the outputs as well.
        averaged: divide cross-entropy by the number of samples that are not ignored, counted on the device: what its
            mean is.
        momentum: m <- momentum m + g, v <- v + eta m; 0 is plain descent.
        free_output: the output has a value of its own, and the loss reads that: what a program has where something
            else than the loss reads the last layer. Else the loss reads the last layer's prediction.
        learn_errors: Learn with the errors after the last move ("current") or before it ("previous").
        energies: whether to record the energy of every sample in every step.
        gradients: whether to compute the gradients, in a second launch.
        gradient_factor: of the gradients, d^T v and sum(d); minus one over the samples that the loss is the mean of.
        upstream: a further factor of the gradients, on the device: (), float32.
        ignore_index: the class whose samples have no loss. A class that does not exist makes the sample's loss nan.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".
        form: "batch_tiles", "cooperative" (one launch each), "half_steps" (three launches a step); "auto" counts which
            has the least to do, "measured" times them once for each kind of arguments.

    Returns:
        StrictSweep.

    Raises:
        UsageError: no kernel takes this dtype, device, activation, loss, form or input_precision; steps < 1.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    check_chain("strict_sweep", x, weights, biases, activations, negative_slope)
    chosen = ",".join(activations)
    values, errors, drives, recorded = torch.ops.pccompile.strict_sweep(
        x,
        target,
        list(weights),
        list(biases),
        chosen,
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
        form,
        averaged,
    )
    learned = None
    if gradients:
        learned = chain_gradients(
            x, values, drives, weights, factor=gradient_factor, upstream=upstream, input_precision=input_precision
        )
    layout = Layout.of([weight.shape for weight in weights])

    def by_layer(buffer: Tensor) -> list[Tensor]:
        return [buffer.narrow(1, start, weight.shape[0]) for start, weight in zip(layout.starts, weights, strict=False)]

    return StrictSweep(
        by_layer(values),
        by_layer(errors),
        by_layer(drives),
        learned[0] if learned else None,
        learned[1] if learned else None,
        recorded if energies else None,
    )


def chain_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    weights: Sequence[Tensor],
    *,
    factor: float = -1.0,
    upstream: Tensor | None = None,
    input_precision: str = "ieee",
) -> tuple[list[Tensor], list[Tensor]]:
    """factor d_l^T v_{l-1} and factor sum(d_l) of every layer of a chain, in one launch.

    Args:
        x: (batch, in), as for strict_sweep.
        values, drives: (batch, columns) float32, what pccompile::strict_sweep returned.
        weights: for their shapes.
        factor: of the gradients.
        upstream: a further factor on the device, (), float32, or None.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        dW (out, in) and db (out,) of every layer, in x's dtype: contiguous views of one buffer.

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    flat = torch.ops.pccompile.chain_gradients(x, values, drives, list(weights), factor, upstream, input_precision)
    shapes = [weight.shape for weight in weights]
    layout = Layout.of(shapes)
    matrices = [
        flat.narrow(0, start, shape.numel()).view(shape)
        for start, shape in zip(layout.weight_gradients, shapes, strict=True)
    ]
    vectors = [flat.narrow(0, start, shape[0]) for start, shape in zip(layout.bias_gradients, shapes, strict=True)]
    return matrices, vectors


def _buffers(x: Tensor, weights: Sequence[Tensor], settings: Settings) -> Buffers:
    columns = Layout.of([weight.shape for weight in weights], settings.free_output).columns
    return empty_buffers(x, columns, settings)


def _chosen_form(form: str, x: Tensor, target: Tensor, chain: Chain, settings: Settings) -> Form:
    """The form asked for; "auto" and "measured" choose one."""
    if form in FORMS:
        return form  # type: ignore[return-value]
    architecture = architecture_of(x.device)
    shapes = [(weight.shape[0], weight.shape[1]) for weight in chain.weights]
    if form == "auto":
        configuration = configuration_for(architecture, precision_of(x.dtype, settings.input_precision), x.shape[0])
        return likely_form(architecture, configuration, x.shape[0], shapes)
    forms = [candidate for candidate in FORMS if candidate != "cooperative" or not interpreted()]
    buffers = _buffers(x, chain.weights, settings)
    return fastest_form(
        (x.device, x.dtype, x.shape, *shapes, chain.activations, settings),
        forms,
        lambda candidate: launch_strict_sweep(x, target, chain, settings, buffers, candidate),
        x.device,
    )


@custom_operator("pccompile::strict_sweep")
def _strict_sweep(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: str,
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
    form: str,
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
    chain = Chain(tuple(weights), tuple(biases), tuple(activations.split(",")))
    check_chain("strict_sweep", x, chain.weights, chain.biases, chain.activations, negative_slope)
    check_sweep("strict_sweep", x, target, weights[-1].shape[0], settings, form)
    buffers = _buffers(x, weights, settings)
    if has_data(x):
        launch_strict_sweep(x, target, chain, settings, buffers, _chosen_form(form, x, target, chain, settings))
    return buffers.values, buffers.errors, buffers.drives, buffers.energies


@custom_operator("pccompile::chain_gradients")
def _chain_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    weights: Sequence[Tensor],
    factor: float,
    upstream: Tensor | None,
    input_precision: str,
) -> Tensor:
    check_gradients("chain_gradients", x, values, drives, weights, upstream, input_precision)
    nothing = ("identity",) * len(weights)
    chain = Chain(tuple(weights), (None,) * len(weights), nothing)
    gradients = x.new_empty(Layout.of([weight.shape for weight in weights]).gradients)
    if has_data(x):
        launch_chain_gradients(x, values, drives, chain, gradients, factor, upstream, input_precision)
    return gradients


_refuse = refusal("a strict sweep of linear layers was differentiated")
_strict_sweep.register_autograd(_refuse)
_chain_gradients.register_autograd(_refuse)
