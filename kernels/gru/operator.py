"""gru_predict and gru_error: the operators pccompile::gru_recurrence(_error), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.kernels.arguments import refusal
from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
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
        gain: factor of the gradients, read at run time.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    drive_error, state_error, first = torch.ops.pccompile.gru_recurrence_error(
        error, hidden_error, weight_hidden, hiddens, gates, input_precision
    )
    of_inputs, of_states = gradients_over_time(
        drive_error,
        x,
        weight_input,
        state_error,
        hiddens,
        weight_hidden,
        parent_error=parent_error,
        state_bias=True,
        weight_gradient=weight_gradient,
        bias_gradient=bias_gradient,
        gain=gain,
        input_precision=input_precision,
    )
    return GRUErrorSweep(
        of_inputs.parent_error,
        first,
        of_inputs.weight_gradient,
        of_states.weight_gradient,
        of_inputs.bias_gradient,
        of_states.bias_gradient,
    )


def _empty_states(drive: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (steps + 1, batch, units), and gates (steps, batch, 4 units)."""
    (steps, batch, _), units = drive.shape, weight.shape[1]
    return drive.new_empty(steps + 1, batch, units), drive.new_empty(steps, batch, 4 * units)


def _empty_errors(error: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of the drive, and of what the hidden states contribute: (steps, batch, 3 units) each."""
    steps, batch, units = error.shape
    return error.new_empty(steps, batch, 3 * units), error.new_empty(steps, batch, 3 * units)


def predict_gru(
    drive: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor, input_precision: str
) -> tuple[Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    hiddens, gates = _empty_states(drive, weight)
    if drive.shape[0] == 0:
        without_steps((hiddens[0],), (hidden,))
    else:
        launch_gru_recurrence(drive, weight, bias, hidden, hiddens, gates, input_precision)
    return hiddens, gates


@custom_operator("pccompile::gru_recurrence")
def _recurrence(
    drive: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor, input_precision: str
) -> tuple[Tensor, Tensor]:
    check_recurrence("gru_recurrence", 3, drive, weight, input_precision, {"hidden": hidden}, bias)
    if not has_data(drive):
        return _empty_states(drive, weight)
    return predict_gru(drive, weight, bias, hidden, input_precision)


def sweep_gru(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    errors = _empty_errors(error)
    return *errors, _swept(error, hidden_error, weight, hiddens, gates, *errors, input_precision)


def _swept(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    drive_error: Tensor,
    state_error: Tensor,
    input_precision: str,
    learned: Learned | None = None,
) -> Tensor:
    """The error of the first hidden state, once the others are written."""
    (first,) = first_errors(error, 1)
    if error.shape[0] == 0:
        without_steps((first,), (hidden_error,))
    else:
        kept, errors = (hiddens.contiguous(), gates.contiguous()), (drive_error, state_error, first)
        launch_gru_recurrence_error(error, hidden_error, weight, *kept, *errors, input_precision, learned=learned)
    # A float32 tensor is itself what .to returns: it was made here.
    return first.to(error.dtype)


@custom_operator("pccompile::gru_recurrence_error")
def _recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    states, over_time = {"hidden_error": hidden_error}, {"hiddens": hiddens}
    check_error("gru_error", 3, error, weight, input_precision, states, over_time, gates)
    if not has_data(error):
        return *_empty_errors(error), error.new_empty(error.shape[1:])
    return sweep_gru(error, hidden_error, weight, hiddens, gates, input_precision)


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
    learned = learned_of(3, gains, error)
    drive_error = torch.empty_like(learned.inputs)
    one_step = learned.states.new_empty(1, *learned.states.shape[1:])
    errors = drive_error, one_step, input_precision, learned
    first = _swept(error, hidden_error, weight, hiddens, gates, *errors)
    return drive_error, learned.inputs, learned.states, first


@custom_operator("pccompile::gru_recurrence_learned_error")
def _learned_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    gains: Tensor,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, over_time = {"hidden_error": hidden_error}, {"hiddens": hiddens}
    check_error("gru_error", 3, error, weight, input_precision, states, over_time, gates, gains)
    if not has_data(error):
        inputs, from_states, _ = learned_of(3, gains, error)
        return torch.empty_like(inputs), inputs, from_states, error.new_empty(error.shape[1:])
    return sweep_learned_gru(error, hidden_error, weight, hiddens, gates, gains, input_precision)


for _operator in (_recurrence_error, _learned_error):
    _operator.register_autograd(refusal("the error sweep of a GRU was differentiated"))


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


_recurrence.register_autograd(_backward, setup_context=_save)
register_operations(torch.ops.pccompile.gru_recurrence, weight=1)
register_operations(torch.ops.pccompile.gru_recurrence_error, weight=2)
register_operations(torch.ops.pccompile.gru_recurrence_learned_error, weight=2)
