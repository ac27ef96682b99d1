"""Launches of linear_error to compile: large tiles accumulate, small ones overwrite."""

from __future__ import annotations

from functools import partial

from recorded import WIDE, Case, Launch

from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.linear_error.configurations import CONFIGURATIONS
from pccompile.kernels.linear_error.kernel import launch_linear_error


def _launch(case: Case, batch: int, size: str) -> None:
    error, x, weight = case.empty(batch, 1024), case.empty(batch, 4096), case.empty(1024, 4096)
    launch_linear_error(
        error,
        None if ACTIVATIONS[case.activation].residual == "none" else error,
        x,
        weight,
        case.activation,
        parent_error=x,
        weight_gradient=weight,
        bias_gradient=case.empty(1024),
        accumulate_parent=size == "large",
        accumulate_weight=size == "large",
        accumulate_bias=size == "large",
        input_precision=case.input_precision,
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
    )


_large = partial(_launch, batch=8192, size="large")
# ptxas trades registers for occupancy where these two are used, and has spilled for it.
_once = {"precisions": ("half",), "architectures": ("sm_80",)}

LAUNCHES = {
    "large": Launch(_large, products=2, activation="gelu"),
    "small": Launch(partial(_launch, batch=64, size="small"), products=2, activation="each"),
    "wide": Launch(partial(_launch, batch=2**20, size="large"), products=2, activation="gelu", **WIDE),
    "gelu_tanh": Launch(_large, products=2, activation="gelu_tanh", **_once),
    "silu": Launch(_large, products=2, activation="silu", **_once),
}
