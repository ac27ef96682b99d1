"""The two halves of a step, as functions that every form of the kernel calls.

Jacobi ordering: a half-step reads only what the half-step before it wrote, so its tiles, of all layers, can be computed
in any order and by any program. What they pass around:

    chain   (x, x's strides, table of layers, number of layers)
    state   (values, errors, drives, moments, their row stride, batch), buffers of float32 with the layers side by side
    share   (first tile of rows, tiles of rows, worker, workers): the rows that are this program's concern, and its
            number among those that share them

The first layer's prediction is constant, as the input is clamped: its error is not computed again but moves with its
value, and until the end its column of drives holds act'(z).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.products import product_tile
from pccompile.kernels.strict_sweep.layout import Field
from pccompile.kernels.tiles import tile_indices

__all__ = ["finish_first_layer", "first_tile", "infer_layers", "layer_field", "predict_layers", "start_layer"]

_FIELDS = tl.constexpr(len(Field))
_WEIGHT = tl.constexpr(int(Field.WEIGHT))
_BIAS = tl.constexpr(int(Field.BIAS))
_IN = tl.constexpr(int(Field.IN))
_OUT = tl.constexpr(int(Field.OUT))
_WEIGHT_OUT_STRIDE = tl.constexpr(int(Field.WEIGHT_OUT_STRIDE))
_WEIGHT_IN_STRIDE = tl.constexpr(int(Field.WEIGHT_IN_STRIDE))
_BIAS_STRIDE = tl.constexpr(int(Field.BIAS_STRIDE))
_PARENT = tl.constexpr(int(Field.PARENT))
_OWN = tl.constexpr(int(Field.OWN))
_ACTIVATION = tl.constexpr(int(Field.ACTIVATION))


@triton.jit
def layer_field(table_ptr, layer, FIELD: tl.constexpr, WIDE: tl.constexpr):
    """An entry of the table; int64 where asked for."""
    value = tl.load(table_ptr + layer * _FIELDS + FIELD)
    return value if WIDE else value.to(tl.int32)


@triton.jit
def _width(table_ptr, layer, FIELD: tl.constexpr, PLAN: tl.constexpr):
    width = layer_field(table_ptr, layer, FIELD, False)
    return tl.multiple_of(width, 16) if PLAN.aligned else width


@triton.jit
def _weight(table_ptr, layer, OPERAND: tl.constexpr, PLAN: tl.constexpr):
    """(pointer, out stride, in stride) of a layer's weight."""
    weight_ptr = layer_field(table_ptr, layer, _WEIGHT, True).to(tl.pointer_type(OPERAND))
    out_stride = layer_field(table_ptr, layer, _WEIGHT_OUT_STRIDE, PLAN.wide)
    if PLAN.aligned:
        return tl.multiple_of(weight_ptr, 16), tl.multiple_of(out_stride, 16), 1
    else:
        return weight_ptr, out_stride, layer_field(table_ptr, layer, _WEIGHT_IN_STRIDE, PLAN.wide)


@triton.jit
def _start_column(table_ptr, layer, FIELD: tl.constexpr, PLAN: tl.constexpr):
    return tl.multiple_of(layer_field(table_ptr, layer, FIELD, PLAN.wide), 16)


@triton.jit
def _activation_at(z, negative_slope, INDEX: tl.constexpr, PLAN: tl.constexpr):
    """(act(z), act'(z)) for one of the chain's activations."""
    # Triton 3.6 takes a string out of a plan for a constant only if it is given a name.
    ACTIVATION: tl.constexpr = PLAN.activations[INDEX]
    prediction = activate(z, negative_slope, ACTIVATION)
    residual = prediction if PLAN.slopes_from_output[INDEX] else z
    return prediction, activation_slope(residual, negative_slope, ACTIVATION)


@triton.jit
def _activation(z, code, negative_slope, PLAN: tl.constexpr):
    """(act(z), act'(z)) for the layer's own activation among those of the chain."""
    prediction = z
    slope = tl.full(z.shape, 1.0, tl.float32)
    for index in tl.static_range(0, len(PLAN.activations)):
        if PLAN.activations[index] != "identity":  # noqa: SIM102 (a constant, and a value of the running program)
            if code == index:
                prediction, slope = _activation_at(z, negative_slope, index, PLAN)
    return prediction, slope


@triton.jit
def first_tile(worker, workers, earlier):
    """The first of a layer's tiles that is a worker's, if it is to go on where the tiles of earlier layers ended."""
    return (worker + workers - earlier % workers) % workers


@triton.jit
def _predict_layer(chain, state, share, layer, source, earlier, negative_slope, MODE: tl.constexpr, PLAN: tl.constexpr):
    """This worker's tiles of z = v W^T + b and of what follows from it; returns how many tiles the layer has.

    source is (pointer, row stride, column stride) of the parent's values. MODE says what is written:
        "start"  v = act(z), no error; act'(z) where the drive is formed later
        "step"   e = v - act(z), d = e act'(z); an output that has no free value: v = act(z) and act'(z) for the loss
        "held"   d = e act'(z) with the errors as they are
    """
    x_ptr, _, _, table_ptr, layers = chain
    values_ptr, errors_ptr, drives_ptr, moments_ptr, row_stride, batch = state
    first_row_tile, row_tiles, worker, workers = share
    source_ptr, source_row_stride, source_column_stride = source
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    INPUT_PRECISION: tl.constexpr = PLAN.input_precision
    in_features = _width(table_ptr, layer, _IN, PLAN)
    out_features = _width(table_ptr, layer, _OUT, PLAN)
    weight_ptr, weight_out_stride, weight_in_stride = _weight(table_ptr, layer, OPERAND, PLAN)
    bias_ptr = layer_field(table_ptr, layer, _BIAS, True)
    bias_stride = layer_field(table_ptr, layer, _BIAS_STRIDE, PLAN.wide)
    own = _start_column(table_ptr, layer, _OWN, PLAN)
    code = layer_field(table_ptr, layer, _ACTIVATION, False)
    is_output = (layer == layers - 1) & (not PLAN.free_output)
    tiles = row_tiles * ((out_features + PLAN.block_out - 1) // PLAN.block_out)
    for tile in range(first_tile(worker, workers, earlier), tiles, workers):
        rows = tile_indices(first_row_tile + tile % row_tiles, PLAN.block_batch, PLAN.wide)
        columns = tile_indices(tile // row_tiles, PLAN.block_out, PLAN.wide)
        z = product_tile(
            source_ptr,
            source_row_stride,
            source_column_stride,
            weight_ptr,
            weight_in_stride,
            weight_out_stride,
            rows,
            batch,
            columns,
            out_features,
            in_features,
            OPERAND,
            INPUT_PRECISION,
            PLAN.wide,
            PLAN.upcast,
            PLAN.block_sum,
        )
        if bias_ptr != 0:
            bias = tl.load(
                bias_ptr.to(tl.pointer_type(OPERAND)) + columns * bias_stride, mask=columns < out_features, other=0.0
            )
            z += bias.to(tl.float32)[None, :]
        prediction, slope = _activation(z, code, negative_slope, PLAN)
        mask = (rows < batch)[:, None] & (columns < out_features)[None, :]
        place = (rows * row_stride)[:, None] + (own + columns)[None, :]
        if MODE == "start":
            # Zeros between the layers as well: buffers are results, of which no element may be left to chance.
            nothing = tl.full(z.shape, 0.0, tl.float32)
            padded = (out_features + 15) // 16 * 16
            whole = (rows < batch)[:, None] & (columns < padded)[None, :]
            tl.store(values_ptr + place, tl.where(mask, prediction, nothing), mask=whole)
            tl.store(errors_ptr + place, nothing, mask=whole)
            tl.store(drives_ptr + place, tl.where(mask & (is_output | (layer == 0)), slope, nothing), mask=whole)
            if PLAN.free_output:  # noqa: SIM102 (a constant, and a value of the running program)
                if layer == layers - 1:
                    tl.store(values_ptr + place + padded, nothing, mask=whole)
                    tl.store(errors_ptr + place + padded, nothing, mask=whole)
                    tl.store(drives_ptr + place + padded, nothing, mask=whole)
            if PLAN.momentum:
                tl.store(moments_ptr + place, nothing, mask=mask)
        else:
            if is_output:
                tl.store(values_ptr + place, prediction, mask=mask)
            if MODE == "step":
                if is_output:
                    tl.store(drives_ptr + place, slope, mask=mask)
                else:
                    error = tl.load(values_ptr + place, mask=mask, other=0.0) - prediction
                    tl.store(errors_ptr + place, error, mask=mask)
                    tl.store(drives_ptr + place, error * slope, mask=mask)
            else:
                error = tl.load(errors_ptr + place, mask=mask, other=0.0)
                tl.store(drives_ptr + place, error * slope, mask=mask)
    return tiles


@triton.jit
def _source(chain, state, layer, PLAN: tl.constexpr):
    """Where the values of a layer's parent lie, for every layer but the first."""
    values_ptr, _, _, _, row_stride, _ = state
    return values_ptr + _start_column(chain[3], layer, _PARENT, PLAN), row_stride, 1


@triton.jit
def start_layer(chain, state, share, layer, negative_slope, FIRST: tl.constexpr, PLAN: tl.constexpr):
    """One layer of the feed-forward pass, from the input (FIRST) or from the layer below."""
    if FIRST:
        _predict_layer(chain, state, share, 0, (chain[0], chain[1], chain[2]), 0, negative_slope, "start", PLAN)
    else:
        _predict_layer(chain, state, share, layer, _source(chain, state, layer, PLAN), 0, negative_slope, "start", PLAN)


@triton.jit
def predict_layers(chain, state, share, step, negative_slope, HELD: tl.constexpr, PLAN: tl.constexpr):
    """Predict and Compare of every layer but the first; before step `layers` those that nothing has reached yet are
    left out, as neither they nor their parents have moved."""
    layers = chain[4]
    earlier = 0
    for layer in range(tl.maximum(layers - 1 + (1 if PLAN.free_output else 0) - step, 1), layers):
        source = _source(chain, state, layer, PLAN)
        if HELD:
            earlier += _predict_layer(chain, state, share, layer, source, earlier, negative_slope, "held", PLAN)
        else:
            earlier += _predict_layer(chain, state, share, layer, source, earlier, negative_slope, "step", PLAN)


@triton.jit
def infer_layers(chain, state, share, step, step_size, momentum, first_error_follows, PLAN: tl.constexpr):
    """Infer of every layer with a free value: v += eta m with m = momentum m + g and g = d W - e."""
    x_ptr, _, _, table_ptr, layers = chain
    values_ptr, errors_ptr, drives_ptr, moments_ptr, row_stride, batch = state
    first_row_tile, row_tiles, worker, workers = share
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    INPUT_PRECISION: tl.constexpr = PLAN.input_precision
    moving = layers if PLAN.free_output else layers - 1
    earlier = 0
    for layer in range(tl.maximum(moving - 1 - step, 0), moving):
        width = _width(table_ptr, layer, _OUT, PLAN)
        own = _start_column(table_ptr, layer, _OWN, PLAN)
        child = tl.minimum(layer + 1, layers - 1)  # a free output has none: its row is read and not used
        child_width = _width(table_ptr, child, _OUT, PLAN)
        child_own = _start_column(table_ptr, child, _OWN, PLAN)
        weight_ptr, weight_out_stride, weight_in_stride = _weight(table_ptr, child, OPERAND, PLAN)
        tiles = row_tiles * ((width + PLAN.block_out - 1) // PLAN.block_out)
        for tile in range(first_tile(worker, workers, earlier), tiles, workers):
            rows = tile_indices(first_row_tile + tile % row_tiles, PLAN.block_batch, PLAN.wide)
            columns = tile_indices(tile // row_tiles, PLAN.block_out, PLAN.wide)
            mask = (rows < batch)[:, None] & (columns < width)[None, :]
            place = (rows * row_stride)[:, None] + (own + columns)[None, :]
            # By a free output the sum has no terms, and what comes from above is the loss's error.
            has_child = layer < layers - 1
            direction = product_tile(
                drives_ptr + child_own,
                row_stride,
                1,
                weight_ptr,
                weight_out_stride,
                weight_in_stride,
                rows,
                batch,
                columns,
                width,
                tl.where(has_child, child_width, 0) if PLAN.free_output else child_width,
                OPERAND,
                INPUT_PRECISION,
                PLAN.wide,
                PLAN.upcast,
                PLAN.block_sum,
            )
            if PLAN.free_output:  # noqa: SIM102 (a constant, and a value of the running program)
                if layer == layers - 1:
                    padded = (width + 15) // 16 * 16
                    direction += tl.load(errors_ptr + place + padded, mask=mask, other=0.0)
            error = tl.load(errors_ptr + place, mask=mask, other=0.0)
            direction -= error
            if PLAN.momentum:
                direction += momentum * tl.load(moments_ptr + place, mask=mask, other=0.0)
                tl.store(moments_ptr + place, direction, mask=mask)
            value = tl.load(values_ptr + place, mask=mask, other=0.0)
            tl.store(values_ptr + place, value + step_size * direction, mask=mask)
            if (layer == 0) & first_error_follows:
                tl.store(errors_ptr + place, error + step_size * direction, mask=mask)
        earlier += tiles


@triton.jit
def finish_first_layer(chain, state, share, PLAN: tl.constexpr):
    """d = e act'(z) of the first layer, whose drives hold act'(z) until now; an output's the loss has formed."""
    _, _, _, table_ptr, layers = chain
    _, errors_ptr, drives_ptr, _, row_stride, batch = state
    first_row_tile, row_tiles, worker, workers = share
    if PLAN.free_output or layers > 1:
        width = _width(table_ptr, 0, _OUT, PLAN)
        for tile in range(worker, row_tiles * ((width + PLAN.block_out - 1) // PLAN.block_out), workers):
            rows = tile_indices(first_row_tile + tile % row_tiles, PLAN.block_batch, PLAN.wide)
            columns = tile_indices(tile // row_tiles, PLAN.block_out, PLAN.wide)
            mask = (rows < batch)[:, None] & (columns < width)[None, :]
            place = (rows * row_stride)[:, None] + columns[None, :]
            drive = tl.load(errors_ptr + place, mask=mask, other=0.0) * tl.load(
                drives_ptr + place, mask=mask, other=0.0
            )
            tl.store(drives_ptr + place, drive, mask=mask)
