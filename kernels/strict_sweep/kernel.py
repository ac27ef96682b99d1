"""The kernels of strict_sweep: all steps in one launch, or one half-step in a launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.arrivals import arrives_last
from pccompile.kernels.strict_sweep.half_steps import (
    finish_first_layer,
    infer_layer,
    infer_layers,
    lowest_moving,
    predict_layer,
    predict_layers,
    start_layer,
)
from pccompile.kernels.strict_sweep.loss import loss_errors, loss_factor_of_batch

__all__ = ["half_step_kernel", "strict_sweep_kernel"]


@triton.jit
def _wait(counter_ptr, waits, COOPERATIVE: tl.constexpr):
    """Wait until what has been written so far can be read by all who share the work; returns how often that was.

    Within a program: its threads' barrier orders what they store in global memory as well (bar.sync on NVIDIA, a fence
    of all address spaces at workgroup scope on AMD). Among programs: each adds one to a counter that only grows,
    releasing its writes, and reads it until all have.
    """
    tl.debug_barrier()
    if COOPERATIVE:
        waits += 1
        expected = waits * tl.num_programs(0)
        arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") + 1
        while arrived < expected:
            arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()
    return waits


@triton.jit
def strict_sweep_kernel(
    x_ptr,  # (batch, in)
    target_ptr,  # (batch,) int64, or (batch, out)
    table_ptr,  # (layers, fields) int64
    values_ptr,  # (batch, columns) float32; so are the next three
    errors_ptr,
    drives_ptr,
    moments_ptr,
    energies_ptr,  # (steps + 1, batch) float32
    counters_ptr,  # (2,) int32, zero before and after: of arrivals at the barriers, and at the end
    batch,
    layers,
    steps,
    x_batch_stride,
    x_in_stride,
    target_batch_stride,
    target_out_stride,
    row_stride,
    step_size,
    momentum,
    loss_factor,
    negative_slope,
    ignore_index,
    PLAN: tl.constexpr,
    COOPERATIVE: tl.constexpr,
):
    """The feed-forward pass and all steps: of one tile of the batch, or with all programs together.

    Without other programs to wait for, a step goes layer by layer from the top down (LAYERED): a layer is predicted and
    compared, and then moved by what its child's errors give it. No later prediction of the step reads the value that
    moved, so that the result is that of two half-steps, bit for bit; but a weight is used twice in quick succession,
    with two others in between, and comes from memory once a step where three fit into the cache. Energies are of one
    step as a whole: where they are recorded, it is taken by half-steps.
    """
    LAYERED: tl.constexpr = not COOPERATIVE and not PLAN.record
    row_tiles = (batch + PLAN.block_batch - 1) // PLAN.block_batch
    if COOPERATIVE:
        share = (0, row_tiles, tl.program_id(0), tl.num_programs(0))
    else:
        share = (tl.program_id(0), 1, 0, 1)
    chain = (x_ptr, x_batch_stride, x_in_stride, table_ptr, layers)
    state = (values_ptr, errors_ptr, drives_ptr, moments_ptr, row_stride, batch)
    targets = (target_ptr, target_batch_stride, target_out_stride)
    factor = loss_factor_of_batch(targets, batch, loss_factor, ignore_index, PLAN)
    waits = 0

    start_layer(chain, state, share, 0, negative_slope, True, PLAN)
    for layer in range(1, layers):
        waits = _wait(counters_ptr, waits, COOPERATIVE)
        start_layer(chain, state, share, layer, negative_slope, False, PLAN)
    for step in range(0, steps if PLAN.held else steps + 1):
        first_error_follows = (step < steps - 1) | (not PLAN.held)
        if LAYERED:
            for below in range(0, layers - lowest_moving(chain, step, PLAN)):
                layer = layers - 1 - below
                if (step > 0) & (layer > lowest_moving(chain, step, PLAN)):
                    predict_layer(chain, state, share, layer, 0, negative_slope, False, PLAN)
                tl.debug_barrier()
                if below == 0:
                    loss_errors(chain, state, share, targets, step, factor, ignore_index, energies_ptr, PLAN)
                    tl.debug_barrier()
                if (step < steps) & (PLAN.free_output or below > 0):
                    infer_layer(chain, state, share, layer, 0, step_size, momentum, first_error_follows, PLAN)
            tl.debug_barrier()
        else:
            if step > 0:
                predict_layers(chain, state, share, step, negative_slope, False, PLAN)
            waits = _wait(counters_ptr, waits, COOPERATIVE)
            loss_errors(chain, state, share, targets, step, factor, ignore_index, energies_ptr, PLAN)
            if step < steps:
                waits = _wait(counters_ptr, waits, COOPERATIVE)
                infer_layers(chain, state, share, step, step_size, momentum, first_error_follows, PLAN)
                waits = _wait(counters_ptr, waits, COOPERATIVE)
    if PLAN.held:
        predict_layers(chain, state, share, steps, negative_slope, True, PLAN)
    finish_first_layer(chain, state, share, PLAN)
    if COOPERATIVE:  # noqa: SIM102
        if arrives_last(counters_ptr + 1, tl.num_programs(0), 0):  # no program waits at a barrier any more
            tl.atomic_xchg(counters_ptr, 0)


@triton.jit
def half_step_kernel(
    x_ptr,
    target_ptr,
    table_ptr,
    values_ptr,
    errors_ptr,
    drives_ptr,
    moments_ptr,
    energies_ptr,
    batch,
    layers,
    steps,
    x_batch_stride,
    x_in_stride,
    target_batch_stride,
    target_out_stride,
    row_stride,
    step_size,
    momentum,
    loss_factor,
    negative_slope,
    ignore_index,
    layer,
    step,
    PLAN: tl.constexpr,
    PHASE: tl.constexpr,
):
    """One half-step of all layers, shared by as many programs as there are tiles; arguments as above."""
    row_tiles = (batch + PLAN.block_batch - 1) // PLAN.block_batch
    share = (0, row_tiles, tl.program_id(0), tl.num_programs(0))
    chain = (x_ptr, x_batch_stride, x_in_stride, table_ptr, layers)
    state = (values_ptr, errors_ptr, drives_ptr, moments_ptr, row_stride, batch)
    if PHASE == "first":
        start_layer(chain, state, share, layer, negative_slope, True, PLAN)
    elif PHASE == "start":
        start_layer(chain, state, share, layer, negative_slope, False, PLAN)
    elif PHASE == "predict":
        predict_layers(chain, state, share, step, negative_slope, False, PLAN)
    elif PHASE == "held":
        predict_layers(chain, state, share, step, negative_slope, True, PLAN)
    elif PHASE == "loss":
        targets = (target_ptr, target_batch_stride, target_out_stride)
        factor = loss_factor_of_batch(targets, batch, loss_factor, ignore_index, PLAN)
        loss_errors(chain, state, share, targets, step, factor, ignore_index, energies_ptr, PLAN)
    elif PHASE == "infer":
        first_error_follows = (step < steps - 1) | (not PLAN.held)
        infer_layers(chain, state, share, step, step_size, momentum, first_error_follows, PLAN)
    else:
        tl.static_assert(PHASE == "finish")
        finish_first_layer(chain, state, share, PLAN)
