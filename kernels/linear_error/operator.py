"""linear_error and linear_error_into: the operators pccompile::linear_error(_into), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import (
    check_alike,
    check_input_precision,
    check_residual,
    check_shape,
    refusal,
    rows_of,
)
from pccompile.kernels.linear_error.kernel import launch_linear_error
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.results import SweepResults, only_asked

__all__ = ["ErrorSweep", "linear_error", "linear_error_into"]


class ErrorSweep(NamedTuple):
    """What linear_error returns; None for what was not asked for.

    Attributes:
        parent_error: d W, (..., in).
        weight_gradient: gain d^T x, (out, in).
        bias_gradient: gain sum(d), (out,).
    """

    parent_error: Tensor | None
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None


def linear_error(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> ErrorSweep:
    """The error sweep of act(x W^T + b) in one launch, with d = error * act'(z).

    Not differentiable. Sums are in float32; d is rounded to the inputs' dtype before the two products.

    Args:
        error: (..., out), with respect to the layer's output; float32, bfloat16 or float16, any strides.
        residual: (..., out), from linear_predict; None for the identity. Dtype and device are error's, from here on.
        x: (..., in), the layer's input.
        weight: (out, in).
        activation: a key of pccompile.kernels.ACTIVATIONS.
        parent_error: whether to compute d W.
        weight_gradient: whether to compute gain d^T x.
        bias_gradient: whether to compute gain sum(d).
        gain: factor of the two gradients, read at run time.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        ErrorSweep: contiguous tensors of error's dtype.

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another, or the residual is missing.
    """
    tensors = _rows("error", error), None if residual is None else _rows("residual", residual), _rows("x", x), weight
    asked, options = (parent_error, weight_gradient, bias_gradient), (gain, negative_slope, input_precision)
    outputs = torch.ops.pccompile.linear_error(*tensors, activation, *asked, *options)
    parent, d_weight, d_bias = only_asked(outputs, asked)
    return ErrorSweep(None if parent is None else parent.reshape(x.shape), d_weight, d_bias)


def linear_error_into(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str = "identity",
    *,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> None:
    """linear_error into tensors that exist: overwritten, or added to in float32 and rounded once.

    Args:
        error: (batch, out); this and what follows as for linear_error, but with exactly one batch dimension.
        residual: (batch, out), or None for the identity.
        x: (batch, in).
        weight: (out, in).
        activation: a key of pccompile.kernels.ACTIVATIONS.
        parent_error: (batch, in), any strides, or None to leave it out.
        weight_gradient: (out, in), likewise.
        bias_gradient: (out,), likewise.
        accumulate_parent: add to parent_error, as where several vertices have this parent.
        accumulate_weight: add to weight_gradient, as where the weight is used more than once.
        accumulate_bias: add to bias_gradient, likewise.
        gain: factor of the two gradients, read at run time.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another, or the residual is missing.
    """
    tensors = (error, residual, x, weight, parent_error, weight_gradient, bias_gradient)
    flags, options = (accumulate_parent, accumulate_weight, accumulate_bias), (gain, negative_slope, input_precision)
    torch.ops.pccompile.linear_error_into(*tensors, activation, *flags, *options)


def _rows(name: str, tensor: Tensor) -> Tensor:
    """The tensor with its leading dimensions made one."""
    if tensor.dim() == 0:
        raise ShapeError(f"linear_error: {name} is a scalar", cure="give it a dimension of features")
    return rows_of(tensor)


def _check(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str,
    negative_slope: float,
    input_precision: str,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
) -> None:
    name = "linear_error"
    targets = {"parent_error": parent_error, "weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    check_alike(name, error=error, residual=residual, x=x, weight=weight, **targets)
    check_input_precision(input_precision)
    if error.dim() != 2 or weight.dim() != 2:
        raise ShapeError(
            f"{name}: error has shape {tuple(error.shape)} and weight {tuple(weight.shape)}",
            cure="error is (batch, out) and weight is (out, in)",
        )
    batch, (out, in_features) = error.shape[0], weight.shape
    check_shape(name, "error", error, (batch, out), "(batch, out)")
    check_shape(name, "residual", residual, (batch, out), "(batch, out)")
    check_shape(name, "x", x, (batch, in_features), "(batch, in)")
    check_shape(name, "parent_error", parent_error, (batch, in_features), "(batch, in)")
    check_shape(name, "weight_gradient", weight_gradient, (out, in_features), "(out, in)")
    check_shape(name, "bias_gradient", bias_gradient, (out,), "(out,)")
    check_residual(name, residual, activation, negative_slope)


def _empty_outputs(
    x: Tensor, weight: Tensor, parent_error: bool, weight_gradient: bool, bias_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """d W (batch, in), d^T x (out, in) and sum(d) (out,); with no elements where it is not asked for."""
    return (
        x.new_empty(x.shape if parent_error else (0, 0)),
        x.new_empty(weight.shape if weight_gradient else (0, 0)),
        x.new_empty(weight.shape[:1] if bias_gradient else (0,)),
    )


@custom_operator("pccompile::linear_error")
def _linear_error(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    activation: str,
    parent_error: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    gain: float,
    negative_slope: float,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(error, residual, x, weight, activation, negative_slope, input_precision)
    asked = (parent_error, weight_gradient, bias_gradient)
    outputs = _empty_outputs(x, weight, *asked)
    if has_data(error):
        results = SweepResults(*only_asked(outputs, asked))
        launch_linear_error(error, residual, x, weight, activation, *results, gain, negative_slope, input_precision)
    return outputs


_linear_error.register_autograd(refusal("the error sweep of a linear layer was differentiated"))


@custom_operator("pccompile::linear_error_into", mutates=("parent_error", "weight_gradient", "bias_gradient"))
def _linear_error_into(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    parent_error: Tensor | None,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    activation: str,
    accumulate_parent: bool,
    accumulate_weight: bool,
    accumulate_bias: bool,
    gain: float,
    negative_slope: float,
    input_precision: str,
) -> None:
    targets = (parent_error, weight_gradient, bias_gradient)
    _check(error, residual, x, weight, activation, negative_slope, input_precision, *targets)
    if has_data(error):
        results = SweepResults(*targets, accumulate_parent, accumulate_weight, accumulate_bias)
        launch_linear_error(error, residual, x, weight, activation, *results, gain, negative_slope, input_precision)
