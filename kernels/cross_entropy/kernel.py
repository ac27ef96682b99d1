"""The Triton kernels of cross_entropy, and their launches."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.arrivals import FOLD, arrival_counters, arrives_last, fold, release_lanes
from pccompile.kernels.cross_entropy.configurations import MOST_PROGRAMS, Configuration, configuration_for
from pccompile.kernels.devices import architecture_of, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.reductions import largest_of, sum_of
from pccompile.kernels.tiles import needs_wide_offsets, tile_indices

__all__ = [
    "cross_entropy_error_kernel",
    "cross_entropy_predict_kernel",
    "launch_cross_entropy_error",
    "launch_cross_entropy_predict",
]


@triton.jit
def cross_entropy_predict_kernel(
    logits_ptr,  # (outer, classes, inner); a row is an (outer, inner) pair
    targets_ptr,  # (outer, inner), integers
    class_weight_ptr,  # (classes,)
    row_loss_ptr,  # (rows,)
    log_sum_exp_ptr,  # (rows,), float32
    partial_ptr,  # (2, programs), float32: sums of losses and of weights
    arrivals_ptr,  # (1,)
    loss_ptr,  # ()
    total_weight_ptr,  # (), float32
    rows,
    classes,
    inner,
    row_blocks,  # of each program
    logits_outer_stride,
    logits_class_stride,
    logits_inner_stride,
    targets_outer_stride,
    targets_inner_stride,
    class_weight_stride,
    ignore_index,
    label_smoothing,
    REDUCTION: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    FOLD: tl.constexpr,
    RELEASE_LANES: tl.constexpr,
):
    """Losses and log-sum-exp of a run of blocks of rows; the last program to arrive reduces the losses."""
    program = tl.program_id(0)
    sum_of_losses = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
    sum_of_weights = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
    for block in range(0, row_blocks):
        row = tile_indices(program * row_blocks + block, BLOCK_ROWS, WIDE)
        inside = row < rows
        start = logits_ptr + (row // inner) * logits_outer_stride + (row % inner) * logits_inner_stride
        target = tl.load(
            targets_ptr + (row // inner) * targets_outer_stride + (row % inner) * targets_inner_stride,
            mask=inside,
            other=0,
        ).to(tl.int64)
        counted = inside & (target != ignore_index)
        known = counted & (target >= 0) & (target < classes)
        at_target = tl.load(start + target * logits_class_stride, mask=known, other=0.0).to(tl.float32)
        weight = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
        if WEIGHTED:
            weight = tl.load(class_weight_ptr + target * class_weight_stride, mask=known, other=0.0).to(tl.float32)
        # Smoothing sums logits relative to the target's, so that a common offset does not cancel.
        offset = tl.where(at_target > -float("inf"), at_target, 0.0)

        largest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
        total = tl.full((BLOCK_ROWS,), 0.0, tl.float32)  # of exp(logit - largest)
        spread = tl.full((BLOCK_ROWS,), 0.0, tl.float32)  # of weight * (logit - offset)
        all_weights = tl.full((BLOCK_ROWS,), 0.0, tl.float32)
        for class_block in range(0, (classes + BLOCK_CLASSES - 1) // BLOCK_CLASSES):
            column = tile_indices(class_block, BLOCK_CLASSES, WIDE)
            within = inside[:, None] & (column < classes)[None, :]
            logits = tl.load(
                start[:, None] + (column * logits_class_stride)[None, :], mask=within, other=-float("inf")
            ).to(tl.float32)
            before = largest
            largest = tl.maximum(before, largest_of(logits, 1))
            # Nothing but minus infinity so far: any number will do.
            finite = tl.where(largest > -float("inf"), largest, 0.0)
            total = total * tl.exp(before - finite) + sum_of(tl.exp(logits - finite[:, None]), 1)
            if SMOOTHED:
                relative = tl.where(within, logits - offset[:, None], 0.0)
                if WEIGHTED:
                    share = tl.load(
                        class_weight_ptr + column * class_weight_stride, mask=column < classes, other=0.0
                    ).to(tl.float32)
                    spread += sum_of(relative * share[None, :], 1)
                    all_weights += sum_of(share, 0)
                else:
                    spread += sum_of(relative, 1)

        log_total = tl.log(total)
        tl.store(log_sum_exp_ptr + row, largest + log_total, mask=inside)
        # Differences first: a common offset of the logits costs the loss no digits.
        loss = weight * (largest - at_target + log_total)
        if SMOOTHED:
            if not WEIGHTED:
                all_weights += classes
            smooth = all_weights * (largest - offset + log_total) - spread
            loss = (1.0 - label_smoothing) * loss + label_smoothing / classes * smooth
        loss = tl.where(counted, tl.where(known, loss, float("nan")), 0.0)
        if REDUCTION == "none":
            tl.store(row_loss_ptr + row, loss.to(row_loss_ptr.dtype.element_ty), mask=inside)
        else:
            sum_of_losses += loss
            sum_of_weights += tl.where(counted, weight, 0.0)

    if REDUCTION != "none":
        programs = tl.num_programs(0)
        tl.store(partial_ptr + program, sum_of(sum_of_losses, 0))
        tl.store(partial_ptr + programs + program, sum_of(sum_of_weights, 0))
        if arrives_last(arrivals_ptr, programs, RELEASE_LANES):
            all_losses = fold(partial_ptr, programs, FOLD)
            if REDUCTION == "mean":
                total_weight = fold(partial_ptr + programs, programs, FOLD)
                all_losses = all_losses / total_weight
                tl.store(total_weight_ptr, total_weight)
            tl.store(loss_ptr, all_losses.to(loss_ptr.dtype.element_ty))


@triton.jit
def cross_entropy_error_kernel(
    logits_ptr,  # (outer, classes, inner); a row is an (outer, inner) pair
    targets_ptr,  # (outer, inner), integers
    class_weight_ptr,  # (classes,)
    log_sum_exp_ptr,  # (rows,), float32
    total_weight_ptr,  # (), float32
    upstream_ptr,  # (outer, inner)
    error_ptr,  # (outer, classes, inner)
    rows,
    classes,
    inner,
    logits_outer_stride,
    logits_class_stride,
    logits_inner_stride,
    targets_outer_stride,
    targets_inner_stride,
    class_weight_stride,
    upstream_outer_stride,
    upstream_inner_stride,
    error_outer_stride,
    error_class_stride,
    error_inner_stride,
    ignore_index,
    label_smoothing,
    gain,
    MEAN: tl.constexpr,
    UPSTREAM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """One tile of gain * upstream * dL/dlogits."""
    class_blocks = (classes + BLOCK_CLASSES - 1) // BLOCK_CLASSES
    row = tile_indices(tl.program_id(0) // class_blocks, BLOCK_ROWS, WIDE)
    column = tile_indices(tl.program_id(0) % class_blocks, BLOCK_CLASSES, WIDE)
    inside = row < rows
    within = inside[:, None] & (column < classes)[None, :]
    outer = row // inner
    beside = row % inner
    target = tl.load(
        targets_ptr + outer * targets_outer_stride + beside * targets_inner_stride, mask=inside, other=0
    ).to(tl.int64)
    counted = inside & (target != ignore_index)
    known = counted & (target >= 0) & (target < classes)
    logits = tl.load(
        logits_ptr
        + (outer * logits_outer_stride + beside * logits_inner_stride)[:, None]
        + (column * logits_class_stride)[None, :],
        mask=within,
        other=0.0,
    ).to(tl.float32)
    log_sum_exp = tl.load(log_sum_exp_ptr + row, mask=inside, other=0.0)
    probability = tl.exp(logits - log_sum_exp[:, None])
    error = probability - tl.where(column[None, :] == target[:, None], 1.0, 0.0)
    if WEIGHTED:
        weight = tl.load(class_weight_ptr + target * class_weight_stride, mask=known, other=0.0).to(tl.float32)
        error = error * weight[:, None]
    if SMOOTHED:
        if WEIGHTED:
            shares = tl.full((BLOCK_CLASSES,), 0.0, tl.float32)
            for class_block in range(0, class_blocks):
                other = tile_indices(class_block, BLOCK_CLASSES, WIDE)
                shares += tl.load(class_weight_ptr + other * class_weight_stride, mask=other < classes, other=0.0).to(
                    tl.float32
                )
            share = tl.load(class_weight_ptr + column * class_weight_stride, mask=column < classes, other=0.0)
            smooth = sum_of(shares, 0) * probability - share.to(tl.float32)[None, :]
        else:
            smooth = classes * probability - 1.0
        error = (1.0 - label_smoothing) * error + label_smoothing / classes * smooth
    factor = tl.full((BLOCK_ROWS,), 1.0, tl.float32) * gain
    if UPSTREAM:
        factor *= tl.load(
            upstream_ptr + outer * upstream_outer_stride + beside * upstream_inner_stride, mask=inside, other=0.0
        ).to(tl.float32)
    if MEAN:
        factor = factor / tl.load(total_weight_ptr)
    error = tl.where(counted[:, None], tl.where(known[:, None], error * factor[:, None], float("nan")), 0.0)
    tl.store(
        error_ptr
        + (outer * error_outer_stride + beside * error_inner_stride)[:, None]
        + (column * error_class_stride)[None, :],
        error.to(error_ptr.dtype.element_ty),
        mask=within,
    )


def launch_cross_entropy_predict(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    loss: Tensor,
    log_sum_exp: Tensor,
    total_weight: Tensor | None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    configuration: Configuration | None = None,
) -> None:
    """Write a loss into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        logits: (outer, classes, inner), not empty.
        targets: (outer, inner), of integers.
        class_weight: (classes,), or None.
        loss: () for "mean" and "sum", (outer, inner) contiguous for "none"; overwritten.
        log_sum_exp: (outer * inner,), float32, overwritten.
        total_weight: (), float32, overwritten; read for "mean" alone.
        reduction: "mean", "sum" or "none".
        ignore_index: rows with this target count for nothing.
        label_smoothing: share of every target that is spread over all classes.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(logits.device)
    (_, classes, inner), rows = logits.shape, targets.numel()
    chosen = configuration or configuration_for(architecture, precision_of(logits.dtype, "ieee"), rows, classes, inner)
    row_blocks = triton.cdiv(rows, chosen.block_rows)
    each = triton.cdiv(row_blocks, MOST_PROGRAMS)
    programs = triton.cdiv(row_blocks, each)
    reduced = reduction != "none"
    partial = log_sum_exp.new_empty(2, programs) if reduced else log_sum_exp
    count_launch("cross_entropy_predict")
    with torch.cuda.device_of(logits):
        cross_entropy_predict_kernel[(programs,)](
            logits,
            targets,
            logits if class_weight is None else class_weight,
            loss,
            log_sum_exp,
            partial,
            arrival_counters(logits.device, 1) if reduced else log_sum_exp,
            loss,
            log_sum_exp if total_weight is None else total_weight,
            rows,
            classes,
            inner,
            each,
            *logits.stride(),
            *targets.stride(),
            0 if class_weight is None else class_weight.stride(0),
            ignore_index,
            float(label_smoothing),
            REDUCTION=reduction,
            WEIGHTED=class_weight is not None,
            SMOOTHED=label_smoothing > 0,
            WIDE=needs_wide_offsets(logits, targets, class_weight),
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_CLASSES=chosen.block_classes,
            FOLD=FOLD,
            RELEASE_LANES=release_lanes(architecture, chosen.warps),
            num_warps=chosen.warps,
        )


def launch_cross_entropy_error(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum_exp: Tensor,
    total_weight: Tensor | None,
    upstream: Tensor | None,
    error: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gain: float = 1.0,
    configuration: Configuration | None = None,
) -> None:
    """Write a loss's error into a tensor that the caller owns. Arguments are not checked; the operator does.

    Args:
        logits: (outer, classes, inner), not empty.
        targets: (outer, inner), of integers.
        class_weight: (classes,), or None.
        log_sum_exp: (outer * inner,), float32, contiguous, from the prediction.
        total_weight: (), float32, from the prediction: what the error is divided by; None for sums and single losses.
        upstream: (outer, inner), factor of each row's error (a scalar is expanded); None for one.
        error: (outer, classes, inner), overwritten; it may be the logits.
        ignore_index: rows with this target have no error.
        label_smoothing: share of every target that is spread over all classes.
        gain: factor, read at run time.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(logits.device)
    (_, classes, inner), rows = logits.shape, targets.numel()
    chosen = configuration or configuration_for(architecture, precision_of(logits.dtype, "ieee"), rows, classes, inner)
    programs = triton.cdiv(rows, chosen.block_rows) * triton.cdiv(classes, chosen.block_classes)
    count_launch("cross_entropy_error")
    with torch.cuda.device_of(logits):
        cross_entropy_error_kernel[(programs,)](
            logits,
            targets,
            logits if class_weight is None else class_weight,
            log_sum_exp,
            log_sum_exp if total_weight is None else total_weight,
            logits if upstream is None else upstream,
            error,
            rows,
            classes,
            inner,
            *logits.stride(),
            *targets.stride(),
            0 if class_weight is None else class_weight.stride(0),
            *((0, 0) if upstream is None else upstream.stride()),
            *error.stride(),
            ignore_index,
            float(label_smoothing),
            float(gain),
            MEAN=total_weight is not None,
            UPSTREAM=upstream is not None,
            WEIGHTED=class_weight is not None,
            SMOOTHED=label_smoothing > 0,
            WIDE=needs_wide_offsets(logits, targets, class_weight, error),
            BLOCK_ROWS=chosen.block_rows,
            BLOCK_CLASSES=chosen.block_classes,
            num_warps=chosen.warps,
        )
