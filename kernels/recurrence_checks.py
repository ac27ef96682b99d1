"""What the operators of recurrent layers refuse: shapes that do not fit, and options that no kernel takes."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.arguments import check_alike, check_device, check_fits, check_input_precision

__all__ = ["check_error", "check_recurrence", "width_of"]


def check_recurrence(
    name: str,
    gates: int,
    *,
    drive: Tensor,
    weight: Tensor,
    hidden: Tensor,
    input_precision: str,
    cell: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "tanh",
) -> None:
    """Check the arguments of a recurrence.

    Args:
        name: the operation's, for messages.
        gates: how many times the units a gate's product is wide.
        drive: (steps, batch, gates units), what the inputs contribute.
        weight: (gates units, units).
        hidden, cell: (batch, units), before the first step.
        input_precision: "ieee" or "tf32".
        bias: (gates units,), beside the weight, if there is one.
        activation: "tanh" or "relu".

    Raises:
        UsageError: no kernel takes this dtype, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    check_alike(name, drive=drive, weight=weight, bias=bias, hidden=hidden, cell=cell)
    _check_options(input_precision, activation)
    against = _check_weight(name, gates, weight)
    (steps, batch), (rows, units) = drive.shape[:2], weight.shape
    width = width_of(gates)
    check_fits(name, "drive", drive, (steps, batch, rows), f"(steps, batch, {width})", against=against)
    check_fits(name, "bias_hidden", bias, (rows,), f"({width},)", against=against)
    for argument, state in (("hidden", hidden), ("cell", cell)):
        check_fits(name, argument, state, (batch, units), "(batch, units)", against=against)


def check_error(
    name: str,
    width: int,
    *,
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    input_precision: str,
    cell_error: Tensor | None = None,
    hiddens: Tensor | None = None,
    cells: Tensor | None = None,
    gates: Tensor | None = None,
    gains: Tensor | None = None,
    activation: str = "tanh",
) -> None:
    """Check the arguments of a recurrence's error.

    Args:
        name, weight, input_precision, activation: as for `check_recurrence`; width is its `gates`.
        error: (steps, batch, units).
        hidden_error, cell_error: (batch, units), errors of the last states, if there are any.
        hiddens, cells: (steps + 1, batch, units), from the prediction, if they are read.
        gates: (steps, batch, 4 units), from the prediction, if they are read.
        gains: (2, steps, width), float32, of the gradients, if there are any.

    Raises:
        UsageError: no kernel takes this dtype, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    over_time, states = {"hiddens": hiddens, "cells": cells}, {"hidden_error": hidden_error, "cell_error": cell_error}
    check_alike(name, error=error, weight_hidden=weight, **over_time, gates=gates, **states)
    _check_options(input_precision, activation)
    if error.dim() != 3 or weight.dim() != 2:
        raise ShapeError(f"{name}: error has shape {tuple(error.shape)}", cure="error is (steps, batch, units)")
    against = _check_weight(name, width, weight)
    (steps, batch), units = error.shape[:2], weight.shape[1]
    check_fits(name, "error", error, (steps, batch, units), "(steps, batch, units)", against=against)
    for argument, tensor in over_time.items():
        sizes = (steps + 1, batch, units)
        check_fits(name, argument, tensor, sizes, "(steps + 1, batch, units)", against="the prediction")
    check_fits(name, "gates", gates, (steps, batch, 4 * units), "(steps, batch, 4 units)", against="the prediction")
    for argument, state in states.items():
        check_fits(name, argument, state, (batch, units), "(batch, units)", against=against)
    check_fits(name, "gains", gains, (2, steps, width), f"(2, steps, {width})", against="the layer")
    check_device(name, "gains", gains, "error", error)
    if gains is not None and gains.dtype is not torch.float32:
        raise ShapeError(f"{name}: gains is {gains.dtype}", cure="gains are float32")


def _check_options(input_precision: str, activation: str) -> None:
    check_input_precision(input_precision)
    if activation not in ("tanh", "relu"):
        raise UsageError(f"activation={activation!r}", cure='use "tanh" or "relu"')


def _check_weight(name: str, gates: int, weight: Tensor) -> str:
    """Check its shape; returns what others are checked against."""
    shape, units = f"({width_of(gates)}, units)", weight.shape[1]
    check_fits(name, "weight_hidden", weight, (gates * units, units), shape, against="the layer")
    return f"weight_hidden, which is {shape}"


def width_of(gates: int) -> str:
    """What is so wide, in the words of messages: "3 units"."""
    return "units" if gates == 1 else f"{gates} units"
