"""The launch of generated pointwise kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from pccompile.kernels.arrivals import arrival_counters, release_lanes
from pccompile.kernels.devices import architecture_of, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.pointwise.configurations import Configuration, configuration_for
from pccompile.kernels.pointwise.plan import Plan
from pccompile.kernels.tiles import needs_wide_offsets

__all__ = ["launch_pointwise"]

_FOLDED = 16  # partial sums that are read at once


def launch_pointwise(
    plan: Plan, inputs: Sequence[Tensor | float], outputs: Sequence[Tensor], configuration: Configuration | None = None
) -> None:
    """Run a plan into tensors that the caller owns. Arguments are not checked; the operator does.

    Args:
        plan: for inputs of these kinds.
        inputs: the graph's: tensors, and numbers that are any.
        outputs: of the plan's kinds, overwritten.
        configuration: how the launch is cut up; None chooses.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    device = outputs[0].device
    architecture = architecture_of(device)
    space = plan.space
    kept, reduced = math.prod(space.kept), math.prod(space.reduced)
    if kept == 0 or reduced == 0:
        for output in outputs:
            output.zero_()  # sums of nothing
        return
    chosen = configuration or configuration_for(
        architecture,
        precision_of(outputs[0].dtype, "ieee"),
        kept,
        reduced if space.reduced else None,
        space.reduced_fastest,
    )
    blocks = triton.cdiv(triton.cdiv(reduced, chosen.block_reduced), chosen.shares)
    shares = triton.cdiv(triton.cdiv(reduced, chosen.block_reduced), blocks)
    kept_blocks = triton.cdiv(kept, chosen.block_kept)
    tensors = [*(value for value in inputs if isinstance(value, Tensor)), *outputs]
    arguments: list[Tensor | float] = [*tensors, *(float(value) for value in inputs if not isinstance(value, Tensor))]
    if space.reduced:
        arguments.append(torch.empty(sum(plan.sums), shares, kept, dtype=torch.float32, device=device))
        arguments.append(arrival_counters(device, kept_blocks))
    arguments += [kept, reduced, blocks] if space.reduced else [kept]
    arguments += [*space.kept[1:], *space.reduced[1:]]
    sums = (*[False] * (len(tensors) - len(outputs)), *plan.sums)
    for kept_strides, reduced_strides, summed in zip(space.kept_strides, space.reduced_strides, sums, strict=True):
        arguments += kept_strides if summed else (*kept_strides, *reduced_strides)
    options: dict[str, int] = {"BLOCK_KEPT": chosen.block_kept}
    if space.reduced:
        options |= {
            "BLOCK_REDUCED": chosen.block_reduced,
            "SHARES": _FOLDED,
            "RELEASE_LANES": release_lanes(architecture, chosen.warps),
        }
    grid = (kept_blocks, shares) if space.reduced else (kept_blocks,)
    count_launch("pointwise")
    with torch.cuda.device_of(outputs[0]):
        plan.kernel[grid](*arguments, WIDE=needs_wide_offsets(*tensors), **options, num_warps=chosen.warps)
