"""What is computed beside the recurrence of a layer: products over all time steps at once, a launch each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.linear_error.operator import ErrorSweep, linear_error
from pccompile.kernels.linear_predict.operator import linear_predict
from pccompile.kernels.recurrence_checks import width_of

__all__ = ["drive_of", "gradients_over_time", "state_gradients"]


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
            cure=f"x is (steps, batch, inputs) and weight_hidden is ({width_of(gates)}, units)",
        )
    return linear_predict(x, weight_input, bias, input_precision=input_precision).output


def gradients_over_time(
    of_inputs: tuple[Tensor, Tensor, Tensor],
    of_states: tuple[Tensor, Tensor, Tensor],
    parent_error: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    gain: float,
    input_precision: str,
    *,
    state_bias: bool = False,
) -> tuple[ErrorSweep, ErrorSweep]:
    """The products of an error sweep over all steps: the parent's error with dW and db, and dU; a launch each.

    Args:
        of_inputs: the error (steps, batch, gates units) of what the inputs contribute, these (steps, batch, inputs),
            and their weight (gates units, inputs).
        of_states: what `state_gradients` takes.
        parent_error, weight_gradient, bias_gradient, gain, input_precision: as for `linear_error`.
        state_bias: whether there is a bias beside weight_hidden, whose gradient is asked for where the other's is.
    """
    error, x, weight = of_inputs
    options: dict[str, Any] = {"weight_gradient": weight_gradient, "gain": gain, "input_precision": input_precision}
    return (
        linear_error(error, None, x, weight, parent_error=parent_error, bias_gradient=bias_gradient, **options),
        state_gradients(*of_states, bias_gradient=bias_gradient and state_bias, **options),
    )


def state_gradients(error: Tensor, hiddens: Tensor, weight: Tensor, **options: Any) -> ErrorSweep:
    """Those of weight_hidden and of the bias beside it, where they are asked for: sums over all steps in one launch.

    Args:
        error: (steps, batch, gates units), of what the hidden states contribute.
        hiddens: (steps + 1, batch, units).
        weight: (gates units, units).
        options: as for `linear_error`.
    """
    return linear_error(error, None, hiddens[:-1], weight, parent_error=False, **options)
