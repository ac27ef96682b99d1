"""The launches of strict_sweep: one per sweep, by tiles of the batch or cooperatively, or one per half-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
from torch import Tensor

from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.arrivals import arrival_counters
from pccompile.kernels.devices import architecture_of, interpreted, launch_options, precision_of
from pccompile.kernels.launches import count_launch
from pccompile.kernels.strict_sweep.configurations import (
    GRADIENTS,
    Configuration,
    GradientConfiguration,
    configuration_for,
)
from pccompile.kernels.strict_sweep.gradients import chain_gradients_kernel
from pccompile.kernels.strict_sweep.kernel import half_step_kernel, strict_sweep_kernel
from pccompile.kernels.strict_sweep.layout import Chain
from pccompile.kernels.strict_sweep.plan import GradientPlan, Loss, Phase, Plan
from pccompile.kernels.tiles import needs_wide_offsets

__all__ = ["FORMS", "Buffers", "Form", "Settings", "empty_buffers", "launch_chain_gradients", "launch_strict_sweep"]

Form = Literal["batch_tiles", "cooperative", "half_steps"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Settings:
    """What strict inference is told, all but the first four and the last two at run time.

    Attributes:
        loss: "cross_entropy" of class indices, or "squared_error", the sum of squared differences.
        free_output: the output has a free value that the loss reads; else the loss reads its prediction.
        learn_errors: "current", or "previous": those before the last move.
        record: write the energy of every sample in every step.
        steps: T.
        step_size: eta.
        momentum: of the values' descent; 0 is plain descent.
        loss_factor: what each sample's loss is multiplied by in the energy that inference descends.
        ignore_index: the class whose samples have no loss.
        negative_slope: of leaky_relu.
        input_precision: "ieee" or "tf32", of float32 products.
        averaged: divide the loss by the number of samples that are not ignored; for cross-entropy.
    """

    loss: Loss
    free_output: bool
    learn_errors: Literal["current", "previous"]
    record: bool
    steps: int
    step_size: float
    momentum: float
    loss_factor: float
    ignore_index: int
    negative_slope: float
    input_precision: str
    averaged: bool = False


class Buffers(NamedTuple):
    """What a sweep writes, layers side by side (layout.Layout), zeros between them.

    Attributes:
        values: (batch, columns) float32, v after the last move; of an output without a free value, its prediction.
        errors: (batch, columns) float32, e that Learn reads.
        drives: (batch, columns) float32, e act'(z); a network's have columns of their own.
        moments: (batch, columns) float32, or no elements where descent is plain.
        energies: (steps + 1, batch) float32, one row less for learn_errors="previous", or no elements.
    """

    values: Tensor
    errors: Tensor
    drives: Tensor
    moments: Tensor
    energies: Tensor


def empty_buffers(x: Tensor, columns: int, settings: Settings, drive_columns: int | None = None) -> Buffers:
    """Buffers for a sweep, not initialised.

    Args:
        x: (batch, in), for its batch and device.
        columns: of the layout.
        settings: what the sweep is told.
        drive_columns: of the drives, where they have others.
    """
    batch, widths = x.shape[0], (columns, columns, columns if drive_columns is None else drive_columns)
    values, errors, drives = (x.new_empty((batch, width), dtype=torch.float32) for width in widths)
    moments = x.new_empty((batch, columns) if settings.momentum != 0 else (0, 0), dtype=torch.float32)
    rows = settings.steps if settings.learn_errors == "previous" else settings.steps + 1
    energies = x.new_empty((rows, batch) if settings.record else (0, 0), dtype=torch.float32)
    return Buffers(values, errors, drives, moments, energies)


def launch_strict_sweep(
    x: Tensor,
    target: Tensor,
    chain: Chain,
    settings: Settings,
    buffers: Buffers,
    form: Form = "batch_tiles",
    configuration: Configuration | None = None,
    programs: int | None = None,
) -> None:
    """Run a whole sweep into buffers that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (batch, in).
        target: (batch,) int64 for cross-entropy, (batch, out) for the squared error.
        chain: the layers.
        settings: what the sweep is told.
        buffers: from empty_buffers; overwritten.
        form: "batch_tiles" and "cooperative" are one launch, "half_steps" one for each layer of the feed-forward pass
            and three for each step.
        configuration: how launches are cut up; None reads the architecture's table.
        programs: of "cooperative" and "half_steps", at most so many; None is one per multiprocessor, all of which are
            resident, and one per tile.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    batch, layers = x.shape[0], len(chain.weights)
    architecture = architecture_of(x.device)
    if batch == 0:
        return
    precision = precision_of(x.dtype, settings.input_precision)
    chosen = configuration or configuration_for(architecture, precision, batch)
    moves = settings.free_output or layers > 1
    plan = plan_of(x, target, chain, settings, buffers, chosen)
    options = launch_options(architecture, chosen.warps, chosen.stages)
    # Where nothing moves, no step changes anything: what the feed-forward pass leaves is what Learn reads.
    steps = settings.steps if moves else 0
    arguments = (
        x,
        target,
        chain.table(),
        buffers.values,
        buffers.errors,
        buffers.drives,
        buffers.moments,
        buffers.energies,
    )
    scalars = (
        batch,
        layers,
        steps,
        *x.stride(),
        *(target.stride() if target.dim() == 2 else (target.stride(0), 0)),
        buffers.values.stride(0),
        float(settings.step_size),
        float(settings.momentum),
        float(settings.loss_factor),
        float(settings.negative_slope),
        settings.ignore_index,
    )
    with torch.cuda.device_of(x):
        if form == "half_steps":
            _launch_half_steps(arguments, scalars, steps, chain, plan, options, programs)
        else:
            _launch_whole(arguments, scalars, chain, plan, options, form, programs)
    if buffers.energies.numel() and not moves:
        buffers.energies[1:] = buffers.energies[0]


def plan_of(
    x: Tensor, target: Tensor, chain: Chain, settings: Settings, buffers: Buffers, configuration: Configuration
) -> Plan:
    """What the kernel is compiled for."""
    residuals = [ACTIVATIONS[name].residual for name in chain.distinct]
    moves = settings.free_output or len(chain.weights) > 1
    return Plan(
        activations=chain.distinct,
        slopes_from_output=tuple(residual == "output" for residual in residuals),
        loss=settings.loss,
        averaged=settings.averaged,
        free_output=settings.free_output,
        momentum=settings.momentum != 0,
        held=settings.learn_errors == "previous" and moves,
        record=settings.record,
        aligned=chain.aligned,
        input_precision=settings.input_precision,
        wide=needs_wide_offsets(x, target, *chain.weights, *chain.biases, buffers.values, buffers.energies),
        upcast=interpreted() and x.dtype is not torch.float32,
        block_batch=configuration.block_batch,
        block_out=configuration.block_out,
        block_sum=configuration.block_sum,
    )


def _launch(name: str, kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Every launch of this folder, counted under that name."""
    count_launch(name)
    kernel[(programs,)](*arguments, **options)


def _launch_whole(
    arguments: tuple[Tensor, ...],
    scalars: tuple[Any, ...],
    chain: Chain,
    plan: Plan,
    options: dict[str, int],
    form: Form,
    most: int | None,
) -> None:
    cooperative = form == "cooperative"
    x = arguments[0]
    programs = triton.cdiv(x.shape[0], plan.block_batch)
    if cooperative:
        # One program per multiprocessor is always resident; more would need the compiled kernel's occupancy.
        tiles = programs * sum(triton.cdiv(width, plan.block_out) for width in chain.widths)
        programs = min(tiles, most or torch.cuda.get_device_properties(x.device).multi_processor_count)
        if not interpreted():
            options = {**options, "launch_cooperative_grid": True}
    counters = arrival_counters(x.device, 2) if cooperative else arguments[2]
    _launch(
        "strict_sweep",
        strict_sweep_kernel,
        programs,
        *arguments,
        counters,
        *scalars,
        PLAN=plan,
        COOPERATIVE=cooperative,
        **options,
    )


def _launch_half_steps(
    arguments: tuple[Tensor, ...],
    scalars: tuple[Any, ...],
    steps: int,
    chain: Chain,
    plan: Plan,
    options: dict[str, int],
    most: int | None,
) -> None:
    row_tiles = triton.cdiv(arguments[0].shape[0], plan.block_batch)
    tiles = [row_tiles * triton.cdiv(width, plan.block_out) for width in chain.widths]

    def launch(phase: Phase, programs: int, layer: int = 0, step: int = 0) -> None:
        if programs:
            _launch(
                "strict_half_step",
                half_step_kernel,
                min(programs, most or programs),
                *arguments,
                *scalars,
                layer,
                step,
                PLAN=plan,
                PHASE=phase,
                **options,
            )

    moving = len(tiles) if plan.free_output else len(tiles) - 1
    launch("first", tiles[0])
    for layer in range(1, len(tiles)):
        launch("start", tiles[layer], layer)
    for step in range(steps if plan.held else steps + 1):
        if step > 0:
            launch("predict", sum(tiles[1:][-step - 1 + plan.free_output :]), step=step)
        launch("loss", row_tiles, step=step)
        if step < steps:
            launch("infer", sum(tiles[:moving][-step - 1 :]), step=step)
    if plan.held:
        launch("held", sum(tiles[1:]), step=steps)
    launch("finish", tiles[0])


def launch_chain_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    chain: Chain,
    gradients: Tensor,
    factor: float,
    upstream: Tensor | None,
    input_precision: str,
    configuration: GradientConfiguration | None = None,
) -> None:
    """Write factor d_l^T v_{l-1} and factor sum(d_l) of every layer, in one launch. Arguments are not checked.

    Args:
        x: (batch, in).
        values, drives: from a sweep.
        chain: the layers.
        gradients: as many elements as the layout says, overwritten.
        factor: of the gradients.
        upstream: a further factor on the device, (), float32, or None.
        input_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture = architecture_of(x.device)
    chosen = configuration or GRADIENTS[architecture][precision_of(x.dtype, input_precision)]
    programs = sum(
        triton.cdiv(weight.shape[0], chosen.block_out) * max(triton.cdiv(weight.shape[1], chosen.block_in), 1)
        for weight in chain.weights
    )
    if programs == 0:
        return
    with torch.cuda.device_of(x):
        _launch(
            "chain_gradients",
            chain_gradients_kernel,
            programs,
            x,
            chain.table(),
            values,
            drives,
            gradients,
            values if upstream is None else upstream,
            x.shape[0],
            len(chain.weights),
            *x.stride(),
            values.stride(0),
            float(factor),
            PLAN=GradientPlan(
                upstream=upstream is not None,
                input_precision=input_precision,
                wide=needs_wide_offsets(x, values, *chain.weights),
                upcast=interpreted() and x.dtype is not torch.float32,
                block_out=chosen.block_out,
                block_in=chosen.block_in,
                block_batch=chosen.block_rows,
            ),
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
