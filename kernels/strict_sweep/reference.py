"""Strict inference of a chain of linear layers in plain torch: what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pccompile.kernels.activations import activation_named
from pccompile.kernels.strict_sweep.plan import Loss

__all__ = ["SweepReference", "inferred", "strict_sweep_reference"]


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

    def preactivation(layer: int, below: Tensor) -> Tensor:
        return functional.linear(below, weights[layer], biases[layer])

    def predict(layer: int, below: Tensor) -> Tensor:
        return functions[layer].function(preactivation(layer, below), negative_slope)

    def drive(layer: int, below: Tensor, error: Tensor) -> Tensor:
        function, z = functions[layer], preactivation(layer, below)
        residual = function.function(z, negative_slope) if function.residual == "output" else z
        return error * function.slope(residual, negative_slope)

    values, errors, energies = inferred(
        x,
        target,
        len(weights),
        predict,
        lambda layer, below, error: drive(layer, below, error) @ weights[layer],
        *(steps, step_size, loss, loss_factor, averaged, momentum, free_output, learn_errors, ignore_index),
    )
    below = [x, *values[:-1]]
    drives = [drive(layer, *each) for layer, each in enumerate(zip(below, errors, strict=True))]
    return SweepReference(
        values,
        errors,
        drives,
        [gradient_factor * drive.mT @ value for drive, value in zip(drives, below, strict=True)],
        [gradient_factor * drive.sum(0) for drive in drives],
        energies,
    )


def inferred(
    x: Tensor,
    target: Tensor,
    depth: int,
    predict: Callable[[int, Tensor], Tensor],
    pull_back: Callable[[int, Tensor, Tensor], Tensor],
    steps: int,
    step_size: float,
    loss: Loss,
    loss_factor: float,
    averaged: bool,
    momentum: float,
    free_output: bool,
    learn_errors: Literal["current", "previous"],
    ignore_index: int,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Strict inference of a chain of any layers, as it is written down.

    Args:
        x: what the first layer reads, as the first layer takes it.
        depth: how many layers there are.
        predict: what a layer, by its place, predicts from what it reads.
        pull_back: J^T error by what a layer reads, from its place, what it reads and its error.

    The others are those of strict_sweep.

    Returns:
        The values after the last move, the errors that Learn reads, layer by layer, and the energies, (steps, batch).
    """
    if averaged:
        loss_factor = loss_factor / int((target != ignore_index).sum())
    layers, free = range(depth), range(depth if free_output else depth - 1)
    values: list[Tensor] = []
    for layer in layers:
        values.append(predict(layer, values[-1] if values else x))
    moments = [torch.zeros_like(value) for value in values]
    errors: list[Tensor] = []
    energies: list[Tensor] = []
    for step in range(steps + 1):
        predictions = [predict(layer, value) for layer, value in enumerate([x, *values[:-1]])]
        if not free_output:
            values[-1] = predictions[-1]
        if step < steps or learn_errors == "current":
            losses, output_error = _output_loss(values[-1].flatten(1), target, loss, loss_factor, ignore_index)
            output_error = output_error.view(values[-1].shape)
            errors = [values[layer] - predictions[layer] for layer in free]
            squares = (error.flatten(1).square().sum(1) for error in errors)
            energies.append(losses + sum(squares, torch.zeros_like(losses)) / 2)
            errors += [] if free_output else [output_error]
        if step == steps:
            break
        for layer in free:
            is_last = layer == depth - 1
            above = output_error if is_last else pull_back(layer + 1, values[layer], errors[layer + 1])
            moments[layer] = momentum * moments[layer] + above - errors[layer]
        for layer in free:
            values[layer] = values[layer] + step_size * moments[layer]
    return values, errors, torch.stack(energies)


def _output_loss(output: Tensor, target: Tensor, loss: Loss, factor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(batch,) factor times the loss, and minus its derivative by the output."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        if loss == "cross_entropy":
            losses = functional.cross_entropy(leaf, target, reduction="none", ignore_index=ignore_index)
        else:
            losses = (leaf - target).square().sum(1)
        (derivative,) = torch.autograd.grad((factor * losses).sum(), leaf)
    return factor * losses.detach(), -derivative
