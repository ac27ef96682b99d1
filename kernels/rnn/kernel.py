"""The Triton kernels of an RNN layer's recurrence, and their launches."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.launches import count_launch
from pccompile.kernels.products import product_tile
from pccompile.kernels.recurrence_tiles import carry_back, load_tile, start_state, state_tile
from pccompile.kernels.recurrences import Configuration, Learned, last_learned, launch_constants
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "launch_rnn_recurrence",
    "launch_rnn_recurrence_error",
    "rnn_recurrence_error_kernel",
    "rnn_recurrence_kernel",
]


@triton.jit
def rnn_recurrence_kernel(
    drive_ptr,  # (steps, batch, units)
    weight_ptr,  # (units, units)
    first_hidden_ptr,  # (batch, units)
    hidden_ptr,  # (steps + 1, batch, units)
    steps,
    batch,
    units,
    drive_step_stride,
    drive_batch_stride,
    drive_unit_stride,
    weight_row_stride,
    weight_column_stride,
    hidden_batch_stride,
    hidden_unit_stride,
    ACTIVATION: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_BATCH: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """All time steps of a tile of the batch."""
    row = tile_indices(tl.program_id(0), BLOCK_BATCH, WIDE)
    inside = row < batch
    start_state(
        hidden_ptr,
        first_hidden_ptr,
        hidden_batch_stride,
        hidden_unit_stride,
        row,
        inside,
        units,
        True,
        WIDE,
        BLOCK_BATCH,
        BLOCK_UNITS,
    )
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
            unit, within, here = state_tile(unit_tile, row, inside, units, WIDE, BLOCK_UNITS)
            z = load_tile(drive_ptr, row, drive_batch_stride, unit, drive_unit_stride, within)
            z += product_tile(
                hidden_ptr,
                units,
                1,
                weight_ptr,
                weight_column_stride,
                weight_row_stride,
                row,
                batch,
                unit,
                units,
                units,
                hidden_ptr.dtype.element_ty,
                INPUT_PRECISION,
                WIDE,
                UPCAST,
                BLOCK_SUM,
            )
            hidden = activate(z, 0.0, ACTIVATION)
            tl.store(hidden_ptr + batch * units + here, hidden.to(hidden_ptr.dtype.element_ty), mask=within)
        tl.debug_barrier()  # the next step reads what other threads have written
        drive_ptr += drive_step_stride
        hidden_ptr += batch * units


@triton.jit
def rnn_recurrence_error_kernel(
    error_ptr,  # (batch, units), of the last step; the steps before lie before it
    hidden_error_ptr,  # (batch, units)
    weight_ptr,  # (units, units)
    hidden_ptr,  # (batch, units), after the last step
    drive_error_ptr,  # (batch, units), of the last step
    learned_input_ptr,  # (batch, units), of the last step; with the next three, where gradients have gains
    learned_state_ptr,  # (batch, units), of the last step
    input_gain_ptr,  # (1,), float32, of the last step
    state_gain_ptr,  # (1,), float32, of the last step
    carried_ptr,  # (batch, units), float32: at the end, the error of the first hidden state
    steps,
    batch,
    units,
    error_step_stride,
    error_batch_stride,
    error_unit_stride,
    hidden_error_batch_stride,
    hidden_error_unit_stride,
    weight_row_stride,
    weight_column_stride,
    ACTIVATION: tl.constexpr,
    HIDDEN_ERROR: tl.constexpr,
    GAINS: tl.constexpr,  # write what the gradients read as well
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 offsets
    UPCAST: tl.constexpr,  # the interpreter's bfloat16 dot is wrong: multiply in float32
    BLOCK_BATCH: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """All time steps of a tile of the batch, from the last to the first."""
    row = tile_indices(tl.program_id(0), BLOCK_BATCH, WIDE)
    inside = row < batch
    start_state(
        carried_ptr,
        hidden_error_ptr,
        hidden_error_batch_stride,
        hidden_error_unit_stride,
        row,
        inside,
        units,
        HIDDEN_ERROR,
        WIDE,
        BLOCK_BATCH,
        BLOCK_UNITS,
    )
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
            unit, within, here = state_tile(unit_tile, row, inside, units, WIDE, BLOCK_UNITS)
            d_hidden = load_tile(error_ptr, row, error_batch_stride, unit, error_unit_stride, within)
            d_hidden += tl.load(carried_ptr + here, mask=within, other=0.0)
            hidden = load_tile(hidden_ptr, row, units, unit, 1, within)
            drive_error = d_hidden * activation_slope(hidden, 0.0, ACTIVATION)
            dtype = drive_error_ptr.dtype.element_ty
            tl.store(drive_error_ptr + here, drive_error.to(dtype), mask=within)
            if GAINS:
                tl.store(learned_input_ptr + here, (drive_error * tl.load(input_gain_ptr)).to(dtype), mask=within)
                tl.store(learned_state_ptr + here, (drive_error * tl.load(state_gain_ptr)).to(dtype), mask=within)
        tl.debug_barrier()  # the products read what other threads have written
        carry_back(
            carried_ptr,
            drive_error_ptr,
            weight_ptr,
            row,
            inside,
            batch,
            units,
            units,
            weight_row_stride,
            weight_column_stride,
            False,
            INPUT_PRECISION,
            WIDE,
            UPCAST,
            BLOCK_UNITS,
            BLOCK_SUM,
        )
        tl.debug_barrier()
        error_ptr -= error_step_stride
        hidden_ptr -= batch * units
        drive_error_ptr -= batch * units
        if GAINS:
            learned_input_ptr -= batch * units
            learned_state_ptr -= batch * units
            input_gain_ptr -= 1
            state_gain_ptr -= 1


def launch_rnn_recurrence(
    drive: Tensor,
    weight: Tensor,
    hidden: Tensor,
    hiddens: Tensor,
    activation: str = "tanh",
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a recurrence's states into a tensor that the caller owns. Arguments are not checked.

    Args:
        drive: (steps, batch, units); at least one step.
        weight: (units, units).
        hidden: (batch, units), before the first step.
        hiddens: (steps + 1, batch, units), contiguous, overwritten; the first is what was given.
        activation: "tanh" or "relu".
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    grid, constants = launch_constants(drive, input_precision, configuration, drive[0], weight, hidden)
    steps, batch, units = drive.shape
    if batch * units == 0:
        return
    count_launch("rnn_recurrence")
    with torch.cuda.device_of(drive):
        rnn_recurrence_kernel[grid](
            drive,
            weight,
            hidden,
            hiddens,
            steps,
            batch,
            units,
            *drive.stride(),
            *weight.stride(),
            *hidden.stride(),
            ACTIVATION=activation,
            **constants,
        )


def launch_rnn_recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    drive_error: Tensor,
    first_hidden_error: Tensor,
    activation: str = "tanh",
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
    learned: Learned | None = None,
) -> None:
    """Write a recurrence's errors into tensors that the caller owns. Arguments are not checked.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step; at least one step.
        hidden_error: (batch, units), added to that of the last state; None for zero.
        weight: (units, units).
        hiddens: (steps + 1, batch, units), contiguous.
        drive_error: (steps, batch, units), contiguous, overwritten.
        first_hidden_error: (batch, units), contiguous, float32, overwritten.
        activation: "tanh" or "relu".
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.
        learned: where the gradients have gains, these, and what the gradients read, overwritten.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    grid, constants = launch_constants(error, input_precision, configuration, error[0], hidden_error, weight)
    steps, batch, units = error.shape
    if batch * units == 0:
        return
    given = weight if hidden_error is None else hidden_error
    count_launch("rnn_recurrence_error")
    with torch.cuda.device_of(error):
        rnn_recurrence_error_kernel[grid](
            error[-1],
            given,
            weight,
            hiddens[-1],
            drive_error[-1],
            *last_learned(learned, drive_error),
            first_hidden_error,
            steps,
            batch,
            units,
            *error.stride(),
            *given.stride(),
            *weight.stride(),
            ACTIVATION=activation,
            HIDDEN_ERROR=hidden_error is not None,
            GAINS=learned is not None,
            **constants,
        )
