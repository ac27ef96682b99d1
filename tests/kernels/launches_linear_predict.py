"""Launches of linear_predict to compile."""

from __future__ import annotations

from functools import partial

from recorded import WIDE, Case, Launch

from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.linear_predict.configurations import CONFIGURATIONS
from pccompile.kernels.linear_predict.kernel import launch_linear_predict


def _launch(case: Case, batch: int, size: str) -> None:
    x, weight, bias, output = case.empty(batch, 4096), case.empty(1024, 4096), case.empty(1024), case.empty(batch, 1024)
    keep = ACTIVATIONS[case.activation].residual == "preactivation"
    launch_linear_predict(
        x,
        weight,
        bias,
        output,
        output if keep else None,
        case.activation,
        input_precision=case.input_precision,
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
    )


LAUNCHES = {
    "large": Launch(partial(_launch, batch=8192, size="large"), products=1, activation="gelu"),
    "small": Launch(partial(_launch, batch=64, size="small"), products=1, activation="each"),
    "wide": Launch(partial(_launch, batch=2**20, size="large"), products=1, activation="gelu", **WIDE),
}
