"""cross_entropy_predict and cross_entropy_error: the operators of the same names, and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.arguments import check_alike, check_device, check_fits, check_statistics, refusal
from pccompile.kernels.cross_entropy.kernel import launch_cross_entropy_error, launch_cross_entropy_predict
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["LossPrediction", "cross_entropy_error", "cross_entropy_predict", "error_of_loss", "predict_loss"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class LossPrediction(NamedTuple):
    """What cross_entropy_predict returns.

    Attributes:
        loss: () for "mean" and "sum", of targets' shape for "none"; of the logits' dtype.
        log_sum_exp: (rows,), float32.
        total_weight: (), float32, the weights of the rows that count; None unless the loss is their mean.
    """

    loss: Tensor
    log_sum_exp: Tensor
    total_weight: Tensor | None


def cross_entropy_predict(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> LossPrediction:
    """torch.nn.functional.cross_entropy in one launch, and what its error reads.

    Differentiable once in the logits. A target that is no class (and not ignored) makes the loss NaN.

    Args:
        logits: (classes,), (batch, classes) or (batch, classes, ...); float32, bfloat16 or float16, any strides.
        targets: indices of classes, of the logits' shape without the classes.
        class_weight: (classes,), of the logits' dtype, or None.
        reduction: "mean" (weighted by the targets' classes), "sum" or "none".
        ignore_index: rows with this target count for nothing.
        label_smoothing: share of every target that is spread over all classes, from 0 to 1.

    Raises:
        UsageError: no kernel takes this dtype, device or reduction, or targets are not integers.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    loss, log_sum_exp, total_weight = torch.ops.pccompile.cross_entropy_predict(
        logits, targets, class_weight, reduction, ignore_index, label_smoothing
    )
    return LossPrediction(loss, log_sum_exp, total_weight if reduction == "mean" else None)


def cross_entropy_error(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum_exp: Tensor,
    total_weight: Tensor | None = None,
    *,
    upstream: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gain: float = 1.0,
) -> Tensor:
    """gain * upstream * (softmax - target) in one launch: dL/dlogits, like the logits. Not differentiable.

    Args:
        logits, targets, class_weight, ignore_index, label_smoothing: as for cross_entropy_predict.
        log_sum_exp: (rows,), from it.
        total_weight: (), from it: divides the error, as a mean's; None for the other reductions.
        upstream: the derivative with respect to the loss, () or of targets' shape; one if None.
        gain: factor, read at run time: -1 for the output vertex's error, v - mu.

    Raises:
        UsageError: no kernel takes this dtype or device, or targets are not integers.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    error: Tensor = torch.ops.pccompile.cross_entropy_error(
        logits, targets, class_weight, log_sum_exp, total_weight, upstream, ignore_index, label_smoothing, gain
    )
    return error


def _check(
    logits: Tensor, targets: Tensor, class_weight: Tensor | None, reduction: str, label_smoothing: float
) -> None:
    name = "cross_entropy"
    check_alike(name, logits=logits, class_weight=class_weight)
    if logits.dim() == 0:
        raise ShapeError(f"{name}: logits is a scalar", cure="give it a dimension of classes")
    if targets.dtype not in _INTEGERS:
        raise UsageError(
            f"{name}: targets is {targets.dtype}",
            cure="use indices of classes; for target probabilities use torch.nn.functional.cross_entropy",
        )
    check_device(name, "targets", targets, "logits", logits)
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f"{name}: reduction={reduction!r}", cure='use "mean", "sum" or "none"')
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"{name}: label_smoothing={label_smoothing}", cure="use a share from 0 to 1")
    classes = logits.shape[0] if logits.dim() == 1 else logits.shape[1]
    shape = logits.shape[:1][1:] if logits.dim() == 1 else logits.shape[:1] + logits.shape[2:]
    meaning = "the logits' shape without the classes"
    check_fits(name, "targets", targets, tuple(shape), meaning, against="logits, which is (batch, classes, ...)")
    check_fits(
        name, "class_weight", class_weight, (classes,), "(classes,)", against="logits, which is (batch, classes, ...)"
    )


def _three_dimensional(logits: Tensor) -> Tensor:
    """(outer, classes, inner)."""
    if logits.dim() == 1:
        return logits[None, :, None]
    return logits[:, :, None] if logits.dim() == 2 else logits.flatten(2)


def _two_dimensional(targets: Tensor) -> Tensor:
    """(outer, inner)."""
    if targets.dim() == 0:
        return targets[None, None]
    return targets[:, None] if targets.dim() == 1 else targets.flatten(1)


def _empty_outputs(
    logits: Tensor, targets: Tensor, reduction: str, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; log-sum-exp (rows,); the total weight (), or nothing (0,) where the loss is not a mean."""
    return (
        logits.new_empty(targets.shape if reduction == "none" else (), dtype=dtype),
        logits.new_empty(targets.numel(), dtype=torch.float32),
        logits.new_empty(() if reduction == "mean" else (0,), dtype=torch.float32),
    )


def predict_loss(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its checks and its dispatch, for callers that know what they pass.

    Args:
        dtype: of the loss; None: the logits'.
    """
    loss, log_sum_exp, total_weight = _empty_outputs(logits, targets, reduction, dtype)
    if logits.numel() == 0:  # as in torch: the mean of nothing is not a number; with no classes nothing is known
        total_weight.zero_()
        unknown = targets.numel() > 0 or reduction == "mean"
        return loss.fill_(torch.nan if unknown else 0.0), log_sum_exp.fill_(-torch.inf), total_weight
    launch_cross_entropy_predict(
        _three_dimensional(logits),
        _two_dimensional(targets),
        class_weight,
        loss,
        log_sum_exp,
        total_weight if reduction == "mean" else None,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return loss, log_sum_exp, total_weight


@custom_operator("pccompile::cross_entropy_predict")
def _predict(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, targets, class_weight, reduction, label_smoothing)
    if not has_data(logits):
        return _empty_outputs(logits, targets, reduction)
    return predict_loss(logits, targets, class_weight, reduction, ignore_index, label_smoothing)


def _empty_error(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def error_of_loss(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum_exp: Tensor,
    total_weight: Tensor | None,
    upstream: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gain: float,
) -> Tensor:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    error = _empty_error(logits)
    if error.numel():
        rows = _two_dimensional(targets)
        each = upstream is not None and upstream.dim() > 0
        launch_cross_entropy_error(
            _three_dimensional(logits),
            rows,
            class_weight,
            log_sum_exp.contiguous(),
            total_weight,
            _two_dimensional(upstream) if upstream is not None and each else _expanded(upstream, rows),
            _three_dimensional(error),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            gain=gain,
        )
    return error


@custom_operator("pccompile::cross_entropy_error")
def _error(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum_exp: Tensor,
    total_weight: Tensor | None,
    upstream: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gain: float,
) -> Tensor:
    _check_error(logits, targets, class_weight, log_sum_exp, total_weight, upstream, label_smoothing)
    if not has_data(logits):
        return _empty_error(logits)
    return error_of_loss(
        logits, targets, class_weight, log_sum_exp, total_weight, upstream, ignore_index, label_smoothing, gain
    )


def _expanded(upstream: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if upstream is None else upstream.expand(rows.shape)


def _check_error(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum_exp: Tensor,
    total_weight: Tensor | None,
    upstream: Tensor | None,
    label_smoothing: float,
) -> None:
    _check(logits, targets, class_weight, "mean", label_smoothing)
    name, against = "cross_entropy_error", "targets"
    check_statistics(name, "logits", logits, log_sum_exp=log_sum_exp, total_weight=total_weight)
    check_device(name, "upstream", upstream, "logits", logits)
    check_fits(name, "log_sum_exp", log_sum_exp, (targets.numel(),), "(rows,)", against=against)
    check_fits(name, "total_weight", total_weight, (), "()", against="cross_entropy_predict's")
    if upstream is not None and upstream.dim() > 0:
        check_fits(name, "upstream", upstream, tuple(targets.shape), "targets' shape, or none", against=against)


_error.register_autograd(refusal("the error of a cross-entropy loss was differentiated"))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, class_weight, ctx.reduction, ctx.ignore_index, ctx.label_smoothing = inputs
    _, log_sum_exp, total_weight = output
    ctx.save_for_backward(logits, targets, class_weight, log_sum_exp, total_weight)
    ctx.mark_non_differentiable(log_sum_exp, total_weight)


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets, class_weight, log_sum_exp, total_weight = ctx.saved_tensors
    error = cross_entropy_error(
        logits,
        targets,
        class_weight,
        log_sum_exp,
        total_weight if ctx.reduction == "mean" else None,
        upstream=upstream,
        ignore_index=ctx.ignore_index,
        label_smoothing=ctx.label_smoothing,
    )
    return error, None, None, None, None, None


_predict.register_autograd(_backward, setup_context=_save)
