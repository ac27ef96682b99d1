"""Batch normalisation in training mode: the operators pccompile::batch_norm_..., and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError
from pccompile.kernels.arguments import check_alike, check_device, check_fits, check_statistics, refusal
from pccompile.kernels.batch_norm.channels import three_dimensional
from pccompile.kernels.batch_norm.error import error_branch, launch_batch_norm_error
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.results import SweepResults, only_asked
from pccompile.kernels.row_norm.operator import NormErrorSweep

__all__ = [
    "BatchNormPrediction",
    "batch_norm_error",
    "batch_norm_error_into",
    "batch_norm_predict",
]

_CHANNELS = "x, which is (batch, channels, ...)"


class BatchNormPrediction(NamedTuple):
    """What batch_norm_predict returns.

    Attributes:
        output: (batch, channels, ...), of x's dtype; channels last where x has them last.
        mean: (channels,), float32, of this batch.
        rstd: (channels,), float32, one over the standard deviation of this batch.
        running_mean: (channels,), moved towards this batch's; None where there was none.
        running_var: likewise, with the unbiased variance.
    """

    output: Tensor
    mean: Tensor
    rstd: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None


def batch_norm_predict(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> BatchNormPrediction:
    """torch.nn.functional.batch_norm(training=True) in one launch, and what its error reads.

    Differentiable once in x, weight and bias. Running statistics are returned, not written into.

    Args:
        x: (batch, channels, ...), float32, bfloat16 or float16, any strides.
        weight: (channels,), of x's dtype and device, or None.
        bias: (channels,), likewise.
        running_mean: (channels,), of any floating dtype, or None.
        running_var: likewise.
        momentum: how far the running statistics move.
        eps: added to the variance.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another, or a channel has one element.
    """
    output, mean, rstd, new_mean, new_var = torch.ops.pccompile.batch_norm_predict(
        x, weight, bias, running_mean, running_var, momentum, eps
    )
    return BatchNormPrediction(
        output, mean, rstd, None if running_mean is None else new_mean, None if running_var is None else new_var
    )


def batch_norm_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    parent_error: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    gain: float = 1.0,
) -> NormErrorSweep:
    """The error sweep of batch_norm_predict in one launch. Not differentiable.

    Args:
        error: (batch, channels, ...), with respect to the output; float32, bfloat16 or float16, any strides.
        x: of error's shape, dtype and device.
        weight: (channels,), of error's dtype and device, or None.
        mean, rstd: (channels,), from the prediction.
        parent_error: whether to compute the error with respect to x.
        weight_gradient: whether to compute gain times the derivative with respect to the weight.
        bias_gradient: whether to compute gain times that with respect to the bias.
        gain: factor of the two gradients, read at run time.

    Returns:
        NormErrorSweep: tensors of error's dtype, the parent's error laid out as x is.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    asked = (parent_error, weight_gradient, bias_gradient)
    outputs = torch.ops.pccompile.batch_norm_error(error, x, weight, mean, rstd, *asked, gain)
    return NormErrorSweep(*only_asked(outputs, asked))


def batch_norm_error_into(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
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
    """batch_norm_error into tensors that exist: overwritten, or added to in float32 and rounded once.

    Args:
        error: (batch, channels, inner); this and what follows as for batch_norm_error, in exactly three dimensions.
        x: (batch, channels, inner).
        weight: (channels,), or None.
        mean, rstd: (channels,).
        parent_error: (batch, channels, inner), any strides, or None to leave it out.
        weight_gradient, bias_gradient: (channels,), likewise.
        accumulate_parent: add to parent_error, as where a skip connection has left an error there.
        accumulate_weight: add to weight_gradient.
        accumulate_bias: add to bias_gradient.
        gain: factor of the two gradients, read at run time.

    Raises:
        UsageError: no kernel takes this dtype or device.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    targets = (parent_error, weight_gradient, bias_gradient)
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    torch.ops.pccompile.batch_norm_error_into(error, x, weight, mean, rstd, *targets, *flags, gain)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, *running: Tensor | None) -> None:
    name = "batch_norm"
    check_alike(name, x=x, weight=weight, bias=bias)
    if x.dim() < 2:
        raise ShapeError(f"{name}: x has shape {tuple(x.shape)}", cure="x is (batch, channels, ...)")
    if x.shape[0] * x.shape[2:].numel() == 1:
        raise ShapeError(
            f"{name}: x has shape {tuple(x.shape)}, one element a channel, whose variance is zero",
            cure="train on larger batches, or normalise with the running statistics (eval mode)",
        )
    statistics = dict(zip(("running_mean", "running_var"), running, strict=False))
    for argument, tensor in {"weight": weight, "bias": bias, **statistics}.items():
        check_fits(name, argument, tensor, (x.shape[1],), "(channels,)", against=_CHANNELS)
        check_device(name, argument, tensor, "x", x)


def _check_error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
) -> None:
    name = "batch_norm_error"
    targets = {"parent_error": parent_error, "weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    check_alike(name, error=error, x=x, weight=weight, **targets)
    check_statistics(name, "error", error, mean=mean, rstd=rstd)
    _check(x, weight, None)
    check_fits(name, "error", error, tuple(x.shape), "x's shape", against=_CHANNELS)
    check_fits(name, "parent_error", parent_error, tuple(x.shape), "x's shape", against=_CHANNELS)
    of_channels = {"mean": mean, "rstd": rstd, "weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    for argument, tensor in of_channels.items():
        check_fits(name, argument, tensor, (x.shape[1],), "(channels,)", against=_CHANNELS)


def _empty_like(x: Tensor) -> Tensor:
    """Channels last where x has them last, else contiguous: in both, the dimensions after the channels are one."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _empty_prediction(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, mean, rstd and the running statistics, which are empty (0,) where there are none."""
    statistics = [x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2)]
    moved = [
        x.new_empty(0) if old is None else torch.empty_like(old, memory_format=torch.contiguous_format)
        for old in (running_mean, running_var)
    ]
    return _empty_like(x), statistics[0], statistics[1], moved[0], moved[1]


def _empty_sweep(
    x: Tensor, parent_error: bool, weight_gradient: bool, bias_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _empty_like(x) if parent_error else x.new_empty(0),
        x.new_empty(x.shape[1] if weight_gradient else 0),
        x.new_empty(x.shape[1] if bias_gradient else 0),
    )


@custom_operator("pccompile::batch_norm_predict")
def _predict(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(x, weight, bias, running_mean, running_var)
    output, mean, rstd, new_mean, new_var = outputs = _empty_prediction(x, running_mean, running_var)
    if not has_data(x):
        return outputs
    if x.numel() == 0:  # nothing is known of the channels, and the running statistics stay
        for old, new in ((running_mean, new_mean), (running_var, new_var)):
            if old is not None:
                new.copy_(old)
        return output, mean.fill_(torch.nan), rstd.fill_(torch.nan), new_mean, new_var
    moved = (None if running_mean is None else new_mean, None if running_var is None else new_var)
    read = three_dimensional(x), weight, bias, running_mean, running_var
    launch_batch_norm_predict(Branch(*read, mean, rstd, *moved, momentum, eps), three_dimensional(output))
    return outputs


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *_ = inputs
    _, mean, rstd, new_mean, new_var = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.has_weight, ctx.has_bias = weight is not None, bias is not None
    ctx.mark_non_differentiable(mean, rstd, new_mean, new_var)


def _backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    sweep = batch_norm_error(
        error,
        x,
        weight,
        mean,
        rstd,
        parent_error=needs_x,
        weight_gradient=needs_weight and ctx.has_weight,
        bias_gradient=needs_bias and ctx.has_bias,
    )
    return (*sweep, None, None, None, None)


_predict.register_autograd(_backward, setup_context=_save)


@custom_operator("pccompile::batch_norm_error")
def _error(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
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
        results = SweepResults(*only_asked(outputs, asked))
        launch_batch_norm_error(three_dimensional(error), error_branch(x, weight, mean, rstd, results, gain))
    return outputs


_error.register_autograd(refusal("the error sweep of a batch normalisation was differentiated"))


def _check_error_into(error: Tensor, x: Tensor, *rest: Any) -> None:
    if x.dim() != 3:
        raise ShapeError(
            f"batch_norm_error_into: x has shape {tuple(x.shape)}", cure="x is (batch, channels, inner): flatten it"
        )
    _check_error(error, x, *rest)


@custom_operator("pccompile::batch_norm_error_into", mutates=("parent_error", "weight_gradient", "bias_gradient"))
def _error_into(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
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
        launch_batch_norm_error(error, error_branch(x, weight, mean, rstd, results, gain))
