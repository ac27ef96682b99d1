"""linear_step and linear_step_into: the operators pccompile::linear_step(_into), and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_input_precision, check_shape, refusal
from pccompile.kernels.linear_step.kernel import launch_linear_step
from pccompile.kernels.linear_step.rows import step_rows
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["LayerStep", "linear_step", "linear_step_into"]


class LayerStep(NamedTuple):
    """What linear_step returns.

    Attributes:
        error: v - act(z), (batch, out).
        drive: d W, (batch, in).
        prediction: act(z), (batch, out); None where it was not asked for.
    """

    error: Tensor
    drive: Tensor
    prediction: Tensor | None


def linear_step(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    prediction: bool = False,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> LayerStep:
    """A layer's error e = v - act(x W^T + b), and (e * act'(z)) W for its parent, in one launch.

    Not differentiable. Sums are in float32; the prediction is rounded to the inputs' dtype before it is compared,
    as values are, and d before the second product.

    Args:
        value: (batch, out); float32, bfloat16 or float16, any strides.
        x: (batch, in), the parent's value. Dtype and device are value's, from here on.
        weight: (out, in).
        bias: (out,), or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        prediction: whether to return act(z) as well.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        LayerStep: contiguous tensors of value's dtype.

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    error, drive, kept = torch.ops.pccompile.linear_step(
        value, x, weight, bias, activation, prediction, negative_slope, input_precision
    )
    return LayerStep(error, drive, kept if prediction else None)


def linear_step_into(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    error: Tensor,
    drive: Tensor,
    accumulate: bool = False,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> None:
    """linear_step into tensors that exist.

    Args:
        value, x, weight, bias, activation: as for linear_step.
        error: (batch, out), any strides, overwritten.
        drive: (batch, in), likewise.
        accumulate: add to drive in float32 and round once, as where several vertices have this parent.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    torch.ops.pccompile.linear_step_into(
        value, x, weight, bias, error, drive, activation, accumulate, negative_slope, input_precision
    )


def _check(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    input_precision: str,
    error: Tensor | None = None,
    drive: Tensor | None = None,
) -> None:
    name = "linear_step"
    check_alike(name, value=value, x=x, weight=weight, bias=bias, error=error, drive=drive)
    check_input_precision(input_precision)
    activation_named(activation, negative_slope)
    if value.dim() != 2 or weight.dim() != 2:
        raise ShapeError(
            f"{name}: value has shape {tuple(value.shape)} and weight {tuple(weight.shape)}",
            cure="value is (batch, out) and weight is (out, in)",
        )
    batch, (out, in_features) = value.shape[0], weight.shape
    check_shape(name, "value", value, (batch, out), "(batch, out)")
    check_shape(name, "x", x, (batch, in_features), "(batch, in)")
    check_shape(name, "bias", bias, (out,), "(out,)")
    check_shape(name, "error", error, (batch, out), "(batch, out)")
    check_shape(name, "drive", drive, (batch, in_features), "(batch, in)")


@custom_operator("pccompile::linear_step")
def _linear_step(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    prediction: bool,
    negative_slope: float,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(value, x, weight, bias, activation, negative_slope, input_precision)
    kept = value.new_empty(value.shape if prediction else (0, 0))
    if not has_data(value):
        return value.new_empty(value.shape), x.new_empty(x.shape), kept
    given = kept if prediction else None
    error, drive = step_rows(value, x, weight, bias, activation, negative_slope, input_precision, given)
    return error, drive, kept


_linear_step.register_autograd(refusal("a step of strict inference was differentiated"))


@custom_operator("pccompile::linear_step_into", mutates=("error", "drive"))
def _linear_step_into(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    error: Tensor,
    drive: Tensor,
    activation: str,
    accumulate: bool,
    negative_slope: float,
    input_precision: str,
) -> None:
    _check(value, x, weight, bias, activation, negative_slope, input_precision, error, drive)
    if has_data(value):
        tensors = (value, x, weight, bias, error, drive)
        launch_linear_step(
            *tensors,
            None,
            activation,
            accumulate=accumulate,
            negative_slope=negative_slope,
            input_precision=input_precision,
        )
