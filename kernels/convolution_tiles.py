"""Tiles of a convolution as matrix products, shared by its kernels: rows are positions of images, columns channels.

Kernels pass their integers in tuples:

    sizes     batch, channels, height, width, outputs, convolved height and width, pooled height and width
    GEOMETRY  kernel, stride, padding, dilation (height, width each), groups, tap steps (height, width)
    POOLING   kind, window, stride (height, width each)
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "channel_columns",
    "error_at_preactivation",
    "image_offsets",
    "image_rows",
    "parent_sum",
    "pool_windows",
    "preactivation_sum",
    "store_residual",
    "unpool_windows",
    "window_rows",
]


@triton.jit
def image_rows(tile, first_sample, samples, first_y, count_y, width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """(sample, y, x, inside), each (BLOCK,), of a tile of the positions samples x [first_y, +count_y) x width."""
    rows = tile_indices(tile, BLOCK, WIDE)
    lines = rows // width
    sample = lines // count_y
    return first_sample + sample, first_y + lines % count_y, rows % width, sample < samples


@triton.jit
def image_offsets(sample, channels, y, x, strides):
    """(rows, channels) offsets of the positions (sample, y, x) in images."""
    return (sample * strides[0] + y * strides[2] + x * strides[3])[:, None] + (channels * strides[1])[None, :]


@triton.jit
def window_rows(
    tile,
    first_sample,
    samples,
    first_y,
    count_y,
    width,
    POOLING: tl.constexpr,
    PADDED_WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(sample, window y, window x, y in the window, x in the window, inside), each (BLOCK,): PADDED_WINDOW rows a
    window."""
    rows = tile_indices(tile, BLOCK, WIDE)
    window = rows // PADDED_WINDOW
    position = rows % PADDED_WINDOW
    lines = window // width
    sample = lines // count_y
    inside = (sample < samples) & (position < POOLING[1] * POOLING[2])
    y, x = first_y + lines % count_y, window % width
    return first_sample + sample, y, x, position // POOLING[2], position % POOLING[2], inside


@triton.jit
def channel_columns(
    tile, per_group, GEOMETRY: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """(group, channels, inside) of a tile of channels: of one group, or across all groups where DIRECT."""
    if DIRECT or GEOMETRY[8] == 1:
        group = 0
        channels = tile_indices(tile, BLOCK, WIDE)
        inside = channels < per_group * GEOMETRY[8]
    else:
        tiles = (per_group + BLOCK - 1) // BLOCK
        group = tile // tiles
        within = tile_indices(tile % tiles, BLOCK, WIDE)
        channels = group * per_group + within
        inside = within < per_group
    return group, channels, inside


@triton.jit
def _tap_and_channel(step, taps, per_tap, FLATTEN: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """(tap, channel, which to sum) of one iteration, (1, BLOCK) or scalar: channels of several taps side by side where
    they are few (FLATTEN), of one tap otherwise."""
    if FLATTEN:
        index = tile_indices(step, BLOCK, WIDE)[None, :]
        tap = index // per_tap
        channel = index % per_tap
        summed = tap < taps
    else:
        tiles = (per_tap + BLOCK - 1) // BLOCK
        tap = _scalar(step // tiles, WIDE)
        channel = tile_indices(step % tiles, BLOCK, WIDE)[None, :]
        summed = channel < per_tap
    return tap, channel, summed


@triton.jit
def _scalar(value, WIDE: tl.constexpr):
    """A scalar, int64 where WIDE, from one that the interpreter may hold as Python's."""
    zero = tl.program_id(0) * 0
    if WIDE:
        zero = zero.to(tl.int64)
    return zero + value


@triton.jit
def _iterations(taps, per_tap, FLATTEN: tl.constexpr, BLOCK: tl.constexpr):
    if FLATTEN:
        count = (taps * per_tap + BLOCK - 1) // BLOCK
    else:
        count = taps * ((per_tap + BLOCK - 1) // BLOCK)
    return count


@triton.jit
def preactivation_sum(
    x_ptr,  # (batch, channels, height, width)
    weight_ptr,  # (out, channels / groups, kernel height, kernel width)
    bias_ptr,  # (out,)
    x_strides,
    weight_strides,
    bias_strides,
    sizes,
    rows,  # from window_rows
    column_tile,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DIRECT: tl.constexpr,
    FLATTEN: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """(z, outputs, which of them exist): x * W + b at the convolved positions of windows, float32."""
    taps: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    per_group = sizes[1] // GEOMETRY[8]
    group, outputs, exist = channel_columns(column_tile, sizes[4] // GEOMETRY[8], GEOMETRY, DIRECT, BLOCK_OUT, WIDE)
    top = ((rows[1] * POOLING[3] + rows[3]) * GEOMETRY[2] - GEOMETRY[4])[:, None]
    left = ((rows[2] * POOLING[4] + rows[4]) * GEOMETRY[3] - GEOMETRY[5])[:, None]
    positions = (rows[0] * x_strides[0])[:, None] + top * x_strides[2] + left * x_strides[3]
    inside = rows[5][:, None]
    accumulator = tl.full((BLOCK_ROWS, BLOCK_OUT), 0.0, tl.float32)
    if DIRECT:
        first = outputs // (sizes[4] // GEOMETRY[8]) * per_group
        for step in range(0, taps * per_group):
            tap = _scalar(step // per_group, WIDE)
            channel = _scalar(step % per_group, WIDE)
            down, right = tap // GEOMETRY[1], tap % GEOMETRY[1]
            seen = _seen(top + down * GEOMETRY[6], left + right * GEOMETRY[7], sizes, GEOMETRY)
            values = tl.load(
                x_ptr
                + positions
                + (down * GEOMETRY[6] * x_strides[2] + right * GEOMETRY[7] * x_strides[3])
                + ((first + channel) * x_strides[1])[None, :],
                mask=inside & seen & exist[None, :],
                other=0.0,
            )
            weight = tl.load(
                weight_ptr
                + outputs * weight_strides[0]
                + (channel * weight_strides[1] + down * weight_strides[2] + right * weight_strides[3]),
                mask=exist,
                other=0.0,
            )
            accumulator += values.to(tl.float32) * weight.to(tl.float32)[None, :]
    else:
        first = group * per_group
        for step in range(0, _iterations(taps, per_group, FLATTEN, BLOCK_IN)):
            tap, channel, summed = _tap_and_channel(step, taps, per_group, FLATTEN, BLOCK_IN, WIDE)
            down, right = tap // GEOMETRY[1], tap % GEOMETRY[1]
            seen = _seen(top + down * GEOMETRY[6], left + right * GEOMETRY[7], sizes, GEOMETRY)
            values = tl.load(  # (BLOCK_ROWS, BLOCK_IN)
                x_ptr
                + positions
                + (
                    (first + channel) * x_strides[1]
                    + down * GEOMETRY[6] * x_strides[2]
                    + right * GEOMETRY[7] * x_strides[3]
                ),
                mask=inside & seen & summed,
                other=0.0,
            )
            weight = tl.load(  # (BLOCK_OUT, BLOCK_IN)
                weight_ptr
                + (outputs * weight_strides[0])[:, None]
                + (channel * weight_strides[1] + down * weight_strides[2] + right * weight_strides[3]),
                mask=exist[:, None] & summed,
                other=0.0,
            )
            values = values.to(weight.dtype)
            if UPCAST:
                values = values.to(tl.float32)
                weight = weight.to(tl.float32)
            accumulator = tl.dot(values, tl.trans(weight), accumulator, input_precision=INPUT_PRECISION)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs * bias_strides[0], mask=exist, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    return accumulator, outputs, exist


@triton.jit
def _seen(height, width, sizes, GEOMETRY: tl.constexpr):
    """Whether a position is in the image and not in its padding."""
    seen = (height < sizes[2]) & (width < sizes[3])
    if GEOMETRY[4] > 0 or GEOMETRY[5] > 0:
        seen = seen & (height >= 0) & (width >= 0)
    return seen


@triton.jit
def _larger(a, a_position, a_kept, b, b_position, b_kept):
    """The larger of two; the earlier of equals; not a number before any number."""
    second = (b > a) | ((b == a) & (b_position < a_position)) | ((b != b) & (a == a))
    return tl.where(second, b, a), tl.where(second, b_position, a_position), tl.where(second, b_kept, a_kept)


@triton.jit
def pool_windows(
    z,
    rows,  # from window_rows
    negative_slope,
    ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr,
    PADDED_WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """(output, argmax, z) of the windows in a tile of rows: act(z) pooled, and where a maximum is, with z there.

    Without pooling, act(z), an argmax of no meaning, and z. Shapes are (BLOCK_ROWS / PADDED_WINDOW, BLOCK_OUT).
    """
    y = activate(z, negative_slope, ACTIVATION)
    windows: tl.constexpr = BLOCK_ROWS // PADDED_WINDOW
    argmax = z
    if POOLING[0] == "max":
        shape: tl.constexpr = (windows, PADDED_WINDOW, BLOCK_OUT)
        y = tl.reshape(tl.where(rows[5][:, None], y, float("-inf")), shape)
        positions = tl.arange(0, PADDED_WINDOW)[None, :, None] + tl.full(shape, 0, tl.int32)
        y, argmax, z = tl.reduce((y, positions, tl.reshape(z, shape)), 1, _larger)
    elif POOLING[0] == "average":
        y = tl.reshape(tl.where(rows[5][:, None], y, 0.0), (windows, PADDED_WINDOW, BLOCK_OUT))
        y = sum_of(y, 1) * (1.0 / (POOLING[1] * POOLING[2]))
    return y, argmax, z


@triton.jit
def unpool_windows(
    error,  # (BLOCK_ROWS / PADDED_WINDOW, BLOCK_OUT)
    argmax,  # from pool_windows
    POOLING: tl.constexpr,
    PADDED_WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """(BLOCK_ROWS, BLOCK_OUT) the windows' errors at their positions: at the maximum of each, or spread over it."""
    if POOLING[0] != "none":
        shape: tl.constexpr = (BLOCK_ROWS // PADDED_WINDOW, PADDED_WINDOW, BLOCK_OUT)
        spread = error[:, None, :] + tl.full(shape, 0.0, tl.float32)
        if POOLING[0] == "max":
            positions = tl.arange(0, PADDED_WINDOW)[None, :, None]
            spread = tl.where(positions == argmax[:, None, :], spread, 0.0)
        else:
            spread = spread * (1.0 / (POOLING[1] * POOLING[2]))
        error = tl.reshape(spread, (BLOCK_ROWS, BLOCK_OUT))
    return error


@triton.jit
def store_residual(
    residual_ptr,
    residual_strides,
    output,
    kept,
    z,
    negative_slope,
    rows,  # from window_rows
    windows,  # from image_rows, a row a window
    outputs,
    exist,
    ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write what act' is read from: of every position under an average, one a window otherwise."""
    if KEEP != "nothing":
        if POOLING[0] == "average":
            if KEEP == "output":
                residual = activate(z, negative_slope, ACTIVATION)
            else:
                residual = z
            y, x = rows[1] * POOLING[1] + rows[3], rows[2] * POOLING[2] + rows[4]
            offsets = image_offsets(rows[0], outputs, y, x, residual_strides)
            mask = rows[5][:, None] & exist[None, :]
        else:
            if KEEP == "output":
                residual = output
            else:
                residual = kept
            offsets = image_offsets(windows[0], outputs, windows[1], windows[2], residual_strides)
            mask = windows[3][:, None] & exist[None, :]
        tl.store(residual_ptr + offsets, residual.to(residual_ptr.dtype.element_ty), mask=mask)


@triton.jit
def error_at_preactivation(
    error_ptr,  # (batch, out, pooled height, pooled width)
    residual_ptr,
    argmax_ptr,
    error_strides,
    residual_strides,
    argmax_strides,
    sizes,
    sample,  # this and the next three broadcast to the tile's shape
    output,
    y,
    x,
    mask,
    negative_slope,
    ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr,
):
    """A tile of d = e * act'(z) at the convolved positions (y, x), float32, zero outside the mask.

    Behind a pooling e belongs to windows: d is zero in all but the maximum of each, or e spread evenly over it.
    """
    residual_y, residual_x = y, x
    if POOLING[0] != "none":
        window_y, window_x = y // POOLING[3], x // POOLING[4]
        down, right = y - window_y * POOLING[3], x - window_x * POOLING[4]
        mask = mask & (down < POOLING[1]) & (right < POOLING[2]) & (window_y < sizes[7]) & (window_x < sizes[8])
        y, x = window_y, window_x
        if POOLING[0] == "average":
            residual_y, residual_x = window_y * POOLING[1] + down, window_x * POOLING[2] + right
        else:
            residual_y, residual_x = y, x
            argmax = tl.load(
                argmax_ptr
                + (
                    sample * argmax_strides[0]
                    + output * argmax_strides[1]
                    + (y * argmax_strides[2] + x * argmax_strides[3])
                ),
                mask=mask,
                other=-1,
            )
            mask = mask & (argmax == down * POOLING[2] + right)
    d = tl.load(
        error_ptr
        + (sample * error_strides[0] + output * error_strides[1] + (y * error_strides[2] + x * error_strides[3])),
        mask=mask,
        other=0.0,
    ).to(tl.float32)
    if POOLING[0] == "average":
        d = d * (1.0 / (POOLING[1] * POOLING[2]))
    if ACTIVATION != "identity":
        residual = tl.load(
            residual_ptr
            + (
                sample * residual_strides[0]
                + output * residual_strides[1]
                + (residual_y * residual_strides[2] + residual_x * residual_strides[3])
            ),
            mask=mask,
            other=0.0,
        ).to(tl.float32)
        d = d * activation_slope(residual, negative_slope, ACTIVATION)
    return d


@triton.jit
def _first_tap(
    phase,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
):
    """The first tap that meets rows congruent to phase modulo the stride; KERNEL or more where none does."""
    first = phase * 0 + KERNEL
    for before in tl.static_range(0, STEP):
        meets = (phase + PADDING - (STEP - 1 - before) * DILATION) % STRIDE == 0
        first = tl.where(meets, STEP - 1 - before, first)
    return first


@triton.jit
def parent_sum(
    error_ptr,
    residual_ptr,
    argmax_ptr,
    weight_ptr,
    error_strides,
    residual_strides,
    argmax_strides,
    weight_strides,
    sizes,
    phase,  # of stride height * stride width
    blocks,  # from image_rows: x's positions, divided by the stride
    column_tile,
    negative_slope,
    ACTIVATION: tl.constexpr,
    GEOMETRY: tl.constexpr,
    POOLING: tl.constexpr,
    DIRECT: tl.constexpr,
    FLATTEN: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """(sum, y, x, channels, which exist): d carried back through W to x's positions blocks * stride + phase, float32.

    Positions of one phase meet the same taps, every STEP-th: none is multiplied in vain, whatever the stride.
    """
    step_y: tl.constexpr = GEOMETRY[9]
    step_x: tl.constexpr = GEOMETRY[10]
    per_group = sizes[4] // GEOMETRY[8]
    sample, block_y, block_x, inside = blocks[0], blocks[1], blocks[2], blocks[3]
    phase_y, phase_x = phase // GEOMETRY[3], phase % GEOMETRY[3]
    first_y = _first_tap(phase_y, GEOMETRY[0], GEOMETRY[2], GEOMETRY[4], GEOMETRY[6], step_y)
    first_x = _first_tap(phase_x, GEOMETRY[1], GEOMETRY[3], GEOMETRY[5], GEOMETRY[7], step_x)
    taps_y = tl.maximum(GEOMETRY[0] - first_y + step_y - 1, 0) // step_y
    taps_x = tl.maximum(GEOMETRY[1] - first_x + step_x - 1, 0) // step_x
    group, channels, exist = channel_columns(column_tile, sizes[1] // GEOMETRY[8], GEOMETRY, DIRECT, BLOCK_IN, WIDE)
    accumulator = tl.full((BLOCK_ROWS, BLOCK_IN), 0.0, tl.float32)
    if DIRECT:
        channel_group = channels // (sizes[1] // GEOMETRY[8])
        within = channels % (sizes[1] // GEOMETRY[8])
        for step in range(0, taps_y * taps_x * per_group):
            tap = _scalar(step // per_group, WIDE)
            output = channel_group * per_group + step % per_group
            tap_y, tap_x = first_y + tap // taps_x * step_y, first_x + tap % taps_x * step_x
            y = block_y + (phase_y + GEOMETRY[4] - tap_y * GEOMETRY[6]) // GEOMETRY[2]
            x = block_x + (phase_x + GEOMETRY[5] - tap_x * GEOMETRY[7]) // GEOMETRY[3]
            seen = inside & (y >= 0) & (y < sizes[5]) & (x >= 0) & (x < sizes[6])
            d = error_at_preactivation(
                error_ptr,
                residual_ptr,
                argmax_ptr,
                error_strides,
                residual_strides,
                argmax_strides,
                sizes,
                sample[:, None],
                output[None, :],
                y[:, None],
                x[:, None],
                seen[:, None] & exist[None, :],
                negative_slope,
                ACTIVATION,
                POOLING,
            )
            weight = tl.load(
                weight_ptr
                + output * weight_strides[0]
                + within * weight_strides[1]
                + (tap_y * weight_strides[2] + tap_x * weight_strides[3]),
                mask=exist,
                other=0.0,
            )
            accumulator += d.to(weight.dtype).to(tl.float32) * weight.to(tl.float32)[None, :]
    else:
        within = channels - group * (sizes[1] // GEOMETRY[8])
        for step in range(0, _iterations(taps_y * taps_x, per_group, FLATTEN, BLOCK_OUT)):
            tap, output, summed = _tap_and_channel(step, taps_y * taps_x, per_group, FLATTEN, BLOCK_OUT, WIDE)
            output = group * per_group + output
            tap_y, tap_x = first_y + tap // taps_x * step_y, first_x + tap % taps_x * step_x
            y = block_y[:, None] + (phase_y + GEOMETRY[4] - tap_y * GEOMETRY[6]) // GEOMETRY[2]
            x = block_x[:, None] + (phase_x + GEOMETRY[5] - tap_x * GEOMETRY[7]) // GEOMETRY[3]
            seen = inside[:, None] & (y >= 0) & (y < sizes[5]) & (x >= 0) & (x < sizes[6])
            d = error_at_preactivation(  # (BLOCK_ROWS, BLOCK_OUT)
                error_ptr,
                residual_ptr,
                argmax_ptr,
                error_strides,
                residual_strides,
                argmax_strides,
                sizes,
                sample[:, None],
                output,
                y,
                x,
                seen & summed,
                negative_slope,
                ACTIVATION,
                POOLING,
            )
            weight = tl.load(  # (BLOCK_IN, BLOCK_OUT)
                weight_ptr
                + (within * weight_strides[1])[:, None]
                + (output * weight_strides[0] + tap_y * weight_strides[2] + tap_x * weight_strides[3]),
                mask=exist[:, None] & summed,
                other=0.0,
            )
            d = d.to(weight.dtype)
            if UPCAST:
                d = d.to(tl.float32)
                weight = weight.to(tl.float32)
            accumulator = tl.dot(d, tl.trans(weight), accumulator, input_precision=INPUT_PRECISION)
    return accumulator, block_y * GEOMETRY[2] + phase_y, block_x * GEOMETRY[3] + phase_x, channels, exist
