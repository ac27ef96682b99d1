"""rnn_predict and rnn_error: the operators pccompile::rnn_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.recurrence_operators import errors_over_time, predict_states, register_recurrence, sweep_states
from pccompile.kernels.recurrence_products import drive_of, gradients_over_time, state_gradients
from pccompile.kernels.recurrences import learned_of
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
        gain, input_precision: as for `linear_error`.

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, first = torch.ops.pccompile.rnn_recurrence_error(
        error, hidden_error, weight_hidden, hiddens, activation, input_precision
    )
    inputs, states = (drive_error, x, weight_input), (drive_error, hiddens, weight_hidden)
    asked = parent_error, weight_gradient, bias_gradient
    of_inputs, of_states = gradients_over_time(inputs, states, *asked, gain, input_precision)
    return RNNErrorSweep(
        of_inputs.parent_error,
        first,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
    )


def predict_rnn(drive: Tensor, weight: Tensor, hidden: Tensor, activation: str, input_precision: str) -> Tensor:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    options = activation, input_precision
    (hiddens,) = predict_states(launch_rnn_recurrence, drive, (weight,), (hidden,), options, keeps_gates=False)
    return hiddens


def sweep_rnn(
    error: Tensor, hidden_error: Tensor | None, weight: Tensor, hiddens: Tensor, activation: str, input_precision: str
) -> tuple[Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    last, options, drive_error = (hidden_error,), (activation, input_precision), errors_over_time(1, error)
    (first,) = sweep_states(launch_rnn_recurrence_error, error, last, weight, (hiddens,), (drive_error,), options)
    return drive_error, first


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
    last, options, learned = (hidden_error,), (activation, input_precision), learned_of(1, gains, error)
    errors = (errors_over_time(1, error),)
    (first,) = sweep_states(launch_rnn_recurrence_error, error, last, weight, (hiddens,), errors, options, learned)
    return *errors, learned.inputs, learned.states, first


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


_recurrence = register_recurrence("rnn", "an RNN", 1, predict_rnn, sweep_rnn, sweep_learned_rnn)
_recurrence.register_autograd(_backward, setup_context=_save)
