"""The loss at the top of a chain: its errors, and the energy of every sample."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.reductions import largest_of, sum_of
from pccompile.kernels.strict_sweep.half_steps import layer_field
from pccompile.kernels.strict_sweep.layout import Field
from pccompile.kernels.tiles import tile_indices

__all__ = ["loss_errors", "loss_factor_of_batch", "output_errors"]

_OUT = tl.constexpr(int(Field.OUT))
_OWN = tl.constexpr(int(Field.OWN))
_LOWEST = tl.constexpr(-3.0e38)
_COUNTED = tl.constexpr(256)  # samples counted at a time


@triton.jit
def loss_factor_of_batch(targets, batch, loss_factor, ignore_index, PLAN: tl.constexpr):
    """The loss's factor, over the samples of the whole batch that have a loss where the loss is their mean."""
    target_ptr, target_row_stride, _ = targets
    factor = loss_factor
    if PLAN.averaged:
        counts = tl.full((_COUNTED,), 0.0, tl.float32)
        for tile in range(0, (batch + _COUNTED - 1) // _COUNTED):
            rows = tile_indices(tile, _COUNTED, PLAN.wide)
            target = tl.load(target_ptr + rows * target_row_stride, mask=rows < batch, other=ignore_index)
            counts += tl.where(target == ignore_index, 0.0, 1.0)
        factor = loss_factor / sum_of(counts, 0)
    return factor


@triton.jit
def _hidden_energy(chain, state, rows, PLAN: tl.constexpr):
    """(BLOCK_BATCH,) sum over the layers with a free value of |e|^2 / 2."""
    _, _, _, table_ptr, layers = chain
    _, errors_ptr, _, _, row_stride, batch = state
    squares = tl.full((PLAN.block_batch, PLAN.block_out), 0.0, tl.float32)
    for layer in range(0, layers if PLAN.free_output else layers - 1):
        width = layer_field(table_ptr, layer, _OUT, False)
        own = layer_field(table_ptr, layer, _OWN, PLAN.wide)
        for tile in range(0, (width + PLAN.block_out - 1) // PLAN.block_out):
            columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
            mask = (rows < batch)[:, None] & (columns < width)[None, :]
            place = (rows * row_stride)[:, None] + (own + columns)[None, :]
            error = tl.load(errors_ptr + place, mask=mask, other=0.0)
            squares += error * error
    return 0.5 * sum_of(squares, 1)


@triton.jit
def _logarithm_of_sum(scores_ptr, rows, row_stride, batch, classes, PLAN: tl.constexpr):
    """(BLOCK_BATCH,) log sum exp of each row, in one pass."""
    largest = tl.full((PLAN.block_batch,), _LOWEST, tl.float32)
    total = tl.full((PLAN.block_batch,), 0.0, tl.float32)
    for tile in range(0, (classes + PLAN.block_out - 1) // PLAN.block_out):
        columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
        inside = (columns < classes)[None, :]
        place = (rows * row_stride)[:, None] + columns[None, :]
        scores = tl.load(scores_ptr + place, mask=(rows < batch)[:, None] & inside, other=0.0)
        new = tl.maximum(largest, largest_of(tl.where(inside, scores, _LOWEST), 1))
        terms = tl.where(inside, tl.exp(scores - new[:, None]), 0.0)
        total = total * tl.exp(largest - new) + sum_of(terms, 1)
        largest = new
    return largest + tl.log(total)


@triton.jit
def _cross_entropy(scores_ptr, targets, rows, row_stride, batch, classes, ignore_index, PLAN: tl.constexpr):
    """(BLOCK_BATCH,) each: the target class, log sum exp, the weight of the sample's loss, and its loss.

    The weight is 0 for an ignored sample, and not a number for a class that does not exist.
    """
    target_ptr, target_row_stride, _ = targets
    target = tl.load(target_ptr + rows * target_row_stride, mask=rows < batch, other=0)
    exists = (target >= 0) & (target < classes)
    weight = tl.where(target == ignore_index, 0.0, tl.where(exists, 1.0, float("nan")))
    score = tl.load(scores_ptr + rows * row_stride + target, mask=(rows < batch) & exists, other=0.0)
    logarithm = _logarithm_of_sum(scores_ptr, rows, row_stride, batch, classes, PLAN)
    return target, logarithm, weight, weight * (logarithm - score)


@triton.jit
def output_errors(output, state, targets, rows, loss_factor, ignore_index, PLAN: tl.constexpr):
    """(BLOCK_BATCH,) loss of these rows' samples, without its factor; writes e = -dF/dmu of the output, and its drives.

    output is (its width, first column of its values, of the errors that are written, of its drives, the drives'
    row stride). targets is (pointer, row stride, column stride); class indices have no columns. loss_factor is
    that of the batch. PLAN has loss, free_output, wide, block_batch and block_out. Shared with network_sweep.
    """
    classes, own, written, own_drives, drive_row_stride = output
    values_ptr, errors_ptr, drives_ptr, _, row_stride, batch = state
    target_ptr, target_row_stride, target_column_stride = targets
    if PLAN.loss == "cross_entropy":
        target, logarithm, weight, loss = _cross_entropy(
            values_ptr + own, targets, rows, row_stride, batch, classes, ignore_index, PLAN
        )
    squares = tl.full((PLAN.block_batch, PLAN.block_out), 0.0, tl.float32)
    for tile in range(0, (classes + PLAN.block_out - 1) // PLAN.block_out):
        columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
        mask = (rows < batch)[:, None] & (columns < classes)[None, :]
        place = (rows * row_stride)[:, None] + columns[None, :]
        prediction = tl.load(values_ptr + own + place, mask=mask, other=0.0)
        if PLAN.loss == "cross_entropy":
            chosen = tl.where(columns[None, :] == target[:, None], 1.0, 0.0)
            error = loss_factor * weight[:, None] * (chosen - tl.exp(prediction - logarithm[:, None]))
        else:
            place_of_target = (rows * target_row_stride)[:, None] + (columns * target_column_stride)[None, :]
            difference = tl.load(target_ptr + place_of_target, mask=mask, other=0.0).to(tl.float32) - prediction
            squares += tl.where(mask, difference * difference, 0.0)
            error = 2.0 * loss_factor * difference
        tl.store(errors_ptr + written + place, error, mask=mask)
        if not PLAN.free_output:
            drive_place = (rows * drive_row_stride)[:, None] + columns[None, :]
            slope = tl.load(drives_ptr + own_drives + drive_place, mask=mask, other=0.0)
            tl.store(drives_ptr + own_drives + drive_place, error * slope, mask=mask)
    if PLAN.loss == "squared_error":
        loss = sum_of(squares, 1)
    return loss


@triton.jit
def loss_errors(chain, state, share, targets, step, loss_factor, ignore_index, energies_ptr, PLAN: tl.constexpr):
    """e = -dF/dmu of the output in this worker's tiles of rows, and the energy of each sample where it is recorded."""
    _, _, _, table_ptr, layers = chain
    _, _, _, _, row_stride, batch = state
    first_row_tile, row_tiles, worker, workers = share
    classes = layer_field(table_ptr, layers - 1, _OUT, False)
    own = tl.multiple_of(layer_field(table_ptr, layers - 1, _OWN, PLAN.wide), 16)
    written = own  # a free output's error is its own; what comes from the loss lies beside it
    if PLAN.free_output:
        written = own + (classes + 15) // 16 * 16
    output = (classes, own, written, own, row_stride)
    for row_tile in range(worker, row_tiles, workers):
        rows = tile_indices(first_row_tile + row_tile, PLAN.block_batch, PLAN.wide)
        loss = output_errors(output, state, targets, rows, loss_factor, ignore_index, PLAN)
        if PLAN.record:
            energy = loss_factor * loss + _hidden_energy(chain, state, rows, PLAN)
            tl.store(energies_ptr + tl.cast(step, tl.int64) * batch + rows, energy, mask=rows < batch)
