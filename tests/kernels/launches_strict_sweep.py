"""Launches of strict_sweep to compile: by tiles of the batch with every option (recorded energies apart, which change
the order of its layers), in its other forms with none."""

from __future__ import annotations

from functools import partial

import torch
from meta_chains import WIDTHS, meta_chain
from recorded import Case, Launch

from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.strict_sweep.configurations import CONFIGURATIONS
from pccompile.kernels.strict_sweep.launch import Settings, empty_buffers, launch_strict_sweep
from pccompile.kernels.strict_sweep.layout import Layout


def _launch(
    case: Case,
    batch: int,
    size: str,
    form: str,
    steps: int = 20,
    record: bool = False,
    widths: tuple[int, ...] = WIDTHS,
) -> None:
    x, chain = meta_chain(case, batch, widths)
    tall = size == "tall"
    settings = Settings(
        loss="cross_entropy" if tall else "squared_error",
        free_output=tall,
        learn_errors="previous" if tall else "current",
        record=record,
        steps=steps,
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
        empty_buffers(x, columns, settings),
        form=form,
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
        programs=132,
    )


LAUNCHES = {
    "tall": Launch(partial(_launch, batch=8192, size="tall", form="batch_tiles"), products=1, activation="gelu"),
    "flat": Launch(partial(_launch, batch=64, size="flat", form="cooperative"), products=1, activation="each"),
    "ten classes": Launch(  # whose weights cannot be read in vectors
        partial(_launch, batch=64, size="flat", form="batch_tiles", widths=(784, 256, 256, 10)),
        products=1,
        activation="each",
    ),
    "half-steps": Launch(
        partial(_launch, batch=64, size="flat", form="half_steps", steps=1),
        precisions=("half", "tf32", "ieee"),
        architectures=ARCHITECTURES,
        activation="each",
    ),
    "wide": Launch(
        partial(_launch, batch=2**22, size="tall", form="batch_tiles", record=True),
        products=1,
        activation="gelu",
        precisions=("half",),
        architectures=("sm_90",),
    ),
}
