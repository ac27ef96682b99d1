"""linear_predict: the operator pccompile::linear_predict, its derivative, and the function to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_input_precision, check_shape, rows_of
from pccompile.kernels.linear_error.operator import linear_error
from pccompile.kernels.linear_predict.kernel import launch_linear_predict
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["Prediction", "linear_predict", "predict_rows"]


class Prediction(NamedTuple):
    """What linear_predict returns.

    Attributes:
        output: act(x W^T + b), (..., out).
        residual: what act' is read from: the output itself, the pre-activation (..., out), or None for the identity.
    """

    output: Tensor
    residual: Tensor | None


def linear_predict(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    *,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> Prediction:
    """act(x W^T + b) in one launch, and the residual that the error sweep reads.

    Differentiable once in x, weight and bias; the residual is not differentiated. Products are summed in float32.

    Args:
        x: (..., in), float32, bfloat16 or float16, any strides.
        weight: (out, in), of x's dtype and device, any strides.
        bias: (out,), likewise, or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        Prediction: output and residual, in x's dtype.

    Raises:
        UsageError: no kernel takes this dtype, device, activation or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    kind = activation_named(activation, negative_slope).residual
    if x.dim() == 0 or weight.dim() != 2:
        raise ShapeError(
            f"linear_predict: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}",
            cure="x is (..., in) and weight is (out, in)",
        )
    rows = rows_of(x)
    output, preactivation = torch.ops.pccompile.linear_predict(
        rows, weight, bias, activation, negative_slope, input_precision
    )
    output = output.reshape(*x.shape[:-1], weight.shape[0])
    if kind == "preactivation":
        return Prediction(output, preactivation.reshape(output.shape))
    return Prediction(output, output.detach() if kind == "output" else None)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, input_precision: str) -> None:
    check_alike("linear_predict", x=x, weight=weight, bias=bias)
    check_input_precision(input_precision)
    check_shape("linear_predict", "x", x, (x.shape[0], weight.shape[1]), "(batch, in)")
    check_shape("linear_predict", "bias", bias, (weight.shape[0],), "(out,)")


def _empty_outputs(x: Tensor, weight: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The prediction (batch, out), and the pre-activation: the same shape, or (0, 0) where nothing reads it."""
    shape = (x.shape[0], weight.shape[0])
    keep = activation_named(activation).residual == "preactivation"
    return x.new_empty(shape), x.new_empty(shape if keep else (0, 0))


def predict_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float, input_precision: str
) -> tuple[Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    prediction, preactivation = _empty_outputs(x, weight, activation)
    kept = preactivation if activation_named(activation).residual == "preactivation" else None
    launch_linear_predict(x, weight, bias, prediction, kept, activation, negative_slope, input_precision)
    return prediction, preactivation


@custom_operator("pccompile::linear_predict")
def _linear_predict(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float, input_precision: str
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, input_precision)
    if not has_data(x):
        return _empty_outputs(x, weight, activation)
    return predict_rows(x, weight, bias, activation, negative_slope, input_precision)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.activation, ctx.negative_slope, ctx.input_precision = inputs
    prediction, preactivation = output
    residuals = {"none": None, "output": prediction, "preactivation": preactivation}
    ctx.save_for_backward(x, weight, residuals[activation_named(ctx.activation).residual])
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(preactivation)


def _backward(ctx: Any, error: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, residual = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    sweep = linear_error(
        error,
        residual,
        x,
        weight,
        ctx.activation,
        parent_error=needs_x,
        weight_gradient=needs_weight,
        bias_gradient=needs_bias and ctx.has_bias,
        negative_slope=ctx.negative_slope,
        input_precision=ctx.input_precision,
    )
    return (*sweep, None, None, None)


_linear_predict.register_autograd(_backward, setup_context=_save)
