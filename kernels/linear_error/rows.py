"""linear_error on matrices known to fit, for callers that run it often: no checks, no dispatch."""

from __future__ import annotations

from torch import Tensor

from pccompile.kernels.linear_error.kernel import launch_linear_error
from pccompile.kernels.results import SweepResults

__all__ = ["sweep_rows"]


def sweep_rows(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    parent: Tensor | bool,
    weight_gradient: Tensor | bool,
    bias_gradient: Tensor | bool,
    transposed: bool,
    activation: str,
    negative_slope: float,
    gain: float,
    input_precision: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The parent's error, dW and db; None for what is not asked for.

    Args:
        error: (batch, out).
        residual: (batch, out), or None for the identity.
        x: (batch, in), or None where dW is not asked for.
        weight: (out, in), or None where the parent's error is not asked for.
        parent, weight_gradient, bias_gradient: whether each is asked for, or the tensor to add it to.
        transposed: dW is (in, out).
        activation, negative_slope, gain, input_precision: as for `linear_error`.
    """

    def place(asked: Tensor | bool, *shape: int) -> Tensor | None:
        return (error.new_empty(shape) if asked else None) if isinstance(asked, bool) else asked

    batch, out = error.shape
    parent_error = place(parent, batch, weight.shape[1]) if weight is not None else None
    if x is None:
        d_weight = given = None
    else:
        given = place(weight_gradient, *((x.shape[1], out) if transposed else (out, x.shape[1])))
        d_weight = given.t() if given is not None and transposed else given
    d_bias = place(bias_gradient, out)
    adds = (not isinstance(asked, bool) for asked in (parent, weight_gradient, bias_gradient))
    results = SweepResults(parent_error, d_weight, d_bias, *adds)
    launch_linear_error(error, residual, x, weight, activation, *results, gain, negative_slope, input_precision)
    return parent_error, given, d_bias
