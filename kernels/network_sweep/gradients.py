"""The gradients of all weights and biases of a network, from the drives that a sweep has left, in one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.conv_error.gradient import gradient_tile

__all__ = ["network_gradients_kernel"]

_NO_POOLING = tl.constexpr(("none", 1, 1, 1, 1))


@triton.jit
def _layer_gradients(given, within, batch, factor, LAYER: tl.constexpr, PLAN: tl.constexpr):
    """One program's tile of a layer's dW, or its share of that tile's sum; in the first column of tiles db as well."""
    x_ptr, values_ptr, drives_ptr, gradients_ptr, partial_ptr, arrived_ptr = given
    THIS: tl.constexpr = PLAN.layers[LAYER]
    SHARE: tl.constexpr = PLAN.shares[LAYER]
    SIZES: tl.constexpr = THIS.sizes
    CHANNELS: tl.constexpr = SIZES[1]
    HEIGHT: tl.constexpr = SIZES[2]
    WIDTH: tl.constexpr = SIZES[3]
    OUT: tl.constexpr = SIZES[4]
    DOWN: tl.constexpr = SIZES[5]
    RIGHT: tl.constexpr = SIZES[6]
    GEOMETRY: tl.constexpr = THIS.geometry
    PRECISION: tl.constexpr = THIS.input_precision
    SOURCE_STRIDES: tl.constexpr = THIS.source_strides
    DRIVE_STRIDES: tl.constexpr = THIS.drive_strides
    GRADIENT_STRIDES: tl.constexpr = SHARE.weight_gradient_strides
    if LAYER == 0:
        source_ptr = x_ptr
    else:
        source_ptr = values_ptr + THIS.source
    drives = drives_ptr + THIS.own_drives
    gradient_tile(
        drives,
        drives,
        drives,
        source_ptr,
        gradients_ptr + SHARE.weight_gradient,
        gradients_ptr + SHARE.bias_gradient,
        partial_ptr + SHARE.partial,
        arrived_ptr + SHARE.arrived,
        DRIVE_STRIDES,
        DRIVE_STRIDES,
        DRIVE_STRIDES,
        SOURCE_STRIDES,
        GRADIENT_STRIDES,
        (1,),
        (batch, CHANNELS, HEIGHT, WIDTH, OUT, DOWN, RIGHT),
        within % SHARE.tiles,
        SHARE.in_tiles,
        within // SHARE.tiles,
        SHARE.splits,
        factor,
        0.0,
        "identity",
        GEOMETRY,
        _NO_POOLING,
        True,
        True,
        False,
        False,
        False,
        SHARE.splits > 1,
        PLAN.release_lanes,
        PRECISION,
        PLAN.wide,
        PLAN.upcast,
        PLAN.block_out,
        PLAN.block_in,
        PLAN.block_rows,
    )


@triton.jit
def network_gradients_kernel(
    x_ptr,  # (batch, channels, height, width)
    values_ptr,  # (batch, columns) float32
    drives_ptr,  # (batch, drive columns) float32
    gradients_ptr,  # every dW, then every db, contiguous
    partial_ptr,  # sums of the programs that share a tile, float32
    arrived_ptr,  # a counter for each such tile, int32, zero
    upstream_ptr,  # () float32
    batch,
    factor,
    PLAN: tl.constexpr,
):
    """factor d x and factor sum(d) of every layer: each layer has so many programs, one layer's behind another's."""
    if PLAN.upstream:
        factor *= tl.load(upstream_ptr)
    given = (x_ptr, values_ptr, drives_ptr, gradients_ptr, partial_ptr, arrived_ptr)
    within = tl.program_id(0)
    DEPTH: tl.constexpr = PLAN.depth
    for layer in tl.static_range(0, DEPTH):
        programs = PLAN.shares[layer].tiles * PLAN.shares[layer].splits
        if (within >= 0) & (within < programs):
            _layer_gradients(given, within, batch, factor, layer, PLAN)
        within -= programs
