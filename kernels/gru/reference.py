"""The recurrence of a GRU layer and its error in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gru_recurrence_error_reference", "gru_recurrence_reference"]


def gru_recurrence_reference(
    drive: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and gates over time, rounded to the drive's dtype where the kernel keeps them.

    Args:
        drive: (steps, batch, 3 units), what the inputs and their bias contribute to the gates.
        weight: (3 units, units), hidden to gates.
        bias: (3 units,), beside the weight; or None.
        hidden: (batch, units), before the first step.

    Returns:
        (steps + 1, batch, units), the first of them what was given, and (steps, batch, 4 units): the reset and update
        gates, the candidate, and what the hidden state contributes to it before the reset gate.
    """
    accumulated = torch.promote_types(drive.dtype, torch.float32)
    hiddens, gates = [hidden], []
    for now in drive.to(accumulated):
        before = hiddens[-1].to(accumulated)
        q = before @ weight.to(accumulated).mT
        q_r, q_z, q_n = (q if bias is None else q + bias.to(accumulated)).chunk(3, -1)
        y_r, y_z, y_n = now.chunk(3, -1)
        r, z = (y_r + q_r).sigmoid(), (y_z + q_z).sigmoid()
        n = (y_n + r * q_n).tanh()
        gates.append(torch.cat([r, z, n, q_n], -1).to(drive.dtype))
        hiddens.append((n + z * (before - n)).to(drive.dtype))
    steps, batch, width = drive.shape
    kept = torch.stack(gates) if gates else drive.new_empty(steps, batch, width // 3 * 4)
    return torch.stack(hiddens), kept


def gru_recurrence_error_reference(
    error: Tensor, hidden_error: Tensor | None, weight: Tensor, hiddens: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the drive, of what the hidden states contribute, and of the first hidden state.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step.
        hidden_error: (batch, units), with respect to the last state beyond `error`; None for zero.
        weight: (3 units, units).
        hiddens: (steps + 1, batch, units).
        gates: (steps, batch, 4 units).

    Returns:
        (steps, batch, 3 units) twice, of the error's dtype; (batch, units), of float32 or better.
    """
    accumulated = torch.promote_types(error.dtype, torch.float32)
    zero = torch.zeros(error.shape[1:], dtype=accumulated, device=error.device)
    d_hidden = zero if hidden_error is None else hidden_error.to(accumulated)
    drive_error = error.new_empty(*error.shape[:2], 3 * error.shape[2])
    state_error = torch.empty_like(drive_error)
    for t in reversed(range(len(error))):
        r, z, n, q_n = gates[t].to(accumulated).chunk(4, -1)
        d = error[t].to(accumulated) + d_hidden
        d_n = d * (1 - z) * (1 - n * n)
        both = [d_n * q_n * r * (1 - r), d * (hiddens[t].to(accumulated) - n) * z * (1 - z)]
        drive_error[t], state_error[t] = torch.cat([*both, d_n], -1), torch.cat([*both, d_n * r], -1)
        d_hidden = d * z + state_error[t].to(accumulated) @ weight.to(accumulated)
    return drive_error, state_error, d_hidden
