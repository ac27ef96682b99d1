"""Launches of the LSTM's recurrence to compile, in every arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error


def _launch(dtype: torch.dtype, steps: int, batch: int, units: int, precision: str = "ieee") -> None:
    def empty(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    states, gates, weight = empty(steps + 1, batch, units), empty(steps, batch, 4 * units), empty(4 * units, units)
    launch_lstm_recurrence(gates, weight, states, states, gates, precision)
    first = empty(batch, units, dtype=torch.float32)
    last = states[0]
    launch_lstm_recurrence_error(states[1:], last, last, weight, states, gates, gates, first, first, precision)


LAUNCHES = {
    "language": lambda dtype: _launch(dtype, 35, 64, 512),
    "odd": lambda dtype: _launch(dtype, 35, 63, 500),
    "tf32": lambda dtype: _launch(dtype, 35, 64, 512, "tf32"),
    "wide": lambda dtype: _launch(dtype, 8, 2**20, 1024),
}
