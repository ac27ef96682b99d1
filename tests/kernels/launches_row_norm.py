"""Launches of row_norm to compile: whole rows, short rows together, and long rows in runs."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.row_norm.error import launch_row_norm_error
from pccompile.kernels.row_norm.predict import launch_row_norm_predict


def _launch(dtype: torch.dtype, rows: int, columns: int, centred: bool) -> None:
    def empty(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    x, weight, rstd = empty(rows, columns), empty(columns), empty(rows, dtype=torch.float32)
    mean, bias = (rstd, weight) if centred else (None, None)
    launch_row_norm_predict(x, weight, bias, x, mean, rstd, 1e-5)
    launch_row_norm_error(
        x,
        x,
        weight,
        mean,
        rstd,
        parent_error=x,
        weight_gradient=weight,
        bias_gradient=bias,
        accumulate_parent=centred,
        accumulate_weight=True,
        accumulate_bias=True,
    )


LAUNCHES = {
    "layer_96": lambda dtype: _launch(dtype, 8192, 96, True),
    "layer_2048": lambda dtype: _launch(dtype, 8192, 2048, True),
    "layer_16384": lambda dtype: _launch(dtype, 8192, 16384, True),
    "rms_4096_wide": lambda dtype: _launch(dtype, 2**20, 4096, False),
}
