"""Launches of row_norm to compile: whole rows, short rows together, and long rows in runs."""

from __future__ import annotations

from functools import partial

import torch
from recorded import Case, Launch

from pccompile.kernels.results import SweepResults
from pccompile.kernels.row_norm.error import launch_row_norm_error
from pccompile.kernels.row_norm.predict import launch_row_norm_predict


def _launch(case: Case, rows: int, columns: int, centred: bool) -> None:
    x, weight, rstd = case.empty(rows, columns), case.empty(columns), case.empty(rows, dtype=torch.float32)
    mean, bias = (rstd, weight) if centred else (None, None)
    launch_row_norm_predict(x, weight, bias, x, mean, rstd, 1e-5)
    launch_row_norm_error(x, x, weight, mean, rstd, *SweepResults(x, weight, bias, centred, True, True))


LAUNCHES = {
    "layer_96": Launch(partial(_launch, rows=8192, columns=96, centred=True)),
    "layer_2048": Launch(partial(_launch, rows=8192, columns=2048, centred=True)),
    "layer_16384": Launch(partial(_launch, rows=8192, columns=16384, centred=True)),
    "rms_4096": Launch(partial(_launch, rows=8192, columns=4096, centred=False)),
    "wide": Launch(partial(_launch, rows=2**20, columns=4096, centred=False)),
}
