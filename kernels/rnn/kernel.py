"""The Triton kernels of an RNN layer's recurrence, and their launches."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.recurrence_tiles import carry_back, load_tile, start_state, state_product, state_tile
from pccompile.kernels.recurrences import Configuration, Learned, last_learned, launch
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
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_column_stride, weight_row_stride)  # its transpose
    start_state(hidden_ptr, (first_hidden_ptr, hidden_batch_stride, hidden_unit_stride), owned, True, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
            z = load_tile(drive_ptr, row, drive_batch_stride, unit, drive_unit_stride, within)
            z += state_product(hidden_ptr, units, weight, owned, unit, PLAN)
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
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch, from the last to the first."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_row_stride, weight_column_stride)
    given = (hidden_error_ptr, hidden_error_batch_stride, hidden_error_unit_stride)
    start_state(carried_ptr, given, owned, HIDDEN_ERROR, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
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
        carry_back(carried_ptr, drive_error_ptr, weight, owned, 1, False, PLAN)
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
    steps, batch, units = drive.shape
    launch(
        "rnn_recurrence",
        rnn_recurrence_kernel,
        (steps, batch, units),
        (drive, weight, hidden, hiddens),
        (*drive.stride(), *weight.stride(), *hidden.stride()),
        (drive[0], weight, hidden),
        input_precision,
        configuration,
        ACTIVATION=activation,
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
    steps, batch, units = error.shape
    given = weight if hidden_error is None else hidden_error
    places = (drive_error[-1], *last_learned(learned, drive_error), first_hidden_error)
    launch(
        "rnn_recurrence_error",
        rnn_recurrence_error_kernel,
        (steps, batch, units),
        (error[-1], given, weight, hiddens[-1], *places),
        (*error.stride(), *given.stride(), *weight.stride()),
        (error[0], hidden_error, weight),
        input_precision,
        configuration,
        ACTIVATION=activation,
        HIDDEN_ERROR=hidden_error is not None,
        GAINS=learned is not None,
    )
