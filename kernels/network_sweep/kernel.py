"""The kernel of network_sweep: the feed-forward pass and all steps, of one tile of the batch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.network_sweep.half_steps import clear_rows, infer_layer, infer_output, predict_layer
from pccompile.kernels.network_sweep.loss import output_of_samples
from pccompile.kernels.strict_sweep.loss import loss_factor_of_batch

__all__ = ["network_sweep_kernel"]


@triton.jit
def network_sweep_kernel(
    x_ptr,  # (batch, channels, height, width)
    target_ptr,  # (batch,) int64, or (batch, classes)
    weights,  # of each layer; so are the biases, where a layer has one
    biases,
    values_ptr,  # (batch, columns) float32; so are the errors and the moments
    errors_ptr,
    drives_ptr,  # (batch, drive columns) float32
    moments_ptr,
    energies_ptr,  # (steps + 1, batch) float32
    batch,
    steps,
    target_batch_stride,
    target_out_stride,
    step_size,
    momentum,
    loss_factor,
    negative_slope,
    ignore_index,
    PLAN: tl.constexpr,
):
    """A program owns a tile of the batch from the feed-forward pass to the last step: samples never meet, so between
    half-steps a barrier of its own threads is enough, which orders what they store in global memory as well."""
    first_sample = tl.program_id(0) * PLAN.block_batch
    share = (first_sample, tl.minimum(batch - first_sample, PLAN.block_batch))
    network = (x_ptr, weights, biases)
    state = (values_ptr, errors_ptr, drives_ptr, moments_ptr, PLAN.columns, batch)
    targets = (target_ptr, target_batch_stride, target_out_stride)
    factor = loss_factor_of_batch(targets, batch, loss_factor, ignore_index, PLAN)
    DEPTH: tl.constexpr = PLAN.depth
    MOVING: tl.constexpr = PLAN.depth if PLAN.free_output else PLAN.depth - 1

    clear_rows(values_ptr, share, PLAN.columns, PLAN)
    clear_rows(errors_ptr, share, PLAN.columns, PLAN)
    clear_rows(drives_ptr, share, PLAN.drive_columns, PLAN)
    if PLAN.momentum:
        clear_rows(moments_ptr, share, PLAN.columns, PLAN)
    for step in tl.range(0, steps + 1, disable_licm=True):
        start = step == 0
        end = step == steps
        tl.debug_barrier()
        for layer in tl.static_range(0, DEPTH):
            # Before the loss's wavefront has reached a layer neither it nor its parent has moved.
            if start | (end if layer == 0 else layer + step >= MOVING):
                predict_layer(
                    network,
                    state,
                    share,
                    start,
                    end if layer == 0 else end & PLAN.held,
                    negative_slope,
                    layer,
                    PLAN,
                )
            if start:
                tl.debug_barrier()
        tl.debug_barrier()
        if (step < steps) | (not PLAN.held):
            output_of_samples(state, targets, step, factor, ignore_index, energies_ptr, PLAN)
        if step < steps:
            tl.debug_barrier()
            first_error_follows = (step < steps - 1) | (not PLAN.held)
            for layer in tl.static_range(0, MOVING):
                if layer + step >= MOVING - 1:
                    if layer < DEPTH - 1:
                        infer_layer(
                            network, state, share, step_size, momentum, first_error_follows, negative_slope, layer, PLAN
                        )
                    else:
                        infer_output(state, share, step_size, momentum, first_error_follows, PLAN)
