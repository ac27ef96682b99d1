"""Launches of strict_sweep to compile: in tiles of the batch with every option, and cooperatively with none."""

from __future__ import annotations

from functools import partial

import torch
from meta_chains import meta_chain
from recorded import Case, Launch

from pccompile.kernels.strict_sweep.configurations import CONFIGURATIONS
from pccompile.kernels.strict_sweep.launch import Settings, empty_buffers, launch_strict_sweep
from pccompile.kernels.strict_sweep.layout import Layout


def _launch(case: Case, batch: int, size: str) -> None:
    x, chain = meta_chain(case, batch)
    tall = size == "tall"
    settings = Settings(
        loss="cross_entropy" if tall else "squared_error",
        free_output=tall,
        learn_errors="previous" if tall else "current",
        record=tall,
        steps=20,
        step_size=0.1,
        momentum=0.9 if tall else 0.0,
        loss_factor=1.0,
        ignore_index=-100,
        negative_slope=0.01,
        input_precision=case.input_precision,
        averaged=tall,
    )
    columns = Layout.of([weight.shape for weight in chain.weights], tall).columns
    launch_strict_sweep(
        x,
        case.empty(batch, dtype=torch.int64) if tall else case.empty(batch, chain.widths[-1]),
        chain,
        settings,
        empty_buffers(x, columns, settings.steps, momentum=tall, record=tall, held=tall),
        form="batch_tiles" if tall else "cooperative",
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
        programs=132,
    )


LAUNCHES = {
    "tall": Launch(partial(_launch, batch=8192, size="tall"), products=1, activation="gelu"),
    "flat": Launch(partial(_launch, batch=64, size="flat"), products=1, activation="each"),
    "wide": Launch(
        partial(_launch, batch=2**22, size="tall"),
        products=1,
        activation="gelu",
        precisions=("half",),
        architectures=("sm_90",),
    ),
}
