"""The recurrence of an RNN layer and its error in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.activations import activation_named

__all__ = ["rnn_recurrence_error_reference", "rnn_recurrence_reference"]


def rnn_recurrence_reference(drive: Tensor, weight: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """Hidden states over time, rounded to the drive's dtype.

    Args:
        drive: (steps, batch, units), what the inputs and biases contribute.
        weight: (units, units), hidden to hidden.
        hidden: (batch, units), before the first step.
        activation: "tanh" or "relu".

    Returns:
        (steps + 1, batch, units), the first of them what was given.
    """
    accumulated = torch.promote_types(drive.dtype, torch.float32)
    act, hiddens = activation_named(activation).function, [hidden]
    for now in drive.to(accumulated):
        z = now + hiddens[-1].to(accumulated) @ weight.to(accumulated).mT
        hiddens.append(act(z, 0.0).to(drive.dtype))
    return torch.stack(hiddens)


def rnn_recurrence_error_reference(
    error: Tensor, hidden_error: Tensor | None, weight: Tensor, hiddens: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Errors of the drive, and of the first hidden state.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step.
        hidden_error: (batch, units), with respect to the last state beyond `error`; None for zero.
        weight: (units, units).
        hiddens: (steps + 1, batch, units).
        activation: "tanh" or "relu".

    Returns:
        (steps, batch, units), of the error's dtype; (batch, units), of float32 or better.
    """
    accumulated = torch.promote_types(error.dtype, torch.float32)
    zero = torch.zeros(error.shape[1:], dtype=accumulated, device=error.device)
    d_hidden = zero if hidden_error is None else hidden_error.to(accumulated)
    slope, drive_error = activation_named(activation).slope, error.new_empty(error.shape)
    for t in reversed(range(len(error))):
        d = error[t].to(accumulated) + d_hidden
        drive_error[t] = d * slope(hiddens[t + 1].to(accumulated), 0.0)
        d_hidden = drive_error[t].to(accumulated) @ weight.to(accumulated)
    return drive_error, d_hidden
