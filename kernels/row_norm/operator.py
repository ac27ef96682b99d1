"""Layer and root-mean-square normalisation: the operators pccompile::row_norm_..., and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import check_alike, check_fits, check_statistics, refusal, rows_of
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.results import SweepResults, Target, only_asked, results_for
from pccompile.kernels.row_norm.error import launch_row_norm_error
from pccompile.kernels.row_norm.predict import launch_row_norm_predict

__all__ = [
    "NormErrorSweep",
    "NormPrediction",
    "layer_norm_predict",
    "predict_norm",
    "rms_norm_predict",
    "row_norm_error",
    "row_norm_error_into",
    "sweep_norm",
]

_COLUMNS = "x, which is (..., columns)"


class NormPrediction(NamedTuple):
    """What layer_norm_predict and rms_norm_predict return.

    Attributes:
        output: (..., columns), of x's dtype.
        mean: (rows,), float32; None where it is not subtracted.
        rstd: (rows,), float32, one over the standard deviation (the root mean square).
    """

    output: Tensor
    mean: Tensor | None
    rstd: Tensor


class NormErrorSweep(NamedTuple):
    """What row_norm_error returns; None for what was not asked for.

    Attributes:
        parent_error: (..., columns).
        weight_gradient: (columns,).
        bias_gradient: (columns,).
    """

    parent_error: Tensor | None
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None


def layer_norm_predict(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> NormPrediction:
    """torch.nn.functional.layer_norm over the last dimension in one launch, and what its error reads.

    Differentiable once in x, weight and bias.

    Args:
        x: (..., columns), float32, bfloat16 or float16, any strides.
        weight: (columns,), of x's dtype and device, or None.
        bias: (columns,), likewise.
        eps: added to the variance.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    output, mean, rstd = torch.ops.pccompile.row_norm_predict(x, weight, bias, eps, True)
    return NormPrediction(output, mean, rstd)


def rms_norm_predict(x: Tensor, weight: Tensor | None = None, *, eps: float | None = None) -> NormPrediction:
    """torch.nn.functional.rms_norm over the last dimension in one launch, and what its error reads.

    Differentiable once in x and weight.

    Args:
        x: (..., columns), float32, bfloat16 or float16, any strides.
        weight: (columns,), of x's dtype and device, or None.
        eps: added to the mean square; None for the smallest step of x's dtype at one, as in torch.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    added = torch.finfo(x.dtype).eps if eps is None else eps
    output, _, rstd = torch.ops.pccompile.row_norm_predict(x, weight, None, added, False)
    return NormPrediction(output, None, rstd)


def row_norm_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    *,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
) -> NormErrorSweep:
    """The error sweep of layer_norm_predict or rms_norm_predict in one launch. Not differentiable.

    Args:
        error: (..., columns), with respect to the output; float32, bfloat16 or float16, any strides.
        x: (..., columns), of error's dtype and device.
        weight: (columns,), likewise, or None.
        mean: (rows,), from the prediction; None where it was not subtracted.
        rstd: (rows,), from the prediction.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain times the derivative with respect to the weight.
        bias_gradient: whether to compute gain times that with respect to the bias.
        gain: factor of the two gradients, read at run time.

    Returns:
        NormErrorSweep: contiguous tensors of error's dtype.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    asked = (parent_error, weight_gradient, bias_gradient)
    outputs = torch.ops.pccompile.row_norm_error(error, x, weight, mean, rstd, *asked, gain)
    return NormErrorSweep(*only_asked(outputs, asked))


def row_norm_error_into(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    *,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
) -> None:
    """row_norm_error into tensors that exist: overwritten, or added to in float32 and rounded once.

    Args:
        error: (rows, columns); this and what follows as for row_norm_error, but with exactly one dimension of rows.
        x: (rows, columns).
        weight: (columns,), or None.
        mean: (rows,), or None.
        rstd: (rows,).
        parent_error: (rows, columns), any strides, or None to leave it out.
        weight_gradient: (columns,), likewise.
        bias_gradient: (columns,), likewise.
        accumulate_parent: add to parent_error, as where a skip connection has left an error there.
        accumulate_weight: add to weight_gradient, as where the weight is used more than once.
        accumulate_bias: add to bias_gradient, likewise.
        gain: factor of the two gradients, read at run time.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    targets = (parent_error, weight_gradient, bias_gradient)
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    torch.ops.pccompile.row_norm_error_into(error, x, weight, mean, rstd, *targets, *flags, gain)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    name = "row_norm_predict"
    check_alike(name, x=x, weight=weight, bias=bias)
    if x.dim() == 0:
        raise ShapeError(f"{name}: x is a scalar", cure="give it a dimension of columns")
    check_fits(name, "weight", weight, (x.shape[-1],), "(columns,)", against=_COLUMNS)
    check_fits(name, "bias", bias, (x.shape[-1],), "(columns,)", against=_COLUMNS)


def _check_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
) -> None:
    name = "row_norm_error"
    targets = {"parent_error": parent_error, "weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    check_alike(name, error=error, x=x, weight=weight, **targets)
    check_statistics(name, "error", error, mean=mean, rstd=rstd)
    if x.dim() == 0:
        raise ShapeError(f"{name}: x is a scalar", cure="give it a dimension of columns")
    columns, rows = x.shape[-1], x.shape[:-1].numel()
    check_fits(name, "error", error, tuple(x.shape), "x's shape", against=_COLUMNS)
    check_fits(name, "parent_error", parent_error, tuple(x.shape), "x's shape", against=_COLUMNS)
    for argument, tensor in (("mean", mean), ("rstd", rstd)):
        check_fits(name, argument, tensor, (rows,), "(rows,)", against=_COLUMNS)
    for argument, tensor in (("weight", weight), *list(targets.items())[1:]):
        check_fits(name, argument, tensor, (columns,), "(columns,)", against=_COLUMNS)


def _empty_prediction(x: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output, like x; mean (rows,), or nothing (0,) where it is not subtracted; rstd (rows,)."""
    rows = x.shape[:-1].numel()
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(rows if centred else 0, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.float32),
    )


def _empty_sweep(
    x: Tensor, parent_error: bool, weight_gradient: bool, bias_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The parent's error, like x, and two gradients (columns,); with no elements where it is not asked for."""
    return (
        x.new_empty(x.shape if parent_error else (0,)),
        x.new_empty(x.shape[-1:] if weight_gradient else (0,)),
        x.new_empty(x.shape[-1:] if bias_gradient else (0,)),
    )


def predict_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    output, mean, rstd = _empty_prediction(x, centred)
    launch_row_norm_predict(rows_of(x), weight, bias, rows_of(output), mean if centred else None, rstd, eps)
    return output, mean, rstd


def sweep_norm(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    parent: Target,
    weight_gradient: Target,
    bias_gradient: Target,
    gain: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """row_norm_error without checks and dispatch, into tensors that exist or are made.

    Args:
        error, x, weight, mean, rstd, gain: as for it.
        parent, weight_gradient, bias_gradient: a contiguous tensor to add to, or the strides of one to make, or None.
    """
    shapes = (x.shape, x.shape[-1:], x.shape[-1:])
    results = results_for(parent, weight_gradient, bias_gradient, error, shapes)
    _launch(error, x, weight, mean, rstd, results, gain)
    return results.parent_error, results.weight_gradient, results.bias_gradient


def _launch(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    results: SweepResults,
    gain: float,
) -> None:
    """The error sweep of tensors (..., columns), of statistics of any strides."""
    parent, *rest = results
    rows = None if parent is None else rows_of(parent)
    statistics = None if mean is None else mean.contiguous(), rstd.contiguous()
    launch_row_norm_error(rows_of(error), rows_of(x), weight, *statistics, rows, *rest, gain)


@custom_operator("pccompile::row_norm_predict")
def _predict(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias)
    if not has_data(x):
        return _empty_prediction(x, centred)
    return predict_norm(x, weight, bias, eps, centred)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.centred = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.has_weight, ctx.has_bias = weight is not None, bias is not None
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    sweep = row_norm_error(
        error,
        x,
        weight,
        mean if ctx.centred else None,
        rstd,
        parent_error=needs_x,
        weight_gradient=needs_weight and ctx.has_weight,
        bias_gradient=needs_bias and ctx.has_bias,
    )
    return (*sweep, None, None)


_predict.register_autograd(_backward, setup_context=_save)


@custom_operator("pccompile::row_norm_error")
def _error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    parent_error: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_error(error, x, weight, mean, rstd)
    asked = (parent_error, weight_gradient, bias_gradient)
    outputs = _empty_sweep(x, *asked)
    if has_data(error):
        _launch(error, x, weight, mean, rstd, SweepResults(*only_asked(outputs, asked)), gain)
    return outputs


_error.register_autograd(refusal("the error sweep of a normalisation was differentiated"))


@custom_operator("pccompile::row_norm_error_into", mutates=("parent_error", "weight_gradient", "bias_gradient"))
def _error_into(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    parent_error: Tensor | None,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    accumulate_parent: bool,
    accumulate_weight: bool,
    accumulate_bias: bool,
    gain: float,
) -> None:
    targets = (parent_error, weight_gradient, bias_gradient)
    _check_error_into(error, x, weight, mean, rstd, *targets)
    if has_data(error):
        results = SweepResults(*targets, accumulate_parent, accumulate_weight, accumulate_bias)
        _launch(error, x, weight, mean, rstd, results, gain)


def _check_error_into(error: Tensor, x: Tensor, *rest: Any) -> None:
    if x.dim() != 2:
        raise ShapeError(f"row_norm_error_into: x has shape {tuple(x.shape)}", cure="x is (rows, columns): reshape it")
    _check_error(error, x, *rest)
