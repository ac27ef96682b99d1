"""lstm_predict and lstm_error: the operators pccompile::lstm_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.arguments import refusal
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.recurrence_operators import (
    check_error,
    check_recurrence,
    drive_of,
    first_errors,
    gradients_over_time,
    register_operations,
    state_gradients,
    without_steps,
)
from pccompile.kernels.recurrences import Learned, learned_of

__all__ = [
    "LSTMErrorSweep",
    "LSTMPrediction",
    "lstm_error",
    "lstm_predict",
    "predict_lstm",
    "sweep_learned_lstm",
    "sweep_lstm",
]


class LSTMPrediction(NamedTuple):
    """What lstm_predict returns.

    Attributes:
        output: (steps, batch, units), the hidden state after each step.
        hidden: (batch, units), the last of them.
        cell: (batch, units), the last cell.
        hiddens: (steps + 1, batch, units), the first hidden state and the output; for the error, as the next two.
        cells: (steps + 1, batch, units).
        gates: (steps, batch, 4 units), the input, forget, candidate and output gates.
    """

    output: Tensor
    hidden: Tensor
    cell: Tensor
    hiddens: Tensor
    cells: Tensor
    gates: Tensor


class LSTMErrorSweep(NamedTuple):
    """What lstm_error returns; None for what was not asked for.

    Attributes:
        parent_error: (steps, batch, inputs), with respect to x.
        hidden_error: (batch, units), with respect to the first hidden state.
        cell_error: (batch, units), with respect to the first cell.
        weight_input_gradient: (4 units, inputs).
        weight_hidden_gradient: (4 units, units).
        bias_gradient: (4 units,), of either bias.
    """

    parent_error: Tensor | None
    hidden_error: Tensor
    cell_error: Tensor
    weight_input_gradient: Tensor | None
    weight_hidden_gradient: Tensor | None
    bias_gradient: Tensor | None


def lstm_predict(
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    *,
    input_precision: str = "ieee",
) -> LSTMPrediction:
    """One layer of torch.nn.LSTM in one direction: two launches, of which the second has all time steps.

    Differentiable once in x, weights, bias, hidden and cell, through output, hidden and cell.

    Args:
        x: (steps, batch, inputs), float32, bfloat16 or float16, any strides.
        weight_input: (4 units, inputs), of x's dtype and device, as are all that follow; gates in torch's order.
        weight_hidden: (4 units, units).
        bias: (4 units,), the sum of torch's two; or None.
        hidden: (batch, units), before the first step; zero if None.
        cell: (batch, units), likewise.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive = drive_of("lstm_predict", 4, x, weight_input, bias, weight_hidden, input_precision)
    zero = x.new_zeros(x.shape[1], weight_hidden.shape[1])
    hiddens, cells, gates = torch.ops.pccompile.lstm_recurrence(
        drive, weight_hidden, zero if hidden is None else hidden, zero if cell is None else cell, input_precision
    )
    return LSTMPrediction(hiddens[1:], hiddens[-1], cells[-1], hiddens.detach(), cells.detach(), gates)


def lstm_error(
    error: Tensor,
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
    *,
    hidden_error: Tensor | None = None,
    cell_error: Tensor | None = None,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
    input_precision: str = "ieee",
) -> LSTMErrorSweep:
    """The error sweep of lstm_predict: three launches, of which the first has all time steps. Not differentiable.

    Args:
        error: (steps, batch, units), with respect to the output; float32, bfloat16 or float16, any strides.
        x: (steps, batch, inputs), of error's dtype and device, as are all that follow.
        weight_input: (4 units, inputs).
        weight_hidden: (4 units, units).
        hiddens, cells, gates: from the prediction.
        hidden_error, cell_error: (batch, units), with respect to the last states; None for zero.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain times the derivatives with respect to both weights.
        bias_gradient: whether to compute gain times that with respect to the bias.
        gain: factor of the gradients, read at run time.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, first_hidden, first_cell = torch.ops.pccompile.lstm_recurrence_error(
        error, hidden_error, cell_error, weight_hidden, cells, gates, input_precision
    )
    of_inputs, of_states = gradients_over_time(
        drive_error,
        x,
        weight_input,
        drive_error,
        hiddens,
        weight_hidden,
        parent_error=parent_error,
        weight_gradient=weight_gradient,
        bias_gradient=bias_gradient,
        gain=gain,
        input_precision=input_precision,
    )
    return LSTMErrorSweep(
        of_inputs.parent_error,
        first_hidden,
        first_cell,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
    )


def _empty_states(drive: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and cells (steps + 1, batch, units), and gates (steps, batch, 4 units)."""
    shape = (drive.shape[0] + 1, drive.shape[1], weight.shape[1])
    return drive.new_empty(shape), drive.new_empty(shape), drive.new_empty(drive.shape)


def predict_lstm(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    hiddens, cells, gates = _empty_states(drive, weight)
    if drive.shape[0] == 0:
        without_steps((hiddens[0], cells[0]), (hidden, cell))
    else:
        launch_lstm_recurrence(drive, weight, hidden, cell, hiddens, cells, gates, input_precision)
    return hiddens, cells, gates


@custom_operator("pccompile::lstm_recurrence")
def _recurrence(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    check_recurrence("lstm_recurrence", 4, drive, weight, input_precision, {"hidden": hidden, "cell": cell})
    if not has_data(drive):
        return _empty_states(drive, weight)
    return predict_lstm(drive, weight, hidden, cell, input_precision)


def sweep_lstm(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    input_precision: str,
    learned: Learned | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    drive_error = gates.new_empty(gates.shape)
    first = first_errors(error, 2)
    if error.shape[0] == 0:
        without_steps(first, (hidden_error, cell_error))
    else:
        kept = (cells.contiguous(), gates.contiguous())
        launch_lstm_recurrence_error(
            error, hidden_error, cell_error, weight, *kept, drive_error, *first, input_precision, learned=learned
        )
    # A float32 tensor is itself what .to returns: it was made here.
    return drive_error, first[0].to(error.dtype), first[1].to(error.dtype)


@custom_operator("pccompile::lstm_recurrence_error")
def _recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    states = {"hidden_error": hidden_error, "cell_error": cell_error}
    check_error("lstm_error", 4, error, weight, input_precision, states, {"cells": cells}, gates)
    if not has_data(error):
        return gates.new_empty(gates.shape), error.new_empty(error.shape[1:]), error.new_empty(error.shape[1:])
    return sweep_lstm(error, hidden_error, cell_error, weight, cells, gates, input_precision)


def sweep_learned_lstm(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    gains: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    learned = learned_of(4, gains, error)
    drive_error, *first = sweep_lstm(error, hidden_error, cell_error, weight, cells, gates, input_precision, learned)
    return drive_error, learned.inputs, learned.states, *first


@custom_operator("pccompile::lstm_recurrence_learned_error")
def _learned_error(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    gains: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    states = {"hidden_error": hidden_error, "cell_error": cell_error}
    check_error("lstm_error", 4, error, weight, input_precision, states, {"cells": cells}, gates, gains)
    if not has_data(error):
        first = [error.new_empty(error.shape[1:]) for _ in range(2)]
        return gates.new_empty(gates.shape), *learned_of(4, gains, error)[:2], *first
    return sweep_learned_lstm(error, hidden_error, cell_error, weight, cells, gates, gains, input_precision)


for _operator in (_recurrence_error, _learned_error):
    _operator.register_autograd(refusal("the error sweep of an LSTM was differentiated"))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weight, _, _, ctx.input_precision = inputs
    ctx.save_for_backward(weight, *output)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, hiddens_error: Tensor, cells_error: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, hiddens, cells, gates = ctx.saved_tensors
    # Only the first and the last cell are handed out: errors of those between are zero.
    drive_error, first_hidden, first_cell = torch.ops.pccompile.lstm_recurrence_error(
        hiddens_error[1:], None, cells_error[-1] if len(gates) else None, weight, cells, gates, ctx.input_precision
    )
    options = {"weight_gradient": ctx.needs_input_grad[1], "bias_gradient": False}
    of_states = state_gradients(drive_error, hiddens, weight, input_precision=ctx.input_precision, **options)
    return drive_error, of_states.weight_gradient, first_hidden + hiddens_error[0], first_cell + cells_error[0], None


_recurrence.register_autograd(_backward, setup_context=_save)
register_operations(torch.ops.pccompile.lstm_recurrence, weight=1)
register_operations(torch.ops.pccompile.lstm_recurrence_error, weight=3)
register_operations(torch.ops.pccompile.lstm_recurrence_learned_error, weight=3)
