"""The loss at the top of a network: strict_sweep's, and the energy of every sample."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.reductions import sum_of
from pccompile.kernels.strict_sweep.loss import output_errors
from pccompile.kernels.tiles import tile_indices

__all__ = ["output_of_samples"]


@triton.jit
def _hidden_energy(state, rows, PLAN: tl.constexpr):
    """(BLOCK_BATCH,) sum over the layers with a free value of |e|^2 / 2: these lie below the output's column, the
    output itself if it is one of them, with zeros between them."""
    _, errors_ptr, _, _, row_stride, batch = state
    LAST: tl.constexpr = PLAN.layers[PLAN.depth - 1]
    WIDTH: tl.constexpr = LAST.own + PLAN.classes if PLAN.free_output else LAST.own
    squares = tl.full((PLAN.block_batch, PLAN.block_out), 0.0, tl.float32)
    for tile in range(0, (WIDTH + PLAN.block_out - 1) // PLAN.block_out):
        columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
        mask = (rows < batch)[:, None] & (columns < WIDTH)[None, :]
        error = tl.load(errors_ptr + (rows * row_stride)[:, None] + columns[None, :], mask=mask, other=0.0)
        squares += error * error
    return 0.5 * sum_of(squares, 1)


@triton.jit
def output_of_samples(state, targets, step, loss_factor, ignore_index, energies_ptr, PLAN: tl.constexpr):
    """e = -dF/dmu of the output of this program's samples, and the energy of each where it is recorded."""
    _, _, _, _, _, batch = state
    LAST: tl.constexpr = PLAN.layers[PLAN.depth - 1]
    # A free output's error is its own; what comes from the loss lies beside it.
    BESIDE: tl.constexpr = (PLAN.classes + 15) // 16 * 16 if PLAN.free_output else 0
    output = (PLAN.classes, LAST.own, LAST.own + BESIDE, LAST.own_drives, PLAN.drive_columns)
    rows = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    loss = output_errors(output, state, targets, rows, loss_factor, ignore_index, PLAN)
    if PLAN.record:
        energy = loss_factor * loss + _hidden_energy(state, rows, PLAN)
        tl.store(energies_ptr + tl.cast(step, tl.int64) * batch + rows, energy, mask=rows < batch)
