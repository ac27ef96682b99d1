"""Launches of conv_step to compile: with siblings, moving the parent."""

from __future__ import annotations

from functools import partial

from meta_convolutions import DIRECT, meta_convolution
from recorded import Case, Launch

from pccompile.kernels.conv_step.kernel import launch_conv_step


def _launch(case: Case, direct: bool) -> None:
    layer = meta_convolution(case, direct)
    launch_conv_step(
        layer.x,
        layer.weight,
        layer.bias,
        layer.output,
        layer.output,
        layer.residual,
        layer.argmax,
        layer.x,
        layer.geometry,
        case.activation,
        siblings=layer.x,
        parent_error=layer.x,
        input_precision=case.input_precision,
    )


LAUNCHES = {
    "product": Launch(partial(_launch, direct=False), products=2, activation="each"),
    "direct": Launch(partial(_launch, direct=True), activation="each", **DIRECT),
}
