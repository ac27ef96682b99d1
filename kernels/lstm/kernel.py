"""The Triton kernels of an LSTM layer's recurrence, and their launches."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.activations import activate
from pccompile.kernels.recurrence_tiles import (
    carry_back,
    gate_products,
    load_gates,
    load_tile,
    start_state,
    state_tile,
    store_gates,
    store_scaled_gates,
)
from pccompile.kernels.recurrences import Configuration, Learned, last_learned, launch
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "launch_lstm_recurrence",
    "launch_lstm_recurrence_error",
    "lstm_recurrence_error_kernel",
    "lstm_recurrence_kernel",
]


@triton.jit
def lstm_recurrence_kernel(
    drive_ptr,  # (steps, batch, 4 units)
    weight_ptr,  # (4 units, units)
    first_hidden_ptr,  # (batch, units)
    first_cell_ptr,  # (batch, units)
    hidden_ptr,  # (steps + 1, batch, units)
    cell_ptr,  # (steps + 1, batch, units)
    gate_ptr,  # (steps, batch, 4 units)
    steps,
    batch,
    units,
    drive_step_stride,
    drive_batch_stride,
    drive_gate_stride,
    weight_gate_stride,
    weight_unit_stride,
    hidden_batch_stride,
    hidden_unit_stride,
    cell_batch_stride,
    cell_unit_stride,
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_gate_stride, weight_unit_stride)
    start_state(hidden_ptr, (first_hidden_ptr, hidden_batch_stride, hidden_unit_stride), owned, True, PLAN)
    start_state(cell_ptr, (first_cell_ptr, cell_batch_stride, cell_unit_stride), owned, True, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
            z_in, z_forget, z_candidate, z_out = load_gates(
                drive_ptr, row, drive_batch_stride, unit, drive_gate_stride, within, units
            )
            z_in, z_forget, z_candidate, z_out = gate_products(
                (z_in, z_forget, z_candidate, z_out), hidden_ptr, weight, owned, unit, 4, PLAN
            )
            gate_in = activate(z_in, 0.0, "sigmoid")
            gate_forget = activate(z_forget, 0.0, "sigmoid")
            candidate = activate(z_candidate, 0.0, "tanh")
            gate_out = activate(z_out, 0.0, "sigmoid")
            cell = gate_forget * load_tile(cell_ptr, row, units, unit, 1, within) + gate_in * candidate
            store_gates(gate_ptr, (gate_in, gate_forget, candidate, gate_out), row, unit, within, units, 4)
            dtype = gate_ptr.dtype.element_ty
            tl.store(cell_ptr + batch * units + here, cell.to(dtype), mask=within)
            tl.store(hidden_ptr + batch * units + here, (gate_out * activate(cell, 0.0, "tanh")).to(dtype), mask=within)
        tl.debug_barrier()  # the next step reads what other threads have written
        drive_ptr += drive_step_stride
        hidden_ptr += batch * units
        cell_ptr += batch * units
        gate_ptr += 4 * batch * units


@triton.jit
def lstm_recurrence_error_kernel(
    error_ptr,  # (batch, units), of the last step; the steps before lie before it
    hidden_error_ptr,  # (batch, units)
    cell_error_ptr,  # (batch, units)
    weight_ptr,  # (4 units, units)
    cell_ptr,  # (batch, units), after the last step
    gate_ptr,  # (batch, 4 units), of the last step
    drive_error_ptr,  # (batch, 4 units), of the last step
    learned_input_ptr,  # (batch, 4 units), of the last step; with the next three, where gradients have gains
    learned_state_ptr,  # (batch, 4 units), of the last step
    input_gain_ptr,  # (4,), float32, of the last step
    state_gain_ptr,  # (4,), float32, of the last step
    carried_hidden_ptr,  # (batch, units), float32: at the end, the error of the first hidden state
    carried_cell_ptr,  # (batch, units), float32: at the end, the error of the first cell
    steps,
    batch,
    units,
    error_step_stride,
    error_batch_stride,
    error_unit_stride,
    hidden_error_batch_stride,
    hidden_error_unit_stride,
    cell_error_batch_stride,
    cell_error_unit_stride,
    weight_gate_stride,
    weight_unit_stride,
    HIDDEN_ERROR: tl.constexpr,
    CELL_ERROR: tl.constexpr,
    GAINS: tl.constexpr,  # write what the gradients read as well
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch, from the last to the first."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_gate_stride, weight_unit_stride)
    given_hidden = (hidden_error_ptr, hidden_error_batch_stride, hidden_error_unit_stride)
    start_state(carried_hidden_ptr, given_hidden, owned, HIDDEN_ERROR, PLAN)
    given_cell = (cell_error_ptr, cell_error_batch_stride, cell_error_unit_stride)
    start_state(carried_cell_ptr, given_cell, owned, CELL_ERROR, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
            gate_in, gate_forget, candidate, gate_out = load_gates(gate_ptr, row, 4 * units, unit, 1, within, units)
            squashed = activate(load_tile(cell_ptr, row, units, unit, 1, within), 0.0, "tanh")
            before = load_tile(cell_ptr - batch * units, row, units, unit, 1, within)
            d_hidden = load_tile(error_ptr, row, error_batch_stride, unit, error_unit_stride, within)
            d_hidden += tl.load(carried_hidden_ptr + here, mask=within, other=0.0)
            d_cell = tl.load(carried_cell_ptr + here, mask=within, other=0.0)
            d_cell += d_hidden * gate_out * (1.0 - squashed * squashed)
            d_in = d_cell * candidate * gate_in * (1.0 - gate_in)
            d_forget = d_cell * before * gate_forget * (1.0 - gate_forget)
            d_candidate = d_cell * gate_in * (1.0 - candidate * candidate)
            d_out = d_hidden * squashed * gate_out * (1.0 - gate_out)
            store_gates(drive_error_ptr, (d_in, d_forget, d_candidate, d_out), row, unit, within, units, 4)
            if GAINS:
                store_scaled_gates(
                    learned_input_ptr, input_gain_ptr, (d_in, d_forget, d_candidate, d_out), row, unit, within, units, 4
                )
                store_scaled_gates(
                    learned_state_ptr, state_gain_ptr, (d_in, d_forget, d_candidate, d_out), row, unit, within, units, 4
                )
            tl.store(carried_cell_ptr + here, d_cell * gate_forget, mask=within)
        tl.debug_barrier()  # the products read what other threads have written
        carry_back(carried_hidden_ptr, drive_error_ptr, weight, owned, 4, False, PLAN)
        tl.debug_barrier()
        error_ptr -= error_step_stride
        cell_ptr -= batch * units
        gate_ptr -= 4 * batch * units
        drive_error_ptr -= 4 * batch * units
        if GAINS:
            learned_input_ptr -= 4 * batch * units
            learned_state_ptr -= 4 * batch * units
            input_gain_ptr -= 4
            state_gain_ptr -= 4


def launch_lstm_recurrence(
    drive: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a recurrence's states and gates into tensors that the caller owns. Arguments are not checked.

    Args:
        drive: (steps, batch, 4 units); at least one step.
        weight: (4 units, units).
        hidden, cell: (batch, units), before the first step.
        hiddens, cells: (steps + 1, batch, units), contiguous, overwritten; the first of each is what was given.
        gates: (steps, batch, 4 units), contiguous, overwritten.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    (steps, batch, _), units = drive.shape, weight.shape[1]
    launch(
        "lstm_recurrence",
        lstm_recurrence_kernel,
        (steps, batch, units),
        (drive, weight, hidden, cell, hiddens, cells, gates),
        (*drive.stride(), *weight.stride(), *hidden.stride(), *cell.stride()),
        (drive[0], weight, hidden, cell, gates[0]),
        input_precision,
        configuration,
    )


def launch_lstm_recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    cell_error: Tensor | None,
    weight: Tensor,
    cells: Tensor,
    gates: Tensor,
    drive_error: Tensor,
    first_hidden_error: Tensor,
    first_cell_error: Tensor,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
    learned: Learned | None = None,
) -> None:
    """Write a recurrence's errors into tensors that the caller owns. Arguments are not checked.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step; at least one step.
        hidden_error, cell_error: (batch, units), added to those of the last states; None for zero.
        weight: (4 units, units).
        cells: (steps + 1, batch, units), contiguous.
        gates: (steps, batch, 4 units), contiguous.
        drive_error: (steps, batch, 4 units), contiguous, overwritten.
        first_hidden_error, first_cell_error: (batch, units), contiguous, float32, overwritten.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.
        learned: where the gradients have gains, these, and what the gradients read, overwritten.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    steps, batch, units = error.shape
    given_hidden = weight if hidden_error is None else hidden_error
    given_cell = weight if cell_error is None else cell_error
    places = (drive_error[-1], *last_learned(learned, drive_error), first_hidden_error, first_cell_error)
    launch(
        "lstm_recurrence_error",
        lstm_recurrence_error_kernel,
        (steps, batch, units),
        (error[-1], given_hidden, given_cell, weight, cells[-1], gates[-1], *places),
        (*error.stride(), *given_hidden.stride(), *given_cell.stride(), *weight.stride()),
        (error[0], hidden_error, cell_error, weight, gates[0]),
        input_precision,
        configuration,
        HIDDEN_ERROR=hidden_error is not None,
        CELL_ERROR=cell_error is not None,
        GAINS=learned is not None,
    )
