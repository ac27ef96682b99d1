"""linear_step on matrices known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from torch import Tensor

from pccompile.kernels.linear_step.kernel import launch_linear_step

__all__ = ["step_rows"]


def step_rows(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    input_precision: str,
    prediction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A layer's error (batch, out), and what it gives its parent, (batch, in).

    Args:
        value: (batch, out).
        x: (batch, in).
        weight: (out, in).
        bias: (out,), or None.
        activation, negative_slope, input_precision: as for `linear_step`.
        prediction: (batch, out), overwritten, where it is to be kept.
    """
    error, drive = value.new_empty(value.shape), x.new_empty(x.shape)
    launch_linear_step(
        value,
        x,
        weight,
        bias,
        error,
        drive,
        prediction,
        activation,
        negative_slope=negative_slope,
        input_precision=input_precision,
    )
    return error, drive
