"""lstm_predict and lstm_error: the operators pccompile::lstm_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.recurrence_operators import errors_over_time, predict_states, register_recurrence, sweep_states
from pccompile.kernels.recurrence_products import drive_of, gradients_over_time, state_gradients
from pccompile.kernels.recurrences import learned_of

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
        gain, input_precision: as for `linear_error`.

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, first_hidden, first_cell = torch.ops.pccompile.lstm_recurrence_error(
        error, hidden_error, cell_error, weight_hidden, cells, gates, input_precision
    )
    inputs, states = (drive_error, x, weight_input), (drive_error, hiddens, weight_hidden)
    asked = parent_error, weight_gradient, bias_gradient
    of_inputs, of_states = gradients_over_time(inputs, states, *asked, gain, input_precision)
    return LSTMErrorSweep(
        of_inputs.parent_error,
        first_hidden,
        first_cell,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
    )


def predict_lstm(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    first, options = (hidden, cell), (input_precision,)
    hiddens, cells, gates = predict_states(launch_lstm_recurrence, drive, (weight,), first, options, keeps_gates=True)
    return hiddens, cells, gates


def sweep_lstm(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    last, kept, options = (hidden_error, cell_error), (cells, gates), (input_precision,)
    drive_error = errors_over_time(4, error)
    hidden, cell = sweep_states(launch_lstm_recurrence_error, error, last, weight, kept, (drive_error,), options)
    return drive_error, hidden, cell


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
    last, kept, options = (hidden_error, cell_error), (cells, gates), (input_precision,)
    learned, errors = learned_of(4, gains, error), (errors_over_time(4, error),)
    hidden, cell = sweep_states(launch_lstm_recurrence_error, error, last, weight, kept, errors, options, learned)
    return *errors, learned.inputs, learned.states, hidden, cell


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


_recurrence = register_recurrence("lstm", "an LSTM", 4, predict_lstm, sweep_lstm, sweep_learned_lstm)
_recurrence.register_autograd(_backward, setup_context=_save)
