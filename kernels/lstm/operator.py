"""lstm_predict and lstm_error: the operators pccompile::lstm_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import check_alike, check_fits, check_input_precision, refusal
from pccompile.kernels.linear_error.operator import linear_error
from pccompile.kernels.linear_predict.operator import linear_predict
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.recurrences import register_operations

__all__ = ["LSTMErrorSweep", "LSTMPrediction", "lstm_error", "lstm_predict", "predict_lstm", "sweep_lstm"]

_WEIGHT = "weight_hidden, which is (4 units, units)"


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
    if x.dim() != 3 or weight_hidden.dim() != 2:
        raise ShapeError(
            f"lstm_predict: x has shape {tuple(x.shape)} and weight_hidden {tuple(weight_hidden.shape)}",
            cure="x is (steps, batch, inputs) and weight_hidden is (4 units, units)",
        )
    drive = linear_predict(x, weight_input, bias, input_precision=input_precision).output
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
    options: dict[str, Any] = {"gain": gain, "input_precision": input_precision}
    sweep = linear_error(
        drive_error,
        None,
        x,
        weight_input,
        parent_error=parent_error,
        weight_gradient=weight_gradient,
        bias_gradient=bias_gradient,
        **options,
    )
    d_weight_hidden = _weight_hidden_gradient(drive_error, hiddens, weight_hidden, options) if weight_gradient else None
    return LSTMErrorSweep(
        sweep.parent_error, first_hidden, first_cell, sweep.weight_gradient, d_weight_hidden, sweep.bias_gradient
    )


def _weight_hidden_gradient(
    drive_error: Tensor, hiddens: Tensor, weight: Tensor, options: dict[str, Any]
) -> Tensor | None:
    """gain times the sum over steps of d^T h, one product over all of them."""
    return linear_error(
        drive_error, None, hiddens[:-1], weight, parent_error=False, bias_gradient=False, **options
    ).weight_gradient


def _check(drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str) -> None:
    name = "lstm_recurrence"
    check_alike(name, drive=drive, weight=weight, hidden=hidden, cell=cell)
    check_input_precision(input_precision)
    units, batch = weight.shape[1], drive.shape[1]
    check_fits(name, "weight_hidden", weight, (4 * units, units), "(4 units, units)", against="the layer")
    check_fits(name, "drive", drive, (drive.shape[0], batch, 4 * units), "(steps, batch, 4 units)", against=_WEIGHT)
    check_fits(name, "hidden", hidden, (batch, units), "(batch, units)", against=_WEIGHT)
    check_fits(name, "cell", cell, (batch, units), "(batch, units)", against=_WEIGHT)


def _check_error(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    input_precision: str,
) -> None:
    name = "lstm_error"
    states = {"hidden_error": hidden_error, "cell_error": cell_error}
    check_alike(name, error=error, weight_hidden=weight, cells=cells, gates=gates, **states)
    check_input_precision(input_precision)
    if error.dim() != 3 or weight.dim() != 2:
        raise ShapeError(f"{name}: error has shape {tuple(error.shape)}", cure="error is (steps, batch, units)")
    (steps, batch), units = error.shape[:2], weight.shape[1]
    check_fits(name, "weight_hidden", weight, (4 * units, units), "(4 units, units)", against="the layer")
    check_fits(name, "error", error, (steps, batch, units), "(steps, batch, units)", against=_WEIGHT)
    check_fits(name, "cells", cells, (steps + 1, batch, units), "(steps + 1, batch, units)", against="the prediction")
    check_fits(name, "gates", gates, (steps, batch, 4 * units), "(steps, batch, 4 units)", against="the prediction")
    for argument, tensor in states.items():
        check_fits(name, argument, tensor, (batch, units), "(batch, units)", against=_WEIGHT)


def _empty_states(drive: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and cells (steps + 1, batch, units), and gates (steps, batch, 4 units)."""
    shape = (drive.shape[0] + 1, drive.shape[1], weight.shape[1])
    return drive.new_empty(shape), drive.new_empty(shape), drive.new_empty(drive.shape)


def predict_lstm(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    hiddens, cells, gates = _empty_states(drive, weight)
    if drive.shape[0] == 0:  # the first states are the last
        hiddens[0], cells[0] = hidden, cell
    else:
        launch_lstm_recurrence(drive, weight, hidden, cell, hiddens, cells, gates, input_precision)
    return hiddens, cells, gates


@custom_operator("pccompile::lstm_recurrence")
def _recurrence(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check(drive, weight, hidden, cell, input_precision)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    drive_error = gates.new_empty(gates.shape)
    first = [error.new_empty(error.shape[1:], dtype=torch.float32) for _ in range(2)]
    if error.shape[0] == 0:  # the first states are the last
        for target, given in zip(first, (hidden_error, cell_error), strict=True):
            target.zero_() if given is None else target.copy_(given)
    else:
        kept = (cells.contiguous(), gates.contiguous())
        launch_lstm_recurrence_error(
            error, hidden_error, cell_error, weight, *kept, drive_error, *first, input_precision
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
    _check_error(error, hidden_error, cell_error, weight, cells, gates, input_precision)
    if not has_data(error):
        return gates.new_empty(gates.shape), error.new_empty(error.shape[1:]), error.new_empty(error.shape[1:])
    return sweep_lstm(error, hidden_error, cell_error, weight, cells, gates, input_precision)


_recurrence_error.register_autograd(refusal("the error sweep of an LSTM was differentiated"))


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
    options = {"input_precision": ctx.input_precision}
    d_weight = _weight_hidden_gradient(drive_error, hiddens, weight, options) if ctx.needs_input_grad[1] else None
    return drive_error, d_weight, first_hidden + hiddens_error[0], first_cell + cells_error[0], None


_recurrence.register_autograd(_backward, setup_context=_save)
register_operations(torch.ops.pccompile.lstm_recurrence, weight=1)
register_operations(torch.ops.pccompile.lstm_recurrence_error, weight=3)
