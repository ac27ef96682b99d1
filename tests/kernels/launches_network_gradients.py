"""Launches of a network sweep's gradients to compile."""

from __future__ import annotations

from functools import partial

import torch
from meta_networks import meta_network
from recorded import Case, Launch

from pccompile.kernels.network_sweep.launch import launch_network_gradients
from pccompile.kernels.network_sweep.layout import layout_of


def _launch(case: Case, batch: int, which: str) -> None:
    x, layers = meta_network(case, batch, which)
    layout = layout_of(x.shape[1:], layers)
    values, drives = (
        case.empty(batch, columns, dtype=torch.float32) for columns in (layout.columns, layout.drive_columns)
    )
    upstream = case.empty(dtype=torch.float32)
    gradients, precision = case.empty(layout.gradients), case.input_precision
    launch_network_gradients(x, values, drives, layers, gradients, 1.0, upstream, precision, precision)


LAUNCHES = {
    "pooled": Launch(partial(_launch, batch=64, which="pooled"), products=1),
    "deep": Launch(
        partial(_launch, batch=8, which="average"),
        products=1,
        precisions=("half", "ieee"),
        architectures=("sm_90", "gfx942"),
    ),
    "wide": Launch(
        partial(_launch, batch=2**20, which="strided"), products=1, precisions=("half",), architectures=("sm_90",)
    ),
}
