"""Launches of the RNN's recurrence to compile, in every arithmetic."""

from __future__ import annotations

from functools import partial

import torch
from recorded import WIDE, Case, Launch

from pccompile.kernels.recurrences import Learned
from pccompile.kernels.rnn.kernel import launch_rnn_recurrence, launch_rnn_recurrence_error


def _launch(case: Case, activation: str, steps: int, batch: int, units: int) -> None:
    states, drive = case.empty(steps + 1, batch, units), case.empty(steps, batch, units)
    weight, first = case.empty(units, units), case.empty(batch, units, dtype=torch.float32)
    options = activation, case.input_precision
    launch_rnn_recurrence(drive, weight, states[0], states, *options)
    errors = states[1:], states[0], weight, states, drive, first, *options
    launch_rnn_recurrence_error(*errors)
    learned = Learned(drive, drive, case.empty(2, steps, 1, dtype=torch.float32))
    launch_rnn_recurrence_error(*errors, learned=learned)


LAUNCHES = {
    "language": Launch(partial(_launch, activation="tanh", steps=35, batch=64, units=512), products=1),
    "odd": Launch(partial(_launch, activation="relu", steps=35, batch=63, units=500)),
    "wide": Launch(partial(_launch, activation="tanh", steps=8, batch=2**20, units=4096), products=1, **WIDE),
}
