"""What the operators of recurrent layers share: what they check, products over all time steps, and their operations."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import check_alike, check_device, check_fits, check_input_precision
from pccompile.kernels.linear_error.operator import ErrorSweep, linear_error
from pccompile.kernels.linear_predict.operator import linear_predict

__all__ = [
    "check_error",
    "check_recurrence",
    "drive_of",
    "first_errors",
    "gradients_over_time",
    "register_operations",
    "state_gradients",
    "without_steps",
]


def check_recurrence(
    name: str,
    gates: int,
    drive: Tensor,
    weight: Tensor,
    input_precision: str,
    states: Mapping[str, Tensor],
    bias: Tensor | None = None,
) -> None:
    """Check the arguments of a recurrence.

    Args:
        name: the operation's, for messages.
        gates: how many times the units a gate's product is wide.
        drive: (steps, batch, gates units), what the inputs contribute.
        weight: (gates units, units).
        input_precision: "ieee" or "tf32".
        states: (batch, units) each, before the first step, by argument name.
        bias: (gates units,), beside the weight, if there is one.

    Raises:
        UsageError: no kernel takes this dtype or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    check_alike(name, drive=drive, weight=weight, bias=bias, **states)
    check_input_precision(input_precision)
    against = _check_weight(name, gates, weight)
    (steps, batch), (rows, units) = drive.shape[:2], weight.shape
    width = _width(gates)
    check_fits(name, "drive", drive, (steps, batch, rows), f"(steps, batch, {width})", against=against)
    check_fits(name, "bias_hidden", bias, (rows,), f"({width},)", against=against)
    for argument, state in states.items():
        check_fits(name, argument, state, (batch, units), "(batch, units)", against=against)


def check_error(
    name: str,
    gates: int,
    error: Tensor,
    weight: Tensor,
    input_precision: str,
    states: Mapping[str, Tensor | None],
    over_time: Mapping[str, Tensor],
    kept: Tensor | None = None,
    gains: Tensor | None = None,
) -> None:
    """Check the arguments of a recurrence's error.

    Args:
        name, gates, weight, input_precision: as for `check_recurrence`.
        error: (steps, batch, units).
        states: (batch, units) each, errors of the last states, by argument name.
        over_time: (steps + 1, batch, units) each, from the prediction, by argument name.
        kept: (steps, batch, 4 units), the argument `gates`, from the prediction, if there is one.
        gains: (2, steps, gates), float32, of the gradients, if there are any.

    Raises:
        UsageError: no kernel takes this dtype or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    check_alike(name, error=error, weight_hidden=weight, **over_time, gates=kept, **states)
    check_input_precision(input_precision)
    if error.dim() != 3 or weight.dim() != 2:
        raise ShapeError(f"{name}: error has shape {tuple(error.shape)}", cure="error is (steps, batch, units)")
    against = _check_weight(name, gates, weight)
    (steps, batch), units = error.shape[:2], weight.shape[1]
    check_fits(name, "error", error, (steps, batch, units), "(steps, batch, units)", against=against)
    for argument, tensor in over_time.items():
        sizes = (steps + 1, batch, units)
        check_fits(name, argument, tensor, sizes, "(steps + 1, batch, units)", against="the prediction")
    check_fits(name, "gates", kept, (steps, batch, 4 * units), "(steps, batch, 4 units)", against="the prediction")
    for argument, state in states.items():
        check_fits(name, argument, state, (batch, units), "(batch, units)", against=against)
    check_fits(name, "gains", gains, (2, steps, gates), f"(2, steps, {gates})", against="the layer")
    check_device(name, "gains", gains, "error", error)
    if gains is not None and gains.dtype is not torch.float32:
        raise ShapeError(f"{name}: gains is {gains.dtype}", cure="gains are float32")


def _check_weight(name: str, gates: int, weight: Tensor) -> str:
    """Check its shape; returns what others are checked against."""
    shape, units = f"({_width(gates)}, units)", weight.shape[1]
    check_fits(name, "weight_hidden", weight, (gates * units, units), shape, against="the layer")
    return f"weight_hidden, which is {shape}"


def _width(gates: int) -> str:
    return "units" if gates == 1 else f"{gates} units"


# Beside the recurrence ------------------------------------------------------------------------------------------------


def drive_of(
    name: str,
    gates: int,
    x: Tensor,
    weight_input: Tensor,
    bias: Tensor | None,
    weight_hidden: Tensor,
    input_precision: str,
) -> Tensor:
    """What the inputs contribute to the gates, x W^T + b at all time steps: (steps, batch, gates units).

    Raises:
        ShapeError: x or weight_hidden has no such number of dimensions; or what `linear_predict` raises.
    """
    if x.dim() != 3 or weight_hidden.dim() != 2:
        raise ShapeError(
            f"{name}: x has shape {tuple(x.shape)} and weight_hidden {tuple(weight_hidden.shape)}",
            cure=f"x is (steps, batch, inputs) and weight_hidden is ({_width(gates)}, units)",
        )
    return linear_predict(x, weight_input, bias, input_precision=input_precision).output


def gradients_over_time(
    drive_error: Tensor,
    x: Tensor,
    weight_input: Tensor,
    state_error: Tensor,
    hiddens: Tensor,
    weight_hidden: Tensor,
    *,
    parent_error: bool,
    state_bias: bool = False,
    **options: Any,
) -> tuple[ErrorSweep, ErrorSweep]:
    """The products of an error sweep over all steps: the parent's error with dW and db, and dU; a launch each.

    Args:
        drive_error: (steps, batch, gates units), of what the inputs contribute.
        x: (steps, batch, inputs).
        weight_input: (gates units, inputs).
        state_error: (steps, batch, gates units), of what the hidden states contribute.
        hiddens: (steps + 1, batch, units).
        weight_hidden: (gates units, units).
        parent_error: whether to compute the error with respect to x.
        state_bias: whether there is a bias beside weight_hidden, whose gradient is asked for where the other's is.
        options: `linear_error`'s weight_gradient, bias_gradient, gain and input_precision.
    """
    of_inputs = linear_error(drive_error, None, x, weight_input, parent_error=parent_error, **options)
    options["bias_gradient"] = options["bias_gradient"] and state_bias
    return of_inputs, state_gradients(state_error, hiddens, weight_hidden, **options)


def state_gradients(error: Tensor, hiddens: Tensor, weight: Tensor, **options: Any) -> ErrorSweep:
    """Those of weight_hidden and of the bias beside it, where they are asked for: sums over all steps in one launch.

    Args:
        error: (steps, batch, gates units), of what the hidden states contribute.
        hiddens: (steps + 1, batch, units).
        weight: (gates units, units).
        options: as for `linear_error`.
    """
    return linear_error(error, None, hiddens[:-1], weight, parent_error=False, **options)


def first_errors(error: Tensor, count: int) -> list[Tensor]:
    """Places for the errors of the first states, (batch, units) each: sums over steps, so in float32."""
    return [error.new_empty(error.shape[1:], dtype=torch.float32) for _ in range(count)]


def without_steps(targets: Sequence[Tensor], given: Sequence[Tensor | None]) -> None:
    """Where there is no time step the first states are the last, and so are their errors; None stands for zero."""
    for target, source in zip(targets, given, strict=True):
        target.zero_() if source is None else target.copy_(source)


def register_operations(operator: Any, weight: int) -> None:
    """Tell torch's counter the operations of a recurrence, or of its error: a product with U in every time step.

    Args:
        operator: takes (steps, batch, ...) first.
        weight: the place of U among its arguments.
    """

    @register_flop_formula(operator)
    def operations(first: Sequence[int], *shapes: Any, **_: Any) -> int:
        steps, batch = first[:2]
        gates, units = shapes[weight - 1]
        return 2 * int(steps * batch * gates * units)
