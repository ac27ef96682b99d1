"""What the launches of recurrent layers share: how they are cut up, and what they write where gradients have gains.

Tiles, warps and stages per architecture and arithmetic are starting values, not yet measured: the smallest tile of the
batch that matrix units take gives the most programs, for a program owns a tile of the batch for all time steps. What
their kernels share is in `kernels/recurrence_tiles.py`; what their operators share is in
`kernels/recurrence_operators.py`, `kernels/recurrence_checks.py` and `kernels/recurrence_products.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pccompile.kernels.devices import (
    Architecture,
    architecture_of,
    interpreted,
    launch_options,
    precision_of,
)
from pccompile.kernels.launches import count_launch
from pccompile.kernels.tables import Space, overlaid
from pccompile.kernels.tiles import needs_wide_offsets

__all__ = [
    "CONFIGURATIONS",
    "SPACE",
    "Configuration",
    "Learned",
    "Plan",
    "configuration_for",
    "last_learned",
    "launch",
    "learned_of",
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


@dataclass(frozen=True)
class Plan:
    """The constants of one compiled launch.

    Attributes:
        input_precision: "ieee" or "tf32", of float32 products.
        wide: offsets within a time step are int64.
        upcast: multiply in float32, the interpreter's bfloat16 dot being wrong.
        block_batch, block_units, block_sum: as of `Configuration`.
    """

    input_precision: str
    wide: bool
    upcast: bool
    block_batch: int
    block_units: int
    block_sum: int


def launch(
    name: str,
    kernel: Any,
    sizes: tuple[int, int, int],
    pointers: Sequence[Tensor],
    strides: Sequence[int],
    within_a_step: Iterable[Tensor | None],
    input_precision: str,
    configuration: Configuration | None,
    **constants: Any,
) -> None:
    """Launch a kernel for all time steps, where there is anything in a step.

    Args:
        name: what the launch is counted as.
        kernel: takes pointers, sizes, strides, and PLAN and `constants` by keyword.
        sizes: (steps, batch, units); at least one step.
        pointers: tensors, of which the first decides arithmetic and device.
        strides: of what need not be contiguous.
        within_a_step: all that is read and written, of what is over time one step: pointers move by a step at a time,
            so offsets stay within one, and 32 bits are enough for most.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    first, (_, batch, units) = pointers[0], sizes
    architecture = architecture_of(first.device)
    chosen = configuration or configuration_for(architecture, precision_of(first.dtype, input_precision))
    if batch * units == 0:
        return
    plan = Plan(
        input_precision,
        needs_wide_offsets(*within_a_step),
        interpreted() and first.dtype is not torch.float32,
        chosen.block_batch,
        chosen.block_units,
        chosen.block_sum,
    )
    options = launch_options(architecture, chosen.warps, chosen.stages)
    count_launch(name)
    with torch.cuda.device_of(first):
        kernel[triton.cdiv(batch, chosen.block_batch),](*pointers, *sizes, *strides, PLAN=plan, **constants, **options)


class Learned(NamedTuple):
    """What an error launch writes for the gradients where these have a gain for each time step and gate.

    Attributes:
        inputs: (steps, batch, gates units), contiguous: the errors of what the inputs contribute, times their gains.
        states: likewise of what the hidden states contribute.
        gains: (2, steps, gates), contiguous, float32: those of the inputs' gradients, and of the hidden states'.
    """

    inputs: Tensor
    states: Tensor
    gains: Tensor


def learned_of(gates: int, gains: Tensor, error: Tensor) -> Learned:
    """Places for what an error launch writes for the gradients.

    Args:
        gates: how many times the units a gate's product is wide.
        gains: (2, steps, gates), float32.
        error: (steps, batch, units).
    """
    steps, batch, units = error.shape
    inputs, states = (error.new_empty(steps, batch, gates * units) for _ in range(2))
    return Learned(inputs, states, gains.contiguous())


def last_learned(learned: Learned | None, otherwise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last time step of `Learned`, as a kernel takes it: inputs, states, and the gains of both."""
    if learned is None:
        return (otherwise,) * 4
    return learned.inputs[-1], learned.states[-1], learned.gains[0, -1], learned.gains[1, -1]
