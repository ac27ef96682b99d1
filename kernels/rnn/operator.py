"""rnn_predict and rnn_error: the operators pccompile::rnn_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import UsageError
from pccompile.kernels.arguments import refusal
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
from pccompile.kernels.rnn.kernel import launch_rnn_recurrence, launch_rnn_recurrence_error

__all__ = [
    "RNNErrorSweep",
    "RNNPrediction",
    "predict_rnn",
    "rnn_error",
    "rnn_predict",
    "sweep_learned_rnn",
    "sweep_rnn",
]


class RNNPrediction(NamedTuple):
    """What rnn_predict returns.

    Attributes:
        output: (steps, batch, units), the hidden state after each step.
        hidden: (batch, units), the last of them.
        hiddens: (steps + 1, batch, units), the first hidden state and the output; for the error.
    """

    output: Tensor
    hidden: Tensor
    hiddens: Tensor


class RNNErrorSweep(NamedTuple):
    """What rnn_error returns; None for what was not asked for.

    Attributes:
        parent_error: (steps, batch, inputs), with respect to x.
        hidden_error: (batch, units), with respect to the first hidden state.
        weight_input_gradient: (units, inputs).
        weight_hidden_gradient: (units, units).
        bias_gradient: (units,), of either bias.
    """

    parent_error: Tensor | None
    hidden_error: Tensor
    weight_input_gradient: Tensor | None
    weight_hidden_gradient: Tensor | None
    bias_gradient: Tensor | None


def rnn_predict(
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    activation: str = "tanh",
    input_precision: str = "ieee",
) -> RNNPrediction:
    """One layer of torch.nn.RNN in one direction: two launches, of which the second has all time steps.

    Differentiable once in x, weights, bias and hidden, through output and hidden.

    Args:
        x: (steps, batch, inputs), float32, bfloat16 or float16, any strides.
        weight_input: (units, inputs), of x's dtype and device, as are all that follow.
        weight_hidden: (units, units).
        bias: (units,), the sum of torch's two; or None.
        hidden: (batch, units), before the first step; zero if None.
        activation: "tanh" or "relu".
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive = drive_of("rnn_predict", 1, x, weight_input, bias, weight_hidden, input_precision)
    first = x.new_zeros(x.shape[1], weight_hidden.shape[1]) if hidden is None else hidden
    hiddens = torch.ops.pccompile.rnn_recurrence(drive, weight_hidden, first, activation, input_precision)
    return RNNPrediction(hiddens[1:], hiddens[-1], hiddens.detach())


def rnn_error(
    error: Tensor,
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    hiddens: Tensor,
    *,
    activation: str = "tanh",
    hidden_error: Tensor | None = None,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
    input_precision: str = "ieee",
) -> RNNErrorSweep:
    """The error sweep of rnn_predict: three launches, of which the first has all time steps. Not differentiable.

    Args:
        error: (steps, batch, units), with respect to the output; float32, bfloat16 or float16, any strides.
        x: (steps, batch, inputs), of error's dtype and device, as are all that follow.
        weight_input: (units, inputs).
        weight_hidden: (units, units).
        hiddens: from the prediction.
        activation: "tanh" or "relu".
        hidden_error: (batch, units), with respect to the last state; None for zero.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain times the derivatives with respect to both weights.
        bias_gradient: whether to compute gain times that with respect to the bias.
        gain: factor of the gradients, read at run time.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, first = torch.ops.pccompile.rnn_recurrence_error(
        error, hidden_error, weight_hidden, hiddens, activation, input_precision
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
    return RNNErrorSweep(
        of_inputs.parent_error,
        first,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
    )


def _check_activation(activation: str) -> None:
    if activation not in ("tanh", "relu"):
        raise UsageError(f"activation={activation!r}", cure='use "tanh" or "relu"')


def _empty_states(drive: Tensor) -> Tensor:
    """Hidden states (steps + 1, batch, units)."""
    steps, batch, units = drive.shape
    return drive.new_empty(steps + 1, batch, units)


def predict_rnn(drive: Tensor, weight: Tensor, hidden: Tensor, activation: str, input_precision: str) -> Tensor:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    hiddens = _empty_states(drive)
    if drive.shape[0] == 0:
        without_steps((hiddens[0],), (hidden,))
    else:
        launch_rnn_recurrence(drive, weight, hidden, hiddens, activation, input_precision)
    return hiddens


@custom_operator("pccompile::rnn_recurrence")
def _recurrence(drive: Tensor, weight: Tensor, hidden: Tensor, activation: str, input_precision: str) -> Tensor:
    check_recurrence("rnn_recurrence", 1, drive, weight, input_precision, {"hidden": hidden})
    _check_activation(activation)
    if not has_data(drive):
        return _empty_states(drive)
    return predict_rnn(drive, weight, hidden, activation, input_precision)


def sweep_rnn(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    activation: str,
    input_precision: str,
    learned: Learned | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    drive_error = error.new_empty(error.shape)
    (first,) = first_errors(error, 1)
    if error.shape[0] == 0:
        without_steps((first,), (hidden_error,))
    else:
        kept, errors, options = hiddens.contiguous(), (drive_error, first), (activation, input_precision)
        launch_rnn_recurrence_error(error, hidden_error, weight, kept, *errors, *options, learned=learned)
    # A float32 tensor is itself what .to returns: it was made here.
    return drive_error, first.to(error.dtype)


@custom_operator("pccompile::rnn_recurrence_error")
def _recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    activation: str,
    input_precision: str,
) -> tuple[Tensor, Tensor]:
    check_error("rnn_error", 1, error, weight, input_precision, {"hidden_error": hidden_error}, {"hiddens": hiddens})
    _check_activation(activation)
    if not has_data(error):
        return error.new_empty(error.shape), error.new_empty(error.shape[1:])
    return sweep_rnn(error, hidden_error, weight, hiddens, activation, input_precision)


def sweep_learned_rnn(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gains: Tensor,
    activation: str,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    learned = learned_of(1, gains, error)
    drive_error, first = sweep_rnn(error, hidden_error, weight, hiddens, activation, input_precision, learned)
    return drive_error, learned.inputs, learned.states, first


@custom_operator("pccompile::rnn_recurrence_learned_error")
def _learned_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gains: Tensor,
    activation: str,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, over_time = {"hidden_error": hidden_error}, {"hiddens": hiddens}
    check_error("rnn_error", 1, error, weight, input_precision, states, over_time, None, gains)
    _check_activation(activation)
    if not has_data(error):
        inputs, from_states, _ = learned_of(1, gains, error)
        return error.new_empty(error.shape), inputs, from_states, error.new_empty(error.shape[1:])
    return sweep_learned_rnn(error, hidden_error, weight, hiddens, gains, activation, input_precision)


for _operator in (_recurrence_error, _learned_error):
    _operator.register_autograd(refusal("the error sweep of an RNN was differentiated"))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, ctx.activation, ctx.input_precision = inputs
    ctx.save_for_backward(weight, output)


def _backward(ctx: Any, hiddens_error: Tensor) -> tuple[Tensor | None, ...]:
    weight, hiddens = ctx.saved_tensors
    drive_error, first = torch.ops.pccompile.rnn_recurrence_error(
        hiddens_error[1:], None, weight, hiddens, ctx.activation, ctx.input_precision
    )
    options = {"weight_gradient": ctx.needs_input_grad[1], "bias_gradient": False}
    of_states = state_gradients(drive_error, hiddens, weight, input_precision=ctx.input_precision, **options)
    return drive_error, of_states.weight_gradient, first + hiddens_error[0], None, None


_recurrence.register_autograd(_backward, setup_context=_save)
register_operations(torch.ops.pccompile.rnn_recurrence, weight=1)
register_operations(torch.ops.pccompile.rnn_recurrence_error, weight=2)
register_operations(torch.ops.pccompile.rnn_recurrence_learned_error, weight=2)
