"""Launches of linear_step to compile: a wide layer, and one of as many inputs as a narrow one may have."""

from __future__ import annotations

from functools import partial

from recorded import Case, Launch

from pccompile.kernels.linear_step.configurations import CONFIGURATIONS
from pccompile.kernels.linear_step.kernel import launch_linear_step


def _launch(case: Case, batch: int, narrow: bool) -> None:
    inputs = CONFIGURATIONS[case.architecture][case.precision].narrow if narrow else 4096
    value, x, weight = case.empty(batch, 1024), case.empty(batch, inputs), case.empty(1024, inputs)
    launch_linear_step(
        value,
        x,
        weight,
        case.empty(1024),
        value,
        x,
        value,
        case.activation,
        accumulate=not narrow,
        input_precision=case.input_precision,
    )


LAUNCHES = {
    "tiled": Launch(partial(_launch, batch=8192, narrow=False), products=1, activation="gelu"),
    "narrow": Launch(partial(_launch, batch=8192, narrow=True), products=1, activation="each"),
    "wide": Launch(
        partial(_launch, batch=2**20, narrow=False),
        products=1,
        activation="gelu",
        precisions=("half",),
        architectures=("sm_90",),
    ),
}
