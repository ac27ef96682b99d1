"""The Triton kernels of a GRU layer's recurrence, and their launches."""

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
    "gru_recurrence_error_kernel",
    "gru_recurrence_kernel",
    "launch_gru_recurrence",
    "launch_gru_recurrence_error",
]


@triton.jit
def gru_recurrence_kernel(
    drive_ptr,  # (steps, batch, 3 units)
    weight_ptr,  # (3 units, units)
    bias_ptr,  # (3 units,)
    first_hidden_ptr,  # (batch, units)
    hidden_ptr,  # (steps + 1, batch, units)
    gate_ptr,  # (steps, batch, 4 units)
    steps,
    batch,
    units,
    drive_step_stride,
    drive_batch_stride,
    drive_gate_stride,
    weight_gate_stride,
    weight_unit_stride,
    bias_stride,
    hidden_batch_stride,
    hidden_unit_stride,
    BIAS: tl.constexpr,
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_gate_stride, weight_unit_stride)
    start_state(hidden_ptr, (first_hidden_ptr, hidden_batch_stride, hidden_unit_stride), owned, True, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
            apart = units * drive_gate_stride
            z_reset = load_tile(drive_ptr, row, drive_batch_stride, unit, drive_gate_stride, within)
            z_update = load_tile(drive_ptr + apart, row, drive_batch_stride, unit, drive_gate_stride, within)
            recalled = tl.full(within.shape, 0.0, tl.float32)
            if BIAS:
                known = unit < units
                bias = bias_ptr + unit * bias_stride
                bias_apart = units * bias_stride
                z_reset += tl.load(bias, mask=known, other=0.0).to(tl.float32)[None, :]
                z_update += tl.load(bias + bias_apart, mask=known, other=0.0).to(tl.float32)[None, :]
                recalled += tl.load(bias + 2 * bias_apart, mask=known, other=0.0).to(tl.float32)[None, :]
            z_reset, z_update, recalled = gate_products(
                (z_reset, z_update, recalled), hidden_ptr, weight, owned, unit, 3, PLAN
            )
            reset = activate(z_reset, 0.0, "sigmoid")
            update = activate(z_update, 0.0, "sigmoid")
            given = load_tile(drive_ptr + 2 * apart, row, drive_batch_stride, unit, drive_gate_stride, within)
            candidate = activate(given + reset * recalled, 0.0, "tanh")
            before = load_tile(hidden_ptr, row, units, unit, 1, within)
            hidden = candidate + update * (before - candidate)
            store_gates(gate_ptr, (reset, update, candidate, recalled), row, unit, within, units, 4)
            dtype = hidden_ptr.dtype.element_ty
            tl.store(hidden_ptr + batch * units + here, hidden.to(dtype), mask=within)
        tl.debug_barrier()  # the next step reads what other threads have written
        drive_ptr += drive_step_stride
        hidden_ptr += batch * units
        gate_ptr += 4 * batch * units


@triton.jit
def gru_recurrence_error_kernel(
    error_ptr,  # (batch, units), of the last step; the steps before lie before it
    hidden_error_ptr,  # (batch, units)
    weight_ptr,  # (3 units, units)
    hidden_ptr,  # (batch, units), before the last step
    gate_ptr,  # (batch, 4 units), of the last step
    drive_error_ptr,  # (batch, 3 units), of the last step
    state_error_ptr,  # (batch, 3 units), of the last step
    learned_input_ptr,  # (batch, 3 units), of the last step; with the next three, where gradients have gains
    learned_state_ptr,  # (batch, 3 units), of the last step
    input_gain_ptr,  # (3,), float32, of the last step
    state_gain_ptr,  # (3,), float32, of the last step
    carried_ptr,  # (batch, units), float32: at the end, the error of the first hidden state
    steps,
    batch,
    units,
    state_error_step_stride,  # 0 where nobody reads it but the kernel itself
    error_step_stride,
    error_batch_stride,
    error_unit_stride,
    hidden_error_batch_stride,
    hidden_error_unit_stride,
    weight_gate_stride,
    weight_unit_stride,
    HIDDEN_ERROR: tl.constexpr,
    GAINS: tl.constexpr,  # write what the gradients read as well
    PLAN: tl.constexpr,
):
    """All time steps of a tile of the batch, from the last to the first."""
    row = tile_indices(tl.program_id(0), PLAN.block_batch, PLAN.wide)
    owned = (row, row < batch, batch, units)
    weight = (weight_ptr, weight_gate_stride, weight_unit_stride)
    given = (hidden_error_ptr, hidden_error_batch_stride, hidden_error_unit_stride)
    start_state(carried_ptr, given, owned, HIDDEN_ERROR, PLAN)
    tl.debug_barrier()

    for _ in range(0, steps):
        for unit_tile in range(0, (units + PLAN.block_units - 1) // PLAN.block_units):
            unit, within, here = state_tile(unit_tile, owned, PLAN)
            reset, update, candidate, recalled = load_gates(gate_ptr, row, 4 * units, unit, 1, within, units)
            before = load_tile(hidden_ptr, row, units, unit, 1, within)
            d_hidden = load_tile(error_ptr, row, error_batch_stride, unit, error_unit_stride, within)
            d_hidden += tl.load(carried_ptr + here, mask=within, other=0.0)
            d_candidate = d_hidden * (1.0 - update) * (1.0 - candidate * candidate)
            d_reset = d_candidate * recalled * reset * (1.0 - reset)
            d_update = d_hidden * (before - candidate) * update * (1.0 - update)
            d_recalled = d_candidate * reset
            store_gates(drive_error_ptr, (d_reset, d_update, d_candidate), row, unit, within, units, 3)
            store_gates(state_error_ptr, (d_reset, d_update, d_recalled), row, unit, within, units, 3)
            if GAINS:
                store_scaled_gates(
                    learned_input_ptr, input_gain_ptr, (d_reset, d_update, d_candidate), row, unit, within, units, 3
                )
                store_scaled_gates(
                    learned_state_ptr, state_gain_ptr, (d_reset, d_update, d_recalled), row, unit, within, units, 3
                )
            tl.store(carried_ptr + here, d_hidden * update, mask=within)
        tl.debug_barrier()  # the products read what other threads have written
        carry_back(carried_ptr, state_error_ptr, weight, owned, 3, True, PLAN)
        tl.debug_barrier()
        error_ptr -= error_step_stride
        hidden_ptr -= batch * units
        gate_ptr -= 4 * batch * units
        drive_error_ptr -= 3 * batch * units
        state_error_ptr -= state_error_step_stride
        if GAINS:
            learned_input_ptr -= 3 * batch * units
            learned_state_ptr -= 3 * batch * units
            input_gain_ptr -= 3
            state_gain_ptr -= 3


def launch_gru_recurrence(
    drive: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
) -> None:
    """Write a recurrence's states and gates into tensors that the caller owns. Arguments are not checked.

    Args:
        drive: (steps, batch, 3 units); at least one step.
        weight: (3 units, units).
        bias: (3 units,), beside the weight; None for zero.
        hidden: (batch, units), before the first step.
        hiddens: (steps + 1, batch, units), contiguous, overwritten; the first is what was given.
        gates: (steps, batch, 4 units), contiguous, overwritten.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    (steps, batch, _), units = drive.shape, weight.shape[1]
    given = weight[:, 0] if bias is None else bias
    launch(
        "gru_recurrence",
        gru_recurrence_kernel,
        (steps, batch, units),
        (drive, weight, given, hidden, hiddens, gates),
        (*drive.stride(), *weight.stride(), *given.stride(), *hidden.stride()),
        (drive[0], weight, hidden, gates[0]),
        input_precision,
        configuration,
        BIAS=bias is not None,
    )


def launch_gru_recurrence_error(
    error: Tensor,
    hidden_error: Tensor | None,
    weight: Tensor,
    hiddens: Tensor,
    gates: Tensor,
    drive_error: Tensor,
    state_error: Tensor,
    first_hidden_error: Tensor,
    input_precision: str = "ieee",
    configuration: Configuration | None = None,
    learned: Learned | None = None,
) -> None:
    """Write a recurrence's errors into tensors that the caller owns. Arguments are not checked.

    Args:
        error: (steps, batch, units), with respect to the hidden states after each step; at least one step.
        hidden_error: (batch, units), added to that of the last state; None for zero.
        weight: (3 units, units).
        hiddens: (steps + 1, batch, units), contiguous.
        gates: (steps, batch, 4 units), contiguous.
        drive_error: (steps, batch, 3 units), contiguous, overwritten.
        state_error: likewise; or (1, batch, 3 units), where every step overwrites it.
        first_hidden_error: (batch, units), contiguous, float32, overwritten.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.
        learned: where the gradients have gains, these, and what the gradients read, overwritten.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    steps, batch, units = error.shape
    given = weight if hidden_error is None else hidden_error
    places = (drive_error[-1], state_error[-1], *last_learned(learned, drive_error), first_hidden_error)
    state_error_step_stride = state_error.stride(0) if len(state_error) == steps else 0
    launch(
        "gru_recurrence_error",
        gru_recurrence_error_kernel,
        (steps, batch, units),
        (error[-1], given, weight, hiddens[-2], gates[-1], *places),
        (state_error_step_stride, *error.stride(), *given.stride(), *weight.stride()),
        (error[0], hidden_error, weight, gates[0]),
        input_precision,
        configuration,
        HIDDEN_ERROR=hidden_error is not None,
        GAINS=learned is not None,
    )
