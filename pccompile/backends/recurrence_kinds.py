"""What tells one recurrence from another, and what is done with each alike: its drive, states, errors and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KINDS", "Kind", "Layer", "gradients_of"]


class Layer(NamedTuple):
    """The parameters of a layer in a direction; torch names them weight_ih, weight_hh, bias_ih and bias_hh."""

    input: Tensor
    recurrent: Tensor
    input_bias: Tensor | None = None
    recurrent_bias: Tensor | None = None


class Kind(NamedTuple):
    """What tells one recurrence from another.

    Attributes:
        operator: "lstm", of pccompile::lstm_recurrence and its errors.
        states: how many kinds of state there are, the hidden one first.
        biases_apart: whether the recurrence takes the second bias itself, rather than the drive the sum of both.
        first_read: the first of the recurrence's results that its error reads; it reads those that follow too.
        options: what the operators take before the precision.
    """

    operator: str
    states: int = 1
    biases_apart: bool = False
    first_read: int = 0
    options: tuple[str, ...] = ()

    def drive(self, x: Tensor, layer: Layer) -> Tensor:
        """What the inputs contribute to the gates, at all time steps."""
        return _drive_of(x, layer.input, layer.input_bias if self.biases_apart else _sum_of_biases(layer))

    def predict(
        self, drive: Tensor, weight: Tensor, bias: Tensor | None, states: Sequence[Tensor], precision: str
    ) -> tuple[Tensor, ...]:
        """Every kind of state over time, the first ones among them, and gates if they are kept.

        Args:
            drive: what the inputs contribute.
            weight, bias: of the hidden states.
            states: the first ones.
            precision: of the products.
        """
        biases = (bias,) if self.biases_apart else ()
        recurrence = getattr(torch.ops.pccompile, f"{self.operator}_recurrence")
        found = recurrence(drive, weight, *biases, *states, *self.options, precision)
        return (found,) if isinstance(found, Tensor) else found

    def last(self, found: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The last states of what was predicted."""
        return tuple(state[-1] for state in found[: self.states])

    def error(
        self,
        errors: Sequence[Tensor | None],
        weight: Tensor,
        found: Sequence[Tensor],
        precision: str,
        gains: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The errors over time, and those of the first states.

        Args:
            errors: of the outputs, and of the last states.
            weight: of the hidden states.
            found: what was predicted.
            precision: of the products.
            gains: of the gradients: then, beside the drive's error, what the gradients of inputs and of hidden states
                read is returned.
        """
        error, *last = errors
        if error is None:
            error = torch.zeros_like(found[0][1:])
        operator = getattr(
            torch.ops.pccompile, f"{self.operator}_recurrence{'' if gains is None else '_learned'}_error"
        )
        given = () if gains is None else (gains,)
        swept: tuple[Tensor, ...] = operator(
            error, *last, weight, *found[self.first_read :], *given, *self.options, precision
        )
        return swept


# By the name of ATen's operator.
KINDS = {
    "lstm": Kind("lstm", states=2, first_read=1),
    "gru": Kind("gru", biases_apart=True),
    "rnn_tanh": Kind("rnn", options=("tanh",)),
    "rnn_relu": Kind("rnn", options=("relu",)),
}


def _drive_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the inputs contribute to the gates, at all time steps: (steps, batch, gates) in one product."""
    rows, transposed = x.reshape(-1, x.shape[-1]), weight.t()
    product = rows @ transposed if bias is None else torch.addmm(bias, rows, transposed)
    return product.view(*x.shape[:-1], weight.shape[0])


def _sum_of_biases(layer: Layer) -> Tensor | None:
    """Where both are added before anything else is done, one stands for both."""
    return None if layer.input_bias is None else layer.input_bias + layer.recurrent_bias  # type: ignore[operator]


def gradients_of(error: Tensor, read: Tensor, of_weight: bool, of_bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """d^T x and d, summed over time steps and samples, as autograd writes those of a linear layer.

    Args:
        error: (steps, batch, gates).
        read: (steps, batch, units), what the weight was multiplied with.
    """
    rows = error.reshape(-1, error.shape[-1])
    d_weight = rows.t() @ read.reshape(-1, read.shape[-1]) if of_weight else None
    return d_weight, rows.sum(0, keepdim=True).view(-1) if of_bias else None
