"""Strict inference of a chain of linear layers in plain torch: what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pccompile.kernels.activations import activation_named
from pccompile.kernels.strict_sweep.plan import Loss

__all__ = ["SweepReference", "output_loss", "strict_sweep_reference"]


class SweepReference(NamedTuple):
    """What strict_sweep_reference returns, layer by layer; the energies are (steps, batch).

    Attributes:
        values: after the last move; of an output without a free value, its prediction.
        errors: that Learn reads.
        drives: e act'(z).
        weight_gradients, bias_gradients: gradient_factor d^T v and gradient_factor sum(d).
        energies: of every sample in every step.
    """

    values: list[Tensor]
    errors: list[Tensor]
    drives: list[Tensor]
    weight_gradients: list[Tensor]
    bias_gradients: list[Tensor]
    energies: Tensor


def strict_sweep_reference(
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
    gradient_factor: float = -1.0,
    ignore_index: int = -100,
    negative_slope: float = 0.01,
) -> SweepReference:
    """Strict inference as it is written down: in every step all predictions, all errors, then all moves.

    Args are those of strict_sweep, of any one floating dtype; everything is computed in that dtype.
    """
    functions = [activation_named(name, negative_slope) for name in activations]
    if averaged:
        loss_factor = loss_factor / int((target != ignore_index).sum())
    layers = range(len(weights))
    free = list(layers) if free_output else list(layers)[:-1]
    values: list[Tensor] = []
    for layer in layers:
        z = functional.linear(values[-1] if values else x, weights[layer], biases[layer])
        values.append(functions[layer].function(z, negative_slope))
    moments = [torch.zeros_like(value) for value in values]
    errors = [torch.zeros_like(value) for value in values]
    drives, energies = list(errors), []
    for step in range(steps + 1):
        below = [x, *values[:-1]]
        preactivations = [functional.linear(below[layer], weights[layer], biases[layer]) for layer in layers]
        predictions = [functions[layer].function(preactivations[layer], negative_slope) for layer in layers]
        if not free_output:
            values[-1] = predictions[-1]
        if step < steps or learn_errors == "current":
            losses, output_error = output_loss(values[-1], target, loss, loss_factor, ignore_index)
            errors = [values[layer] - predictions[layer] for layer in free]
            energies.append(losses + sum((error.square().sum(1) for error in errors), torch.zeros_like(losses)) / 2)
            errors += [] if free_output else [output_error]
        drives = [
            errors[layer] * _slope(functions[layer].residual, functions[layer].slope, preactivations[layer],
                                   predictions[layer], negative_slope)
            for layer in layers
        ]  # fmt: skip
        if step == steps:
            break
        for layer in free:
            above = output_error if layer == layers[-1] else drives[layer + 1] @ weights[layer + 1]
            moments[layer] = momentum * moments[layer] + above - errors[layer]
        for layer in free:
            values[layer] = values[layer] + step_size * moments[layer]
    below = [x, *values[:-1]]
    return SweepReference(
        values,
        errors,
        drives,
        [gradient_factor * drives[layer].mT @ below[layer] for layer in layers],
        [gradient_factor * drives[layer].sum(0) for layer in layers],
        torch.stack(energies),
    )


def _slope(kind: str, slope: object, z: Tensor, prediction: Tensor, negative_slope: float) -> Tensor:
    """act'(z), read from the residual that the activation names."""
    return slope(prediction if kind == "output" else z, negative_slope)  # type: ignore[operator,no-any-return]


def output_loss(output: Tensor, target: Tensor, loss: Loss, factor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(batch,) factor times the loss, and minus its derivative by the output."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        if loss == "cross_entropy":
            losses = functional.cross_entropy(leaf, target, reduction="none", ignore_index=ignore_index)
        else:
            losses = (leaf - target).square().sum(1)
        (derivative,) = torch.autograd.grad((factor * losses).sum(), leaf)
    return factor * losses.detach(), -derivative
