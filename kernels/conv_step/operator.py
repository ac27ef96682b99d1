"""conv_step: the operator pccompile::conv_step, and the function to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_fits, check_input_precision, check_shape, refusal
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.convolution_geometry import (
    ConvolutionArguments,
    Geometry,
    Pool,
    convolution_arguments,
    empty_image,
    geometry_of,
)
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["ConvStep", "conv_step"]

_X = "x, which is (batch, channels, height, width)"
_WEIGHT = "(out, channels / groups, kernel height, kernel width)"


class ConvStep(NamedTuple):
    """What conv_step returns.

    Attributes:
        error: value - prediction, (batch, out, height, width).
        residual: what act' is read from, as conv_error takes it; None for the identity.
        argmax: under a maximum, where in its window it is, int8; otherwise None.
        feedback: J^T error with that of the siblings, as x; None where x was moved, or it was not asked for.
        moved: x + step_size (feedback - parent_error); None where the parent's error was not given.
    """

    error: Tensor
    residual: Tensor | None
    argmax: Tensor | None
    feedback: Tensor | None
    moved: Tensor | None


def conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    activation: str = "identity",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    pool: Pool | None = None,
    feedback: bool = True,
    siblings: Tensor | None = None,
    parent_error: Tensor | None = None,
    step_size: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
) -> ConvStep:
    """Predict, Compare and what Infer of the parent needs, in one launch; with the parent's error, its Infer as well.

    Not differentiable. Products are summed in float32; the prediction is rounded before it is compared, as values are,
    and the error before it is carried back. Results are laid out as x.

    Args:
        x: (batch, channels, height, width), the parent's value; float32, bfloat16 or float16, any strides.
        weight: (out, channels / groups, kernel height, kernel width). Dtype and device are x's, from here on.
        bias: (out,), or None.
        value: (batch, out, height, width), this vertex's, behind the pooling if there is one.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        stride, padding, dilation, groups, pool: as of conv_predict.
        feedback: whether to carry the error back; not where x is clamped.
        siblings: feedback of the parent's other children, as x, to be added; or None.
        parent_error: the parent's own error, as x: x is moved by it and the feedback. None for the feedback.
        step_size: of the move, read at run time.
        negative_slope: the slope of leaky_relu below zero, at least zero.
        input_precision: how float32 products are formed, "ieee" or "tf32".

    Returns:
        ConvStep: tensors of x's dtype.

    Raises:
        UsageError: no kernel takes this dtype, device, activation, pooling, stride or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    convolution = convolution_arguments("conv_step", stride, padding, dilation, groups, pool)
    tensors = (x, weight, bias, value, siblings, parent_error)
    options = (feedback, step_size, negative_slope, input_precision)
    error, residual, argmax, target = torch.ops.pccompile.conv_step(*tensors, activation, *convolution, *options)
    moves = parent_error is not None
    return ConvStep(
        error,
        residual if activation_named(activation).residual != "none" else None,
        argmax if pool is not None and pool.kind == "max" else None,
        target if feedback and not moves else None,
        target if feedback and moves else None,
    )


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    siblings: Tensor | None,
    parent_error: Tensor | None,
    activation: str,
    convolution: ConvolutionArguments,
    feedback: bool,
    negative_slope: float,
    input_precision: str,
) -> Geometry:
    """The checked arguments' geometry."""
    name = "conv_step"
    check_alike(name, x=x, weight=weight, bias=bias, value=value, siblings=siblings, parent_error=parent_error)
    check_input_precision(input_precision)
    activation_named(activation, negative_slope)
    geometry = geometry_of(name, x, weight, *convolution)
    shape = (x.shape[0], weight.shape[0], *geometry.pooled(x.shape[2], x.shape[3]))
    check_shape(name, "bias", bias, (weight.shape[0],), "(out,)", _WEIGHT)
    check_shape(name, "value", value, shape, "(batch, out, height, width)", _WEIGHT)
    check_fits(name, "siblings", siblings, tuple(x.shape), "x's", against=_X)
    check_fits(name, "parent_error", parent_error, tuple(x.shape), "x's", against=_X)
    if not feedback and (siblings is not None or parent_error is not None):
        raise ShapeError(
            f"{name}: feedback=False, and siblings or parent_error are given",
            cure="leave them out, or ask for feedback",
        )
    return geometry


def _empty_outputs(
    x: Tensor, value: Tensor, geometry: Geometry, activation: str, feedback: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The error, its residual, its argmax and the target, without elements where they are not needed."""
    shape = tuple(value.shape)
    keep = activation_named(activation).residual != "none"
    return (
        empty_image(x, shape),
        empty_image(x, geometry.residual_shape(shape) if keep else (0, 0, 0, 0)),
        empty_image(x, shape if geometry.pool == "max" else (0, 0, 0, 0), torch.int8),
        empty_image(x, x.shape if feedback else (0, 0, 0, 0)),
    )


@custom_operator("pccompile::conv_step")
def _conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    siblings: Tensor | None,
    parent_error: Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: str,
    pool_window: Sequence[int],
    feedback: bool,
    step_size: float,
    negative_slope: float,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    convolution = (stride, padding, dilation, groups, pool, pool_window)
    tensors = (x, weight, bias, value, siblings, parent_error)
    geometry = _check(*tensors, activation, convolution, feedback, negative_slope, input_precision)
    outputs = _empty_outputs(x, value, geometry, activation, feedback)
    if has_data(x):
        keep = activation_named(activation).residual != "none"
        asked = (True, keep, pool == "max", feedback)
        results = [output if wanted else None for output, wanted in zip(outputs, asked, strict=True)]
        pull = (siblings, parent_error, step_size)
        launch_conv_step(x, weight, bias, value, *results, geometry, activation, *pull, negative_slope, input_precision)
    return outputs


_conv_step.register_autograd(refusal("a step of inference of a convolution was differentiated"))
