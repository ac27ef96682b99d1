"""The Triton kernel of linear_step, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import ACTIVATIONS, activate, activation_slope
from pccompile.kernels.devices import (
    Architecture,
    architecture_of,
    interpreted,
    launch_options,
    precision_of,
)
from pccompile.kernels.launches import count_launch
from pccompile.kernels.linear_step.configurations import Configuration, Whole, configuration_for, outputs_at_a_time
from pccompile.kernels.products import product_tile
from pccompile.kernels.tiles import as_stored, needs_wide_offsets, tile_indices, write_tile

__all__ = ["launch_linear_step", "linear_step_kernel"]

_LEAST = 16  # what a product's dimension has to be


@triton.jit
def _compare(
    z,
    rows,
    columns,
    batch,
    width,
    tensors,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PREDICTION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Writes a tile of e = v - act(z), and of act(z) where it is kept; returns d = e act'(z)."""
    value, bias, error, prediction = tensors
    mask = (rows < batch)[:, None] & (columns < width)[None, :]
    if HAS_BIAS:
        z += tl.load(bias[0] + columns * bias[1], mask=columns < width, other=0.0).to(tl.float32)[None, :]
    output = activate(z, negative_slope, ACTIVATION)
    place = value[0] + (rows * value[1])[:, None] + (columns * value[2])[None, :]
    given = tl.load(place, mask=mask, other=0.0)
    rounded = as_stored(tl.where(mask, output, 0.0), given, UPCAST)
    difference = given.to(tl.float32) - rounded
    place = error[0] + (rows * error[1])[:, None] + (columns * error[2])[None, :]
    tl.store(place, difference.to(error[0].dtype.element_ty), mask=mask)
    if KEEP_PREDICTION:
        place = prediction[0] + (rows * prediction[1])[:, None] + (columns * prediction[2])[None, :]
        tl.store(place, rounded.to(prediction[0].dtype.element_ty), mask=mask)
    if ACTIVATION != "identity":
        difference *= activation_slope(output if FROM_OUTPUT else z, negative_slope, ACTIVATION)
    return difference


@triton.jit
def _add_drive(drive, tile, rows, columns, batch, width, ACCUMULATE: tl.constexpr):
    place = drive[0] + (rows * drive[1])[:, None] + (columns * drive[2])[None, :]
    mask = (rows < batch)[:, None] & (columns < width)[None, :]
    write_tile(place, tile, mask, ACCUMULATE)


@triton.jit
def _predict_outputs(
    first,
    last,
    rows,
    sizes,
    layer,
    tensors,
    kept_ptr,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PREDICTION: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """Predict and Compare of the tiles of outputs from first to last of a wide layer; d is kept."""
    batch, out_features, in_features = sizes
    x_ptr, x_batch_stride, x_in_stride, weight_ptr, weight_out_stride, weight_in_stride = layer
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    for out_tile in range(first, last):
        outputs = tile_indices(out_tile, BLOCK_OUT, WIDE)
        z = product_tile(
            x_ptr, x_batch_stride, x_in_stride, weight_ptr, weight_in_stride, weight_out_stride,
            rows, batch, outputs, out_features, in_features,
            OPERAND, INPUT_PRECISION, WIDE, UPCAST, BLOCK_SUM,
        )  # fmt: skip
        d = _compare(
            z, rows, outputs, batch, out_features, tensors, negative_slope,
            ACTIVATION, FROM_OUTPUT, HAS_BIAS, KEEP_PREDICTION, UPCAST,
        )  # fmt: skip
        mask = (rows < batch)[:, None] & (outputs < out_features)[None, :]
        tl.store(kept_ptr + (rows * out_features)[:, None] + outputs[None, :], d.to(OPERAND), mask=mask)


@triton.jit
def _carry_back(
    first,
    last,
    rows,
    sizes,
    layer,
    drive,
    kept_ptr,
    sums_ptr,
    ACCUMULATE: tl.constexpr,
    GROUPED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """The drive that these tiles give; where there are others, it is added up tile by tile in sums."""
    batch, out_features, in_features = sizes
    x_ptr, _, _, weight_ptr, weight_out_stride, weight_in_stride = layer
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    start = tl.full((), 0, tl.int64 if WIDE else tl.int32)
    if GROUPED:
        start += first * BLOCK_OUT
    count = tl.minimum(out_features, last * BLOCK_OUT) - first * BLOCK_OUT
    for in_tile in range(0, (in_features + BLOCK_IN - 1) // BLOCK_IN):
        inputs = tile_indices(in_tile, BLOCK_IN, WIDE)
        tile = product_tile(
            kept_ptr + start, out_features, 1,
            weight_ptr + start * weight_out_stride, weight_out_stride, weight_in_stride,
            rows, batch, inputs, in_features, count,
            OPERAND, INPUT_PRECISION, WIDE, UPCAST, BLOCK_SUM,
        )  # fmt: skip
        final = True
        if GROUPED:
            final = last * BLOCK_OUT >= out_features
            place = sums_ptr + (rows * in_features)[:, None] + inputs[None, :]
            mask = (rows < batch)[:, None] & (inputs < in_features)[None, :]
            if first > 0:
                tile += tl.load(place, mask=mask, other=0.0)
            if not final:
                tl.store(place, tile, mask=mask)
        if final:
            _add_drive(drive, tile, rows, inputs, batch, in_features, ACCUMULATE)


@triton.jit
def linear_step_kernel(
    value_ptr,  # (batch, out)
    x_ptr,  # (batch, in)
    weight_ptr,  # (out, in)
    bias_ptr,  # (out,)
    error_ptr,  # (batch, out)
    drive_ptr,  # (batch, in)
    prediction_ptr,  # (batch, out)
    kept_ptr,  # (batch, out), contiguous: d between the products of a wide layer
    sums_ptr,  # (batch, in), float32, contiguous: the drive between the groups of a wide layer
    batch,
    out_features,
    in_features,
    value_batch_stride,
    value_out_stride,
    x_batch_stride,
    x_in_stride,
    weight_out_stride,
    weight_in_stride,
    bias_stride,
    error_batch_stride,
    error_out_stride,
    drive_batch_stride,
    drive_in_stride,
    prediction_batch_stride,
    prediction_out_stride,
    group_tiles,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,  # act' is read from act(z), not from z
    HAS_BIAS: tl.constexpr,
    KEEP_PREDICTION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NARROW: tl.constexpr,  # BLOCK_IN holds all inputs
    GROUPED: tl.constexpr,  # of a wide layer, group_tiles tiles of outputs are predicted and carried back at a time
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_BATCH: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """The errors of a tile of the batch, and its parent's drive."""
    OPERAND: tl.constexpr = x_ptr.dtype.element_ty
    tensors = (
        (value_ptr, value_batch_stride, value_out_stride),
        (bias_ptr, bias_stride),
        (error_ptr, error_batch_stride, error_out_stride),
        (prediction_ptr, prediction_batch_stride, prediction_out_stride),
    )
    drive = (drive_ptr, drive_batch_stride, drive_in_stride)
    rows = tile_indices(tl.program_id(0), BLOCK_BATCH, WIDE)
    out_tiles = (out_features + BLOCK_OUT - 1) // BLOCK_OUT
    if NARROW:
        inputs = tile_indices(0, BLOCK_IN, WIDE)
        inside = inputs < in_features
        x = tl.load(
            x_ptr + (rows * x_batch_stride)[:, None] + (inputs * x_in_stride)[None, :],
            mask=(rows < batch)[:, None] & inside[None, :],
            other=0.0,
        )
        if UPCAST:
            x = x.to(tl.float32)
        accumulator = tl.full((BLOCK_BATCH, BLOCK_IN), 0.0, tl.float32)
        for out_tile in range(0, out_tiles):
            outputs = tile_indices(out_tile, BLOCK_OUT, WIDE)
            weight = tl.load(  # (BLOCK_OUT, BLOCK_IN), for both products
                weight_ptr + (outputs * weight_out_stride)[:, None] + (inputs * weight_in_stride)[None, :],
                mask=(outputs < out_features)[:, None] & inside[None, :],
                other=0.0,
            )
            if UPCAST:
                weight = weight.to(tl.float32)
            z = tl.dot(x, tl.trans(weight), input_precision=INPUT_PRECISION)
            d = _compare(
                z, rows, outputs, batch, out_features, tensors, negative_slope,
                ACTIVATION, FROM_OUTPUT, HAS_BIAS, KEEP_PREDICTION, UPCAST,
            )  # fmt: skip
            d = d.to(OPERAND).to(weight.dtype)
            accumulator = tl.dot(d, weight, accumulator, input_precision=INPUT_PRECISION)
        _add_drive(drive, accumulator, rows, inputs, batch, in_features, ACCUMULATE)
    else:
        layer = (x_ptr, x_batch_stride, x_in_stride, weight_ptr, weight_out_stride, weight_in_stride)
        sizes = (batch, out_features, in_features)
        if GROUPED:
            for first in range(0, out_tiles, group_tiles):
                last = tl.minimum(first + group_tiles, out_tiles)
                _predict_outputs(
                    first, last, rows, sizes, layer, tensors, kept_ptr, negative_slope,
                    ACTIVATION, FROM_OUTPUT, HAS_BIAS, KEEP_PREDICTION,
                    INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_SUM,
                )  # fmt: skip
                tl.debug_barrier()  # what other threads of this program have stored is read now
                _carry_back(
                    first, last, rows, sizes, layer, drive, kept_ptr, sums_ptr,
                    ACCUMULATE, True, INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_IN, BLOCK_SUM,
                )  # fmt: skip
        else:
            _predict_outputs(
                0, out_tiles, rows, sizes, layer, tensors, kept_ptr, negative_slope,
                ACTIVATION, FROM_OUTPUT, HAS_BIAS, KEEP_PREDICTION,
                INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_SUM,
            )  # fmt: skip
            tl.debug_barrier()
            _carry_back(
                0, out_tiles, rows, sizes, layer, drive, kept_ptr, sums_ptr,
                ACCUMULATE, False, INPUT_PRECISION, WIDE, UPCAST, BLOCK_OUT, BLOCK_IN, BLOCK_SUM,
            )  # fmt: skip


class _LaunchTiles(NamedTuple):
    """What the kernel is told of tiles, beside those of rows and outputs that every configuration has.

    Attributes:
        narrow: a tile holds all inputs.
        block_in, block_sum: of the drive, and of both sums.
        group: tiles of outputs that are predicted before they are carried back.
        grouped: whether that is less than all.
    """

    narrow: bool
    block_in: int
    block_sum: int
    group: int
    grouped: bool

    @classmethod
    def of(
        cls,
        chosen: Configuration,
        architecture: Architecture,
        batch: int,
        out: int,
        in_features: int,
        element_bytes: int,
        group_out: int | None,
    ) -> _LaunchTiles:
        """Those of a configuration for a layer's sizes."""
        if isinstance(chosen, Whole):
            return cls(True, max(triton.next_power_of_2(in_features), _LEAST), _LEAST, 1, False)
        group_out = group_out or outputs_at_a_time(architecture, chosen, batch, out, in_features, element_bytes)
        group = max(triton.cdiv(group_out, chosen.block_out), 1)
        return cls(False, chosen.block_in, chosen.block_sum, group, group < triton.cdiv(out, chosen.block_out))


def launch_linear_step(
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    error: Tensor,
    drive: Tensor,
    prediction: Tensor | None,
    activation: str,
    *,
    accumulate: bool = False,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
    group_out: int | None = None,
) -> None:
    """Write a layer's errors, and write or add its parent's drive. Arguments are not checked; the operator does.

    Args:
        value: (batch, out).
        x: (batch, in).
        weight: (out, in).
        bias: (out,), or None.
        error: (batch, out), overwritten.
        drive: (batch, in), overwritten or added to.
        prediction: (batch, out), overwritten, or None to not keep it.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        accumulate: add to drive.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.
        group_out: outputs of a wide layer that are predicted before they are carried back; None counts bytes.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    (batch, in_features), out_features = x.shape, weight.shape[0]
    architecture = architecture_of(x.device)
    if batch == 0 or (in_features == 0 and out_features == 0):
        return
    chosen = configuration or configuration_for(architecture, precision_of(x.dtype, input_precision), in_features)
    tiles = _LaunchTiles.of(chosen, architecture, batch, out_features, in_features, x.element_size(), group_out)
    kept = error if tiles.narrow else torch.empty((batch, out_features), dtype=x.dtype, device=x.device)
    sums = torch.empty((batch, in_features), dtype=torch.float32, device=x.device) if tiles.grouped else kept
    given_prediction = error if prediction is None else prediction
    given_bias = weight if bias is None else bias
    count_launch("linear_step")
    with torch.cuda.device_of(x):
        linear_step_kernel[(triton.cdiv(batch, chosen.block_batch),)](
            value,
            x,
            weight,
            given_bias,
            error,
            drive,
            given_prediction,
            kept,
            sums,
            batch,
            out_features,
            in_features,
            *value.stride(),
            *x.stride(),
            *weight.stride(),
            given_bias.stride(0),
            *error.stride(),
            *drive.stride(),
            *given_prediction.stride(),
            tiles.group,
            float(negative_slope),
            ACTIVATION=activation,
            FROM_OUTPUT=ACTIVATIONS[activation].residual == "output",
            HAS_BIAS=bias is not None,
            KEEP_PREDICTION=prediction is not None,
            ACCUMULATE=accumulate,
            NARROW=tiles.narrow,
            GROUPED=tiles.grouped,
            INPUT_PRECISION=input_precision,
            WIDE=needs_wide_offsets(value, x, weight, bias, error, drive, prediction, kept, sums),
            UPCAST=interpreted() and x.dtype is not torch.float32,
            BLOCK_BATCH=chosen.block_batch,
            BLOCK_OUT=chosen.block_out,
            BLOCK_IN=tiles.block_in,
            BLOCK_SUM=tiles.block_sum,
            **launch_options(architecture, chosen.warps, chosen.stages),
        )
