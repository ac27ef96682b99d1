"""Launches of linear_step to compile: a wide layer whose weight no cache holds, or all, and the widest narrow one."""

from __future__ import annotations

from functools import partial

from recorded import Case, Launch

from pccompile.kernels.linear_step.configurations import CONFIGURATIONS, Whole
from pccompile.kernels.linear_step.kernel import launch_linear_step


def _launch(case: Case, batch: int, size: str, group_out: int = 1024) -> None:
    configuration = CONFIGURATIONS[case.architecture][case.precision][size]
    inputs = configuration.most_in if isinstance(configuration, Whole) else 4096
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
        accumulate=size == "tiled",
        input_precision=case.input_precision,
        configuration=configuration,
        group_out=group_out,
    )


_TILED = partial(_launch, batch=8192, size="tiled")

LAUNCHES = {
    "tiled": Launch(partial(_TILED, group_out=512), products=1, activation="gelu"),
    "whole": Launch(partial(_launch, batch=8192, size="whole"), products=1, activation="each"),
    "long": Launch(partial(_launch, batch=8192, size="long"), products=1, activation="each"),
    "once": Launch(_TILED, products=1, activation="relu", precisions=("half",)),
    "wide": Launch(
        partial(_launch, batch=2**20, size="tiled", group_out=512),
        products=1,
        activation="gelu",
        precisions=("half",),
        architectures=("sm_90",),
    ),
}
