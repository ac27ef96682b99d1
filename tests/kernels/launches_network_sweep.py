"""Launches of network_sweep to compile: one sample a program and several, with every option and with none."""

from __future__ import annotations

from functools import partial

import torch
from meta_networks import meta_network
from recorded import Case, Launch

from pccompile.kernels.network_sweep.launch import launch_network_sweep
from pccompile.kernels.network_sweep.layout import layout_of
from pccompile.kernels.strict_sweep.launch import Settings, empty_buffers


def _launch(case: Case, batch: int, which: str, full: bool) -> None:
    x, layers = meta_network(case, batch, which)
    settings = Settings(
        loss="cross_entropy" if full else "squared_error",
        free_output=full,
        learn_errors="previous" if full else "current",
        record=full,
        steps=20,
        step_size=0.1,
        momentum=0.9 if full else 0.0,
        loss_factor=1.0,
        ignore_index=-100,
        negative_slope=0.01,
        input_precision=case.input_precision,
        averaged=full,
    )
    layout = layout_of(x.shape[1:], layers, full)
    launch_network_sweep(
        x,
        case.empty(batch, dtype=torch.int64) if full else case.empty(batch, layers[-1].weight.shape[0]),
        layers,
        settings,
        case.input_precision,
        empty_buffers(x, layout.columns, settings, layout.drive_columns),
    )


LAUNCHES = {
    "pooled": Launch(partial(_launch, batch=64, which="pooled", full=False), products=1, activation="each"),
    "strided": Launch(partial(_launch, batch=8192, which="strided", full=True), products=1, activation="gelu"),
    "deep": Launch(
        partial(_launch, batch=512, which="average", full=False),
        products=1,
        precisions=("half", "ieee"),
        architectures=("sm_90", "gfx942"),
        activation="gelu",
    ),
    "wide": Launch(
        partial(_launch, batch=2**20, which="strided", full=True),
        products=1,
        precisions=("half",),
        architectures=("sm_90",),
        activation="gelu",
    ),
}
