"""What recurrent layers share: a program owns a tile of the batch for all time steps, and streams the weight U.

Tiles, warps and stages per architecture and arithmetic (starting values, not yet measured: the smallest tile of the
batch that matrix units take gives the most programs); three pieces of a kernel: a state as it starts, the products of
the hidden states with a tile of every gate's units, and those that carry the gates' errors back; the operations of all.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula

from pccompile.kernels.devices import Architecture
from pccompile.kernels.products import product_tile
from pccompile.kernels.tables import Space, overlaid
from pccompile.kernels.tiles import tile_indices

__all__ = [
    "CONFIGURATIONS",
    "SPACE",
    "Configuration",
    "carry_back",
    "configuration_for",
    "gate_products",
    "register_operations",
    "start_state",
]


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_batch: samples that a program owns.
        block_units: units whose gates are computed at a time.
        block_sum: units (the error: gates) summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """

    block_batch: int
    block_units: int
    block_sum: int
    warps: int
    stages: int


_NVIDIA = {
    "half": Configuration(16, 32, 32, 4, 4),
    "tf32": Configuration(16, 32, 32, 4, 3),
    "ieee": Configuration(16, 16, 16, 4, 3),
}

_Table = dict[Architecture, dict[str, Configuration]]
_SHIPPED: _Table = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA,
    "gfx942": {
        "half": Configuration(16, 32, 64, 4, 2),
        "tf32": Configuration(16, 32, 32, 4, 2),
        "ieee": Configuration(16, 32, 32, 4, 2),
    },
    "interpreter": {precision: Configuration(16, 32, 32, 1, 1) for precision in ("half", "tf32", "ieee")},
}

SPACE = Space("recurrences", (("block_batch", "block_units", "block_sum"),))
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(architecture: Architecture, precision: str) -> Configuration:
    """The configuration of an architecture for an arithmetic: "half", "tf32" or "ieee"."""
    return CONFIGURATIONS[architecture][precision]


def register_operations(operator: Any, weight: int) -> None:
    """Tell torch's counter the operations of a recurrence, or of its error: a product with U in every time step.

    Args:
        operator: takes (steps, batch, ...) first.
        weight: the place of U among its arguments.
    """

    @register_flop_formula(operator)
    def operations(first: Sequence[int], *shapes: Any, **_: Any) -> int:
        steps, batch = first[:2]
        gates, units = shapes[weight - 1]
        return 2 * int(steps * batch * gates * units)


@triton.jit
def start_state(
    target_ptr,  # (batch, units), contiguous
    given_ptr,  # (batch, units)
    batch_stride,
    unit_stride,
    row,  # (BLOCK_BATCH,)
    inside,  # which of them there are
    units,
    GIVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """Copy the state that is given, or write zeros. A barrier must follow before it is read."""
    for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
        unit = tile_indices(unit_tile, BLOCK_UNITS, WIDE)
        within = inside[:, None] & (unit < units)[None, :]
        state = tl.full((BLOCK_BATCH, BLOCK_UNITS), 0.0, tl.float32)
        if GIVEN:
            given = given_ptr + (row * batch_stride)[:, None] + (unit * unit_stride)[None, :]
            state += tl.load(given, mask=within, other=0.0).to(tl.float32)
        target = target_ptr + (row * units)[:, None] + unit[None, :]
        tl.store(target, state.to(target_ptr.dtype.element_ty), mask=within)


@triton.jit
def gate_products(
    z_0,  # (BLOCK_BATCH, BLOCK_UNITS), float32, as are the next
    z_1,
    z_2,
    z_3,  # where there is a fourth gate
    hidden_ptr,  # (batch, units), contiguous
    weight_ptr,  # (gates units, units)
    row,
    inside,
    unit,  # (BLOCK_UNITS,)
    known,  # which of them there are
    units,
    weight_gate_stride,
    weight_unit_stride,
    FOUR: tl.constexpr,  # gates; else three
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """Each gate's z + h U^T at a tile of units, the hidden states loaded once for all gates."""
    gate_apart = units * weight_gate_stride
    for sum_tile in range(0, (units + BLOCK_SUM - 1) // BLOCK_SUM):
        source = tile_indices(sum_tile, BLOCK_SUM, WIDE)
        hidden = tl.load(
            hidden_ptr + (row * units)[:, None] + source[None, :],
            mask=inside[:, None] & (source < units)[None, :],
            other=0.0,
        )
        weight = weight_ptr + (source * weight_unit_stride)[:, None] + (unit * weight_gate_stride)[None, :]
        there = (source < units)[:, None] & known[None, :]
        w_0 = tl.load(weight, mask=there, other=0.0)
        w_1 = tl.load(weight + gate_apart, mask=there, other=0.0)
        w_2 = tl.load(weight + 2 * gate_apart, mask=there, other=0.0)
        if UPCAST:
            hidden = hidden.to(tl.float32)
            w_0 = w_0.to(tl.float32)
            w_1 = w_1.to(tl.float32)
            w_2 = w_2.to(tl.float32)
        z_0 = tl.dot(hidden, w_0, z_0, input_precision=INPUT_PRECISION)
        z_1 = tl.dot(hidden, w_1, z_1, input_precision=INPUT_PRECISION)
        z_2 = tl.dot(hidden, w_2, z_2, input_precision=INPUT_PRECISION)
        if FOUR:
            w_3 = tl.load(weight + 3 * gate_apart, mask=there, other=0.0)
            if UPCAST:
                w_3 = w_3.to(tl.float32)
            z_3 = tl.dot(hidden, w_3, z_3, input_precision=INPUT_PRECISION)
    return z_0, z_1, z_2, z_3


@triton.jit
def carry_back(
    carried_ptr,  # (batch, units), float32, contiguous
    error_ptr,  # (batch, gates), contiguous
    weight_ptr,  # (gates, units)
    row,
    inside,
    batch,
    units,
    gates,
    weight_gate_stride,
    weight_unit_stride,
    ADD: tl.constexpr,  # to what is carried already
    INPUT_PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
):
    """The error of the hidden states before a step: d U, where a program's tile of d was written before a barrier."""
    for unit_tile in range(0, (units + BLOCK_UNITS - 1) // BLOCK_UNITS):
        unit = tile_indices(unit_tile, BLOCK_UNITS, WIDE)
        error = product_tile(
            error_ptr,
            gates,
            1,
            weight_ptr,
            weight_gate_stride,
            weight_unit_stride,
            row,
            batch,
            unit,
            units,
            gates,
            error_ptr.dtype.element_ty,
            INPUT_PRECISION,
            WIDE,
            UPCAST,
            BLOCK_SUM,
        )
        within = inside[:, None] & (unit < units)[None, :]
        carried = carried_ptr + (row * units)[:, None] + unit[None, :]
        if ADD:
            error += tl.load(carried, mask=within, other=0.0)
        tl.store(carried, error, mask=within)
