"""Launches of the LSTM's recurrence to compile, in every arithmetic."""

from __future__ import annotations

from functools import partial

import torch
from recorded import WIDE, Case, Launch

from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.recurrences import Learned


def _launch(case: Case, steps: int, batch: int, units: int) -> None:
    states, gates = case.empty(steps + 1, batch, units), case.empty(steps, batch, 4 * units)
    weight, precision = case.empty(4 * units, units), case.input_precision
    launch_lstm_recurrence(gates, weight, states[0], states[0], states, states, gates, precision)
    first = case.empty(batch, units, dtype=torch.float32)
    last = states[0]
    errors = states[1:], last, last, weight, states, gates, gates, first, first, precision
    launch_lstm_recurrence_error(*errors)
    learned = Learned(gates, gates, case.empty(2, steps, 4, dtype=torch.float32))
    launch_lstm_recurrence_error(*errors, learned=learned)


LAUNCHES = {
    "language": Launch(partial(_launch, steps=35, batch=64, units=512), products=1),
    "odd": Launch(partial(_launch, steps=35, batch=63, units=500)),
    "wide": Launch(partial(_launch, steps=8, batch=2**20, units=1024), products=1, **WIDE),
}
