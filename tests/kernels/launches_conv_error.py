"""Launches of conv_error to compile: small tiles overwrite, others accumulate."""

from __future__ import annotations

from functools import partial

from meta_convolutions import DIRECT, meta_convolution
from recorded import Case, Launch

from pccompile.kernels.conv_error.configurations import CONFIGURATIONS
from pccompile.kernels.conv_error.kernel import launch_conv_error


def _launch(case: Case, size: str) -> None:
    layer = meta_convolution(case, direct=size == "direct")
    launch_conv_error(
        layer.output,
        layer.residual,
        layer.argmax,
        layer.x,
        layer.weight,
        layer.geometry,
        case.activation,
        parent_error=layer.x,
        weight_gradient=layer.weight,
        bias_gradient=layer.bias,
        accumulate_parent=size != "small",
        accumulate_weight=size != "small",
        accumulate_bias=size != "small",
        input_precision=case.input_precision,
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
    )


LAUNCHES = {
    "large": Launch(partial(_launch, size="large"), products=2, activation="each"),
    "small": Launch(partial(_launch, size="small"), products=2, activation="each"),
    "direct": Launch(partial(_launch, size="direct"), activation="each", **DIRECT),
}
