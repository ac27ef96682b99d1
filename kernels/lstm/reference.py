"""The recurrence of an LSTM layer and its error in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lstm_recurrence_error_reference", "lstm_recurrence_reference"]


def lstm_recurrence_reference(
    drive: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, cells and gates over time, rounded to the drive's dtype where the kernel keeps them.

    Args:
        drive: (steps, batch, 4 units), what the inputs and biases contribute to the gates.
        weight: (4 units, units), hidden to gates.
        hidden, cell: (batch, units), before the first step.

    Returns:
        (steps + 1, batch, units) twice, the first of them what was given, and (steps, batch, 4 units): the input,
        forget, candidate and output gates.
    """
    accumulated = torch.promote_types(drive.dtype, torch.float32)
    hiddens, cells, gates = [hidden], [cell], []
    for now in drive.to(accumulated):
        z = now + hiddens[-1].to(accumulated) @ weight.to(accumulated).mT
        i, f, g, o = z.chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * cells[-1].to(accumulated) + i * g
        gates.append(torch.cat([i, f, g, o], -1).to(drive.dtype))
        cells.append(c.to(drive.dtype))
        hiddens.append((o * c.tanh()).to(drive.dtype))
    kept = torch.stack(gates) if gates else drive.new_empty(drive.shape)
    return torch.stack(hiddens), torch.stack(cells), kept


def lstm_recurrence_error_reference(
    error: Tensor, hidden_error: Tensor | None, cell_error: Tensor | None, weight: Tensor, cells: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the drive, of the first hidden state and of the first cell.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step.
        hidden_error, cell_error: (batch, units), with respect to the last states beyond `error`; None for zero.
        weight: (4 units, units).
        cells: (steps + 1, batch, units).
        gates: (steps, batch, 4 units).

    Returns:
        (steps, batch, 4 units) of the error's dtype; (batch, units) twice, of float32 or better.
    """
    accumulated = torch.promote_types(error.dtype, torch.float32)
    zero = torch.zeros(error.shape[1:], dtype=accumulated, device=error.device)
    d_hidden = zero if hidden_error is None else hidden_error.to(accumulated)
    d_cell = zero if cell_error is None else cell_error.to(accumulated)
    drive_error = torch.empty_like(gates)
    for t in reversed(range(len(error))):
        i, f, g, o = gates[t].to(accumulated).chunk(4, -1)
        d = error[t].to(accumulated) + d_hidden
        squashed = cells[t + 1].to(accumulated).tanh()
        inner = d_cell + d * o * (1 - squashed * squashed)
        d_gates = torch.cat(
            [
                inner * g * i * (1 - i),
                inner * cells[t].to(accumulated) * f * (1 - f),
                inner * i * (1 - g * g),
                d * squashed * o * (1 - o),
            ],
            -1,
        )
        drive_error[t] = d_gates
        d_cell, d_hidden = inner * f, drive_error[t].to(accumulated) @ weight.to(accumulated)
    return drive_error, d_hidden, d_cell
