"""Launches of conv_predict to compile."""

from __future__ import annotations

from functools import partial

from meta_convolutions import DIRECT, meta_convolution
from recorded import Case, Launch

from pccompile.kernels.conv_predict.configurations import CONFIGURATIONS
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.convolution_geometry import kept_residual


def _launch(case: Case, size: str) -> None:
    layer = meta_convolution(case, direct=size == "direct")
    launch_conv_predict(
        layer.x,
        layer.weight,
        layer.bias,
        layer.output,
        None if kept_residual(case.activation, layer.geometry.pool) == "nothing" else layer.residual,
        layer.argmax,
        layer.geometry,
        case.activation,
        input_precision=case.input_precision,
        configuration=CONFIGURATIONS[case.architecture][case.precision][size],
    )


LAUNCHES = {
    "large": Launch(partial(_launch, size="large"), products=1, activation="each"),
    "small": Launch(partial(_launch, size="small"), products=1, activation="each"),
    "direct": Launch(partial(_launch, size="direct"), activation="each", **DIRECT),
}
