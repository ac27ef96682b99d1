"""The prediction and the error of a cross-entropy loss in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy_error_reference", "cross_entropy_reference"]


def _distribution(logits: Tensor, targets: Tensor, class_weight: Tensor | None, label_smoothing: float) -> Tensor:
    """Weighted target probabilities, like the logits with the classes last: what multiplies -log_softmax."""
    classes = logits.shape[-1]
    weight = logits.new_ones(classes) if class_weight is None else class_weight.to(logits.dtype)
    one_hot = torch.nn.functional.one_hot(targets, classes).to(logits.dtype)
    return weight * ((1 - label_smoothing) * one_hot + label_smoothing / classes)


def _flat(
    logits: Tensor, targets: Tensor, class_weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, classes) logits and target distribution in float32 or better, and (rows,) weights, zero where ignored."""
    accumulated = torch.promote_types(logits.dtype, torch.float32)
    classes_last = (logits if logits.dim() < 2 else logits.movedim(1, -1)).to(accumulated)
    z, y = classes_last.reshape(-1, classes_last.shape[-1]), targets.reshape(-1).long()
    counted = y != ignore_index
    y = torch.where(counted, y, 0)
    weights = z.new_ones(len(y)) if class_weight is None else class_weight.to(accumulated)[y]
    smooth = _distribution(z, y, class_weight, label_smoothing) * counted[:, None]
    return z, smooth, weights * counted


def cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss as torch.nn.functional.cross_entropy has it, log-sum-exp of every row, and the rows' total weight.

    Args:
        logits: (classes,), (batch, classes) or (batch, classes, ...), of any floating dtype.
        targets: indices of classes, the logits' shape without the classes.
        class_weight: (classes,), or None.
        reduction: "mean", "sum" or "none".
        ignore_index: rows with this target count for nothing.
        label_smoothing: share of every target that is spread over all classes.

    Returns:
        The loss, () or targets' shape, of the logits' dtype; (rows,) and () of float32 or better.
    """
    z, smooth, weights = _flat(logits, targets, class_weight, ignore_index, label_smoothing)
    # Where the target's share is zero, minus infinity is no loss.
    rows = torch.where(smooth != 0, -torch.log_softmax(z, -1) * smooth, 0).sum(-1)
    total = weights.sum()
    losses = {"mean": rows.sum() / total, "sum": rows.sum(), "none": rows.reshape(targets.shape)}
    return losses[reduction].to(logits.dtype), torch.logsumexp(z, -1), total


def cross_entropy_error_reference(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None = None,
    *,
    upstream: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gain: float = 1.0,
) -> Tensor:
    """gain * upstream * dL/dlogits, computed in float32 or better and rounded once, like the logits.

    Args:
        upstream: the derivative of what is minimised with respect to the loss, of the loss's shape; one if None.
        gain: factor.
        logits, targets, class_weight, reduction, ignore_index, label_smoothing: as for cross_entropy_reference.
    """
    z, smooth, weights = _flat(logits, targets, class_weight, ignore_index, label_smoothing)
    error = torch.softmax(z, -1) * smooth.sum(-1, keepdim=True) - smooth
    if upstream is not None:
        error = error * upstream.to(z.dtype).reshape(-1, 1)
    if reduction == "mean":
        error = error / weights.sum()
    shape = logits.shape if logits.dim() < 2 else logits.movedim(1, -1).shape
    error = (gain * error).reshape(shape).to(logits.dtype)
    return error if logits.dim() < 2 else error.movedim(-1, 1)
