"""Launches of the GRU's recurrence to compile, in every arithmetic."""

from __future__ import annotations

from functools import partial

import torch
from recorded import WIDE, Case, Launch

from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.recurrences import Learned


def _launch(case: Case, steps: int, batch: int, units: int) -> None:
    states, drive = case.empty(steps + 1, batch, units), case.empty(steps, batch, 3 * units)
    gates, weight, bias = case.empty(steps, batch, 4 * units), case.empty(3 * units, units), case.empty(3 * units)
    precision, first = case.input_precision, case.empty(batch, units, dtype=torch.float32)
    launch_gru_recurrence(drive, weight, bias, states[0], states, gates, precision)
    errors = states[1:], states[0], weight, states, gates, drive
    launch_gru_recurrence_error(*errors, drive, first, precision)
    learned = Learned(drive, drive, case.empty(2, steps, 3, dtype=torch.float32))
    launch_gru_recurrence_error(*errors, drive[:1], first, precision, learned=learned)


LAUNCHES = {
    "language": Launch(partial(_launch, steps=35, batch=64, units=512), products=1),
    "odd": Launch(partial(_launch, steps=35, batch=63, units=500)),
    "wide": Launch(partial(_launch, steps=8, batch=2**20, units=1024), products=1, **WIDE),
}
