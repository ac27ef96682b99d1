"""The two halves of a step at one layer, by the program that owns the samples. What they pass around:

    network  (x, weights, biases)
    state    (values, errors, drives, moments, the row stride of all but the drives, batch), buffers of float32 with the
             layers side by side
    share    (first sample, samples)

Layers are unrolled: each has its own geometry, sizes and tiles among the constants of plan.LayerPlan. Drives are
d = e act'(z) at every position of the convolution, so that what goes back, and the gradients, know of no activation
and no pooling. The first layer's prediction is constant, as the input is clamped: its error is not computed again but
moves with its value, and its drive is formed at the end.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.convolution_tiles import (
    image_offsets,
    image_rows,
    parent_sum,
    pool_windows,
    preactivation_sum,
    unpool_windows,
    window_rows,
)
from pccompile.kernels.tiles import tile_indices

__all__ = ["clear_rows", "infer_layer", "infer_output", "predict_layer"]

_NO_POOLING = tl.constexpr(("none", 1, 1, 1, 1))


@triton.jit
def clear_rows(buffer_ptr, share, WIDTH: tl.constexpr, PLAN: tl.constexpr):
    """Zeros in this program's rows: results have no element left to chance, and some positions no window covers."""
    first_sample, samples = share
    rows = tile_indices(0, PLAN.block_batch, PLAN.wide)
    for tile in range(0, (WIDTH + PLAN.block_out - 1) // PLAN.block_out):
        columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
        mask = (rows < samples)[:, None] & (columns < WIDTH)[None, :]
        place = ((first_sample + rows) * WIDTH)[:, None] + columns[None, :]
        tl.store(buffer_ptr + place, tl.full((PLAN.block_batch, PLAN.block_out), 0.0, tl.float32), mask=mask)


@triton.jit
def _slope(z, negative_slope, ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """act'(z), float32 elementwise."""
    if ACTIVATION == "identity":
        slope = tl.full(z.shape, 1.0, tl.float32)
    elif FROM_OUTPUT:
        slope = activation_slope(activate(z, negative_slope, ACTIVATION), negative_slope, ACTIVATION)
    else:
        slope = activation_slope(z, negative_slope, ACTIVATION)
    return slope


@triton.jit
def predict_layer(network, state, share, start, held, negative_slope, LAYER: tl.constexpr, PLAN: tl.constexpr):
    """Predict and Compare of one layer, and its drive d = e act'(z).

    At the start v = mu, so that e is zero; where held, d is formed with e as it is. An output that has no free value
    takes its prediction for its value, and leaves act'(z) for the loss to multiply.
    """
    x_ptr, weights, biases = network
    values_ptr, errors_ptr, drives_ptr, _, _, _ = state
    first_sample, samples = share
    THIS: tl.constexpr = PLAN.layers[LAYER]
    ACTIVATION: tl.constexpr = THIS.activation
    GEOMETRY: tl.constexpr = THIS.geometry
    POOLING: tl.constexpr = THIS.pooling
    SIZES: tl.constexpr = THIS.sizes
    PRECISION: tl.constexpr = THIS.input_precision
    WINDOW: tl.constexpr = THIS.padded_window
    ROWS: tl.constexpr = THIS.block_rows
    OUT: tl.constexpr = THIS.block_out
    IS_OUTPUT: tl.constexpr = PLAN.depth == LAYER + 1 and not PLAN.free_output
    SOURCE_STRIDES: tl.constexpr = THIS.source_strides
    WEIGHT_STRIDES: tl.constexpr = THIS.weight_strides
    BIAS_STRIDES: tl.constexpr = THIS.bias_strides
    OWN_STRIDES: tl.constexpr = THIS.own_strides
    DRIVE_STRIDES: tl.constexpr = THIS.drive_strides
    if LAYER == 0:
        source_ptr = x_ptr
    else:
        source_ptr = values_ptr + THIS.source
    out_tiles: tl.constexpr = (SIZES[4] + OUT - 1) // OUT
    row_tiles = (samples * (SIZES[7] * SIZES[8] * WINDOW) + ROWS - 1) // ROWS
    for tile in range(0, row_tiles * out_tiles):
        rows = window_rows(
            tile // out_tiles, first_sample, samples, 0, SIZES[7], SIZES[8], POOLING, WINDOW, ROWS, PLAN.wide
        )
        z, outputs, exist = preactivation_sum(
            source_ptr,
            weights[LAYER],
            biases[LAYER],
            SOURCE_STRIDES,
            WEIGHT_STRIDES,
            BIAS_STRIDES,
            SIZES,
            rows,
            tile % out_tiles,
            GEOMETRY,
            POOLING,
            THIS.has_bias,
            False,
            THIS.flatten,
            PRECISION,
            PLAN.wide,
            PLAN.upcast,
            ROWS,
            OUT,
            THIS.block_in,
        )
        prediction, argmax, _kept = pool_windows(z, rows, negative_slope, ACTIVATION, POOLING, WINDOW, ROWS, OUT)
        windows = image_rows(tile // out_tiles, first_sample, samples, 0, SIZES[7], SIZES[8], ROWS // WINDOW, PLAN.wide)
        mask = windows[3][:, None] & exist[None, :]
        place = THIS.own + image_offsets(windows[0], outputs, windows[1], windows[2], OWN_STRIDES)
        error = tl.load(errors_ptr + place, mask=mask, other=0.0)
        if IS_OUTPUT:
            tl.store(values_ptr + place, prediction, mask=mask)
            error = tl.where(held, error, 1.0)
        else:
            value = tl.load(values_ptr + place, mask=mask, other=0.0)
            error = tl.where(held, error, tl.where(start, 0.0, value - prediction))
            tl.store(values_ptr + place, prediction, mask=mask & start)
            tl.store(errors_ptr + place, error, mask=mask)
        slope = _slope(z, negative_slope, ACTIVATION, THIS.slope_from_output)
        drive = slope * unpool_windows(error, argmax, POOLING, WINDOW, ROWS, OUT)
        down = rows[1] * POOLING[3] + rows[3]
        right = rows[2] * POOLING[4] + rows[4]
        tl.store(
            drives_ptr + THIS.own_drives + image_offsets(rows[0], outputs, down, right, DRIVE_STRIDES),
            drive,
            mask=rows[5][:, None] & exist[None, :],
        )


@triton.jit
def _move(
    direction, state, place, mask, step_size, momentum, first_error_follows, FIRST: tl.constexpr, PLAN: tl.constexpr
):
    """v += eta m with m = momentum m + g, where g is what comes from above less the error."""
    values_ptr, errors_ptr, _, moments_ptr, _, _ = state
    error = tl.load(errors_ptr + place, mask=mask, other=0.0)
    direction -= error
    if PLAN.momentum:
        direction += momentum * tl.load(moments_ptr + place, mask=mask, other=0.0)
        tl.store(moments_ptr + place, direction, mask=mask)
    value = tl.load(values_ptr + place, mask=mask, other=0.0)
    tl.store(values_ptr + place, value + step_size * direction, mask=mask)
    if FIRST:  # noqa: SIM102  (decided at compile time, the other one at run time)
        if first_error_follows:
            tl.store(errors_ptr + place, error + step_size * direction, mask=mask)


@triton.jit
def infer_layer(
    network,
    state,
    share,
    step_size,
    momentum,
    first_error_follows,
    negative_slope,
    LAYER: tl.constexpr,
    PLAN: tl.constexpr,
):
    """Infer of one layer that another reads: of what that one's drive carries back through its weight."""
    _, weights, _ = network
    _, _, drives_ptr, _, _, _ = state
    first_sample, samples = share
    CHILD: tl.constexpr = PLAN.layers[LAYER + 1]
    GEOMETRY: tl.constexpr = CHILD.geometry
    SIZES: tl.constexpr = CHILD.sizes
    PRECISION: tl.constexpr = CHILD.input_precision
    ROWS: tl.constexpr = CHILD.parent_rows
    IN: tl.constexpr = CHILD.parent_in
    SOURCE_STRIDES: tl.constexpr = CHILD.source_strides
    WEIGHT_STRIDES: tl.constexpr = CHILD.weight_strides
    DRIVE_STRIDES: tl.constexpr = CHILD.drive_strides
    lines: tl.constexpr = (SIZES[2] + GEOMETRY[2] - 1) // GEOMETRY[2]
    columns: tl.constexpr = (SIZES[3] + GEOMETRY[3] - 1) // GEOMETRY[3]
    in_tiles: tl.constexpr = (SIZES[1] + IN - 1) // IN
    drives = drives_ptr + CHILD.own_drives
    per_phase = (samples * (lines * columns) + ROWS - 1) // ROWS * in_tiles
    for tile in range(0, GEOMETRY[2] * GEOMETRY[3] * per_phase):
        within = tile % per_phase
        blocks = image_rows(within // in_tiles, first_sample, samples, 0, lines, columns, ROWS, PLAN.wide)
        direction, y, x, channels, exist = parent_sum(
            drives,
            drives,
            drives,
            weights[LAYER + 1],
            DRIVE_STRIDES,
            DRIVE_STRIDES,
            DRIVE_STRIDES,
            WEIGHT_STRIDES,
            SIZES,
            tile // per_phase,
            blocks,
            within % in_tiles,
            negative_slope,
            "identity",
            GEOMETRY,
            _NO_POOLING,
            False,
            CHILD.flatten_parent,
            PRECISION,
            PLAN.wide,
            PLAN.upcast,
            ROWS,
            IN,
            CHILD.parent_out,
        )
        mask = (blocks[3] & (y < SIZES[2]) & (x < SIZES[3]))[:, None] & exist[None, :]
        place = CHILD.source + image_offsets(blocks[0], channels, y, x, SOURCE_STRIDES)
        _move(direction, state, place, mask, step_size, momentum, first_error_follows, LAYER == 0, PLAN)


@triton.jit
def infer_output(state, share, step_size, momentum, first_error_follows, PLAN: tl.constexpr):
    """Infer of an output with a free value, which nothing but the loss reads: the loss's errors lie behind its own."""
    _, errors_ptr, _, _, row_stride, _ = state
    first_sample, samples = share
    THIS: tl.constexpr = PLAN.layers[PLAN.depth - 1]
    beside: tl.constexpr = (PLAN.classes + 15) // 16 * 16
    rows = tile_indices(0, PLAN.block_batch, PLAN.wide)
    for tile in range(0, (PLAN.classes + PLAN.block_out - 1) // PLAN.block_out):
        columns = tile_indices(tile, PLAN.block_out, PLAN.wide)
        mask = (rows < samples)[:, None] & (columns < PLAN.classes)[None, :]
        place = THIS.own + ((first_sample + rows) * row_stride)[:, None] + columns[None, :]
        direction = tl.load(errors_ptr + place + beside, mask=mask, other=0.0)
        _move(direction, state, place, mask, step_size, momentum, first_error_follows, PLAN.depth == 1, PLAN)
