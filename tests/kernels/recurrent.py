"""Recurrent layers of every kind, with random tensors: what their kernels are called and compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from layers import normals
from torch import Tensor, nn

from pccompile.kernels import gru_error, gru_predict, lstm_error, lstm_predict, rnn_error, rnn_predict
from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.gru.reference import gru_recurrence_error_reference, gru_recurrence_reference
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.lstm.reference import lstm_recurrence_error_reference, lstm_recurrence_reference
from pccompile.kernels.rnn.kernel import launch_rnn_recurrence, launch_rnn_recurrence_error
from pccompile.kernels.rnn.reference import rnn_recurrence_error_reference, rnn_recurrence_reference


@dataclass(frozen=True)
class Kind:
    """A kind of recurrent layer.

    Attributes:
        operation: "lstm".
        layer: torch's, of (inputs, units).
        predict, error: the functions to call.
        launch, launch_error: the launches, of tensors that the caller owns.
        reference, error_reference: the recurrence and its error in plain torch.
        gates: how many times the units a gate's product is wide.
        states: of the layer, by argument name.
        biases_apart: whether the recurrence takes a bias of its own, rather than the drive the sum of both.
        first_read: the first of the recurrence's results that its error reads; it reads those that follow too.
        options: what recurrences take beside tensors and the precision.
    """

    operation: str
    layer: Callable[..., nn.RNNBase]
    predict: Callable[..., Any]
    error: Callable[..., Any]
    launch: Callable[..., None]
    launch_error: Callable[..., None]
    reference: Callable[..., Any]
    error_reference: Callable[..., tuple[Tensor, ...]]
    gates: int
    states: tuple[str, ...] = ("hidden",)
    biases_apart: bool = False
    first_read: int = 0
    options: tuple[str, ...] = ()

    def operator(self, suffix: str = "") -> Callable[..., Any]:
        """pccompile::OPERATION_recurrence, or with the suffix "_error" or "_learned_error" those."""
        return getattr(torch.ops.pccompile, f"{self.operation}_recurrence{suffix}")

    def recurrence(self, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        """The operator's states over time, and gates."""
        return as_tuple(self.operator()(*arguments, *self.options, "ieee"))

    def expected(self, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        """The reference's states over time, and gates."""
        return as_tuple(self.reference(*arguments, *self.options))

    def random(
        self,
        device: str,
        steps: int = 3,
        batch: int = 7,
        units: int = 10,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Drive, weight, the recurrence's bias if it has one, and first states."""
        normal, width = normals(None, dtype, device), self.gates * units
        bias = [normal(width)] if self.biases_apart else []
        first = [normal(batch, units) for _ in self.states]
        return [normal(steps, batch, width), normal(width, units) / max(units, 1) ** 0.5, *bias, *first]

    def sweep(self, arguments: Sequence[Tensor], found: Sequence[Tensor], last: bool = True) -> list[Tensor | None]:
        """What the recurrence's error takes: random errors, the weight, and what the recurrence found.

        Args:
            arguments: the recurrence's.
            found: its results.
            last: whether there are errors of the last states.
        """
        error, states = torch.randn(found[0][1:].shape).to(found[0]), arguments[-len(self.states) :]
        errors = [torch.randn(state.shape).to(state) if last else None for state in states]
        return [error, *errors, arguments[1], *found[self.first_read :]]

    def parameters(self, layer: nn.RNNBase) -> list[Tensor]:
        """What the functions take of a layer: the weights, and both biases or their sum."""
        *weights, bias_input, bias_hidden = layer.parameters()
        return [*weights, *([bias_input, bias_hidden] if self.biases_apart else [bias_input + bias_hidden])]


def as_tuple(found: Any) -> tuple[Any, ...]:
    """One result by itself, as several."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _rnn(activation: str) -> Kind:
    return Kind(
        "rnn",
        partial(nn.RNN, nonlinearity=activation),
        partial(rnn_predict, activation=activation),
        partial(rnn_error, activation=activation),
        launch_rnn_recurrence,
        launch_rnn_recurrence_error,
        rnn_recurrence_reference,
        rnn_recurrence_error_reference,
        gates=1,
        options=(activation,),
    )


GRU = Kind(
    "gru",
    nn.GRU,
    gru_predict,
    gru_error,
    launch_gru_recurrence,
    launch_gru_recurrence_error,
    gru_recurrence_reference,
    gru_recurrence_error_reference,
    gates=3,
    biases_apart=True,
)
KINDS = {
    "rnn tanh": _rnn("tanh"),
    "rnn relu": _rnn("relu"),
    "gru": GRU,
    "lstm": Kind(
        "lstm",
        nn.LSTM,
        lstm_predict,
        lstm_error,
        launch_lstm_recurrence,
        launch_lstm_recurrence_error,
        lstm_recurrence_reference,
        lstm_recurrence_error_reference,
        gates=4,
        states=("hidden", "cell"),
        first_read=1,
    ),
}
