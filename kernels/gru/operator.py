"""gru_predict and gru_error: the operators pccompile::gru_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.recurrence_operators import errors_over_time, predict_states, register_recurrence, sweep_states
from pccompile.kernels.recurrence_products import drive_of, gradients_over_time, state_gradients
from pccompile.kernels.recurrences import learned_of

__all__ = [
    "GRUErrorSweep",
    "GRUPrediction",
    "gru_error",
    "gru_predict",
    "predict_gru",
    "sweep_gru",
    "sweep_learned_gru",
]


class GRUPrediction(NamedTuple):
    """What gru_predict returns.

    Attributes:
        output: (steps, batch, units), the hidden state after each step.
        hidden: (batch, units), the last of them.
        hiddens: (steps + 1, batch, units), the first hidden state and the output; for the error, as the next.
        gates: (steps, batch, 4 units), the reset and update gates, the candidate, and what the hidden state contributes
            to the candidate before the reset gate.
    """

    output: Tensor
    hidden: Tensor
    hiddens: Tensor
    gates: Tensor


class GRUErrorSweep(NamedTuple):
    """What gru_error returns; None for what was not asked for.

    Attributes:
        parent_error: (steps, batch, inputs), with respect to x.
        hidden_error: (batch, units), with respect to the first hidden state.
        weight_input_gradient: (3 units, inputs).
        weight_hidden_gradient: (3 units, units).
        bias_input_gradient, bias_hidden_gradient: (3 units,).
    """

    parent_error: Tensor | None
    hidden_error: Tensor
    weight_input_gradient: Tensor | None
    weight_hidden_gradient: Tensor | None
    bias_input_gradient: Tensor | None
    bias_hidden_gradient: Tensor | None


def gru_predict(
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias_input: Tensor | None = None,
    bias_hidden: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    input_precision: str = "ieee",
) -> GRUPrediction:
    """One layer of torch.nn.GRU in one direction: two launches, of which the second has all time steps.

    Differentiable once in x, weights, biases and hidden, through output and hidden.

    Args:
        x: (steps, batch, inputs), float32, bfloat16 or float16, any strides.
        weight_input: (3 units, inputs), of x's dtype and device, as are all that follow; gates in torch's order.
        weight_hidden: (3 units, units).
        bias_input, bias_hidden: (3 units,), or None.
        hidden: (batch, units), before the first step; zero if None.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive = drive_of("gru_predict", 3, x, weight_input, bias_input, weight_hidden, input_precision)
    first = x.new_zeros(x.shape[1], weight_hidden.shape[1]) if hidden is None else hidden
    hiddens, gates = torch.ops.pccompile.gru_recurrence(drive, weight_hidden, bias_hidden, first, input_precision)
    return GRUPrediction(hiddens[1:], hiddens[-1], hiddens.detach(), gates)


def gru_error(
    error: Tensor,
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    *,
    hidden_error: Tensor | None = None,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
    input_precision: str = "ieee",
) -> GRUErrorSweep:
    """The error sweep of gru_predict: three launches, of which the first has all time steps. Not differentiable.

    Args:
        error: (steps, batch, units), with respect to the output; float32, bfloat16 or float16, any strides.
        x: (steps, batch, inputs), of error's dtype and device, as are all that follow.
        weight_input: (3 units, inputs).
        weight_hidden: (3 units, units).
        hiddens, gates: from the prediction.
        hidden_error: (batch, units), with respect to the last state; None for zero.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain times the derivatives with respect to both weights.
        bias_gradient: whether to compute gain times those with respect to both biases.
        gain, input_precision: as for `linear_error`.

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, state_error, first = torch.ops.pccompile.gru_recurrence_error(
        error, hidden_error, weight_hidden, hiddens, gates, input_precision
    )
    inputs, states = (drive_error, x, weight_input), (state_error, hiddens, weight_hidden)
    asked = parent_error, weight_gradient, bias_gradient
    of_inputs, of_states = gradients_over_time(inputs, states, *asked, gain, input_precision, state_bias=True)
    return GRUErrorSweep(
        of_inputs.parent_error,
        first,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
        of_states.bias_gradient,
    )


def predict_gru(
    drive: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor, input_precision: str
) -> tuple[Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    layer, options = (weight, bias), (input_precision,)
    hiddens, gates = predict_states(launch_gru_recurrence, drive, layer, (hidden,), options, keeps_gates=True)
    return hiddens, gates


def sweep_gru(
    error: Tensor, hidden_error: Tensor | None, weight: Tensor, hiddens: Tensor, gates: Tensor, input_precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    last, kept, options = (hidden_error,), (hiddens, gates), (input_precision,)
    errors = errors_over_time(3, error), errors_over_time(3, error)
    (first,) = sweep_states(launch_gru_recurrence_error, error, last, weight, kept, errors, options)
    return *errors, first


def sweep_learned_gru(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    gains: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    last, kept, options = (hidden_error,), (hiddens, gates), (input_precision,)
    learned, drive_error = learned_of(3, gains, error), errors_over_time(3, error)
    one_step = drive_error.new_empty(1, *drive_error.shape[1:])
    errors = drive_error, one_step
    (first,) = sweep_states(launch_gru_recurrence_error, error, last, weight, kept, errors, options, learned)
    return drive_error, learned.inputs, learned.states, first


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, bias, _, ctx.input_precision = inputs
    ctx.save_for_backward(weight, *output)
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, hiddens_error: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, hiddens, gates = ctx.saved_tensors
    drive_error, state_error, first = torch.ops.pccompile.gru_recurrence_error(
        hiddens_error[1:], None, weight, hiddens, gates, ctx.input_precision
    )
    options = {
        "weight_gradient": ctx.needs_input_grad[1],
        "bias_gradient": ctx.has_bias and ctx.needs_input_grad[2],
        "input_precision": ctx.input_precision,
    }
    of_states = state_gradients(state_error, hiddens, weight, **options)
    return drive_error, of_states.weight_gradient, of_states.bias_gradient, first + hiddens_error[0], None


_recurrence = register_recurrence("gru", "a GRU", 3, predict_gru, sweep_gru, sweep_learned_gru)
_recurrence.register_autograd(_backward, setup_context=_save)
