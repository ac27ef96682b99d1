"""The Triton kernel of linear_error, and its launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activation_slope
from pccompile.kernels.devices import architecture_of, interpreted, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.linear_error.configurations import Configuration, configuration_for
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.results import SweepResults
from pccompile.kernels.tiles import grouped_tile, needs_wide_offsets, tile_indices, write_tile

__all__ = ["launch_linear_error", "linear_error_kernel"]


@triton.jit
def _error_at_preactivation(
    error_ptr, error_offsets, residual_ptr, residual_offsets, mask, negative_slope, ACTIVATION: tl.constexpr
):
    """A tile of d = e * act'(z), float32, zero outside the mask."""
    d = tl.load(error_ptr + error_offsets, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != "identity":
        residual = tl.load(residual_ptr + residual_offsets, mask=mask, other=0.0).to(tl.float32)
        d = d * activation_slope(residual, negative_slope, ACTIVATION)
    return d


@triton.jit
def _parent_tile(
    error_ptr,
    residual_ptr,
    weight_ptr,
    parent_ptr,
    batch_tile,
    in_tile,
    batch,
    out_features,
    in_features,
    error_batch_stride,
    error_out_stride,
    residual_batch_stride,
    residual_out_stride,
    weight_out_stride,
    weight_in_stride,
    parent_batch_stride,
    parent_in_stride,
    negative_slope,
    ACTIVATION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """One tile of d W, summed over the outputs."""
    rows = tile_indices(batch_tile, BLOCK_BATCH, WIDE)
    columns = tile_indices(in_tile, BLOCK_IN, WIDE)
    accumulator = tl.full((BLOCK_BATCH, BLOCK_IN), 0.0, tl.float32)
    for out_tile in range(0, (out_features + BLOCK_OUT - 1) // BLOCK_OUT):
        outputs = tile_indices(out_tile, BLOCK_OUT, WIDE)
        d = _error_at_preactivation(  # (BLOCK_BATCH, BLOCK_OUT)
            error_ptr,
            (rows * error_batch_stride)[:, None] + (outputs * error_out_stride)[None, :],
            residual_ptr,
            (rows * residual_batch_stride)[:, None] + (outputs * residual_out_stride)[None, :],
            (rows < batch)[:, None] & (outputs < out_features)[None, :],
            negative_slope,
            ACTIVATION,
        )
        weight = tl.load(  # (BLOCK_OUT, BLOCK_IN)
            weight_ptr + (outputs * weight_out_stride)[:, None] + (columns * weight_in_stride)[None, :],
            mask=(outputs < out_features)[:, None] & (columns < in_features)[None, :],
            other=0.0,
        )
        d = d.to(weight.dtype)
        if UPCAST:
            d = d.to(tl.float32)
            weight = weight.to(tl.float32)
        accumulator = tl.dot(d, weight, accumulator, input_precision=INPUT_PRECISION)
    write_tile(
        parent_ptr + (rows * parent_batch_stride)[:, None] + (columns * parent_in_stride)[None, :],
        accumulator,
        (rows < batch)[:, None] & (columns < in_features)[None, :],
        ACCUMULATE,
    )


@triton.jit
def _gradient_tile(
    error_ptr,
    residual_ptr,
    x_ptr,
    weight_gradient_ptr,
    bias_gradient_ptr,
    out_tile,
    in_tile,
    batch,
    out_features,
    in_features,
    error_batch_stride,
    error_out_stride,
    residual_batch_stride,
    residual_out_stride,
    x_batch_stride,
    x_in_stride,
    weight_gradient_out_stride,
    weight_gradient_in_stride,
    bias_gradient_stride,
    gain,
    negative_slope,
    ACTIVATION: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """One tile of gain d^T x, summed over the batch; in the first column of tiles, gain sum(d) as well."""
    outputs = tile_indices(out_tile, BLOCK_OUT, WIDE)
    columns = tile_indices(in_tile, BLOCK_IN, WIDE)
    accumulator = tl.full((BLOCK_OUT, BLOCK_IN), 0.0, tl.float32)
    # Reduced once, after the loop: a reduction in every iteration would wait for all warps.
    bias_accumulator = tl.full((BLOCK_OUT, BLOCK_BATCH), 0.0, tl.float32)
    for batch_tile in range(0, (batch + BLOCK_BATCH - 1) // BLOCK_BATCH):
        rows = tile_indices(batch_tile, BLOCK_BATCH, WIDE)
        d = _error_at_preactivation(  # (BLOCK_OUT, BLOCK_BATCH)
            error_ptr,
            (outputs * error_out_stride)[:, None] + (rows * error_batch_stride)[None, :],
            residual_ptr,
            (outputs * residual_out_stride)[:, None] + (rows * residual_batch_stride)[None, :],
            (outputs < out_features)[:, None] & (rows < batch)[None, :],
            negative_slope,
            ACTIVATION,
        )
        if BIAS_GRADIENT:
            bias_accumulator += d
        if WEIGHT_GRADIENT:
            x = tl.load(  # (BLOCK_BATCH, BLOCK_IN)
                x_ptr + (rows * x_batch_stride)[:, None] + (columns * x_in_stride)[None, :],
                mask=(rows < batch)[:, None] & (columns < in_features)[None, :],
                other=0.0,
            )
            operand = d.to(x.dtype)
            if UPCAST:
                operand = operand.to(tl.float32)
                x = x.to(tl.float32)
            accumulator = tl.dot(operand, x, accumulator, input_precision=INPUT_PRECISION)
    if WEIGHT_GRADIENT:
        write_tile(
            weight_gradient_ptr
            + (outputs * weight_gradient_out_stride)[:, None]
            + (columns * weight_gradient_in_stride)[None, :],
            accumulator * gain,
            (outputs < out_features)[:, None] & (columns < in_features)[None, :],
            ACCUMULATE_WEIGHT,
        )
    if BIAS_GRADIENT:  # noqa: SIM102 (a constant, and a value of the running program)
        if in_tile == 0:
            write_tile(
                bias_gradient_ptr + outputs * bias_gradient_stride,
                sum_of(bias_accumulator, 1) * gain,
                outputs < out_features,
                ACCUMULATE_BIAS,
            )


@triton.jit
def linear_error_kernel(
    error_ptr,  # (batch, out)
    residual_ptr,  # (batch, out)
    x_ptr,  # (batch, in)
    weight_ptr,  # (out, in)
    parent_ptr,  # (batch, in)
    weight_gradient_ptr,  # (out, in)
    bias_gradient_ptr,  # (out,)
    batch,
    out_features,
    in_features,
    error_batch_stride,
    error_out_stride,
    residual_batch_stride,
    residual_out_stride,
    x_batch_stride,
    x_in_stride,
    weight_out_stride,
    weight_in_stride,
    parent_batch_stride,
    parent_in_stride,
    weight_gradient_out_stride,
    weight_gradient_in_stride,
    bias_gradient_stride,
    gain,
    negative_slope,
    ACTIVATION: tl.constexpr,
    PARENT_ERROR: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    ACCUMULATE_PARENT: tl.constexpr,
    ACCUMULATE_WEIGHT: tl.constexpr,
    ACCUMULATE_BIAS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    PARENT_BATCH: tl.constexpr,
    PARENT_IN: tl.constexpr,
    PARENT_OUT: tl.constexpr,
    GRADIENT_OUT: tl.constexpr,
    GRADIENT_IN: tl.constexpr,
    GRADIENT_BATCH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of the parent's error, or one of the gradients: the first programs have the former."""
    program = tl.program_id(0)
    parent_programs = 0
    if PARENT_ERROR:
        parent_batch_tiles = (batch + PARENT_BATCH - 1) // PARENT_BATCH
        parent_in_tiles = (in_features + PARENT_IN - 1) // PARENT_IN
        parent_programs = parent_batch_tiles * parent_in_tiles
        if program < parent_programs:
            batch_tile, parent_in_tile = grouped_tile(program, parent_batch_tiles, parent_in_tiles, GROUP)
            _parent_tile(
                error_ptr,
                residual_ptr,
                weight_ptr,
                parent_ptr,
                batch_tile,
                parent_in_tile,
                batch,
                out_features,
                in_features,
                error_batch_stride,
                error_out_stride,
                residual_batch_stride,
                residual_out_stride,
                weight_out_stride,
                weight_in_stride,
                parent_batch_stride,
                parent_in_stride,
                negative_slope,
                ACTIVATION,
                ACCUMULATE_PARENT,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                PARENT_BATCH,
                PARENT_IN,
                PARENT_OUT,
            )
    if WEIGHT_GRADIENT or BIAS_GRADIENT:  # noqa: SIM102 (constants, and a value of the running program)
        if program >= parent_programs:
            in_tiles = 1
            if WEIGHT_GRADIENT:
                in_tiles = tl.maximum((in_features + GRADIENT_IN - 1) // GRADIENT_IN, 1)
            out_tiles = (out_features + GRADIENT_OUT - 1) // GRADIENT_OUT
            out_tile, in_tile = grouped_tile(program - parent_programs, out_tiles, in_tiles, GROUP)
            _gradient_tile(
                error_ptr,
                residual_ptr,
                x_ptr,
                weight_gradient_ptr,
                bias_gradient_ptr,
                out_tile,
                in_tile,
                batch,
                out_features,
                in_features,
                error_batch_stride,
                error_out_stride,
                residual_batch_stride,
                residual_out_stride,
                x_batch_stride,
                x_in_stride,
                weight_gradient_out_stride,
                weight_gradient_in_stride,
                bias_gradient_stride,
                gain,
                negative_slope,
                ACTIVATION,
                WEIGHT_GRADIENT,
                BIAS_GRADIENT,
                ACCUMULATE_WEIGHT,
                ACCUMULATE_BIAS,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                GRADIENT_OUT,
                GRADIENT_IN,
                GRADIENT_BATCH,
            )


def launch_linear_error(
    error: Tensor,
    residual: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    activation: str,
    parent_error: Tensor | None = None,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    accumulate_parent: bool = False,
    accumulate_weight: bool = False,
    accumulate_bias: bool = False,
    gain: float = 1.0,
    negative_slope: float = 0.01,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write (or add) a layer's error sweep into tensors that the caller owns. Arguments are not checked; the operator
    does.

    Args:
        error: (batch, out).
        residual: (batch, out), or None for the identity.
        x: (batch, in); None where the weight's gradient is left out.
        weight: (out, in); None where the parent's error is left out.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        parent_error: (batch, in), or None to leave it out.
        weight_gradient: (out, in), or None to leave it out.
        bias_gradient: (out,), or None to leave it out.
        accumulate_parent: add to parent_error rather than overwrite it.
        accumulate_weight: likewise, of weight_gradient.
        accumulate_bias: likewise, of bias_gradient.
        gain: factor of the two gradients, not of the parent's error.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    batch, out_features = error.shape
    in_features = x.shape[1] if x is not None else weight.shape[1] if weight is not None else 1
    architecture = architecture_of(error.device)
    chosen = configuration or configuration_for(
        architecture, precision_of(error.dtype, input_precision), batch, out_features, in_features
    )
    programs = 0
    if parent_error is not None:
        programs += triton.cdiv(batch, chosen.parent_batch) * triton.cdiv(in_features, chosen.parent_in)
    if weight_gradient is not None or bias_gradient is not None:
        in_tiles = 1 if weight_gradient is None else max(triton.cdiv(in_features, chosen.gradient_in), 1)
        programs += triton.cdiv(out_features, chosen.gradient_out) * in_tiles
    if programs == 0:
        return
    # What is left out is never read or written: any tensor of the right rank stands in for it.
    given_residual = error if residual is None else residual
    given_x, given_weight = error if x is None else x, error if weight is None else weight
    flags = (accumulate_parent, accumulate_weight, accumulate_bias)
    results = SweepResults(parent_error, weight_gradient, bias_gradient, *flags)
    parent, weight_target, bias_target = results.pointers(error)
    count_launch("linear_error")
    with torch.cuda.device_of(error):
        linear_error_kernel[(programs,)](
            error,
            given_residual,
            given_x,
            given_weight,
            parent,
            weight_target,
            bias_target,
            batch,
            out_features,
            in_features,
            *error.stride(),
            *given_residual.stride(),
            *given_x.stride(),
            *given_weight.stride(),
            *parent.stride(),
            *weight_target.stride(),
            bias_target.stride(0),
            float(gain),
            float(negative_slope),
            ACTIVATION=activation,
            **results.constants,
            INPUT_PRECISION=input_precision,
            WIDE=needs_wide_offsets(error, residual, x, weight, parent_error, weight_gradient, bias_gradient),
            UPCAST=interpreted() and error.dtype is not torch.float32,
            PARENT_BATCH=chosen.parent_batch,
            PARENT_IN=chosen.parent_in,
            PARENT_OUT=chosen.parent_out,
            GRADIENT_OUT=chosen.gradient_out,
            GRADIENT_IN=chosen.gradient_in,
            GRADIENT_BATCH=chosen.gradient_batch,
            GROUP=chosen.group,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
